"""Nodes by the dozen: so many GPUs of so many tiles, wired in one of a few ways."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from types import MappingProxyType

from xelink.simulators.xpu_manager.gpu import MODELS, SimulatedGpu, address, same_plane
from xelink.simulators.xpu_manager.node import FIRST_CARD, SimulatedNode
from xelink.topology.model import Link, Tile

_SMALLEST_RING = 3
_ROOT_BDF = "0000:00:02.0"

Wiring = Callable[[Sequence[SimulatedGpu], int], Iterator[Link]]


def _mesh(gpus: Sequence[SimulatedGpu], lanes: int) -> Iterator[Link]:
    for one, other in combinations(gpus, 2):
        yield from same_plane(one, other, lanes)


def _ring(gpus: Sequence[SimulatedGpu], lanes: int) -> Iterator[Link]:
    # Two GPUs make one edge, not a ring of two edges over the same tiles.
    edges = len(gpus) if len(gpus) >= _SMALLEST_RING else len(gpus) - 1
    for at in range(edges):
        yield from same_plane(gpus[at], gpus[(at + 1) % len(gpus)], lanes)


def _planes(gpus: Sequence[SimulatedGpu], lanes: int) -> Iterator[Link]:
    # As on Aurora's blades, where the second GPU of four sits with its tiles crossed.
    def plane(at: int, tile: Tile) -> int:
        return (tile.subdevice + (at % 4 == 1)) % gpus[at].tiles

    for one, other in combinations(range(len(gpus)), 2):
        for a in gpus[one].ends:
            for b in gpus[other].ends:
                if plane(one, a) == plane(other, b):
                    yield Link.between(a, b, lanes, lanes)


def _pairs(gpus: Sequence[SimulatedGpu], lanes: int) -> Iterator[Link]:
    for one, other in zip(gpus[::2], gpus[1::2], strict=False):
        yield from same_plane(one, other, lanes)


def _none(_gpus: Sequence[SimulatedGpu], _lanes: int) -> Iterator[Link]:
    yield from ()


WIRINGS: Mapping[str, Wiring] = MappingProxyType(
    {"mesh": _mesh, "ring": _ring, "planes": _planes, "pairs": _pairs, "none": _none}
)

CARDS: Mapping[str, Callable[[int], list[int]]] = MappingProxyType(
    {
        "ordered": lambda n: list(range(n)),
        "reversed": lambda n: list(range(n))[::-1],
        "shuffled": lambda n: [*range(1, n, 2), *range(0, n, 2)],
    }
)


@dataclass(frozen=True)
class Blueprint:
    """What a node is built from; every field is a flag of the command line.

    `gpus` does not count the integrated one; `id_gaps` are ids that no GPU gets. One tile and
    the model left open make Max 1100 GPUs, else Max 1550.
    """

    gpus: int = 8
    tiles: int = 2
    wiring: str = "mesh"
    lanes: int = 4
    igpu: bool = False
    id_gaps: tuple[int, ...] = ()
    cards: str = "ordered"
    model: str | None = None
    numa_nodes: int = 2
    name: str = "node-gpu-01"

    def build(self) -> SimulatedNode:
        """Build the node; raises `ValueError` for what no node can be."""
        self._check()
        ids = (device for device in count(int(self.igpu)) if device not in self.id_gaps)
        order = CARDS[self.cards](self.gpus)
        model = MODELS[self.model or ("max-1550" if self.tiles > 1 else "max-1100")]
        gpus = tuple(
            SimulatedGpu(
                id=next(ids),
                bdf=address(at),
                card=f"card{FIRST_CARD + order[at]}",
                numa=at * self.numa_nodes // self.gpus if self.numa_nodes else None,
                tiles=self.tiles,
                model=model,
            )
            for at in range(self.gpus)
        )
        wiring = WIRINGS[self.wiring if model.fabric else "none"]
        links = tuple(wiring(gpus, self.lanes)) if self.lanes else ()
        return SimulatedNode(self._integrated() + gpus, links, self.name)

    def _integrated(self) -> tuple[SimulatedGpu, ...]:
        if not self.igpu:
            return ()
        return (SimulatedGpu(0, _ROOT_BDF, "card0", tiles=1, model=MODELS["igpu"]),)

    def _check(self) -> None:
        if self.gpus < 0 or self.tiles < 1 or self.lanes < 0 or self.numa_nodes < 0:
            raise ValueError("gpus, lanes and NUMA nodes cannot be negative, nor tiles below 1")
        for what, value, table in (
            ("wiring", self.wiring, WIRINGS),
            ("order of cards", self.cards, CARDS),
            ("model", self.model or "max-1550", MODELS),
        ):
            if value not in table:
                raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(table)}")
