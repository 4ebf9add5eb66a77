"""Groups: sets of GPUs that are all linked to each other."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet


def largest_group(neighbors: Mapping[int, AbstractSet[int]]) -> tuple[int, ...]:
    """Find a largest set of GPUs that are all linked to each other, ids sorted; exact.

    Maximum clique by branch and bound. GPUs that are *not* linked to each other can share a color,
    and a group takes at most one GPU of each color: so the number of colors bounds what a branch
    can still give, and real nodes (meshes, planes, rings) end after a handful of branches.
    """
    best: tuple[int, ...] = ()

    def extend(group: tuple[int, ...], candidates: frozenset[int]) -> None:
        nonlocal best
        if len(group) > len(best):
            best = group
        for gpu, colors in reversed(_color(candidates, neighbors)):
            if len(group) + colors <= len(best):
                return
            extend((*group, gpu), candidates & neighbors[gpu])
            candidates -= {gpu}

    extend((), frozenset(gpu for gpu, others in neighbors.items() if others))
    return tuple(sorted(best))


def _color(
    candidates: AbstractSet[int], neighbors: Mapping[int, AbstractSet[int]]
) -> list[tuple[int, int]]:
    """Give each candidate the number of colors used up to it, in the order of coloring."""
    order: list[tuple[int, int]] = []
    uncolored = sorted(candidates, key=lambda gpu: (-len(neighbors[gpu] & candidates), gpu))
    color = 0
    while uncolored:
        color += 1
        open_to: set[int] = set(uncolored)
        for gpu in uncolored:
            if gpu in open_to:
                open_to -= neighbors[gpu]
                order.append((gpu, color))
        taken = {gpu for gpu, used in order if used == color}
        uncolored = [gpu for gpu in uncolored if gpu not in taken]
    return order
