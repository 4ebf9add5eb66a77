"""`xelink-device-plugin`: signals first, everything else after."""

import sys
from collections.abc import Sequence

from service.lean import leave_out, no_pydantic_plugins, nothing_to_collect
from service.signals import hold_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; give the exit code."""
    hold_signals()
    leave_out("bz2", "click", "lzma", "rich")
    no_pydantic_plugins()
    with nothing_to_collect():  # takes a while, in which a signal may come
        from device_plugin.daemon import run  # noqa: PLC0415 - this is the while

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
