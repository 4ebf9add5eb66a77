"""The kernel driver as the source, made from the settings: loads the inventory of this node."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from xelink.daemon.command import CannotStartError
from xelink.daemon.stopping import Stop
from xelink.iaf.channel import kernel, simulator
from xelink.iaf.source import DriverSource
from xelink.inventory.devfs import Roots
from xelink.inventory.fabric_bus import FabricBus
from xelink.topology.rules import Rules

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings


def bus(prefix: Path) -> FabricBus:
    """Return the bus of the node whose file system is seen at `prefix`."""
    return FabricBus(Roots.under(prefix))


def driver(settings: "SidecarSettings", rules: Rules, stop: Stop) -> DriverSource:
    """Return the driver of this node as the source; a signal ends its waits.

    Raises `CannotStartError` for a simulated driver beside a real one.
    """
    connect = kernel
    if settings.driver_socket:
        if bus(Path("/")).has_fabric():
            raise CannotStartError("-driver-socket: this node has the real Xe Link driver")
        connect = simulator(settings.driver_socket)

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return DriverSource(
        connect,
        bus(settings.prefix).node,
        rules,
        seconds=settings.timeout,
        sleep=sleep,
        monotonic=time.monotonic,
        bounded=stop.bounded,
        confirmations=settings.confirmations,
    )
