"""Preference for more than 16 GPUs, where no table of all subsets fits.

The wishes come in an order, so the search does too: the widest lanes at which enough GPUs are all
linked; else the connected sets; else sets over several components. Each step is exact. What a
deadline cuts short is the best that was found, and is marked as not proven.

GPUs that are alike are interchangeable: of each kind only the first ones are tried. On a node of
equal cards that leaves a count per kind, however many cards there are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from device_plugin.wishes import Fabric, linked_groups, mask_of, members, union

# Choices in one component up to which all are weighed; more are searched.
_CHOICES_LIMIT = 2048
# Ports change the worth of a set by at most 2 per GPU; lanes come before.
_PER_LANE = 256
_PORTS_BEST = 2
_LOOK_AT_CLOCK = 16


class Found(NamedTuple):
    """The best set as a bitmask; `proven` when no other set can be better."""

    chosen: int
    proven: bool


class _ExpiredError(Exception):
    """The time is up: what was found so far is the answer."""


@dataclass(slots=True)
class Search:
    """One request: `size` GPUs of `available`, with all of `must`; `whole` are untouched so far."""

    fabric: Fabric
    alike: tuple[int, ...]
    available: int
    must: int
    whole: int
    size: int
    expired: Callable[[], bool]
    known: dict[int, int] = field(default_factory=dict)
    visits: int = 0

    def best(self) -> Found:
        """Find the best set, or the best that time allows."""
        found: list[int] = []
        try:
            for step in (self._linked, self._connected, self._apart):
                step(found)
                if found:
                    return Found(found[-1], proven=True)
        except _ExpiredError:
            pass
        return Found(max((*found, self._greedy()), key=self._rank), proven=False)

    def _rank(self, chosen: int) -> tuple[int, ...]:
        """Rank by every wish that is cheap to measure."""
        score = self.fabric.score(chosen, 0)
        return (*score[: score._fields.index("groups_left")], score.address)

    def _greedy(self) -> int:
        """Take the GPU with the most lanes to those taken, one by one: quick and often wrong."""
        lanes, chosen = self.fabric.lanes, self.must
        start = chosen or self.available
        while chosen.bit_count() < self.size:
            near = list(members(chosen or start))
            best = max(
                members(self.available & ~chosen),
                key=lambda i: (sum(lanes[i][j] for j in near if i != j), -i),
            )
            chosen |= 1 << best
        return chosen

    def tick(self) -> None:
        """Count one step, and look at the clock now and then; raise when the time is up."""
        self.visits += 1
        if self.visits % _LOOK_AT_CLOCK == 0 and self.expired():
            raise _ExpiredError

    def kinds(self, within: int) -> list[int]:
        """Split the free GPUs of `within` into sets whose members are alike for this request."""
        free = within & ~self.must
        parts = [part & free for alike in self.alike for part in (alike & self.whole, alike & ~self.whole)]
        parts = [part for part in parts if part]
        return parts + [1 << i for i in members(free & ~union(parts))]

    def left(self, chosen: int, within: int) -> tuple[int, int]:
        """Measure what is left of `within`: linked groups and lanes."""
        left = self.whole & within & ~chosen
        groups = linked_groups(self.fabric.links, left, self.known)
        return groups, sum(width for width in self.fabric.lanes_within(left) if width > 0)

    def _linked(self, found: list[int]) -> None:
        """Try sets that are all linked, at the widest lanes that allow one."""
        inside = list(members(self.available))
        widths = sorted({self.fabric.lanes[i][j] for i in inside for j in inside} - {-1})
        if self.size == 1:
            widths = [0]
        feasible: list[int] = []
        low, high = 0, len(widths)
        while low < high:
            middle = (low + high) // 2
            links = self._links(widths[middle])
            if self._has_group(links):
                feasible, low = links, middle + 1
            else:
                high = middle
        if feasible:
            _Branches(self, feasible, found, linked=True).run(self.available)

    def _links(self, width: int) -> list[int]:
        row = self.fabric.lanes
        inside = list(members(self.available))
        return [
            mask_of(j for j in inside if row[i][j] >= width) if self.available >> i & 1 else 0
            for i in range(len(row))
        ]

    def _has_group(self, links: Sequence[int]) -> bool:
        if any(self.must & ~(links[i] | 1 << i) for i in members(self.must)):
            return False
        free = self.available & ~self.must
        for i in members(self.must):
            free &= links[i]
        return self._group(links, free, self.size - self.must.bit_count())

    def _group(self, links: Sequence[int], candidates: int, size: int) -> bool:
        """Tell whether `size` candidates are all linked: branch and bound over colors.

        Candidates without a link between them share a color, and a group has one GPU per color.
        """
        if size <= 0:
            return True
        self.tick()
        if candidates.bit_count() < size:
            return False
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
                return False
            if self._group(links, candidates & links[i], size - 1):
                return True
            candidates ^= 1 << i
        return False

    def _connected(self, found: list[int]) -> None:
        branches = _Branches(self, self._links(0), found, connected=True)
        for component in self.fabric.components(self.available):
            if not self.must & ~component and component.bit_count() >= self.size:
                branches.run(component)

    def _apart(self, found: list[int]) -> None:
        """Combine components: what they add to every wish but NUMA is a sum.

        So the best of each (GPUs taken, NUMA nodes touched) is enough to go on with, component by
        component. Lone GPUs that are alike count as one component. Where a component leaves too
        many choices, the whole node is searched instead.
        """
        alone = mask_of(i for i in members(self.available) if not self.fabric.links[i] & self.available)
        units = [*self.fabric.components(self.available & ~alone)]
        units += [*self.kinds(alone), *(1 << i for i in members(alone & self.must))]
        if any(_choices(self.kinds(unit)) > _CHOICES_LIMIT for unit in units):
            _Branches(self, self._links(0), found).run(self.available)
            return
        n = len(self.fabric)
        states = {(0, 0): 0}
        open_ = sum(unit.bit_count() for unit in units)
        for unit in units:
            open_ -= unit.bit_count()
            options = self._options(unit)
            merged: dict[tuple[int, int], int] = {}
            for (count, nodes), worth in states.items():
                self.tick()
                for (more, touched), gain in options.items():
                    taken = count + more
                    if taken <= self.size <= taken + open_:
                        state = taken, nodes | touched
                        merged[state] = max(merged.get(state, 0), worth + gain)
            states = merged
        tail = _tail(n)
        best = max(
            (worth >> tail, -nodes.bit_count(), worth & (1 << tail) - 1)
            for (_, nodes), worth in states.items()
        )
        found.append(mask_of(n - 1 - i for i in members(best[-1] & (1 << n) - 1)))

    def _options(self, unit: int) -> dict[tuple[int, int], int]:
        """Weigh what one component can give: (GPUs, NUMA nodes) to the best worth."""
        fabric, n = self.fabric, len(self.fabric)
        options: dict[tuple[int, int], int] = {}
        for taken in product(*map(_prefixes, self.kinds(unit))):
            self.tick()
            chosen = sum(taken, self.must & unit)
            inside = list(members(chosen))
            lanes = sum(width for width in fabric.lanes_within(chosen) if width > 0)
            groups, lanes_left = self.left(chosen, unit)
            worth = lanes * _PER_LANE + sum(_PORTS_BEST - fabric.ports_cost[i] for i in inside)
            worth = worth << n * n | groups >> n
            worth = worth << _LANES_BITS | lanes_left
            worth = worth << n | mask_of(n - 1 - i for i in inside)
            state = len(inside), union(fabric.numa[i] for i in inside)
            options[state] = max(options.get(state, 0), worth)
        return options


# Lanes of all pairs of 2**10 GPUs.
_LANES_BITS = 36


def _tail(n: int) -> int:
    """Bits of a worth that come after the NUMA wish: groups left, lanes left, addresses."""
    return n * n + _LANES_BITS + n


def _choices(kinds: Sequence[int]) -> int:
    choices = 1
    for kind in kinds:
        choices *= kind.bit_count() + 1
    return choices


def _prefixes(kind: int) -> Iterator[int]:
    taken = 0
    yield taken
    for i in members(kind):
        taken |= 1 << i
        yield taken


class _Branch(NamedTuple):
    """A partial set: GPUs chosen, GPUs that may follow, worth so far, NUMA nodes touched."""

    chosen: int
    candidates: int
    worth: int
    nodes: int


class _Entry(NamedTuple):
    """A kind of candidates: minus twice what each can add at most, the first one, how many."""

    lost: int
    strange: bool
    first: int
    count: int


def _bound(ranked: Sequence[_Entry], open_: int) -> int | None:
    """Add up twice the most that `open_` candidates can add; None when there are too few."""
    most = 0
    for lost, _, _, count in ranked:
        if count >= open_:
            return most - lost * open_
        most -= lost * count
        open_ -= count
    return None if open_ else most


class _Branches:
    """Branch and bound for the most lanes, then ports, NUMA nodes and what is left.

    The bound: of the lanes between two GPUs that are still to be chosen, each gets one half, and
    no GPU gets more than its widest ones.
    """

    def __init__(
        self,
        search: Search,
        links: Sequence[int],
        found: list[int],
        *,
        linked: bool = False,
        connected: bool = False,
    ) -> None:
        fabric = search.fabric
        self._search, self._links, self._found = search, links, found
        self._linked, self._spread = linked, connected
        self._rows = [[max(0, width) * _PER_LANE for width in row] for row in fabric.lanes]
        self._widest = [
            sorted(((row[j], 1 << j) for j in members(links[i])), reverse=True)
            for i, row in enumerate(self._rows)
        ]
        self._own = [_PORTS_BEST - cost for cost in fabric.ports_cost]
        self._kind = [0] * len(fabric)
        for kind in search.kinds(search.available):
            for i in members(kind):
                self._kind[i] = kind
        self._homes = [
            (node, mask_of(i for i, home in enumerate(fabric.numa) if home == node))
            for node in set(fabric.numa)
        ]
        self._most = (-1, 0)
        self._left: tuple[int, ...] = ()

    def run(self, within: int) -> None:
        """Search sets of GPUs in `within`; better ones are appended to what was found."""
        near, worth, nodes, chosen = [0] * len(self._rows), 0, 0, 0
        candidates = within & ~self._search.must
        for i in members(self._search.must):
            worth += near[i] + self._own[i]
            near = [a + b for a, b in zip(near, self._rows[i], strict=True)]
            nodes |= self._search.fabric.numa[i]
            chosen |= 1 << i
            if self._linked:
                candidates &= self._links[i]
        self._branch(_Branch(chosen, candidates, worth, nodes), near)

    def _branch(self, at: _Branch, near: list[int]) -> None:
        search = self._search
        search.tick()
        chosen, candidates, worth, nodes = at
        open_ = search.size - chosen.bit_count()
        if not open_:
            self._offer(chosen, worth, nodes)
            return
        edge = candidates
        if self._spread and chosen:
            edge = union(self._links[i] for i in members(chosen))
        ranked = self._rank(at, near, open_)
        while ranked:
            bound = _bound(ranked, open_)
            if bound is None or self._hopeless(2 * worth + bound, nodes, candidates, open_):
                return
            i = next((first for _, _, first, _ in ranked if edge >> first & 1), None)
            if i is None:
                return
            row, kind = self._rows[i], self._kind[i]
            rest = candidates & ~(1 << i)
            child = _Branch(
                chosen | 1 << i,
                rest & self._links[i] if self._linked else rest,
                worth + near[i] + self._own[i],
                nodes | search.fabric.numa[i],
            )
            if open_ == 1 or self._worth_a_look(child, ranked, row, open_ - 1):
                self._branch(child, [a + b for a, b in zip(near, row, strict=True)])
            candidates &= ~kind
            if self._spread and chosen:
                candidates &= search.fabric.reach(chosen & -chosen, chosen | candidates)
                ranked = [entry for entry in ranked if candidates >> entry.first & 1]
            else:
                ranked = [entry for entry in ranked if entry.first != i]

    def _worth_a_look(
        self, child: _Branch, ranked: list[_Entry], row: Sequence[int], open_: int
    ) -> bool:
        """Bound a branch by what its parent knows, before it ranks its own candidates.

        The GPU that was added brings nobody more than the lanes to it: they count in full now and
        not by half, and there is one place less to fill.
        """
        near = sorted(
            [
                _Entry(lost - row[first], strange, first, count)
                for lost, strange, first, count in ranked
                if child.candidates & self._kind[first]
            ]
        )
        bound = _bound(near, open_)
        return bound is not None and not self._hopeless(
            2 * child.worth + bound, child.nodes, child.candidates, open_
        )

    def _hopeless(self, bound: int, nodes: int, candidates: int, open_: int) -> bool:
        """Tell whether nothing as good as the best can come: `bound` is twice the worth."""
        most, saved = self._most
        if bound != 2 * most:
            return bound < 2 * most
        return -self._fewest_nodes(nodes, candidates, open_) < saved

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
        return fewest

    def _rank(self, at: _Branch, near: Sequence[int], open_: int) -> list[_Entry]:
        """Rank the kinds of candidates by the most that one of them can add."""
        ranked = []
        candidates = at.candidates
        rest = candidates
        while rest:
            i = (rest & -rest).bit_length() - 1
            alike = self._kind[i] & rest
            rest ^= alike
            widest = [width for width, bit in self._widest[i] if bit & candidates][: open_ - 1]
            if self._linked and len(widest) < open_ - 1:
                continue  # too few links to be in the group
            lost = -2 * (near[i] + self._own[i]) - sum(widest)
            strange = not self._search.fabric.numa[i] & at.nodes
            ranked.append(_Entry(lost, strange, i, alike.bit_count()))
        ranked.sort()
        return ranked

    def _offer(self, chosen: int, worth: int, nodes: int) -> None:
        search, most = self._search, (worth, -nodes.bit_count())
        if most < self._most:
            return
        if self._spread and search.fabric.reach(chosen & -chosen, chosen) != chosen:
            return
        left: tuple[int, ...] = ()
        if most == self._most:
            left = self._remainder(chosen)
            if left <= (self._left or self._remainder(self._found[-1])):
                return
        self._most, self._left = most, left
        self._found.append(chosen)

    def _remainder(self, chosen: int) -> tuple[int, ...]:
        search, n = self._search, len(self._rows)
        address = mask_of(n - 1 - i for i in members(chosen))
        return (*search.left(chosen, search.available), address)
