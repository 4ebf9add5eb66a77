"""The kernel driver of Xe Links as a source: live, or from a dump."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xelink.iaf.channel import Channel, kernel, simulator
from xelink.iaf.dump import Dump
from xelink.iaf.recording import Recorder, Replay
from xelink.iaf.source import DriverSource, Node
from xelink.inventory.devfs import Roots
from xelink.inventory.fabric_bus import FabricBus
from xelink.topology.observation import Observation
from xelink.topology.rules import Rules

if TYPE_CHECKING:
    import argparse

TIMEOUT = 10.0
_MODULES = ("iaf", "i915")
_VERSION_LIMIT = 200


def live(prefix: Path, socket: Path | None, timeout: float, rules: Rules) -> Observation:
    """Ask the driver of this node, or a simulator's socket."""
    bus = FabricBus(Roots.under(prefix))
    connect = simulator(socket) if socket else kernel
    return _source(connect, bus.node, timeout, rules).observe()


def replayed(dump: Dump, rules: Rules) -> Observation:
    """Return what the frames of a dump prove."""
    node = Node(has_fabric=True, gpus=dump.gpus)
    return _source(lambda: Replay(dump.frames), lambda: node, TIMEOUT, rules).observe()


def recorded(prefix: Path, socket: Path | None, timeout: float) -> tuple[Dump, Observation]:
    """Ask the driver as `live` does, and keep every frame."""
    bus = FabricBus(Roots.under(prefix))
    node = bus.node()
    recorders: list[Recorder] = []

    def connect() -> Channel:
        recorders.append(Recorder(simulator(socket)() if socket else kernel()))
        return recorders[-1]

    observation = _source(connect, lambda: node, timeout, Rules()).observe()
    frames = tuple(frame for recorder in recorders for frame in recorder.frames)
    return Dump(_versions(prefix), tuple(node.gpus), frames), observation


def _source(
    connect: Callable[[], Channel], node: Callable[[], Node], timeout: float, rules: Rules
) -> DriverSource:
    return DriverSource(
        connect, node, rules, seconds=timeout, sleep=time.sleep, monotonic=time.monotonic
    )


def _versions(prefix: Path) -> tuple[str, ...]:
    found = [f"kernel {platform.release()}"]
    for module in _MODULES:
        path = prefix / "sys/module" / module / "version"
        try:
            with path.open(encoding="ascii", errors="replace") as file:
                version = file.read(_VERSION_LIMIT).strip()
        except OSError:
            version = "of unknown version" if path.parent.is_dir() else "not loaded"
        found.append(f"module {module} {version}")
    return tuple(found)


def add_options(parser: "argparse._ActionsContainer") -> None:
    """Add how the driver is asked."""
    parser.add_argument(
        "--driver-socket",
        type=Path,
        metavar="PATH",
        help="socket of a simulated driver, in place of the kernel's",
    )
