"""A daemon's command: what it answers at once, and how it ends."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from service.flags import HelpWanted, Loaded, S, UsageError, help_text, load
from service.probes import ListenError

OK = 0
CANNOT_START = 1
USAGE = 2


def run_command(
    settings: type[S], arguments: Sequence[str] | None, run: Callable[[Loaded[S]], int]
) -> int:
    """Answer -h, -version, -print-config and bad usage, or `run`; give the exit code."""
    try:
        loaded = load(settings, sys.argv[1:] if arguments is None else arguments)
        if answer := _answer(loaded):
            sys.stderr.writelines(f"{settings.PROGRAM}: {text}\n" for text in loaded.warnings)
            sys.stdout.write(f"{answer}\n")
            return OK
        return run(loaded)
    except HelpWanted:
        sys.stdout.write(f"{help_text(settings)}\n")
        return OK
    except (UsageError, ListenError) as error:
        sys.stderr.write(f"{settings.PROGRAM}: {error}\n")
        return USAGE if isinstance(error, UsageError) else CANNOT_START
    except BrokenPipeError:  # what we print is read no longer, as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _answer(loaded: Loaded[S]) -> str | None:
    if loaded.settings.version:
        return f"{loaded.settings.PROGRAM} {version('xelink')}"
    return loaded.print_config() if loaded.settings.print_config else None
