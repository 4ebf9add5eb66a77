"""How the plugin starts: settings beside, the daemon meanwhile, and no more than it needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xelink.daemon.command import run_command
from xelink.daemon.forked import run_in_child
from xelink.daemon.lazy_imports import block_imports, gc_paused, no_openssl, trim_pydantic
from xelink.daemon.stdio import open_missing_streams, unbuffer_stderr

if TYPE_CHECKING:
    from device_plugin.settings import PluginSettings
    from xelink.daemon.loaded_settings import Loaded


def start(arguments: Sequence[str] | None) -> int:
    """Read the settings and run the daemon; return the exit code."""
    open_missing_streams()
    unbuffer_stderr()
    settings = run_in_child(lambda: read(arguments))
    block_imports("bz2", "click", "lzma", "rich")
    with gc_paused():
        no_openssl()
        from device_plugin.daemon import run  # noqa: PLC0415 - after the import controls

    return run_command("xelink-device-plugin", settings, run)


def read(arguments: Sequence[str] | None) -> "Loaded[PluginSettings] | int":
    """Read the settings, or return the exit code of what was printed instead."""
    trim_pydantic()
    with gc_paused():
        from device_plugin.settings import PluginSettings  # noqa: PLC0415 - in a process that ends
        from xelink.daemon.command_line import parse_command_line  # noqa: PLC0415 - with pydantic, as above

    return parse_command_line(PluginSettings, arguments)
