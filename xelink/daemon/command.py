"""A daemon's command and its exit codes."""

from collections.abc import Callable

from xelink.daemon.loaded_settings import Loaded, S
from xelink.daemon.stdio import write_stderr

OK = 0
CANNOT_START = 1
USAGE = 2


class CannotStartError(Exception):
    """The daemon cannot start: the message is printed, and the exit code is 1."""


def run_command(
    program: str, read: Callable[[], Loaded[S] | int], run: Callable[[Loaded[S]], int]
) -> int:
    """Read the settings and call `run`; return its exit code, or the one that `read` returned."""
    try:
        loaded = read()
        return loaded if isinstance(loaded, int) else run(loaded)
    except CannotStartError as error:
        write_stderr(f"{program}: {error}")
        return CANNOT_START
