"""`xelink-sidecar`: signals first, everything else after."""

import sys

from xelink.daemon.signals import hold_signals


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, or once with -oneshot; return the exit code."""
    hold_signals()
    from sidecar.start import start  # noqa: PLC0415 - takes a while, in which a signal may come

    return start(arguments)


if __name__ == "__main__":
    sys.exit(main())
