"""How the plugin starts: settings beside, the daemon meanwhile, and no more than it needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xelink.daemon.command import run_command
from xelink.daemon.forked import beside
from xelink.daemon.lazy_imports import lean_settings, leave_out, no_openssl, nothing_to_collect
from xelink.daemon.stdio import stand_in, unbuffer_stderr

if TYPE_CHECKING:
    from device_plugin.settings import PluginSettings
    from xelink.daemon.loaded_settings import Loaded


def start(arguments: Sequence[str] | None) -> int:
    """Read the settings and run the daemon; give the exit code."""
    stand_in()
    unbuffer_stderr()
    settings = beside(lambda: read(arguments))
    leave_out("bz2", "click", "lzma", "rich")
    with nothing_to_collect():
        no_openssl()
        from device_plugin.daemon import run  # noqa: PLC0415 - after what makes it lean

    return run_command("xelink-device-plugin", settings, run)


def read(arguments: Sequence[str] | None) -> "Loaded[PluginSettings] | int":
    """Read the settings, or give the exit code of what was said in their place."""
    lean_settings()
    with nothing_to_collect():
        from device_plugin.settings import PluginSettings  # noqa: PLC0415 - in a process that ends
        from xelink.daemon.command_line import answer  # noqa: PLC0415 - with pydantic, as above

    return answer(PluginSettings, arguments)
