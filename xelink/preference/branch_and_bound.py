"""Branch and bound over sets of GPUs, for nodes whose subsets are too many for a table.

GPUs are decided about in one order that is fixed beforehand, those first that can add the most:
so most of each bound is the same in all branches, see `branching_order`.

GPUs that are alike are interchangeable, so of each kind only the first ones are tried.
"""

from collections.abc import Sequence
from operator import add
from typing import NamedTuple

from xelink.preference.bitmask import lowest, members, union
from xelink.preference.branching_order import BranchingOrder
from xelink.preference.incumbent import Incumbent
from xelink.preference.problem import NEVER, SearchProblem

# The cost of a NUMA node more, above all other costs: four times more links than a GPU has.
_NODE_COST = 1 << 16


class _Branch(NamedTuple):
    """A partial set: GPUs chosen, twice their worth, NUMA nodes touched, how many GPUs lack."""

    chosen: int
    worth: int
    nodes: int
    open: int


class BranchAndBound:
    """Branch and bound for the most lanes, then ports, NUMA nodes and what is left.

    `links` are the links that count, by GPU; sets must be all `linked` by them, or `connected`, or
    neither. Each better set is appended to `found`; `best` is the last one.
    """

    def __init__(
        self,
        problem: SearchProblem,
        links: Sequence[int],
        found: list[int],
        *,
        linked: bool = False,
        connected: bool = False,
    ) -> None:
        self.best = Incumbent(problem, found, connected=connected)
        self._problem, self._links, self._linked = problem, links, linked
        self._fabric, self._index = problem.index.fabric, problem.index
        self._rows: dict[int, Sequence[int]] = {}

    def run(self, within: int) -> None:
        """Search sets of GPUs in `within`; better ones are appended to what was found."""
        near, worth, nodes, problem = [*self._index.own], 0, 0, self._problem
        candidates = within & ~problem.must
        for i in members(problem.must):
            problem.tick(1 + len(near) // 16)
            worth += near[i]
            near = list(map(add, near, self._index.rows[i]))
            nodes |= self._fabric.numa[i]
            if self._linked:
                candidates &= self._links[i]
        branch = _Branch(problem.must, 2 * worth, nodes, problem.size - problem.must.bit_count())
        if not branch.open:
            self.best.offer(branch.chosen, branch.worth, nodes)
            return
        # Sets of one NUMA node first: where lanes do not decide, the best one cuts off the rest.
        homes = [(node, home) for node, home in self._index.homes if home & candidates]
        self.best.fewest_nodes = 1
        if (nodes | union(node for node, _ in homes)).bit_count() > 1:
            for node, home in homes:
                if not nodes & ~node:
                    self._search(branch, candidates & home, near)
            self.best.fewest_nodes = 2
        self._search(branch, candidates, near)

    def _row(self, i: int) -> Sequence[int]:
        """Return the worth of the links of a GPU; others are never in a set that is all linked."""
        self._problem.tick(1 + len(self._fabric) // 16)
        if not self._linked:
            return self._index.rows[i]
        if i not in self._rows:
            row, links = self._index.rows[i], self._links[i]
            self._rows[i] = [worth if links >> j & 1 else NEVER for j, worth in enumerate(row)]
        return self._rows[i]

    def _search(self, branch: _Branch, candidates: int, near: Sequence[int]) -> None:
        """Search sets of a branch and these candidates; `near` is what each adds to the branch."""
        kinds = self._ranked(branch, candidates, near)
        order = BranchingOrder(
            self._problem, kinds, [self._row(kind.bit_length() - 1) for kind in kinds]
        )
        if order.left[0] >= branch.open:
            firsts = [(kind & -kind).bit_length() - 1 for kind in kinds]
            self._branch(order, 0, branch, [2 * near[i] for i in firsts])

    def _ranked(self, branch: _Branch, candidates: int, near: Sequence[int]) -> list[int]:
        """Rank the kinds of candidates by the most that one GPU can add, then by what it costs.

        That is a NUMA node, if not all are needed anyway, then those who come next: sharing the
        GPU, having all of it, its links.
        """
        problem, free = self._problem, self._problem.free
        every = branch.nodes | union(node for node, home in self._index.homes if home & candidates)
        fewest = problem.fewest_nodes(branch.nodes, candidates, branch.open)
        node_cost = _NODE_COST if fewest < every.bit_count() else 0
        ranked = []
        for kind in problem.kinds(candidates):
            i = (kind & -kind).bit_length() - 1
            widest = self._index.widest[i]
            problem.tick(2 + len(widest) // 16)
            near_by = candidates & self._links[i]
            lanes = [width for width, bit in widest if bit & near_by][: branch.open - 1]
            if self._linked and len(lanes) < branch.open - 1:
                continue  # too few links to be in the group
            most = 2 * near[i] + sum(lanes)
            cost = (2 * (free.last_share >> i & 1) + (free.unused >> i & 1)) * _NODE_COST // 4
            cost += (self._fabric.links[i] & free.unused).bit_count()
            if not self._fabric.numa[i] & branch.nodes:
                cost += node_cost
            ranked.append((-most, cost, i, kind))
        return [kind for _, _, _, kind in sorted(ranked)]

    def _branch(
        self, order: BranchingOrder, place: int, branch: _Branch, near: Sequence[int]
    ) -> None:
        """Decide about the kinds from a place on; `near` is twice what each adds to the branch."""
        best, counts, left, open_ = self.best, order.counts, order.left, branch.open
        while True:
            self._problem.tick(4 + len(near) // 4)
            # as many GPUs of a kind as possible, then one less, and so on
            for count in range(min(counts[place], open_), 0, -1):
                self._take(order, place, branch, near, count)
                if left[place + 1] <= open_ - count:
                    break  # others are not enough for less
            near, place = near[1:], place + 1
            if left[place] < open_:
                return
            if open_ > 1:
                most = branch.worth + order.bound(near, place, open_)
                if most < best.least or not self._may_win(most, branch, order.later[place]):
                    return

    def _take(
        self, order: BranchingOrder, place: int, branch: _Branch, near: Sequence[int], count: int
    ) -> None:
        """Take so many GPUs of the kind at a place, and go on if that may win."""
        chosen, worth, nodes, open_ = branch
        kind, pairs, after = order.kinds[place], order.pairs[place], place + 1
        worth += near[0]
        if count > 1:
            worth += (count - 1) * near[0] + count * (count - 1) // 2 * order.between[place]
            pairs = [count * pair for pair in pairs]
        open_ -= count
        most = worth
        if open_:
            near = list(map(add, near[1:], pairs))
            most += order.bound(near, after, open_)
        if most < self.best.least:
            return
        chosen |= kind if count == order.counts[place] else lowest(kind, count)
        nodes |= self._fabric.numa[kind.bit_length() - 1]
        taken = _Branch(chosen, worth, nodes, open_)
        if not open_:
            self.best.offer(chosen, worth, nodes)
        elif self._may_win(most, taken, order.later[after]):
            self._branch(order, after, taken, near)

    def _may_win(self, bound: int, branch: _Branch, candidates: int) -> bool:
        """Return whether a set of a branch may be the best, as far as its lanes allow."""
        chosen, _, nodes, open_ = branch
        best = self.best
        if best.torn and chosen & ~self._fabric.reach(chosen & -chosen, chosen | candidates):
            return False
        return bound > best.least or best.may_lose(chosen, candidates, nodes, open_)
