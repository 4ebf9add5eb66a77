"""One node as reported by a source: its links, marks, groups and lost pairs. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import combinations
from typing import NamedTuple, TypeAlias

from xelink.topology.groups import Groups, Largest, largest_group, maximal_groups
from xelink.topology.model import Gpu, Link, PortState, Tile, Topology

IdPair: TypeAlias = tuple[int, int]
"""Device ids of two GPUs, the lower one first."""

_SMALLEST = 3  # two GPUs alone show no pattern
_RING = 2  # neighbors
_MOST_LOST = 1 / 4  # of all pairs: if more have no links, they may never have had any
_BAD_PORTS = {PortState.DEGRADED, PortState.FAILED}


class NodeState(Enum):
    """What is known of a node's links."""

    LINKS = "links"
    NONE = "none"
    NO_FABRIC_DATA = "no-fabric-data"
    UNKNOWN = "unknown"


class Mark(Enum):
    """What is wrong with a link, as far as the node's own data shows."""

    ONE_SIDED = "one-sided"
    """Only one of its tiles reports it."""
    DEGRADED = "degraded"
    """It has fewer lanes, in a direction, than most links of the node."""
    FILTERED = "not published"
    """The sidecar would not publish it; `NodeView.filtered` has the reason."""


class Interconnect(NamedTuple):
    """How two GPUs or tiles are connected: `kind` is `XL`, `XL/MDF`, `MDF`, `NODE`, `SYS` or `?`.

    `lanes` are those of the weaker direction, of all links together; None if unknown.
    """

    kind: str
    lanes: int | None = None
    marked: bool = False

    def __str__(self) -> str:
        return f"{self.kind}{self.lanes or ''}{'!' if self.marked else ''}"


@dataclass(frozen=True)
class NodeView:
    """What one source reports about one node.

    `topology` has the links that are, or would be, published. It is None if nothing is known, and
    `reason` is why. `filtered` are Xe Links that the sidecar would not publish, with the rule.
    `every_link` means that the source has those, too; others have only published links.
    `labels_only` means that the source has only links: no lanes, no PCI addresses, no GPU without a
    link. `remarks` is what else a reader should know.
    """

    source: str
    name: str = ""
    topology: Topology | None = None
    state: NodeState = NodeState.UNKNOWN
    reason: str = ""
    filtered: Mapping[Link, str] = field(default_factory=dict)
    every_link: bool = False
    labels_only: bool = False
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, topology: Topology, source: str = "") -> "NodeView":
        """Return a node that has only a topology."""
        state = NodeState.LINKS if topology.links else NodeState.NONE
        return cls(source, topology=topology, state=state)

    @property
    def title(self) -> str:
        """The name to show."""
        return self.name or self.source

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Every link, published or not."""
        return tuple(sorted((*(self.topology.links if self.topology else ()), *self.filtered)))

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Every tile; a GPU that is only in the id map counts as one."""
        if not self.topology:
            return ()
        tiles = {*self.topology.tiles, *(end for link in self.filtered for end in link.ends)}
        having = {tile.device for tile in tiles}
        tiles |= {Tile(gpu.id, 0) for gpu in self.topology.gpus if gpu.id not in having}
        return tuple(sorted(tiles))

    @cached_property
    def devices(self) -> tuple[int, ...]:
        """Device ids of every GPU."""
        return tuple(sorted({tile.device for tile in self.tiles}))

    def gpu(self, device: int) -> Gpu | None:
        """Return the id map's entry of a GPU."""
        return self.topology.by_id.get(device) if self.topology else None

    @cached_property
    def marks(self) -> Mapping[Link, tuple[Mark, ...]]:
        """Links with marks."""
        usual = _most_common([max(link.lanes, link.lanes_back) for link in self.links])
        found: dict[Link, tuple[Mark, ...]] = {}
        for link in self.links:
            marks = [] if self.labels_only else list(_marks(link, usual))
            if link in self.filtered:
                marks.append(Mark.FILTERED)
            if marks:
                found[link] = tuple(marks)
        return found

    @cached_property
    def between(self) -> Mapping[IdPair, tuple[Link, ...]]:
        """Links by the GPUs that they join, without links inside a GPU."""
        found: dict[IdPair, tuple[Link, ...]] = {}
        for link in self.links:
            pair = link.a.device, link.b.device
            if link.a.device != link.b.device:
                found[pair] = (*found.get(pair, ()), link)
        return found

    @cached_property
    def usual_links(self) -> int:
        """How many links most linked pairs of GPUs have."""
        return _most_common([len(links) for links in self.between.values()])

    @cached_property
    def thin(self) -> tuple[IdPair, ...]:
        """Pairs of GPUs that have fewer links than most linked pairs of the node."""
        return tuple(
            pair for pair, links in sorted(self.between.items()) if len(links) < self.usual_links
        )

    @cached_property
    def lost(self) -> tuple[IdPair, ...]:
        """Pairs of GPUs without any link, although the links of the others imply that they had one.

        No source reports a link that is gone, so this is inferred from the other links. In doubt a
        node counts as complete. GPUs that are linked, directly or over others, are a set. A set is
        complete if all its GPUs have the same number of neighbors: a mesh, a ring, sockets that are
        linked GPU by GPU. If exactly two GPUs lack one neighbor, each other, that pair was lost.
        Otherwise the missing pairs were lost if they are at most a quarter of all pairs.

        If only published links are known, a pair whose ports are all healthy may have links that
        are not published, and is omitted.
        """
        neighbors: dict[int, set[int]] = {}
        for one, other in self.between:
            neighbors.setdefault(one, set()).add(other)
            neighbors.setdefault(other, set()).add(one)
        sets = list(_connected(neighbors))
        dark = {device for device in self.devices if self._bad(device)} - neighbors.keys()
        pairs = [pair for gpus in sets for pair in _lost(gpus, neighbors, alone=len(sets) == 1)]
        if len(sets) == 1 and dark:
            pairs = self._lost_with_gpus(sets[0], dark, pairs)
        return tuple(sorted(pair for pair in pairs if self.every_link or not self._healthy(pair)))

    @property
    def no_link(self) -> str:
        """What a pair that lost its links has, as far as the source shows."""
        return "no link" if self.every_link else "no published link"

    @property
    def or_else(self) -> str:
        """Why a pair may have no published link without a loss; empty if every link is known."""
        return "" if self.every_link else "or fewer lanes than -lane-count"

    def gpus_connected(self, one: int, other: int) -> Interconnect:
        """Return how two different GPUs are connected."""
        pair = (min(one, other), max(one, other))
        links = self.between.get(pair, ())
        published = [link for link in links if link not in self.filtered]
        if published:
            marked = pair in self.thin or any(map(self._faulty, links))
            return Interconnect("XL", self._lanes(published), marked)
        if links:
            return Interconnect("xl", self._lanes(links), any(map(self._faulty, links)))
        return self._past_links(one, other)

    def tiles_connected(self, one: Tile, other: Tile) -> Interconnect:
        """Return how two different tiles are connected."""
        ends = (min(one, other), max(one, other))
        link = self._by_ends.get(ends)
        if link:
            kind = "xl" if link in self.filtered else "XL"
            return Interconnect(kind, self._lanes([link]), self._faulty(link))
        if one.device == other.device:
            return Interconnect("MDF")
        if (ends[0].device, ends[1].device) in self.between:
            return Interconnect("XL/MDF")
        return self._past_links(one.device, other.device)

    @cached_property
    def largest(self) -> Largest:
        """A largest group of GPUs that are all linked, and whether the search was complete."""
        return largest_group(self.topology.neighbors if self.topology else {})

    @cached_property
    def listed(self) -> Groups:
        """Groups of two and more GPUs that are all linked, and whether they are all."""
        return maximal_groups(self.topology.neighbors if self.topology else {})

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The listed groups, largest first; none contains another."""
        return self.listed.groups

    @cached_property
    def linked_pairs(self) -> int:
        """How many pairs of GPUs have a published link."""
        return sum(map(len, self.topology.neighbors.values())) // 2 if self.topology else 0

    @property
    def pairs(self) -> int:
        """How many pairs of GPUs there are."""
        return len(self.devices) * (len(self.devices) - 1) // 2

    @cached_property
    def _by_ends(self) -> dict[tuple[Tile, Tile], Link]:
        return {link.ends: link for link in self.links}

    def _lost_with_gpus(
        self, gpus: AbstractSet[int], dark: AbstractSet[int], pairs: list[IdPair]
    ) -> list[IdPair]:
        """Add GPUs without links that have failed ports: they may belong to the set.

        They belong to a mesh if all its other GPUs have failed ports, too, because each of these
        lost a link to them. For other sets it is unknown to which GPUs they were linked.
        """
        missing = [pair for pair in _pairs(gpus) if pair not in self.between]
        if missing != pairs or not _few(missing, gpus):
            return []
        enough = len(gpus) >= _SMALLEST and len(gpus) > len(dark)
        if not enough or not all(map(self._bad, gpus)):
            return pairs
        return [pair for pair in _pairs(gpus | dark) if pair not in self.between]

    def _bad(self, device: int) -> bool:
        gpu = self.gpu(device)
        return gpu is not None and gpu.ports in _BAD_PORTS

    def _healthy(self, pair: IdPair) -> bool:
        return all((gpu := self.gpu(end)) and gpu.ports is PortState.HEALTHY for end in pair)

    def _faulty(self, link: Link) -> bool:
        return not {Mark.FILTERED}.issuperset(self.marks.get(link, ()))

    def _lanes(self, links: list[Link] | tuple[Link, ...]) -> int | None:
        return None if self.labels_only else sum(link.width for link in links)

    def _past_links(self, one: int, other: int) -> Interconnect:
        ends = self.gpu(one), self.gpu(other)
        nodes = {gpu.numa if gpu else None for gpu in ends}
        kind = "?" if None in nodes else "NODE" if len(nodes) == 1 else "SYS"
        return Interconnect(kind, marked=(min(one, other), max(one, other)) in self.lost)


def _marks(link: Link, usual: int) -> Iterator[Mark]:
    if not link.lanes or not link.lanes_back:
        yield Mark.ONE_SIDED
    if any(0 < lanes < usual for lanes in (link.lanes, link.lanes_back)):
        yield Mark.DEGRADED


def _connected(neighbors: Mapping[int, AbstractSet[int]]) -> Iterator[set[int]]:
    """Return the sets of GPUs that are linked, directly or over others."""
    left = set(neighbors)
    while left:
        found: set[int] = set()
        new = {min(left)}
        while new:
            found |= new
            new = {other for gpu in new for other in neighbors[gpu]} - found
        left -= found
        yield found


def _lost(
    gpus: AbstractSet[int], neighbors: Mapping[int, AbstractSet[int]], *, alone: bool
) -> Iterator[IdPair]:
    """Return the pairs of a set that lost their links; `alone` if it is the only set."""
    usual = max(len(neighbors[gpu]) for gpu in gpus)
    lacks = {gpu: usual - len(neighbors[gpu]) for gpu in sorted(gpus)}
    fewer = [gpu for gpu, lack in lacks.items() if lack]
    missing = [pair for pair in _pairs(gpus) if pair[1] not in neighbors[pair[0]]]
    cut = [pair for pair in missing if [*pair] == fewer]
    if not fewer or len(gpus) < _SMALLEST:
        return
    if cut and max(lacks.values()) == 1:
        # Several chains are a ring with several cuts: the lost pairs are unknown.
        yield from cut if usual > _RING or alone else ()
    elif _few(missing, gpus):
        yield from missing


def _few(missing: Sequence[IdPair], gpus: AbstractSet[int]) -> bool:
    return len(missing) <= _MOST_LOST * len(gpus) * (len(gpus) - 1) / 2


def _pairs(gpus: AbstractSet[int]) -> Iterator[IdPair]:
    return combinations(sorted(gpus), 2)


def _most_common(counts: list[int]) -> int:
    frequency = Counter(counts)
    return max(frequency, key=lambda count: (frequency[count], count), default=0)
