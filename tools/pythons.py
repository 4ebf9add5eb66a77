# ruff: noqa: INP001 - a program, not a package
"""List the Pythons of this machine on which xelink can be built, 3.11 or later.

    python3 tools/pythons.py           one of each minor version, as "3.13.0 /usr/bin/python3.13"
    python3 tools/pythons.py --all     every release

It looks in the PATH and where pyenv and uv put theirs. One that cannot make a virtual environment
with pip, as Debian's without python3-venv, is none.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_TIMEOUT = 30.0
_OLDEST = (3, 11)
# name = "python3" [ "." minor ] ; minor = 11 or more
_NAME = re.compile(r"python3(\.(1[1-9]|[2-9]\d))?", re.ASCII)
# What is called python3 may be a script that chooses one.
_ASK = """
import ensurepip, os, platform, sys, venv
if platform.python_implementation() == "CPython":
    print(*sys.version_info[:3], os.path.realpath(sys.executable))
"""


class Python(NamedTuple):
    """A Python: its release, such as (3, 13, 0), and its program."""

    release: tuple[int, int, int]
    path: Path

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.release))} {self.path}"


def pythons(environment: Mapping[str, str]) -> list[Python]:
    """Return one Python of each release that is here, in ascending order."""
    found: dict[tuple[int, int, int], Python] = {}
    for path in dict.fromkeys(path.resolve() for path in candidates(environment)):
        python = ask(path)
        if python and python.release >= _OLDEST:
            found.setdefault(python.release, python)
    return sorted(found.values())


def newest(every: Iterable[Python]) -> list[Python]:
    """Return the newest release of each minor version, in ascending order."""
    return list({python.release[:2]: python for python in sorted(every)}.values())


def candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield what is called as a Python is, where Pythons are found."""
    home = Path(environment.get("HOME", "/"))
    pyenv = Path(environment.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    uv = Path(
        environment.get("UV_PYTHON_INSTALL_DIR") or home / ".local" / "share" / "uv" / "python"
    )
    folders = [Path(folder) for folder in environment.get("PATH", "").split(os.pathsep) if folder]
    folders += sorted([*pyenv.glob("*/bin"), *uv.glob("*/bin")])
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names
        except OSError:
            continue
        yield from (folder / name for name in names if _NAME.fullmatch(name))


def ask(path: Path) -> Python | None:
    """Ask a program which Python it is; None when it is not one that can be built with."""
    try:
        told = subprocess.run(  # noqa: S603 - what is called python3
            [path, "-I", "-c", _ASK], capture_output=True, text=True, check=False, timeout=_TIMEOUT
        ).stdout.split(maxsplit=3)
        major, minor, micro, real = told
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Python((int(major), int(minor), int(micro)), Path(real.strip()))


def main() -> int:
    """Print them; return 1 when there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every release, not one of each minor")
    options = parser.parse_args()
    every = pythons(os.environ)
    for python in every if options.all else newest(every):
        sys.stdout.write(f"{python}\n")
    return 0 if every else 1


if __name__ == "__main__":
    sys.exit(main())
