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
from xelink.preference.branch_and_bound import BranchAndBound
from xelink.preference.chains import Chain, chain
from xelink.preference.components import ComponentSearch
from xelink.preference.local_search import LocalSearch
from xelink.preference.problem import PER_LANE, SearchProblem, TimeUpError
from xelink.preference.unlinked import unlinked

# The part of the time that goes to the search; what is left is for `LocalSearch`.
_SEARCHING = 0.85


class SearchResult(NamedTuple):
    """The best set as a bitmask; `proven` when no other set can be better."""

    chosen: int
    proven: bool


class Search:
    """One request on one node."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._fabric = problem.index.fabric
        self._available, self._must, self._size = problem.available, problem.must, problem.size

    def best(self, timeout: float) -> SearchResult:
        """Find the best set, or the best that `timeout` seconds of the problem's clock allow."""
        problem = self._problem
        found: list[int] = []
        start = problem.clock()
        problem.end = start + timeout * _SEARCHING
        steps = [self._linked, self._connected, self._apart]
        if not any(self._fabric.links[i] & problem.available for i in members(problem.available)):
            steps = [self._all if problem.is_closeness_known else self._unlinked]
        try:
            for step in steps:
                step(found)
                if found:
                    return SearchResult(found[-1], proven=True)
        except (TimeUpError, RecursionError):  # hundreds of GPUs may be too deep for the stack
            problem.end = start + timeout
        return SearchResult(LocalSearch(problem).best(found[-1] if found else None), proven=False)

    def _unlinked(self, found: list[int]) -> None:
        unlinked(self._problem, found)

    def _linked(self, found: list[int]) -> None:
        """Try sets that are all linked, at the widest lanes that allow one."""
        widths = self._problem.index.widths if self._size > 1 else (0,)
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
            BranchAndBound(self._problem, feasible, found, linked=True).run(self._available)

    def _links(self, width: int) -> list[int]:
        """Find the links of each available GPU that have at least so many lanes."""
        self._problem.tick(len(self._fabric))
        least = (width * PER_LANE,)
        wide = [steps[bisect_left(steps, least) :] for steps in self._problem.index.wide]
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
        self._problem.tick()
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
        branches = BranchAndBound(self._problem, self._links(0), found, connected=True)
        for component in self._fabric.components(self._available):
            if not self._must & ~component and component.bit_count() >= self._size:
                found_chain = chain(self._fabric.links, component)
                if found_chain:
                    self._along(found_chain, branches)
                else:
                    branches.run(component)

    def _along(self, way: Chain, branches: BranchAndBound) -> None:
        """Try every connected part of a path or a ring."""
        index, problem = self._problem.index, self._problem
        for path in way.paths(self._size):
            problem.tick(8 + self._size)
            chosen = mask_of(path)
            if self._must & ~chosen:
                continue
            worth = sum(index.own[i] for i in path)
            worth += sum(index.rows[one][other] for one, other in pairwise(path))
            if way.ring and self._size == len(way.order):
                worth += index.rows[path[0]][path[-1]]
            branches.best.offer(chosen, 2 * worth, union(self._fabric.numa[i] for i in path))

    def _apart(self, found: list[int]) -> None:
        """Combine components; where one leaves too many choices, search the entire node.

        So too where closeness matters: what it adds is no sum over components.
        """
        chosen = None if self._problem.is_closeness_known else ComponentSearch(self._problem).best()
        if chosen is None:
            self._all(found)
        else:
            found.append(chosen)

    def _all(self, found: list[int]) -> None:
        """Search sets that need not be connected."""
        BranchAndBound(self._problem, self._links(0), found).run(self._available)
