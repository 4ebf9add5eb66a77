"""What a daemon does not import is as good as imported when something asks for it, after all."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from xelink.daemon.version import VERSION


def told(program: str) -> str:
    """Run a program in a Python of its own: what is imported there must not be imported here.

    Nor does it measure coverage, which imports what it pleases.
    """
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=bare
    )
    return ended.stdout.strip()


PUT_OFF = """
import sys
from xelink.daemon.lazy_imports import defer_imports
defer_imports("json", "wave", "no_such_module")
import json, wave
import json as again
print(sorted({"json.decoder", "chunk", "struct"} & sys.modules.keys()))
"""


def test_a_module_that_is_put_off_is_not_loaded_by_imports() -> None:
    assert told(PUT_OFF) == "[]"


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("json.loads('[1]')", "[1]"),
        ("again.dumps([1])", "[1]"),
        ("__import__('json.decoder').decoder.JSONDecoder().decode('7')", "7"),
        ("__import__('json', fromlist=['loads']).loads('8')", "8"),
        ("getattr(json, 'nothing', 'no such name')", "no such name"),
        ("json is again is sys.modules['json'], type(json).__name__", "True _LazyModule"),
        ("json.loads and type(json).__name__", "module"),
        ("json.__name__, json.__file__ == json.loads.__code__.co_filename", "json True"),
    ],
)
def test_it_is_loaded_when_something_in_it_is_used(use: str, expected: str) -> None:
    assert told(f"{PUT_OFF}print({use})").splitlines()[-1] == expected


def test_a_module_that_is_there_already_stays_as_it_is() -> None:
    program = (
        "import json; from xelink.daemon.lazy_imports import defer_imports; defer_imports('json'); "
        "print(json.loads)"
    )
    assert told(f"import sys; {program}; print(sys.modules['json'] is json)").endswith("True")


def test_a_module_that_is_not_installed_cannot_be_imported_later_either() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        told(f"{PUT_OFF}import no_such_module")


def test_the_collector_works_again_after_the_imports_and_leaves_them_alone() -> None:
    program = """
import gc
from xelink.daemon.lazy_imports import gc_paused
with gc_paused():
    print(gc.isenabled())
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert told(program).split() == ["False", "True", "True"]


SETTINGS = """
import sys
from xelink.daemon.lazy_imports import trim_pydantic
trim_pydantic()
from pydantic import BaseModel, ValidationError
class Counted(BaseModel):
    count: int
print(Counted(count="7").count, "importlib.metadata" in sys.modules)
try:
    Counted(count="x")
except ValidationError as error:
    print(error.error_count())
"""


def test_pydantic_checks_without_plugins_and_without_looking_for_them() -> None:
    assert told(SETTINGS).split() == ["7", "False", "1"]


LOADED = "import sys\nfrom sidecar.start import load\nload()\n"


HASHES = """
import sys
from xelink.daemon import lazy_imports
lazy_imports.block_imports("_blake2", "_md5", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512")
lazy_imports.no_openssl()
import hashlib
print(hashlib.sha256(b"").hexdigest()[:8], sys.modules["_ssl"])
"""


def test_a_python_whose_hashes_are_all_openssl_s_keeps_them() -> None:
    assert told(HASHES).split() == ["e3b0c442", "None"]


SIGNALS = """
import _signal, sys
loaded = []
_signal.pthread_sigmask = lambda *_: loaded.append(len(sys.modules)) or sys.exit()
before = len(sys.modules)
from {daemon}.__main__ import main
try:
    main(["-version"])
except SystemExit:
    print(loaded[0] - before, "pickle" in sys.modules)
"""


@pytest.mark.parametrize("daemon", ["sidecar", "device_plugin"])
def test_hardly_anything_is_imported_before_signals_are_held(daemon: str) -> None:
    more, pickle = told(SIGNALS.format(daemon=daemon)).split()
    assert int(more) <= 5
    assert pickle == "False"


def test_a_sidecar_holds_nothing_that_it_does_not_use() -> None:
    unused = {"asyncio.events", "bz2", "idna.core", "importlib.metadata", "lzma", "zipfile"}
    found = told(f"{LOADED}print({unused} & {{n for n, m in sys.modules.items() if m}})")
    assert found == "set()"


def test_in_a_sidecar_the_rest_of_a_library_still_works() -> None:
    name, loop = "bücher.example", "asyncio.run(asyncio.sleep(0, 'slept'))"
    program = f"{LOADED}import httpx, asyncio\nprint(httpx.URL('http://{name}/').raw_host, {loop})"
    assert told(program) == "b'xn--bcher-kva.example' slept"


def test_the_release_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
