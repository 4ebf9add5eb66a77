"""Groups: sets of GPUs that are all linked to each other.

A graph can have more groups than anybody can go through, and links come from outside. So a search
counts its steps and ends at a bound that no real node comes near; the result says whether it did.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

STEPS = 10_000
"""Branches of one search. Meshes, planes and rings with links lost need a few hundred at most."""

MOST_GROUPS = 1000
"""Groups that are listed at most."""


class Largest(NamedTuple):
    """A largest group, ids sorted. Not `complete`: the search was cut short, one may be larger."""

    group: tuple[int, ...]
    complete: bool

    @property
    def size_text(self) -> str:
        """Its size in words, as far as it is known."""
        return f"{'' if self.complete else 'at least '}{len(self.group)}"


class Groups(NamedTuple):
    """Groups, none within another, largest first. Not `complete`: there may be more, and larger."""

    groups: tuple[tuple[int, ...], ...]
    complete: bool


def largest_group(neighbors: Mapping[int, AbstractSet[int]], steps: int = STEPS) -> Largest:
    """Find a largest set of GPUs that are all linked to each other, within so many steps.

    Maximum clique by branch and bound. GPUs that are *not* linked to each other can share a color,
    and a group takes at most one GPU of each color: so the number of colors bounds what a branch
    can still give, and real nodes (meshes, planes, rings) end after a handful of branches.
    """
    gpus, links = _numbered(neighbors)
    best = 0
    left = steps

    def extend(group: int, candidates: int) -> None:
        nonlocal best, left
        if not left:
            return
        left -= 1
        if group.bit_count() > best.bit_count():
            best = group
        for gpu, colors in reversed(_color(candidates, links)):
            if group.bit_count() + colors <= best.bit_count():
                return
            extend(group | 1 << gpu, candidates & links[gpu])
            candidates ^= 1 << gpu

    extend(0, (1 << len(gpus)) - 1)
    return Largest(tuple(gpus[gpu] for gpu in _members(best)), complete=left > 0)


def maximal_groups(
    neighbors: Mapping[int, AbstractSet[int]], *, most: int = MOST_GROUPS, steps: int = STEPS
) -> Groups:
    """Find the groups of two and more GPUs of which none is within another.

    At most so many, within so many steps: Bron and Kerbosch with the pivot of Tomita.
    """
    gpus, links = _numbered(neighbors)
    found: list[int] = []
    left = steps

    def extend(group: int, candidates: int, done: int) -> None:
        nonlocal left
        if not left or len(found) > most:
            return
        left -= 1
        if not candidates:
            if not done:
                found.append(group)
            return
        pivot = max(
            _members(candidates | done), key=lambda gpu: (candidates & links[gpu]).bit_count()
        )
        for gpu in _members(candidates & ~links[pivot]):
            extend(group | 1 << gpu, candidates & links[gpu], done & links[gpu])
            candidates ^= 1 << gpu
            done |= 1 << gpu

    if gpus:
        extend(0, (1 << len(gpus)) - 1, 0)
    groups = (tuple(gpus[gpu] for gpu in _members(group)) for group in found[:most])
    return Groups(
        tuple(sorted(groups, key=lambda group: (-len(group), group))),
        complete=left > 0 and len(found) <= most,
    )


def _numbered(neighbors: Mapping[int, AbstractSet[int]]) -> tuple[list[int], list[int]]:
    """Return the GPUs that have a link, sorted, and for each its neighbors as a set of places."""
    gpus = sorted(gpu for gpu, others in neighbors.items() if others)
    places = {gpu: place for place, gpu in enumerate(gpus)}
    return gpus, [
        sum(1 << places[other] for other in neighbors[gpu] if other in places) for gpu in gpus
    ]


def _members(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _color(candidates: int, links: list[int]) -> list[tuple[int, int]]:
    """Return for each candidate the number of colors used up to it, in the order of coloring."""
    order: list[tuple[int, int]] = []
    color = 0
    while candidates:
        color += 1
        fitting = candidates
        while fitting:
            gpu = (fitting & -fitting).bit_length() - 1
            order.append((gpu, color))
            fitting &= ~(links[gpu] | 1 << gpu)
            candidates ^= 1 << gpu
    return order
