# ruff: noqa: INP001 - a program, not a package
"""Build a virtual environment from a lock file, and say meanwhile what is being done.

    python3 tools/environment.py .venv requirements.lock
    python3 tools/environment.py .venv requirements-dev.lock --editable

A lock is complete and is installed as it stands: pip resolves nothing, so neither its version nor
what the index has today changes what is installed. Runs on a bare Python: it comes before all else.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE_EVERY = 5.0
"""Seconds. Nobody waits for longer without a word."""


def main() -> int:
    """Build or complete the environment; return the exit code of the first step that failed."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="exit codes: 0 it is ready, 1 a step failed and said why, 2 wrong call",
    )
    parser.add_argument("environment", type=Path, help="the folder to build, such as .venv")
    parser.add_argument("lock", type=Path, help="the lock file to install")
    parser.add_argument("--editable", action="store_true", help="install xelink's commands, too")
    options = parser.parse_args()
    python = str(options.environment / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps"]
    release = sys.version.partition(" ")[0]
    create = [sys.executable, "-m", "venv", "--clear", str(options.environment)]
    packages = [*install, "--require-hashes", "--requirement", str(options.lock)]
    what = f"installing {locked(options.lock)} packages from {options.lock.name}"
    commands = [*install, "--no-build-isolation", "--editable", str(ROOT)]
    done = (
        (runs(python) or step(f"building {options.environment} with Python {release}", create))
        and step(what, packages)
        and step("checking that they fit together", [*pip, "check"])
        and (not options.editable or step("installing the commands of xelink", commands))
    )
    return 0 if done else 1


def runs(python: str) -> bool:
    """Return whether an environment is there and its Python starts."""
    try:
        return subprocess.run([python, "-c", ""], check=False).returncode == 0  # noqa: S603 - ours
    except OSError:
        return False


def locked(lock: Path) -> int:
    """Return how many packages a lock file pins; some are for other systems or Pythons only."""
    return sum("==" in line and line[0].isalnum() for line in lock.read_text().splitlines())


def step(what: str, command: list[str]) -> bool:
    """Run a command, say that it goes on, and show what it printed if it failed."""
    say(f"{what} ...\n")
    begun = time.monotonic()
    with subprocess.Popen(  # noqa: S603 - venv and pip, an argument list
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        output = None
        while output is None:
            try:
                output, _ = process.communicate(timeout=NOTE_EVERY)
            except subprocess.TimeoutExpired:
                say(f"  {time.monotonic() - begun:.0f} s\n")
    if process.returncode:
        say(f"{output}\n{what}: failed\n")
    return process.returncode == 0


def say(text: str) -> None:
    """Print at once, also where nobody looks at a terminal."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
