"""Imports that a daemon does without, or does when it comes to them: memory, and time to start."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def leave_out(*modules: str) -> None:
    """Make modules look as if they were not installed.

    structlog and httpx take whatever they find for tracebacks and command lines of their own. A
    daemon needs none of it, and it takes 5 MB and a tenth of its time to start.
    """
    for module in modules:
        sys.modules[module] = None  # type: ignore[assignment] # what makes an import fail


def put_off(*modules: str) -> None:
    """Import modules only when something in them is asked for, which may be never.

    For what libraries import as a whole and use in functions that a daemon does not call. The
    standard library's `LazyLoader` is not enough: a second `import` of the module loads it.
    """
    for module in modules:
        spec = find_spec(module)
        if spec and module not in sys.modules:
            sys.modules[module] = _Late(spec)


class _Late(ModuleType):
    """A module that is loaded by the first question for what is in it."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__ = spec, spec.loader
        self.__file__, self.__package__ = spec.origin, spec.parent

    def __getattr__(self, name: str) -> object:
        # Imports look at attributes, too: at the path where one of its modules is imported.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment] # no late one any more
        if self.__spec__ and self.__spec__.submodule_search_locations is not None:
            self.__path__ = self.__spec__.submodule_search_locations
        if self.__spec__ and self.__spec__.loader:
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def no_task_names() -> None:
    """Keep logging from asking asyncio for the task of every line, for a daemon that has none.

    From Python 3.12 on it would, as soon as there is a module of that name, and so load it.
    """
    import logging  # noqa: PLC0415 - what only settings are read for does without

    vars(logging)["logAsyncioTasks"] = False


def no_openssl() -> None:
    """Run as in a Python that was built without OpenSSL: 5 MB, for a daemon that has no TLS.

    asyncio and http do without by themselves, and hashlib where Python has hashes of its own.
    prometheus_client only names what is in `ssl`, for functions that serve over TLS.
    """
    leave_out("_ssl", "ssl", *_needless_hashes())
    import asyncio.sslproto  # noqa: F401, PLC0415 - before there is something by that name

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
    """Name the module of OpenSSL's hashes, unless Python was built to have no others."""
    own = any(all(map(find_spec, names)) for names in _OWN_HASHES)
    return ("_hashlib",) if own else ()


def lean_settings() -> None:
    """Keep pydantic and its settings from importing what reading a few flags does not need.

    pydantic would look for plugins in the metadata of all that is installed, whatever
    PYDANTIC_DISABLE_PLUGINS says. Without the module that does it, nothing is missed.
    """
    leave_out("click", "rich", *_needless_hashes())
    put_off("asyncio", "secrets")
    loader = ModuleType("pydantic.plugin._loader")
    loader.get_plugins = tuple  # type: ignore[attr-defined] # none
    sys.modules[loader.__name__] = loader


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Run a block of imports without the garbage collector; what they leave is none, for ever.

    It would look through all modules again and again, a tenth of the time to start.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
