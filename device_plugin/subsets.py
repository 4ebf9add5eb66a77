"""Exact preference for up to 16 GPUs: every subset is weighed once, when the snapshot changes.

A table over all subsets is one large integer with a field per subset, doubled once per GPU:
`table |= f(table) << half` writes the upper half (the subsets with that GPU) from the lower half in
one operation of the interpreter. That makes 65,536 weights a matter of milliseconds.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

from device_plugin.wishes import Fabric, union

EXACT_LIMIT = 16
"""GPUs up to which the tables are built: 2**16 entries."""

_FIELD = 64
# The weight of a subset, from high to low bits: level, lanes, healthy ports, NUMA nodes saved.
# 120 pairs of at most 2**16 lanes need 23 bits, ports at most 2 * 16, NUMA nodes at most 16.
_NUMA_BITS = 5
_LANES_SHIFT = _NUMA_BITS + 6
_LEVEL_SHIFT = _LANES_SHIFT + 23
# Below this many sets that differ by more than equal GPUs, naming them beats walking the ranking.
_FEW = 256


@dataclass(frozen=True, slots=True)
class Subsets:
    """The tables of one node: subset to weight, subset to what it is worth when it is left.

    `ranking[k]` holds all subsets of k GPUs, the heaviest first, equals by PCI address.
    `alike` are the sets of two or more GPUs that can be exchanged without changing any measure.
    """

    fabric: Fabric
    weights: tuple[int, ...]
    lanes: tuple[int, ...]
    groups: list[int]
    ranking: list[list[int]]
    alike: tuple[int, ...]

    @classmethod
    def of(cls, fabric: Fabric) -> "Subsets":
        """Weigh every subset of the node's GPUs; at most `EXACT_LIMIT` of them."""
        n = len(fabric)
        lanes = _lanes(fabric)
        weights = _levels(fabric) << _LEVEL_SHIFT
        weights += (lanes << _LANES_SHIFT) + (_ports(fabric) << _NUMA_BITS) + _numa(fabric)
        table = _unpack(weights, n)
        ranking = [sorted(masks, key=table.__getitem__, reverse=True) for masks in _by_size(n)]
        return cls(fabric, table, _unpack(lanes, n), _groups(fabric), ranking, fabric.alike())

    def best(self, available: int, must: int, whole: int, size: int) -> int:
        """Find the best set of `size` GPUs of `available` that has all of `must`."""
        ties = self._few(available, must, whole, size) or self._ranked(available, must, size)
        if len(ties) == 1:
            return ties[0]
        groups = self.groups
        left = [groups[whole & ~mask] for mask in ties]
        most = max(left)
        if left.count(most) == 1:
            return ties[left.index(most)]
        ties = [mask for mask, kept in zip(ties, left, strict=True) if kept == most]
        lanes = self.lanes
        return max(ties, key=lambda mask: lanes[whole & ~mask])

    def _ranked(self, available: int, must: int, size: int) -> list[int]:
        ranking = self.ranking[size]
        # a set qualifies when it has all of `must` and nothing that is not available
        care = ~available | must
        for place, mask in enumerate(ranking):  # noqa: B007 - the place is where the walk ended
            if mask & care == must:
                break
        weights = self.weights
        heaviest = weights[mask]
        if place + 1 == len(ranking) or weights[ranking[place + 1]] < heaviest:
            return [mask]
        end = bisect_right(ranking, -heaviest, lo=place + 1, key=lambda other: -weights[other])
        return [mask for mask in ranking[place:end] if mask & care == must]

    def _few(self, available: int, must: int, whole: int, size: int) -> list[int]:
        """Name the heaviest sets where most GPUs are alike; empty when too many sets differ.

        Of GPUs that are alike, and alike in the request, only the first ones need to be tried.
        """
        free = available & ~must
        if free.bit_count() <= _FEW.bit_length():
            return []
        kinds = [part for alike in self.alike for part in (alike & whole, alike & ~whole)]
        kinds = [part & free for part in kinds if part & free]
        lone = free & ~union(kinds)
        kinds += [1 << i for i in range(len(self.fabric)) if lone >> i & 1]
        choices = 1
        for kind in kinds:
            choices *= kind.bit_count() + 1
        if choices > _FEW:
            return []
        sets = (sum(taken, must) for taken in product(*map(_prefixes, kinds)))
        sized = sorted((mask for mask in sets if mask.bit_count() == size), key=_address)
        weights = self.weights
        heaviest = max(weights[mask] for mask in sized)
        return [mask for mask in sized if weights[mask] == heaviest]


def _prefixes(kind: int) -> Iterator[int]:
    taken = 0
    yield taken
    while taken != kind:
        taken |= (kind ^ taken) & -(kind ^ taken)
        yield taken


def _address(mask: int) -> str:
    """Order sets of one size by their lowest PCI address: '1' at each place sorts first."""
    return f"{mask:016b}"[::-1].translate({48: 49, 49: 48})


@cache
def _by_size(n: int) -> tuple[tuple[int, ...], ...]:
    """Sets by size; equal sizes by lowest PCI address. The same for every node of n GPUs."""
    bits = [1 << i for i in range(n)]
    return tuple(tuple(map(sum, combinations(bits, k))) for k in range(n + 1))


@cache
def _having(n: int) -> tuple[int, ...]:
    """For each GPU, mark the subsets that it is in: one bit per subset."""
    every = (1 << (1 << n)) - 1
    return tuple(every // ((1 << (2 << v)) - 1) * ((1 << (1 << v)) - 1 << (1 << v)) for v in range(n))


@cache
def _ones(n: int) -> int:
    """Put a 1 into each of the 2**n fields."""
    return ((1 << (_FIELD << n)) - 1) // ((1 << _FIELD) - 1)


def _unpack(table: int, n: int) -> tuple[int, ...]:
    return struct.unpack(f"<{1 << n}Q", table.to_bytes(8 << n, "little"))


def _lanes(fabric: Fabric) -> int:
    """Sum up the lanes inside every subset."""
    table = 0
    for v in range(len(fabric)):
        to_v = 0
        for i in range(v):
            to_v |= (to_v + max(0, fabric.lanes[v][i]) * _ones(i)) << (_FIELD << i)
        table |= (table + to_v) << (_FIELD << v)
    return table


def _ports(fabric: Fabric) -> int:
    table = 0
    for v, cost in enumerate(fabric.ports_cost):
        table |= (table + (2 - cost) * _ones(v)) << (_FIELD << v)
    return table


def _numa(fabric: Fabric) -> int:
    """Count, for every subset, the NUMA nodes that it does *not* touch."""
    table = 0
    for node in set(fabric.numa):
        untouched = 1
        for v, home in enumerate(fabric.numa):
            untouched |= (0 if home == node else untouched) << (_FIELD << v)
        table += untouched
    return table


def _levels(fabric: Fabric) -> int:
    """Give every subset 0 when it falls apart, 1 when connected, and 2 or more when all linked.

    From 2 on it is the rank of its weakest pair's lanes among the widths of this node.
    """
    n = len(fabric)
    table = _connected(fabric)
    for width in sorted({width for row in fabric.lanes for width in row if width >= 0} or {0}):
        wide = 1
        for v in range(n):
            within = 1
            for i in range(v):
                within |= (within if fabric.lanes[v][i] >= width else 0) << (_FIELD << i)
            wide |= (wide & within) << (_FIELD << v)
        table += wide
    return table


def _connected(fabric: Fabric) -> int:
    """Mark the subsets that are connected.

    One bit per subset: `having[v]` are the subsets with GPU v, `reached[v]` those of them in which
    v has been reached from the first GPU of the subset. A round goes one link further.
    """
    n = len(fabric)
    having = _having(n)
    reached, before = [], 0
    for subsets in having:
        reached.append(subsets & ~before)
        before |= subsets
    while True:
        further = [
            reached[v] | having[v] & union(reached[i] for i in range(n) if fabric.links[v] >> i & 1)
            for v in range(n)
        ]
        if further == reached:
            break
        reached = further
    apart = union(subsets & ~met for subsets, met in zip(having, reached, strict=True))
    flags = f"{apart:0{1 << n}b}".encode().translate(bytes.maketrans(b"01", b"\1\0"))
    spread = bytearray(_FIELD // 8 << n)
    spread[:: _FIELD // 8] = flags[::-1]
    return int.from_bytes(spread, "little")


def _groups(fabric: Fabric) -> list[int]:
    """Count the linked groups inside every subset, as `wishes.linked_groups` does."""
    step = len(fabric)
    table = [1]
    for v, links in enumerate(fabric.links):
        table += [
            without + (table[mask & links] << step) for mask, without in enumerate(table)
        ] if v else [1 + (1 << step)]
    return table
