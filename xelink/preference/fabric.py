"""The GPUs of one node and the links between them, ready to be measured; and what of them is free.

Sets of GPUs are bitmasks, see `bitmask`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xelink.preference.bitmask import members
from xelink.preference.pcie import Levels, pcie_groups
from xelink.topology.pci import PciAddress

LANES_LIMIT = 0xFFFF
"""Lanes that one pair counts at most; a pair of Xe Link GPUs has less than a hundred."""

# What the ports of one GPU cost: unknown lowers a score, unhealthy lowers it more.
_PORTS_COST = {True: 0, None: 1, False: 2}


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What a snapshot knows of one GPU: its DRM card, PCI address, NUMA node and Xe Link ports.

    `ports_healthy` is None if unknown, `numa` is None where the platform does not say. `bridges`
    are the PCIe bridges above it, the host bridge first, then the root port; empty if unknown.
    `physfn` is the PCI address of the physical GPU of which this is a VF, None for any other.
    """

    card: str
    bdf: str
    numa: int | None = None
    ports_healthy: bool | None = None
    physfn: str | None = None
    bridges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))


@dataclass(frozen=True, slots=True)
class Fabric:
    """The GPUs of one node by PCI address and the links between them, ready to be measured.

    `lanes[i][j]` is symmetric and -1 where two GPUs have no link; `links[i]` is the set of GPUs
    linked to i; `ports_cost[i]` is 0 to 2; `numa[i]` is a set with one bit, one per NUMA node
    (GPUs whose node is unknown share one bit of their own). `near` has, for each criterion that
    counts pairs in nested groups, its levels: sets of GPUs, see `pcie_groups`.
    """

    gpus: tuple[GpuFacts, ...]
    lanes: tuple[tuple[int, ...], ...]
    links: tuple[int, ...] = field(repr=False)
    ports_cost: tuple[int, ...] = field(repr=False)
    numa: tuple[int, ...] = field(repr=False)
    near: tuple[Levels, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, gpus: Iterable[GpuFacts], lanes: Mapping[tuple[str, str], int]) -> "Fabric":
        """Sort the GPUs and tidy the links; `lanes` is keyed by pairs of PCI addresses.

        A pair in `lanes` is linked, 0 lanes means an unknown width. When both directions
        are given the weaker counts. Pairs that name no GPU of this node, or one twice, are
        ignored. Raises `ValueError` when two GPUs share a card or a PCI address.
        """
        ordered = tuple(sorted(gpus, key=lambda gpu: gpu.bdf))
        index = {gpu.bdf: i for i, gpu in enumerate(ordered)}
        if len(index) < len(ordered) or len({gpu.card for gpu in ordered}) < len(ordered):
            raise ValueError("two GPUs of one node share a card or a PCI address")
        links = [0] * len(ordered)
        matrix = [[-1] * len(ordered) for _ in ordered]
        for (one, other), width in lanes.items():
            i, j = index.get(one), index.get(other)
            if i is None or j is None or i == j:
                continue
            back = lanes.get((other, one), width)
            matrix[i][j] = matrix[j][i] = max(0, min(width, back, LANES_LIMIT))
            links[i] |= 1 << j
            links[j] |= 1 << i
        nodes = {numa: 1 << i for i, numa in enumerate(dict.fromkeys(gpu.numa for gpu in ordered))}
        return cls(
            gpus=ordered,
            lanes=tuple(map(tuple, matrix)),
            links=tuple(links),
            ports_cost=tuple(_PORTS_COST[gpu.ports_healthy] for gpu in ordered),
            numa=tuple(nodes[gpu.numa] for gpu in ordered),
            near=(pcie_groups([gpu.bridges for gpu in ordered]),),
        )

    def __len__(self) -> int:
        return len(self.gpus)

    def cards(self, mask: int) -> tuple[str, ...]:
        """Name the GPUs of a set, by PCI address."""
        return tuple(self.gpus[i].card for i in members(mask))

    def mirrored(self, mask: int) -> int:
        """Return the set with the lower PCI addresses the higher number, among sets of one size."""
        return int(f"{mask:0{len(self)}b}"[::-1], 2)

    def lanes_within(self, mask: int) -> list[int]:
        """List the lanes of every pair in a set, -1 for a pair without a link."""
        inside = list(members(mask))
        return [self.lanes[i][j] for k, i in enumerate(inside) for j in inside[:k]]

    def reach(self, start: int, within: int) -> int:
        """Find every GPU of `within` that a path through `within` joins to `start`."""
        links = self.links
        reached = edge = start
        while edge:
            linked = 0
            while edge:
                linked |= links[(edge & -edge).bit_length() - 1]
                edge &= edge - 1
            edge = linked & within & ~reached
            reached |= edge
        return reached

    def alike(self) -> tuple[int, ...]:
        """Find the sets of GPUs that can be exchanged for each other without changing a measure.

        Two GPUs are alike when they have the same lanes to every third one, the same ports, the
        same NUMA node and the same groups in `near`; sets of one are left out.
        """
        found: dict[object, int] = {}
        groups = [group for levels in self.near for level in levels for group in level]
        for i, row in enumerate(self.lanes):
            near = tuple([group for group in groups if group >> i & 1])
            # GPUs that are alike have the same lanes between any two of them: put in place of the
            # lanes of each to itself, these make their rows the same
            for width in set(row):
                others = (*row[:i], width, *row[i + 1 :])
                kind = (self.ports_cost[i], self.numa[i], near, width, others)
                found[kind] = found.get(kind, 0) | 1 << i
        return tuple(alike for alike in found.values() if alike.bit_count() > 1)

    def components(self, mask: int) -> Iterator[int]:
        """Split a set where no link passes, by lowest PCI address."""
        while mask:
            component = self.reach(mask & -mask, mask)
            yield component
            mask &= ~component


class Free(NamedTuple):
    """What is free before an allocation, as sets of GPUs.

    `unused` are available with every replica. Where GPUs are shared, `shareable` have a free device
    that is not required, and `last_share` are those of them that have just one such device and none
    that is required: whoever gets such a GPU uses it up. Both are empty where none can be used up.
    """

    unused: int
    shareable: int = 0
    last_share: int = 0

    def unused_after(self, chosen: int) -> int:
        """Return what stays unused."""
        return self.unused & ~chosen

    def shareable_after(self, chosen: int) -> int:
        """Return what keeps a free device."""
        return self.shareable & ~(chosen & self.last_share)

    def kinds(self, alike: int) -> list[int]:
        """Split GPUs that are alike into those of which the same is free."""
        partly = alike & ~self.unused
        parts = alike & self.unused, partly & ~self.last_share, partly & self.last_share
        return [part for part in parts if part]
