"""How the sidecar starts: settings beside, the daemon meanwhile, and no more than it needs."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sidecar.source_choice import SourceChoice
from xelink.daemon.command import run_command
from xelink.daemon.forked import run_in_child
from xelink.daemon.lazy_imports import (
    block_imports,
    defer_imports,
    gc_paused,
    no_openssl,
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
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = run_in_child(lambda: read(arguments))
    return run_command("xelink-sidecar", settings, load(with_http=not asks_driver_alone(arguments)))


def read(arguments: Sequence[str] | None) -> "Loaded[SidecarSettings] | int":
    """Read the settings, or give the exit code of what was printed in their place."""
    trim_pydantic()
    with gc_paused():
        from sidecar.settings import SidecarSettings  # noqa: PLC0415 - as above
        from xelink.daemon.command_line import parse_command_line  # noqa: PLC0415 - with pydantic, in a process that ends

    return parse_command_line(SidecarSettings, arguments)


def asks_driver_alone(arguments: Sequence[str]) -> bool:
    """Return whether the driver is certainly the only source, before the settings have been read.

    HTTP and TLS are imported while they are read, or never. A file may name the driver as well:
    then they are imported in vain.
    """
    choice = os.environ.get("XELINK_SIDECAR_SOURCE", "")
    for at, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "source":
            choice = value if equals else "".join(arguments[at + 1 : at + 2])
    return choice == SourceChoice.DRIVER.value


def load(*, with_http: bool = True) -> "Callable[[Loaded[SidecarSettings]], int]":
    """Import the daemon and no more than it needs."""
    block_imports("bz2", "click", "lzma", "rich")
    defer_imports("asyncio", "idna", "secrets")
    with gc_paused():
        no_task_names()
        if not with_http:
            no_openssl(with_asyncio=False)
        from sidecar.daemon import run  # noqa: PLC0415 - after imports are blocked

        if with_http:
            import sidecar.xpu_manager_source  # noqa: PLC0415 - as above
        else:
            import sidecar.driver_source  # noqa: F401, PLC0415 - as above

    return run
