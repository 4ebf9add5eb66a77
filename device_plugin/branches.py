"""Branch and bound over sets of GPUs, for nodes whose subsets are too many for a table.

GPUs that are alike are interchangeable, so of each kind only the first ones are tried.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from device_plugin.masks import lowest, members, union
from device_plugin.terrain import Task


class _Branch(NamedTuple):
    """A partial set: GPUs chosen, GPUs that may follow, worth so far, NUMA nodes touched."""

    chosen: int
    candidates: int
    worth: int
    nodes: int


# A kind of candidates: minus twice what each can add at most, what it costs otherwise (a NUMA node,
# a GPU that others could share, a whole one), the first of them, how many they are. A plain tuple:
# a search makes many thousands.
_Entry = tuple[int, int, int, int]

# The cost of a NUMA node more, above all other costs: four times more links than a GPU has.
_STRANGE = 1 << 16


def _bound(ranked: Iterable[tuple[int, int]], open_: int) -> int | None:
    """Add up twice the most that `open_` candidates can add; None when there are too few.

    `ranked` are (minus twice what each can add, how many of them), the best first.
    """
    most = 0
    for lost, count in ranked:
        if count >= open_:
            return most - lost * open_
        most -= lost * count
        open_ -= count
    return None if open_ else most


class Branches:
    """Branch and bound for the most lanes, then ports, NUMA nodes and what is left.

    The bound: of the lanes between two GPUs that are still to be chosen, each gets one half, and
    no GPU gets more than its widest ones. `links` are the links that count, by GPU; sets must be
    all `linked` by them, or `connected`, or neither. Each better set is appended to `found`.
    """

    def __init__(
        self,
        task: Task,
        links: Sequence[int],
        found: list[int],
        *,
        linked: bool = False,
        connected: bool = False,
    ) -> None:
        self._task, self._links, self._found = task, links, found
        self._linked, self._connected = linked, connected
        self._fabric = task.terrain.fabric
        self._rows, self._widest = task.terrain.rows, task.terrain.widest
        self._own, self._homes = task.terrain.own, task.terrain.homes
        self._kind = [0] * len(self._fabric)
        for kind in task.kinds(task.available):
            for i in members(kind):
                self._kind[i] = kind
        whole, last = task.free.whole, task.free.last
        # what taking a GPU costs those who come next: sharing it, having it whole, its links
        self._cost = [
            (2 * (last >> i & 1) + (whole >> i & 1)) * _STRANGE // 4 + (seen & whole).bit_count()
            for i, seen in enumerate(self._fabric.links)
        ]
        # fewer NUMA nodes than so many no set has that is still to be found
        self._least = 1
        self._most = (-1, 0)
        self._left: tuple[int, ...] = ()

    def run(self, within: int) -> None:
        """Search sets of GPUs in `within`; better ones are appended to what was found."""
        self._least = 1
        near, worth, nodes, chosen = [0] * len(self._rows), 0, 0, 0
        candidates = within & ~self._task.must
        for i in members(self._task.must):
            self._task.tick(1 + len(near) // 16)
            worth += near[i] + self._own[i]
            near = [a + b for a, b in zip(near, self._rows[i], strict=True)]
            nodes |= self._fabric.numa[i]
            chosen |= 1 << i
            if self._linked:
                candidates &= self._links[i]
        fewest = self._fewest_nodes(nodes, candidates, self._task.size - chosen.bit_count())
        all_nodes = nodes | union(node for node, home in self._homes if home & candidates)
        self._strange = _STRANGE if fewest < all_nodes.bit_count() else 0
        # Sets of one NUMA node first: where lanes do not decide, the best one cuts off the rest.
        if all_nodes.bit_count() > 1:
            for node, home in self._homes:
                if not nodes & ~node:
                    self._branch(_Branch(chosen, candidates & home, worth, nodes), near)
            self._least = 2
        self._branch(_Branch(chosen, candidates, worth, nodes), near)

    def _branch(self, at: _Branch, near: list[int]) -> None:
        task = self._task
        task.tick()
        chosen, candidates, worth, nodes = at
        open_ = task.size - chosen.bit_count()
        if not open_:
            self.offer(chosen, worth, nodes)
            return
        edge = candidates
        if self._connected and chosen:
            edge = union(self._links[i] for i in members(chosen))
        ranked = self._rank(at, near, open_)
        while ranked:
            task.tick(1 + len(ranked) // 4)
            bound = _bound([(lost, count) for lost, _, _, count in ranked], open_)
            rest = _Branch(chosen, candidates, worth, nodes)
            if bound is None or self._hopeless(2 * worth + bound, rest, open_):
                return
            i = next((first for _, _, first, _ in ranked if edge >> first & 1), None)
            if i is None:
                return
            for child, more in self._children(at, candidates, near, i):
                task.tick(1 + len(ranked) // 4)
                if more == open_ or self._worth_a_look(child, ranked, i, more):
                    row = self._rows[i]
                    self._branch(child, [a + more * b for a, b in zip(near, row, strict=True)])
            candidates &= ~self._kind[i]
            if self._connected and chosen:
                reached = self._fabric.reach(chosen & -chosen, chosen | candidates)
                if chosen & ~reached:
                    return
                candidates &= reached
            ranked = [entry for entry in ranked if candidates >> entry[2] & 1]

    def _children(
        self, at: _Branch, candidates: int, near: Sequence[int], first: int
    ) -> Iterator[tuple[_Branch, int]]:
        """Take as many GPUs of a kind as possible, then one less, down to one; with the count."""
        alike = self._kind[first] & candidates
        rest = candidates & ~alike
        between = 0
        if alike.bit_count() > 1:
            second = (alike & alike - 1 & -(alike & alike - 1)).bit_length() - 1
            between = self._rows[first][second]
            if self._linked and not self._links[first] >> second & 1:
                alike = 1 << first
        if self._linked:
            rest &= self._links[first]
        most = min(alike.bit_count(), self._task.size - at.chosen.bit_count())
        each = near[first] + self._own[first]
        nodes = at.nodes | self._fabric.numa[first]
        some = lowest(alike, most)
        for more in range(most, 0, -1):
            worth = at.worth + more * each + more * (more - 1) // 2 * between
            yield _Branch(at.chosen | some, rest, worth, nodes), more
            some ^= 1 << some.bit_length() - 1

    def _worth_a_look(self, child: _Branch, ranked: list[_Entry], added: int, more: int) -> bool:
        """Bound a branch by what its parent knows, before it ranks its own candidates.

        A GPU that was added brings nobody more than the lanes to it: they count in full now and
        not by half, and there is one place less to fill.
        """
        row = self._rows[added]
        open_ = self._task.size - child.chosen.bit_count()
        near = []
        for lost, _, first, _ in ranked:
            alike = self._kind[first] & child.candidates
            if alike:
                some = (alike & -alike).bit_length() - 1
                near.append((lost - more * row[some], alike.bit_count()))
        near.sort()
        bound = _bound(near, open_)
        return bound is not None and not self._hopeless(2 * child.worth + bound, child, open_)

    def _hopeless(self, bound: int, at: _Branch, open_: int) -> bool:
        """Tell whether nothing better than the best can come: `bound` is twice the worth."""
        most, saved = self._most
        if bound != 2 * most:
            return bound < 2 * most
        nodes = -self._fewest_nodes(at.nodes, at.candidates, open_)
        if nodes != saved:
            return nodes < saved
        if not self._left:
            self._left = self._remainder(self._found[-1])
        left = self._task.most_left(at.chosen, at.candidates, open_)
        return not self._leaves_more(left, at.chosen | lowest(at.candidates, open_))

    def _leaves_more(self, left: Iterator[int], lowest_: int) -> bool:
        """Tell whether so much left is more than the best leaves, measured only while equal.

        Where nothing can leave more, only lower addresses can be better.
        """
        *best, address = self._left
        for more, most in zip(left, best, strict=True):
            if more != most:
                return more > most
        return self._fabric.mirrored(lowest_) > address

    def _fewest_nodes(self, nodes: int, candidates: int, open_: int) -> int:
        """Bound the NUMA nodes of a set from below: fill the nodes it touches, then the largest."""
        homes = self._homes
        open_ -= sum((home & candidates).bit_count() for node, home in homes if node & nodes)
        fewest = nodes.bit_count()
        if open_ > 0:
            others = ((home & candidates).bit_count() for node, home in homes if not node & nodes)
            for size in sorted(others, reverse=True):
                fewest, open_ = fewest + 1, open_ - size
                if open_ <= 0:
                    break
        return max(fewest, self._least)

    def _rank(self, at: _Branch, near: Sequence[int], open_: int) -> list[_Entry]:
        """Rank the kinds of candidates by the most that one of them can add."""
        ranked = []
        rest = candidates = at.candidates
        while rest:
            i = (rest & -rest).bit_length() - 1
            self._task.tick(2 + len(self._widest[i]) // 16)
            alike = self._kind[i] & rest
            rest ^= alike
            near_by = candidates & self._links[i]
            widest = [width for width, bit in self._widest[i] if bit & near_by][: open_ - 1]
            if self._linked and len(widest) < open_ - 1:
                continue  # too few links to be in the group
            lost = -2 * (near[i] + self._own[i]) - sum(widest)
            strange = not self._fabric.numa[i] & at.nodes
            cost = self._strange * strange + self._cost[i]
            ranked.append((lost, cost, i, alike.bit_count()))
        ranked.sort()
        return ranked

    def offer(self, chosen: int, worth: int, nodes: int) -> None:
        """Take a set for the best if it is better than that, by all wishes."""
        most = (worth, -nodes.bit_count())
        if most < self._most:
            return
        if self._connected and self._fabric.reach(chosen & -chosen, chosen) != chosen:
            return
        if most == self._most:
            self._left = self._left or self._remainder(self._found[-1])
            if not self._leaves_more(self._task.left(chosen, self._task.available), chosen):
                return
        self._most, self._left = most, ()
        self._found.append(chosen)

    def _remainder(self, chosen: int) -> tuple[int, ...]:
        task = self._task
        return (*task.left(chosen, task.available), self._fabric.mirrored(chosen))
