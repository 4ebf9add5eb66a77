"""How the sidecar starts: settings beside, the daemon meanwhile, and no more than it needs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xelink.daemon.command import run_command
from xelink.daemon.forked import run_in_child
from xelink.daemon.lazy_imports import (
    block_imports,
    defer_imports,
    gc_paused,
    no_task_names,
    trim_pydantic,
)
from xelink.daemon.stdio import open_missing_streams, unbuffer_stderr

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings
    from xelink.daemon.loaded_settings import Loaded


def start(arguments: Sequence[str] | None) -> int:
    """Read the settings and run the daemon; give the exit code."""
    open_missing_streams()
    unbuffer_stderr()
    settings = run_in_child(lambda: read(arguments))
    return run_command("xelink-sidecar", settings, load())


def read(arguments: Sequence[str] | None) -> "Loaded[SidecarSettings] | int":
    """Read the settings, or give the exit code of what was printed in their place."""
    trim_pydantic()
    with gc_paused():
        from sidecar.settings import SidecarSettings  # noqa: PLC0415 - as above
        from xelink.daemon.command_line import parse_command_line  # noqa: PLC0415 - with pydantic, in a process that ends

    return parse_command_line(SidecarSettings, arguments)


def load() -> "Callable[[Loaded[SidecarSettings]], int]":
    """Import the daemon and no more than it needs."""
    block_imports("bz2", "click", "lzma", "rich")
    defer_imports("asyncio", "idna", "secrets")
    with gc_paused():
        no_task_names()
        from sidecar.daemon import run  # noqa: PLC0415 - after imports are blocked

    return run
