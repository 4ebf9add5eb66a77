"""Preference for more than 16 GPUs, where no table of all subsets fits.

The criteria come in an order, so the search does too: the widest lanes at which enough GPUs are all
linked; else the connected sets; else sets over several components. Each step is exact, and every
loop of it minds the clock. What a deadline cuts short is the best that was found, and is marked as
not proven. Where no two GPUs are linked at all, `unlinked` answers directly.

GPUs that are alike are interchangeable: of each kind only the first ones are tried. On a node of
equal cards that leaves a count per kind, however many cards there are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from xelink.preference.bitmask import lowest, mask_of, members, union
from xelink.preference.branch_and_bound import Branches
from xelink.preference.chains import Chain, chain
from xelink.preference.components import Apart
from xelink.preference.local_search import Greed
from xelink.preference.problem import PER_LANE, ExpiredError, Task
from xelink.preference.unlinked import unlinked

# The part of the time that goes to the search; what is left is for `Greed`.
_SEARCHING = 0.85


class Found(NamedTuple):
    """The best set as a bitmask; `proven` when no other set can be better."""

    chosen: int
    proven: bool


class Search:
    """One request on one node."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._fabric = task.terrain.fabric
        self._available, self._must, self._size = task.available, task.must, task.size

    def best(self, timeout: float) -> Found:
        """Find the best set, or the best that `timeout` seconds of the task's clock allow."""
        task = self._task
        found: list[int] = []
        start = task.clock()
        task.end = start + timeout * _SEARCHING
        steps = [self._linked, self._connected, self._apart]
        if not any(self._fabric.links[i] & task.available for i in members(task.available)):
            steps = [self._unlinked]
        try:
            for step in steps:
                step(found)
                if found:
                    return Found(found[-1], proven=True)
        except (ExpiredError, RecursionError):  # hundreds of GPUs may be too deep for the stack
            task.end = start + timeout
        return Found(Greed(task).best(found[-1] if found else None), proven=False)

    def _unlinked(self, found: list[int]) -> None:
        unlinked(self._task, found)

    def _linked(self, found: list[int]) -> None:
        """Try sets that are all linked, at the widest lanes that allow one."""
        widths = self._task.terrain.widths if self._size > 1 else (0,)
        feasible: list[int] = []
        low, high = 0, len(widths)
        while low < high:
            middle = (low + high) // 2
            links = self._links(widths[middle])
            group = self._group_of(links)
            if group is None:
                high = middle
            else:
                feasible, low = links, middle + 1
                found.append(group)  # whatever the time allows from here on, it is linked so widely
        if feasible:
            Branches(self._task, feasible, found, linked=True).run(self._available)

    def _links(self, width: int) -> list[int]:
        """Find the links of each available GPU that have at least so many lanes."""
        self._task.tick(len(self._fabric))
        least = (width * PER_LANE,)
        wide = [steps[bisect_left(steps, least) :] for steps in self._task.terrain.wide]
        return [steps[0][1] & self._available if steps else 0 for steps in wide]

    def _group_of(self, links: Sequence[int]) -> int | None:
        """Find any set that may be given and is all linked by these links; None without one."""
        if any(self._must & ~(links[i] | 1 << i) for i in members(self._must)):
            return None
        free = self._available & ~self._must
        for i in members(self._must):
            free &= links[i]
        others = self._group(links, free, self._size - self._must.bit_count())
        return None if others is None else self._must | others

    def _group(self, links: Sequence[int], candidates: int, size: int) -> int | None:
        """Find `size` candidates that are all linked: branch and bound over colors.

        Candidates without a link between them share a color, and a group has one GPU per color.
        """
        if size <= 0:
            return 0
        self._task.tick()
        if candidates.bit_count() < size:
            return None
        everywhere = mask_of(
            i for i in members(candidates) if not candidates & ~(links[i] | 1 << i)
        )
        if everywhere:
            taken = lowest(everywhere, size)
            others = self._group(links, candidates & ~everywhere, size - taken.bit_count())
            return None if others is None else taken | others
        colored: list[tuple[int, int]] = []
        color, uncolored = 0, candidates
        while uncolored:
            color += 1
            fitting = uncolored
            while fitting:
                i = (fitting & -fitting).bit_length() - 1
                colored.append((color, i))
                fitting &= ~(links[i] | 1 << i)
                uncolored ^= 1 << i
        for color, i in reversed(colored):
            if color < size:
                return None
            others = self._group(links, candidates & links[i], size - 1)
            if others is not None:
                return others | 1 << i
            candidates ^= 1 << i
        return None

    def _connected(self, found: list[int]) -> None:
        branches = Branches(self._task, self._links(0), found, connected=True)
        for component in self._fabric.components(self._available):
            if not self._must & ~component and component.bit_count() >= self._size:
                found_chain = chain(self._fabric.links, component)
                if found_chain:
                    self._along(found_chain, branches)
                else:
                    branches.run(component)

    def _along(self, way: Chain, branches: Branches) -> None:
        """Offer every arc of a path or a ring."""
        terrain, task = self._task.terrain, self._task
        for arc in way.arcs(self._size):
            task.tick(8 + self._size)
            chosen = mask_of(arc)
            if self._must & ~chosen:
                continue
            worth = sum(terrain.own[i] for i in arc)
            worth += sum(terrain.rows[one][other] for one, other in pairwise(arc))
            if way.ring and self._size == len(way.order):
                worth += terrain.rows[arc[0]][arc[-1]]
            branches.best.offer(chosen, 2 * worth, union(self._fabric.numa[i] for i in arc))

    def _apart(self, found: list[int]) -> None:
        """Combine components; where one leaves too many choices, search the whole node."""
        chosen = Apart(self._task).best()
        if chosen is None:
            Branches(self._task, self._links(0), found).run(self._available)
        else:
            found.append(chosen)
