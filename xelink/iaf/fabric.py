"""The fabric of one node at one instant, and the Xe Links that it proves. Pure.

The rule is XPU Manager's: a link is two ports that are both enabled and healthy and name each
other; its lanes are the enabled ones, summed over the ports of one tile that lead to the other. So
labels do not depend on who reported them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from xelink.iaf.reasons import DriverReason
from xelink.iaf.replies import IafDevice, Port, PortHealth, TileFabric
from xelink.topology.admission import Direction, admit
from xelink.topology.model import Gpu, PortState, Tile, Topology, excess
from xelink.topology.observation import Observation, ObservedLinks, Unknown
from xelink.topology.rules import Rules

_STATES = {
    PortHealth.OFF: PortState.DISABLED,
    PortHealth.FAILED: PortState.FAILED,
    PortHealth.DEGRADED: PortState.DEGRADED,
    PortHealth.HEALTHY: PortState.HEALTHY,
}
_BEST_FIRST = tuple(PortState)
_HINT = (
    "the driver reports no two healthy ports that name each other: are there Xe Link bridges"
    " between the GPUs, and are all of them bound to the driver?"
)


class GpuOnBus(NamedTuple):
    """One GPU of this node that the kernel's driver has; `tiles` is None where nobody knows.

    The id of `gpu` is its rank among all of them by PCI address, as XPU Manager's is.
    """

    gpu: Gpu
    tiles: int | None = None


class FabricDevice(NamedTuple):
    """One GPU with Xe Links, and its tiles in their order."""

    device: IafDevice
    tiles: tuple[TileFabric, ...]


class DriverFabric(NamedTuple):
    """Every GPU with Xe Links; `generation` is the routing generation before and after."""

    devices: tuple[FabricDevice, ...]
    generation: int


def observe(fabric: DriverFabric, gpus: Sequence[GpuOnBus], rules: Rules) -> Observation:
    """Return the links that a fabric proves; unknown where it contradicts itself or the bus."""
    ids = {one.gpu.bdf: one.gpu.id for one in gpus}
    ports = _ports(fabric, ids)
    if isinstance(ports, str):
        return Unknown(DriverReason.MALFORMED, ports)
    tiles = {*ports, *_without_ports(gpus, {tile.device for tile in ports})}
    if problem := excess(tiles, ids.values()):
        return Unknown(DriverReason.MALFORMED, problem)
    lanes, unread = _lanes(fabric, ids, ports)
    on_subdevice = {ids[one.device.parent]: one.device.tiles > 1 for one in fabric.devices}
    admitted = admit(
        (
            Direction(local, remote, width, on_subdevice[local.device])
            for (local, remote), width in lanes.items()
        ),
        rules,
    )
    states = _states(ports)
    return ObservedLinks(
        Topology(
            admitted.links,
            tuple(replace(one.gpu, ports=states.get(one.gpu.id)) for one in gpus),
            tuple(tiles),
        ),
        frozenset((one, other) for one in tiles for other in tiles),
        unread=unread,
        narrow=admitted.narrow,
        one_tile=admitted.one_tile,
        hint=_HINT,
    )


def _ports(fabric: DriverFabric, ids: Mapping[str, int]) -> dict[Tile, tuple[Port, ...]] | str:
    """Return the ports of each tile that XPU Manager would see, or what cannot be true."""
    found: dict[Tile, tuple[Port, ...]] = {}
    guids: set[int] = set()
    for one in fabric.devices:
        name = one.device.parent
        if name not in ids:
            return f"the driver names {name}, which is no GPU on this node's bus"
        for index, tile in enumerate(one.tiles):
            if tile.guid in guids:
                return f"GUID {tile.guid:#x} is given twice"
            guids.add(tile.guid)
            place = Tile(ids[name], index)
            if place in found:
                return f"the driver names {name} twice"
            if tile.ports:
                found[place] = tile.ports
    return found


def _without_ports(gpus: Iterable[GpuOnBus], fabric: set[int]) -> Iterator[Tile]:
    """Return the tiles of GPUs without any port; XPU Manager has a row for each of them."""
    for gpu, tiles in gpus:
        if gpu.id not in fabric:
            yield from (Tile(gpu.id, index) for index in range(tiles or 1))


def _lanes(
    fabric: DriverFabric, ids: Mapping[str, int], ports: Mapping[Tile, Sequence[Port]]
) -> tuple[dict[tuple[Tile, Tile], int], int]:
    """Return the lanes of each direction, and how many ports have a width that is unknown."""
    tiles = {
        tile.guid: Tile(ids[one.device.parent], index)
        for one in fabric.devices
        for index, tile in enumerate(one.tiles)
    }
    guids = {tile: guid for guid, tile in tiles.items()}
    usable = {
        (guids[tile], port.number): port
        for tile, of_one in ports.items()
        for port in of_one
        if port.enabled and port.health == PortHealth.HEALTHY
    }
    lanes: dict[tuple[Tile, Tile], int] = {}
    unread = 0
    for (guid, number), port in usable.items():
        neighbor = port.neighbor and usable.get(port.neighbor)
        if not port.neighbor or not neighbor or neighbor.neighbor != (guid, number):
            continue
        local, remote = tiles[guid], tiles[port.neighbor[0]]
        if local.device == remote.device:
            continue  # within a GPU there are no Xe Links
        if port.lanes_enabled is None:
            unread += 1
            continue
        lanes[local, remote] = lanes.get((local, remote), 0) + port.lanes_enabled
    return lanes, unread


def _states(ports: Mapping[Tile, Iterable[Port]]) -> dict[int, PortState]:
    """Return the worst state of each GPU's ports; of unknown health nothing is said."""
    states: dict[int, PortState] = {}
    for tile, of_one in ports.items():
        for port in of_one:
            if port.health in {*PortHealth}:
                state = _STATES[PortHealth(port.health)]
                worst = states.setdefault(tile.device, state)
                states[tile.device] = max(worst, state, key=_BEST_FIRST.index)
    return states
