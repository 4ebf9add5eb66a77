"""`xelink-sidecar`: signals first, everything else after."""

import sys
from collections.abc import Callable, Sequence

from service.lean import leave_out, no_pydantic_plugins, nothing_to_collect, put_off
from service.signals import hold_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, or once with -oneshot; give the exit code."""
    hold_signals()
    return load()(arguments)


def load() -> Callable[[Sequence[str] | None], int]:
    """Import the daemon and no more than it needs; that takes a while, and a signal may come."""
    leave_out("bz2", "click", "lzma", "rich")
    put_off("asyncio", "idna", "secrets")
    no_pydantic_plugins()
    with nothing_to_collect():
        from sidecar.daemon import run  # noqa: PLC0415 - after what makes it lean

    return run


if __name__ == "__main__":
    sys.exit(main())
