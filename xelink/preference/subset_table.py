"""Exact preference for up to 16 GPUs: every subset is weighed once, when the snapshot changes.

A table over all subsets is one large integer with a field per subset, doubled once per GPU:
`table |= f(table) << half` writes the upper half (the subsets with that GPU) from the lower half in
one operation of the interpreter. That makes 65,536 weights a matter of milliseconds.
"""

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from xelink.preference.bitmask import members, prefixes, union
from xelink.preference.fabric import Fabric, Free
from xelink.preference.pcie import Levels, closeness

EXACT_LIMIT = 16
"""GPUs up to which the tables are built: 2**16 entries."""

_FIELD = 64
# The weight of a subset, from high to low bits: level, lanes, healthy ports, NUMA nodes saved,
# closeness by each criterion that has any.
# 120 pairs of at most 2**16 lanes need 23 bits, ports at most 2 * 16, NUMA nodes at most 16, and
# closeness at most 2 for each pair.
_NEAR_BITS = 8
_NUMA_BITS = 5
_LANES_SHIFT = _NUMA_BITS + 6
_LANES_BITS = 23
_LEVEL_SHIFT = _LANES_SHIFT + _LANES_BITS
# Up to so many available GPUs the ranking is walked; beyond, up to so many sets are rather named.
_WALK = 9
# GPUs up to which every answer is made beforehand, too
_ANSWERED = 8
_FEW = 2048


@dataclass(frozen=True, slots=True)
class Subsets:
    """The tables of one node: what every subset is worth when chosen, and when left.

    `ranking[k]` holds all subsets of k GPUs, the heaviest first, equals by PCI address, and
    `falling[k]` minus their weights. `alike` are the sets of two or more GPUs that can be
    exchanged without changing any measure. `fresh[k]` is the best set of k GPUs while the entire
    node is free. `answers[free][must][k]`, on a small node, is the best set that has k GPUs more
    than `must`, while just the GPUs in `free` are there and all of them unused.
    """

    weights: tuple[int, ...]
    left: list[int]
    ranking: tuple[list[int], ...]
    falling: tuple[list[int], ...]
    alike: tuple[int, ...]
    mirrored: tuple[int, ...]
    fresh: tuple[int, ...] = ()
    answers: tuple[Mapping[int, tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, fabric: Fabric) -> "Subsets":
        """Weigh every subset of the node's GPUs; at most `EXACT_LIMIT` of them."""
        n = len(fabric)
        lanes = _sums([[max(0, width) for width in row] for row in fabric.lanes])
        table = _levels(fabric) << _LEVEL_SHIFT
        table += (lanes << _LANES_SHIFT) + (_ports(fabric) << _NUMA_BITS) + _numa(fabric)
        for levels in filter(None, fabric.near):
            table = (table << _NEAR_BITS) + _near(levels, n)
        weights = _unpack(table, n)
        ranking = [sorted(masks, key=weights.__getitem__, reverse=True) for masks in _by_size(n)]
        groups = zip(_groups(fabric), _unpack(lanes, n), strict=True)
        tables = cls(
            weights=weights,
            left=[count << _LANES_BITS | width for count, width in groups],
            ranking=tuple(ranking),
            falling=tuple([-weights[mask] for mask in masks] for masks in ranking),
            alike=fabric.alike(),
            mirrored=_mirrored(n),
        )
        every = (1 << n) - 1
        best = tuple(tables._search(every, 0, Free(every), size) for size in range(n + 1))
        frees = range(1 << n if n <= _ANSWERED else 0)
        return replace(tables, fresh=best, answers=tuple(map(tables._answers, frees)))

    def best(self, available: int, must: int, free: Free, size: int) -> int:
        """Find the best set of `size` GPUs of `available` that has all of `must`."""
        if free.unused == available:
            if self.answers:
                return self.answers[available][must][size - must.bit_count()]
            if not must and available == len(self.weights) - 1:
                return self.fresh[size]
        return self._search(available, must, free, size)

    def rank(self, chosen: int, free: Free) -> tuple[int, int, int, int]:
        """Rank a set among those of its size as the criteria do; more is better."""
        left = self.left
        return (
            self.weights[chosen],
            left[free.shareable_after(chosen)] >> _LANES_BITS,
            left[free.unused_after(chosen)],
            self.mirrored[chosen],
        )

    def leaving_most(self, ties: list[int], free: Free) -> int:
        """Find the set that leaves the most; the first of equals."""
        table, (unused, open_, last) = self.left, free
        if last:
            opened = [table[open_ ^ mask & last] for mask in ties]
            most = max(opened) >> _LANES_BITS << _LANES_BITS  # groups alone
            ties = [mask for mask, groups in zip(ties, opened, strict=True) if groups >= most]
        left = [table[unused & ~mask] for mask in ties]
        return ties[left.index(max(left))]

    def _answers(self, free: int) -> dict[int, tuple[int, ...]]:
        """Find the best sets of each size for each must-include, the largest must-include first.

        The best set that has one GPU more at least is the best of those for each GPU added.
        """
        subsets = [free]
        while subsets[-1]:
            subsets.append(subsets[-1] - 1 & free)
        weights, left, mirrored = self.weights, self.left, self.mirrored
        ranked = sorted([(weights[m], left[free ^ m], mirrored[m], m) for m in subsets])
        order = [rank[-1] for rank in ranked]
        place = {mask: place for place, mask in enumerate(order)}
        bits = [1 << i for i in members(free)]
        bests: dict[int, tuple[int, ...]] = {}
        for must in subsets:
            wider = [bests[must | bit] for bit in bits if not must & bit]
            further = tuple(map(max, *wider)) if len(wider) > 1 else sum(wider, ())
            bests[must] = (place[must], *further)
        pick = order.__getitem__
        return {must: tuple(map(pick, places)) for must, places in bests.items()}

    def _search(self, available: int, must: int, free: Free, size: int) -> int:
        many = available.bit_count() > _WALK
        if many and (few := self._few(available, must, free, size)):
            return max(few, key=lambda mask: self.rank(mask, free))
        ties = self._heaviest(available, must, size)
        return ties[0] if len(ties) == 1 else self.leaving_most(ties, free)

    def _heaviest(self, available: int, must: int, size: int) -> list[int]:
        """Walk the ranking to the heaviest sets that qualify; by PCI address."""
        ranking = self.ranking[size]
        # a set qualifies when it has all of `must` and nothing that is not available
        care = ~available | must
        for place, mask in enumerate(ranking):  # noqa: B007 - the place is where the walk ended
            if mask & care == must:
                break
        falling = self.falling[size]
        end = bisect_right(falling, falling[place], lo=place)
        return [mask for mask in ranking[place:end] if mask & care == must]

    def _few(self, available: int, must: int, free: Free, size: int) -> list[int]:
        """Name the heaviest sets where most GPUs are alike; empty when too many sets differ.

        Of GPUs that are alike, and alike in the request, only the first ones need to be tried.
        """
        others = available & ~must
        kinds = [kind for alike in self.alike for kind in free.kinds(alike & others)]
        kinds += [1 << i for i in members(others & ~union(kinds))]
        choices = 1
        for kind in kinds:
            choices *= kind.bit_count() + 1
        if choices > _FEW:
            return []
        open_ = size - must.bit_count()
        # sets by how many GPUs they add to `must`
        sets: list[list[int]] = [[must], *([] for _ in range(open_))]
        for kind in kinds:
            taken = list(prefixes(kind))[1:]
            for count in range(open_, 0, -1):
                for more, some in enumerate(taken[:count], start=1):
                    sets[count] += [mask | some for mask in sets[count - more]]
        weights = self.weights
        heavy = [weights[mask] for mask in sets[open_]]
        heaviest = max(heavy)
        return [mask for mask, weight in zip(sets[open_], heavy, strict=True) if weight == heaviest]


@cache
def _mirrored(n: int) -> tuple[int, ...]:
    """Return the set with the lower PCI addresses the higher number, among sets of one size."""
    table = [0]
    for v in range(n):
        table += [mask | 1 << n - 1 - v for mask in table]
    return tuple(table)


@cache
def _by_size(n: int) -> tuple[tuple[int, ...], ...]:
    """List sets by size, equal sizes by lowest PCI address: the same for every node of n GPUs."""
    bits = [1 << i for i in range(n)]
    return tuple(tuple(map(sum, combinations(bits, k))) for k in range(n + 1))


@cache
def _having(n: int) -> tuple[int, ...]:
    """For each GPU, mark the subsets that it is in: one bit per subset."""
    every = (1 << (1 << n)) - 1
    return tuple(
        every // ((1 << (2 << v)) - 1) * ((1 << (1 << v)) - 1 << (1 << v)) for v in range(n)
    )


@cache
def _ones(n: int) -> int:
    """Put a 1 into each of the 2**n fields."""
    return ((1 << (_FIELD << n)) - 1) // ((1 << _FIELD) - 1)


def _unpack(table: int, n: int) -> tuple[int, ...]:
    return struct.unpack(f"<{1 << n}Q", table.to_bytes(8 << n, "little"))


def _sums(pairs: Sequence[Sequence[int]]) -> int:
    """Sum up, inside every subset, a number that each pair of GPUs has."""
    table = 0
    for v, row in enumerate(pairs):
        to_v = 0
        for i in range(v):
            to_v |= (to_v + row[i] * _ones(i)) << (_FIELD << i)
        table |= (table + to_v) << (_FIELD << v)
    return table


def _near(levels: Levels, n: int) -> int:
    """Sum up how close the pairs inside every subset are."""
    return _sums([[closeness(levels, 1 << i | 1 << j) for j in range(n)] for i in range(n)])


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
    """Return every subset 0 when it falls apart, 1 when connected, and 2 or more when all linked.

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
    """Count the linked groups inside every subset, as `linked_groups` does."""
    step = len(fabric)
    table = [1]
    for links in fabric.links:
        table += [without + (table[mask & links] << step) for mask, without in enumerate(table)]
    return table
