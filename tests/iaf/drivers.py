"""Simulated drivers, and sources that ask them, for the tests."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.patience import PATIENCE
from xelink.iaf.channel import simulator
from xelink.iaf.fabric import GpuOnBus
from xelink.iaf.source import DriverSource, Node
from xelink.simulators.iaf.driver import Behavior
from xelink.simulators.iaf.server import SimulatedDriver
from xelink.simulators.xpu_manager import SimulatedNode
from xelink.topology.model import Topology
from xelink.topology.observation import Observation, ObservedLinks
from xelink.topology.rules import Rules

EVERYTHING = Rules(lane_count=1, allow_subdeviceless_links=True)


def on_bus(node: SimulatedNode) -> Node:
    """Return what the bus says of a node; of UUIDs neither bus nor driver know anything."""
    return Node(
        has_fabric=True,
        gpus=tuple(GpuOnBus(replace(gpu.entry(), uuid=None), gpu.tiles) for gpu in node.present),
    )


def without_uuids(topology: Topology) -> Topology:
    return replace(topology, gpus=tuple(replace(gpu, uuid=None) for gpu in topology.gpus))


@dataclass
class Scene:
    driver: SimulatedDriver
    source: DriverSource
    node: SimulatedNode
    slept: list[float]

    def change(self, node: SimulatedNode) -> None:
        """Change the node, as a cable does: the driver notices, and sweeps."""
        self.node = node
        self.driver.behavior = self.driver.behavior.after(node)


@contextmanager
def asking(
    node: SimulatedNode,
    rules: Rules = EVERYTHING,
    *,
    seconds: float = PATIENCE,
    monotonic: Callable[[], float] = time.monotonic,
    confirmations: int = 2,
    **behavior: object,
) -> Iterator[Scene]:
    """Serve a driver of a node, and make a source that asks it."""
    slept: list[float] = []
    with tempfile.TemporaryDirectory(prefix="x") as path:
        made = replace(Behavior(node), **behavior)  # type: ignore[arg-type]  # fields of the caller
        with SimulatedDriver(Path(path) / "iaf.sock", made) as driver:
            scene = Scene(driver, _no_source(), node, slept)
            scene.source = DriverSource(
                simulator(driver.path),
                lambda: on_bus(scene.node),
                rules,
                seconds=seconds,
                sleep=slept.append,
                monotonic=monotonic,
                confirmations=confirmations,
            )
            yield scene


def _no_source() -> DriverSource:
    return DriverSource(
        simulator(Path("/nowhere")),
        lambda: Node(has_fabric=False, gpus=()),
        EVERYTHING,
        seconds=1,
        sleep=lambda _: None,
        monotonic=time.monotonic,
    )


def topology(observation: Observation) -> Topology:
    assert isinstance(observation, ObservedLinks), observation
    return observation.topology
