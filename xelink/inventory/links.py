"""Which of this node's GPUs are linked: the feature file joined to the GPUs on the bus, pure.

XPU Manager's device ids, which are in the labels, follow neither DRM's card numbers nor, for
certain, the order of the bus. They are joined through the id map that travels in the same file, by
PCI address and never by an index. Only where a file has no id map, as Intel's XeLink sidecar
writes it, ids are inferred from PCI order, marked so, and not where they are ambiguous.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from xelink.inventory.gpus import Card, ExcludedGpu, Inventory
from xelink.nfd.reader import FileState, Reading
from xelink.topology.model import Link, PortState, Topology
from xelink.topology.pci import PciAddress

AddressPair: TypeAlias = tuple[str, str]
"""PCI addresses of two GPUs, the lower one first: see `pair`."""


@dataclass(frozen=True)
class NodeLinks:
    """What is known of the links between the GPUs on this node's bus, by PCI address.

    `lanes` has every linked pair: the lanes of the weaker direction, summed over tiles. 0 lanes is
    a link that one direction does not report, and still a link. Where lanes are unknown (inferred
    ids) each link counts as one lane. `ports` has the GPUs whose ports XPU Manager reports.

    What could not be joined is left out and reported: `not_on_bus` are addresses of the id map that
    are not on this node's bus, `not_in_map` addresses of cards here that the id map lacks,
    `without_address` device ids that links name and the id map lacks.

    `topology` is what the links were taken from, and `addresses` are the PCI addresses that its
    device ids were taken for.

    Two values are equal when they agree on the GPUs, whenever that was published.
    """

    state: FileState
    reason: str = ""
    lanes: Mapping[AddressPair, int] = field(default_factory=dict)
    ports: Mapping[str, PortState] = field(default_factory=dict)
    not_on_bus: tuple[str, ...] = ()
    not_in_map: tuple[str, ...] = ()
    without_address: tuple[int, ...] = ()
    expiry: datetime | None = field(default=None, compare=False)
    published: datetime | None = field(default=None, compare=False)
    topology: Topology | None = field(default=None, repr=False, compare=False)
    addresses: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def usable(self) -> bool:
        """Whether the links are known, also by inferred ids."""
        return self.state in {FileState.IN_USE, FileState.INFERRED}

    @property
    def linked(self) -> frozenset[AddressPair]:
        """Every pair with a link between them, however many lanes it has."""
        return frozenset(self.lanes)

    def knows(self, bdf: str) -> bool:
        """Return whether a GPU's links are known, so that it has none but those in `lanes`."""
        return self.state is FileState.IN_USE and bdf not in self.not_in_map

    def lanes_between(self, one: str, other: str) -> int | None:
        """Return the lanes between two GPUs; None where there is no link."""
        return self.lanes.get(pair(one, other))

    def ports_healthy(self, bdf: str) -> bool | None:
        """Return whether all Xe Link ports of a GPU are healthy; None where that is unknown."""
        ports = self.ports.get(bdf)
        return None if ports is None else ports is PortState.HEALTHY

    def age(self, now: datetime) -> timedelta | None:
        """Return the time since the file was last written; None where there is no file."""
        return None if self.published is None else max(timedelta(), now - self.published)


UNREAD = NodeLinks(FileState.MISSING, "it has not been read yet")
"""What is known before the first read."""


class _AmbiguousError(Exception):
    """The ids can mean more than one GPU, or fit none: nothing is inferred."""


def pair(one: str, other: str) -> AddressPair:
    """Return the key of two PCI addresses, in whichever order they come."""
    a, b = PciAddress(one), PciAddress(other)
    return (a, b) if a <= b else (b, a)


def join(reading: Reading, inventory: Inventory) -> NodeLinks:
    """Join the content of the file to the GPUs on this node's bus."""
    facts = NodeLinks(
        reading.state, reading.reason, expiry=reading.expiry, published=reading.published
    )
    topology = reading.publication and reading.publication.topology
    if not reading.publication or not topology:
        return facts
    if reading.publication.whole:
        return _join_by_map(facts, topology, inventory)
    if not topology.links:
        return facts  # nothing is named that would have to be inferred
    try:
        addresses = _by_order(topology, inventory)
    except _AmbiguousError as error:
        return replace(facts, state=FileState.AMBIGUOUS, reason=f"{facts.reason}: {error}")
    return replace(
        facts,
        state=FileState.INFERRED,
        reason=f"{facts.reason}: ids are taken for places in PCI order",
        lanes=_lanes(topology.links, addresses, lambda _: 1),
        topology=topology,
        addresses=addresses,
    )


def _join_by_map(facts: NodeLinks, topology: Topology, inventory: Inventory) -> NodeLinks:
    on_bus = {card.bdf for card in inventory.cards} | {gpu.bdf for gpu in inventory.excluded}
    on_bus |= {problem.bdf for problem in inventory.problems if problem.bdf}
    mapped = {gpu.bdf for gpu in topology.gpus}
    here = [gpu for gpu in topology.gpus if gpu.bdf in on_bus]
    devices = {end.device for link in topology.links for end in link.ends}
    addresses = {gpu.id: gpu.bdf for gpu in here}
    return replace(
        facts,
        lanes=_lanes(topology.links, addresses, lambda link: link.width),
        ports={gpu.bdf: gpu.ports for gpu in here if gpu.ports},
        not_on_bus=tuple(gpu.bdf for gpu in topology.gpus if gpu.bdf not in on_bus),
        not_in_map=tuple(card.bdf for card in inventory.cards if card.bdf not in mapped),
        without_address=tuple(sorted(devices - topology.by_id.keys())),
        topology=topology,
        addresses=addresses,
    )


def _lanes(
    links: Iterable[Link], addresses: Mapping[int, str], width: Callable[[Link], int]
) -> dict[AddressPair, int]:
    """Sum up the lanes of each pair of GPUs; links between tiles of one GPU are no pair's."""
    lanes: dict[AddressPair, int] = {}
    for link in links:
        one, other = (addresses.get(end.device) for end in link.ends)
        if one and other and one != other:
            lanes[pair(one, other)] = lanes.get(pair(one, other), 0) + width(link)
    return lanes


def _by_order(topology: Topology, inventory: Inventory) -> dict[int, str]:
    """Take ids for places in PCI order. Raises `_AmbiguousError`.

    XPU Manager counts every GPU that its driver has, advertised or not, within one driver.
    """
    gpus = inventory.counted
    addresses = {gpu.bdf for gpu in gpus}
    unread = [problem.name for problem in inventory.problems if problem.bdf not in addresses]
    if unread:
        raise _AmbiguousError(f"PCI order is unknown, as {unread[0]} cannot be read")
    if len({gpu.driver for gpu in gpus}) > 1:
        raise _AmbiguousError("the ids of GPUs of two drivers follow no one order")
    for tile in topology.tiles:
        if tile.device >= len(gpus):
            raise _AmbiguousError(f"links name GPU {tile.device}, but there are {len(gpus)} here")
        tiles = _tiles(gpus[tile.device])
        if tiles is not None and tile.subdevice >= tiles:
            raise _AmbiguousError(f"links name tile {tile}, but the GPU in that place has {tiles}")
    return dict(enumerate(gpu.bdf for gpu in gpus))


def _tiles(gpu: Card | ExcludedGpu) -> int | None:
    card = gpu if isinstance(gpu, Card) else gpu.card
    return card.tiles if card else None
