"""`xelink-device-plugin`: signals first, settings beside, everything else after."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.beside import beside
from service.command import run_command
from service.lean import lean_settings, leave_out, no_openssl, nothing_to_collect
from service.signals import hold_signals
from service.streams import stand_in

if TYPE_CHECKING:
    from device_plugin.settings import PluginSettings
    from service.loaded import Loaded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; give the exit code."""
    hold_signals()
    stand_in()
    settings = beside(lambda: read(arguments))
    leave_out("bz2", "click", "lzma", "rich")
    with nothing_to_collect():  # takes a while, in which a signal may come
        no_openssl()
        from device_plugin.daemon import run  # noqa: PLC0415 - this is the while

    return run_command(settings, run)


def read(arguments: Sequence[str] | None) -> "Loaded[PluginSettings] | int":
    """Read the settings, or give the exit code of what was said in their place."""
    lean_settings()
    with nothing_to_collect():
        from device_plugin.settings import PluginSettings  # noqa: PLC0415 - in a process that ends
        from service.answering import answer  # noqa: PLC0415 - with pydantic, as above

    return answer(PluginSettings, arguments)


if __name__ == "__main__":
    sys.exit(main())
