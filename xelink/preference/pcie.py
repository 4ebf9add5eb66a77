"""How close GPUs are to each other in the PCIe tree, from the bridges above each.

Two GPUs below one host bridge are closer than two that are not, and two below one root port, which
are behind one switch, are closer again. Each level that a pair shares counts one, as the pairs of a
set are scored by the best-effort policy of NVIDIA's go-gpuallocator.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Levels: TypeAlias = tuple[tuple[int, ...], ...]
"""Groups of GPUs, level by level; a group of one level is within one of the level before."""

# A chain of bridges begins with the host bridge, then comes the root port.
_LEVELS = 2


def pcie_groups(chains: Sequence[Sequence[str]]) -> Levels:
    """Return the sets of GPUs below one host bridge, and those below one root port, as bitmasks.

    `chains` are the bridges above each GPU. Sets of one are left out, and so is the set of all
    GPUs: neither makes a difference between two sets of equal size. Levels without any set are left
    out.
    """
    every = (1 << len(chains)) - 1
    levels = []
    for depth in range(1, _LEVELS + 1):
        found: dict[tuple[str, ...], int] = {}
        for i, chain in enumerate(chains):
            if len(chain) >= depth:
                above = tuple(chain[:depth])
                found[above] = found.get(above, 0) | 1 << i
        level = tuple(group for group in found.values() if group.bit_count() > 1 and group != every)
        if level:
            levels.append(level)
    return tuple(levels)


def closeness(levels: Iterable[Iterable[int]], mask: int) -> int:
    """Return how many levels the pairs of a set share, added up."""
    total = 0
    for level in levels:
        for group in level:
            count = (mask & group).bit_count()
            total += count * (count - 1) // 2
    return total


def most_closeness(
    levels: Iterable[Iterable[int]], chosen: int, candidates: int, open_: int
) -> int:
    """Return a bound for `closeness` of a set and `open_` of these candidates.

    A GPU that joins k others of its group adds k. On each level the largest of these gains count,
    whichever order they would come in.
    """
    total = 0
    for level in levels:
        gains: list[int] = []
        for group in level:
            there = (chosen & group).bit_count()
            total += there * (there - 1) // 2
            more = min(open_, (candidates & group).bit_count())
            gains += range(there, there + more)
        total += sum(sorted(gains)[-open_:]) if open_ else 0
    return total
