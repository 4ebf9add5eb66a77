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
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE_EVERY = 5.0
"""Seconds. Nobody waits for longer without a word."""

_INTERRUPTED = 130
_CANNOT_RUN = 127


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or complete the environment; return the exit code of the first step that failed."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="exit codes: 0 it is ready, 1 a step failed and said why, 2 wrong call",
    )
    parser.add_argument("environment", type=Path, help="the folder to build, such as .venv")
    parser.add_argument("lock", type=Path, help="the lock file to install")
    parser.add_argument("--editable", action="store_true", help="install xelink's commands, too")
    parser.add_argument("--anew", action="store_true", help="build it anew if it is another Python")
    options = parser.parse_args(arguments)
    if not options.lock.is_file():
        parser.error(f"there is no lock file {options.lock}")
    steps = installation(options.environment, options.lock, editable=options.editable)
    built = is_built(options.environment, release() if options.anew else None)
    try:
        done = (built or build(options.environment)) and all(
            step(what, command) for what, command in steps
        )
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0 if done else 1


def build(environment: Path) -> bool:
    """Make an environment that has nothing but pip, in place of whatever was there."""
    command = [sys.executable, "-m", "venv", "--clear", str(environment)]
    if not step(f"building {environment} with Python {release()}", command):
        return False
    _mark(environment).touch()
    return True


def installation(
    environment: Path, lock: Path, *, editable: bool
) -> Iterator[tuple[str, list[str]]]:
    """Return what is done to install a lock, and the command of each step."""
    pip = [str(_python(environment)), "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps"]
    yield (
        f"installing {locked(lock)} packages from {lock.name}",
        [*install, "--require-hashes", "--requirement", str(lock)],
    )
    yield "checking that they fit together", [*pip, "check"]
    if editable:
        yield (
            "installing the commands of xelink",
            [*install, "--no-build-isolation", "--editable", str(ROOT)],
        )


def is_built(environment: Path, version: str | None) -> bool:
    """Return whether an environment was built to the end and its Python starts.

    With a `version`, it must also be of that Python.
    """
    if not _mark(environment).exists():
        return False
    command = [str(_python(environment)), "-c", "import sys; print(sys.version.split()[0])"]
    try:
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ours
    except OSError:
        return False
    return told.returncode == 0 and version in {None, told.stdout.strip()}


def release() -> str:
    """Return the version of this Python."""
    return sys.version.partition(" ")[0]


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _mark(environment: Path) -> Path:
    """Return the file that says that an environment has its pip: a build may be interrupted."""
    return environment / ".built"


def locked(lock: Path) -> int:
    """Return how many packages a lock file pins; some are for other systems or Pythons only."""
    return sum("==" in line and line[0].isalnum() for line in lock.read_text().splitlines())


def step(what: str, command: Sequence[str], note_every: float = NOTE_EVERY) -> bool:
    """Run a command, say that it goes on, and show what it printed if it failed."""
    say(f"{what} ...\n")
    code, output = wait(command, note_every)
    if code:
        say(f"{output}\n{what}: failed\n")
    return code == 0


def wait(command: Sequence[str], note_every: float) -> tuple[int, str]:
    """Run a command, saying every so many seconds how long it has taken.

    Return its exit code and what it printed.
    """
    begun = time.monotonic()
    try:
        process = subprocess.Popen(  # noqa: S603 - venv and pip, an argument list
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return _CANNOT_RUN, f"{command[0]}: {error.strerror}"
    with process:
        while True:
            try:
                output, _ = process.communicate(timeout=note_every)
            except subprocess.TimeoutExpired:
                say(f"  {time.monotonic() - begun:.0f} s\n")
            else:
                return process.returncode, output


def say(text: str) -> None:
    """Print at once, also where nobody looks at a terminal."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
