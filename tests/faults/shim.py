"""The preloaded shim: a clock that jumps, calls of the file system that fail, no IPv6."""

import atexit
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

_SOURCE = Path(__file__).with_name("shim.c")


class LackingError(Exception):
    """The shim cannot be had on this machine: what needs it is left out, saying why."""


@cache
def library() -> Path:
    """Compile the shim, once for this process. Raises `LackingError`."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise LackingError("there is no C compiler (cc)")
    folder = mkdtemp(prefix="xelink-shim")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LackingError(f"cc cannot compile the shim: {done.stderr.strip()}")
    return made


class Shim:
    """What is wrong for one process: give it `environment`, then say what goes wrong."""

    def __init__(self, told: Path, root: Path) -> None:
        """Let calls below `root` fail as the file `told` says. Raises `LackingError`."""
        self._told = told
        self._wrong: dict[str, int] = {}
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library()),
            "XELINK_SHIM": str(told),
            "XELINK_SHIM_ROOT": str(root),
        }

    def say(self, name: str, number: int) -> None:
        """Let a call fail with this errno, or the clock be so many seconds off; 0 mends it."""
        self._wrong[name] = number
        text = "".join(f"{name} {number}\n" for name, number in self._wrong.items() if number)
        staged = self._told.with_suffix(".staged")
        staged.write_text(text)
        staged.rename(self._told)

    @contextmanager
    def failing(self, call: str, number: int) -> Iterator[None]:
        """Let a call fail while the block runs."""
        self.say(call, number)
        try:
            yield
        finally:
            self.say(call, 0)
