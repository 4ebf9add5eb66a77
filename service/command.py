"""A daemon's command: what it answers at once, and how it ends."""

import sys
from collections.abc import Callable, Sequence

from service.flags import HelpWanted, Loaded, S, UsageError, help_text, load
from service.probes import ListenError
from service.release import VERSION
from service.stdout import forget_stdout

OK = 0
CANNOT_START = 1
USAGE = 2


def run_command(
    settings: type[S], arguments: Sequence[str] | None, run: Callable[[Loaded[S]], int]
) -> int:
    """Answer -h, -version, -print-config and bad usage, or `run`; give the exit code."""
    try:
        loaded = load(settings, sys.argv[1:] if arguments is None else arguments)
    except HelpWanted:
        return _say(settings.PROGRAM, help_text(settings))
    except UsageError as error:
        sys.stderr.write(f"{settings.PROGRAM}: {error}\n")
        return USAGE
    if answer := _answer(loaded):
        sys.stderr.writelines(f"{settings.PROGRAM}: {text}\n" for text in loaded.warnings)
        return _say(settings.PROGRAM, answer)
    try:
        return run(loaded)
    except ListenError as error:
        sys.stderr.write(f"{settings.PROGRAM}: {error}\n")
        return CANNOT_START


def _say(program: str, text: str) -> int:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()
    except OSError as error:
        forget_stdout()
        sys.stderr.write(f"{program}: cannot print: {error.strerror or error}\n")
        return CANNOT_START
    return OK


def _answer(loaded: Loaded[S]) -> str | None:
    if loaded.settings.version:
        return f"{loaded.settings.PROGRAM} {VERSION}"
    return loaded.print_config() if loaded.settings.print_config else None
