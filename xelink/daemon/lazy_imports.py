"""Imports that a daemon blocks or defers, to save memory and start time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def block_imports(*modules: str) -> None:
    """Make modules look as if they were not installed.

    structlog and httpx import optional modules for tracebacks and command lines of their own. A
    daemon needs none of them, and they cost 5 MB and a tenth of the start time.
    """
    for module in modules:
        sys.modules[module] = None  # type: ignore[assignment] # None makes the import fail


def defer_imports(*modules: str) -> None:
    """Import modules only when one of their attributes is used, which may be never.

    This is for modules that libraries import and use only in functions that a daemon does not call.
    The standard library's `LazyLoader` does not suffice: a second `import` loads the module.
    """
    for module in modules:
        spec = find_spec(module)
        if spec and module not in sys.modules:
            sys.modules[module] = _LazyModule(spec)


class _LazyModule(ModuleType):
    """A module that is loaded when one of its attributes is first used."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__ = spec, spec.loader
        self.__file__, self.__package__ = spec.origin, spec.parent

    def __getattr__(self, name: str) -> object:
        # Imports use attributes, too: `__path__`, to import a submodule.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment] # now an ordinary module
        if self.__spec__ and self.__spec__.submodule_search_locations is not None:
            self.__path__ = self.__spec__.submodule_search_locations
        if self.__spec__ and self.__spec__.loader:
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def no_task_names() -> None:
    """Keep logging from looking up the asyncio task of every line, for a daemon without asyncio.

    From Python 3.12 on it does so if a module of that name exists, and would load it.
    """
    import logging  # noqa: PLC0415 - the settings child does not need it

    vars(logging)["logAsyncioTasks"] = False


def no_openssl(*, with_asyncio: bool = True) -> None:
    """Block OpenSSL as in a Python that was built without it, which saves 5 MB without TLS.

    asyncio and http work without it, and so does hashlib if Python has its own hashes.
    prometheus_client uses names of `ssl` in annotations and defaults of functions that serve TLS.
    """
    block_imports("_ssl", "ssl", *_needless_hashes())
    if with_asyncio:
        import asyncio.sslproto  # noqa: F401, PLC0415 - before the stub exists

    named = ModuleType("ssl")
    annotations = dict.fromkeys(("SSLContext", "TLSVersion"), object)
    defaults = dict.fromkeys(("PROTOCOL_TLS_CLIENT", "PROTOCOL_TLS_SERVER"), 0)
    vars(named).update(annotations, **defaults)
    sys.modules[named.__name__] = named


# Python's own, as modules: before 3.12 and since
_OWN_HASHES = (
    {"_blake2", "_md5", "_sha1", "_sha256", "_sha3", "_sha512"},
    {"_blake2", "_md5", "_sha1", "_sha2", "_sha3"},
)


def _needless_hashes() -> tuple[str, ...]:
    """Return the module of OpenSSL's hashes, unless Python was built without its own."""
    own = any(all(map(find_spec, names)) for names in _OWN_HASHES)
    return ("_hashlib",) if own else ()


def trim_pydantic() -> None:
    """Keep pydantic from importing what parsing a few flags does not need.

    pydantic searches the metadata of all installed packages for plugins, even with
    PYDANTIC_DISABLE_PLUGINS. A stub replaces the module that does so.
    """
    block_imports("click", "rich", *_needless_hashes())
    defer_imports("asyncio", "secrets")
    loader = ModuleType("pydantic.plugin._loader")
    loader.get_plugins = tuple  # type: ignore[attr-defined] # none
    sys.modules[loader.__name__] = loader


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector for a block of imports, and exclude their objects from it.

    Scanning all modules again and again would take a tenth of the start time.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
