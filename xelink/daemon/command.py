"""A daemon's command: how it ends."""

from collections.abc import Callable

from xelink.daemon.loaded_settings import Loaded, S
from xelink.daemon.stdio import complain

OK = 0
CANNOT_START = 1
USAGE = 2


class CannotStartError(Exception):
    """There is no use in going on until somebody acts; its text is the line that says so."""


def run_command(
    program: str, read: Callable[[], Loaded[S] | int], run: Callable[[Loaded[S]], int]
) -> int:
    """Read the settings and `run`; give its exit code, or the one that came in their place."""
    try:
        loaded = read()
        return loaded if isinstance(loaded, int) else run(loaded)
    except CannotStartError as error:
        complain(f"{program}: {error}")
        return CANNOT_START
