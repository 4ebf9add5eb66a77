"""What is done when the time for a search is up: take what is near, and exchange what is not.

Every loop minds the clock: what is not settled when it stops is taken by lowest address.
"""

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import islice
from operator import add, itemgetter, sub

from xelink.preference.bitmask import members, prefixes, union
from xelink.preference.fabric import LANES_LIMIT
from xelink.preference.pcie import closeness
from xelink.preference.problem import NEVER, SearchProblem, TimeUpError

# Exchanges of one GPU that are weighed by all criteria, of those that gain the most lanes.
_SWAPS = 8


class LocalSearch:
    """One request on one node, and the rest of its time."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._fabric, self._rows = problem.index.fabric, problem.index.rows
        self._available, self._must = problem.available, problem.must

    def best(self, found: int | None) -> int:
        """Improve what a search has found and what a greedy choice finds, while time allows."""
        chosen = self._greedy()
        if found is None:
            return self._improve(chosen)
        try:
            if self._rank(found) >= self._rank(chosen):
                found, chosen = chosen, found
        except TimeUpError:
            return found
        better, other = self._improve(chosen), self._improve(found)
        try:
            return other if self._rank(other) > self._rank(better) else better
        except TimeUpError:
            return better

    def _greedy(self) -> int:
        """Take the GPU with the most lanes to those taken, one by one: quick and often wrong."""
        chosen, problem = self._must, self._problem
        try:
            # the lanes of each to those taken and, as this is less than one lane, its links
            near = [NEVER] * len(self._rows)
            for i in members(self._available & ~chosen):
                near[i] = (self._fabric.links[i] & self._available).bit_count()
            near = self._nearer(near, chosen)
            while chosen.bit_count() < problem.size:
                problem.tick()
                best = near.index(max(near))
                chosen |= 1 << best
                near[best] = NEVER
                near = list(map(add, near, self._rows[best]))
        except TimeUpError:
            missing = problem.size - chosen.bit_count()
            chosen |= next(islice(prefixes(self._available & ~chosen), missing, None))
        return chosen

    def _nearer(self, near: list[int], mask: int) -> list[int]:
        """Add the lanes from each GPU to a set."""
        for i in members(mask):
            self._problem.tick(1 + len(near) // 16)
            near = list(map(add, near, self._rows[i]))
        return near

    def _improve(self, chosen: int) -> int:
        """Exchange single GPUs while that helps and time allows."""
        try:
            rank = self._rank(chosen)
            near = self._nearer([0] * len(self._rows), chosen)
            better = True
            while better:
                better = False
                for _, out, into in nsmallest(_SWAPS, self._swaps(chosen, near)):
                    self._problem.tick()
                    other = chosen & ~(1 << out) | 1 << into
                    other_rank = self._rank(other)
                    if other_rank > rank:
                        chosen, rank, better = other, other_rank, True
                        near = list(map(sub, map(add, near, self._rows[into]), self._rows[out]))
                        break
        except TimeUpError:
            pass
        return chosen

    def _swaps(self, chosen: int, near: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Weigh every exchange of one GPU: lanes lost, who goes, who comes."""
        free = list(members(self._available & ~chosen))
        for out in members(chosen & ~self._must):
            self._problem.tick(1 + len(free) // 4)
            row, own = self._rows[out], near[out]
            for into in free:
                yield own - near[into] + row[into], out, into

    def _rank(self, chosen: int) -> tuple[int, ...]:
        """Rank by every criterion that is cheap to measure, in their order."""
        fabric, problem = self._fabric, self._problem
        inside = list(members(chosen))
        linked = all(not chosen & ~(fabric.links[i] | 1 << i) for i in inside)
        lanes, weakest = 0, LANES_LIMIT if linked and len(inside) > 1 else 0
        if len(inside) > 1:
            pick = itemgetter(*inside)
            for i in inside:
                problem.tick(1 + len(inside) // 32)
                lanes += sum(pick(self._rows[i]))
                if linked:  # the first in order is no link, that of the GPU to itself
                    weakest = min(weakest, sorted(pick(fabric.lanes[i]))[1])
        return (
            linked,
            fabric.reach(chosen & -chosen, chosen) == chosen,
            weakest,
            lanes,
            -sum(fabric.ports_cost[i] for i in inside),
            -union(fabric.numa[i] for i in inside).bit_count(),
            *(closeness(levels, chosen) for levels in fabric.near),
            fabric.mirrored(chosen),
        )
