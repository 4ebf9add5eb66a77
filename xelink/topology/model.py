"""Tiles, links and GPUs of one node.

Three numberings meet on a node: XPU Manager's device id (what the labels speak of), DRM's card
number and the PCI address. Only the PCI address is identity, so every `Gpu` carries it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from xelink.topology.pci import PciAddress

GPU_LIMIT = 64
"""GPUs of one node: four times as many as the largest node has."""

TILE_LIMIT = 128
"""Tiles of one node: four times as many as XPU Manager reports the topology of."""

_CARD = re.compile(r"card[0-9]{1,6}", re.ASCII)


class Tile(NamedTuple):
    """One end of a link: `device` is XPU Manager's id, `subdevice` the tile on that GPU."""

    device: int
    subdevice: int

    def __str__(self) -> str:
        return f"{self.device}.{self.subdevice}"


@dataclass(frozen=True, order=True, slots=True)
class Link:
    """An unordered pair of tiles with the lanes of each direction.

    `lanes` counts from `a` to `b`, `lanes_back` from `b` to `a`; 0 means that this direction was
    not reported, and both are 0 where only labels, which carry no lanes, are known.
    """

    a: Tile
    b: Tile
    lanes: int = 0
    lanes_back: int = 0

    def __post_init__(self) -> None:
        if self.b < self.a:
            raise ValueError(f"link ends out of order: {self.a} and {self.b}; use Link.between")

    @classmethod
    def between(cls, one: Tile, other: Tile, lanes: int = 0, lanes_back: int = 0) -> "Link":
        """Sort the ends, so that the direction in which a link was reported cannot leak."""
        if other < one:
            return cls(other, one, lanes_back, lanes)
        return cls(one, other, lanes, lanes_back)

    @property
    def ends(self) -> tuple[Tile, Tile]:
        """The two tiles, sorted: what makes two links the same link."""
        return self.a, self.b

    @property
    def width(self) -> int:
        """Lanes of the weaker direction: what a transfer both ways can rely on."""
        return min(self.lanes, self.lanes_back)

    def __str__(self) -> str:
        return f"{self.a}-{self.b}"


class PortState(Enum):
    """Health of a GPU's Xe Link ports, from best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"
    DISABLED = "disabled"


@dataclass(frozen=True, order=True, slots=True)
class Gpu:
    """One entry of the id map: the device id and what it is on this node."""

    id: int
    bdf: str
    card: str | None = None
    uuid: str | None = None
    numa: int | None = None
    ports: PortState | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))
        if self.card is not None and not _CARD.fullmatch(self.card):
            raise ValueError(f"not a DRM card: {self.card!r}")


@dataclass(frozen=True)
class Topology:
    """Links, tiles and id map of one node, in canonical order: equal topologies are equal values.

    Raises `ValueError` when two links join the same tiles, or two GPUs share an id or an address.
    """

    links: tuple[Link, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    tiles: tuple[Tile, ...] = ()

    def __post_init__(self) -> None:
        links = tuple(sorted(self.links))
        gpus = tuple(sorted(self.gpus, key=lambda gpu: gpu.id))
        _require_unique("link", (link.ends for link in links))
        _require_unique("device id", (gpu.id for gpu in gpus))
        _require_unique("PCI address", (gpu.bdf for gpu in gpus))
        tiles = {*self.tiles, *(end for link in links for end in link.ends)}
        object.__setattr__(self, "links", links)
        object.__setattr__(self, "gpus", gpus)
        object.__setattr__(self, "tiles", tuple(sorted(tiles)))

    @cached_property
    def by_ends(self) -> dict[tuple[Tile, Tile], Link]:
        """Links by the two tiles that they join."""
        return {link.ends: link for link in self.links}

    @cached_property
    def by_id(self) -> dict[int, Gpu]:
        """GPUs by XPU Manager's device id."""
        return {gpu.id: gpu for gpu in self.gpus}

    @cached_property
    def neighbors(self) -> dict[int, set[int]]:
        """Device id to the ids of the *other* GPUs that it has a link to."""
        found: dict[int, set[int]] = {}
        for link in self.links:
            if link.a.device != link.b.device:
                found.setdefault(link.a.device, set()).add(link.b.device)
                found.setdefault(link.b.device, set()).add(link.a.device)
        return found


def excess(tiles: Iterable[Tile], gpus: Iterable[int] = ()) -> str | None:
    """Return why so many tiles and device ids are of no real node; None when they can be of one.

    Work on a topology grows faster than its size, and whoever answers in XPU Manager's place can
    name as many GPUs as fit an answer.
    """
    known = set(tiles)
    devices = {tile.device for tile in known} | set(gpus)
    for what, count, limit in (
        ("GPUs", len(devices), GPU_LIMIT),
        ("tiles", len(known), TILE_LIMIT),
    ):
        if count > limit:
            return f"{count} {what} are named: no node has more than {limit}"
    return None


def _require_unique(what: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{what} given twice: {key}")
        seen.add(key)
