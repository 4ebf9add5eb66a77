"""How the sidecar starts: settings beside, the daemon meanwhile, and no more than it needs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xelink.daemon.command import run_command
from xelink.daemon.forked import beside
from xelink.daemon.lazy_imports import (
    lean_settings,
    leave_out,
    no_task_names,
    nothing_to_collect,
    put_off,
)
from xelink.daemon.stdio import stand_in, unbuffer_stderr

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings
    from xelink.daemon.loaded_settings import Loaded


def start(arguments: Sequence[str] | None) -> int:
    """Read the settings and run the daemon; give the exit code."""
    stand_in()
    unbuffer_stderr()
    settings = beside(lambda: read(arguments))
    return run_command("xelink-sidecar", settings, load())


def read(arguments: Sequence[str] | None) -> "Loaded[SidecarSettings] | int":
    """Read the settings, or give the exit code of what was printed in their place."""
    lean_settings()
    with nothing_to_collect():
        from sidecar.settings import SidecarSettings  # noqa: PLC0415 - as above
        from xelink.daemon.command_line import answer  # noqa: PLC0415 - with pydantic, in a process that ends

    return answer(SidecarSettings, arguments)


def load() -> "Callable[[Loaded[SidecarSettings]], int]":
    """Import the daemon and no more than it needs."""
    leave_out("bz2", "click", "lzma", "rich")
    put_off("asyncio", "idna", "secrets")
    with nothing_to_collect():
        no_task_names()
        from sidecar.daemon import run  # noqa: PLC0415 - after what makes it lean

    return run
