"""`xelink-device-plugin`: signals first, everything else after."""

import sys

from xelink.daemon.signals import hold_signals


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    hold_signals()
    from device_plugin.start import start  # noqa: PLC0415 - takes a while, in which a signal may come

    return start(arguments)


if __name__ == "__main__":
    sys.exit(main())
