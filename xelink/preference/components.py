"""The best set over several components: exact, and no search where their choices are few.

What components add to every criterion but NUMA is a sum. So the best of each (NUMA nodes touched,
GPUs taken) is enough to go on with, component by component, and along a path or a ring GPU by GPU.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from xelink.preference.bitmask import mask_of, members, prefixes, union
from xelink.preference.chains import Chain, chain
from xelink.preference.problem import PER_LANE, SearchProblem

# Choices in one component up to which all are weighed.
_CHOICES_LIMIT = 2048
# Lanes of all pairs of 2**10 GPUs.
_LANES_BITS = 36
# In a ring of three all are linked: a group that no two GPUs one after the other make.
_TRIANGLE = 3

_States = dict[int, list[int]]
"""By NUMA nodes touched: the best worth for each number of GPUs taken, negative for none."""


class ComponentSearch:
    """One request for GPUs that no component has together.

    A worth is one number, from high to low bits: lanes with healthy ports, groups that are left to
    share, groups and lanes that are left unused, addresses.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem, self._fabric, self._index = problem, problem.index.fabric, problem.index
        links, n = self._fabric.links, len(self._fabric)
        # no group has more GPUs than one of them has links, and that one
        largest = 1 + max(
            (links[i] & problem.available).bit_count() for i in members(problem.available)
        )
        self._lanes_left = 1 << n
        self._groups = self._lanes_left << _LANES_BITS
        self._opened = self._groups << n * largest
        self._lanes = self._opened << (n * largest if problem.free.shareable else 0)
        self._never = -self._lanes << 2 * _LANES_BITS
        self._open = problem.available.bit_count()  # GPUs that are still to be decided about

    def best(self) -> int | None:
        """Find the best set; None where a component leaves too many choices."""
        links, available, must = self._fabric.links, self._problem.available, self._problem.must
        alone = mask_of(i for i in members(available) if not links[i] & available)
        # lone GPUs that are alike count as one component
        units = [*self._problem.kinds(alone), *(1 << i for i in members(alone & must))]
        chains = []
        for component in self._fabric.components(available & ~alone):
            way = chain(links, component)
            if way and not (way.ring and len(way.order) == _TRIANGLE):
                chains.append(way)
            else:
                units.append(component)
        if any(_choices(self._problem.kinds(unit)) > _CHOICES_LIMIT for unit in units):
            return None
        states: _States = {0: [0] + [self._never] * self._problem.size}
        for unit in units:
            self._open -= unit.bit_count()
            before, states = states, {}
            for nodes, more, gain in self._options(unit):
                if more <= self._problem.size:
                    self._add(states, before, nodes, more, gain)
        for way in chains:
            states = self._along(way, states)
        _, _, worth = max(
            (worths[-1] // self._lanes, -nodes.bit_count(), worths[-1] % self._lanes)
            for nodes, worths in states.items()
        )
        n = len(self._fabric)
        return mask_of(n - 1 - i for i in members(worth % self._lanes_left))

    def _add(self, into: _States, states: _States, nodes: int, more: int, gain: int) -> None:
        """Add what states become when so many more GPUs are taken, on these NUMA nodes."""
        # with fewer, those that are still open would not be enough
        least = max(more, self._problem.size - self._open)
        for before, worths in states.items():
            self._problem.tick(1 + (len(worths) - least) // 4)
            gained = [worth + gain for worth in worths[least - more : len(worths) - more]]
            if max(gained) < 0:
                continue
            gained = [self._never] * least + gained
            known = into.get(before | nodes)
            into[before | nodes] = list(map(max, known, gained)) if known else gained

    def _options(self, unit: int) -> Iterator[tuple[int, int, int]]:
        """Return all that one component can: NUMA nodes, GPUs and the worth, the best of equals."""
        fabric, n, problem = self._fabric, len(self._fabric), self._problem
        options: dict[tuple[int, int], int] = {}
        for taken in product(*map(prefixes, problem.kinds(unit))):
            problem.tick()
            chosen = sum(taken, problem.must & unit)
            inside = list(members(chosen))
            opened, groups, lanes_left = problem.left(chosen, unit)
            own = sum(self._index.own[i] for i in inside)
            worth = (problem.lanes(chosen) * PER_LANE + own) * self._lanes
            worth += (opened >> n) * self._opened + (groups >> n) * self._groups
            worth += lanes_left * self._lanes_left + fabric.mirrored(chosen)
            state = union(fabric.numa[i] for i in inside), len(inside)
            options[state] = max(options.get(state, 0), worth)
        return ((nodes, more, worth) for (nodes, more), worth in options.items())

    def _along(self, way: Chain, states: _States) -> _States:
        """Go on along a path or a ring: what a GPU adds depends on the one before alone.

        Of a ring the last adds to the first, too: each way to begin one is gone by itself.
        """
        first, *others = way.order
        ways = self._ways(first)
        found: _States = {}
        later = self._open - len(way.order)
        for begins in [[taken] for taken in ways] if way.ring else [ways]:
            self._open = later + len(others)
            # states by whether the last GPU is taken
            reached: dict[bool, _States] = {}
            for taken in begins:
                self._add(reached.setdefault(taken, {}), states, *self._one(first, taken=taken))
            last = first
            for i in others:
                self._open -= 1
                further: dict[bool, _States] = {}
                for taken in self._ways(i):
                    nodes, more, worth = self._one(i, taken=taken)
                    into = further.setdefault(taken, {})
                    for before, some in reached.items():
                        gain = worth + self._both((last, before), (i, taken))
                        self._add(into, some, nodes, more, gain)
                last, reached = i, further
            for taken, some in reached.items():
                closing = self._both((last, taken), (first, begins[0])) if way.ring else 0
                self._add(found, some, 0, 0, closing)
        return found

    def _ways(self, i: int) -> Sequence[bool]:
        """Leave a GPU, or take it."""
        return (True,) if self._problem.must >> i & 1 else (False, True)

    def _one(self, i: int, *, taken: bool) -> tuple[int, int, int]:
        """Weigh one GPU by itself: its NUMA node, itself and its worth, if it is taken."""
        free, chosen = self._problem.free, taken << i
        worth = (free.shareable_after(chosen) >> i & 1) * self._opened
        worth += (free.unused_after(chosen) >> i & 1) * self._groups
        if not taken:
            return 0, 0, worth
        worth += self._index.own[i] * self._lanes + self._fabric.mirrored(chosen)
        return self._fabric.numa[i], 1, worth

    def _both(self, one: tuple[int, bool], other: tuple[int, bool]) -> int:
        """Weigh what two linked GPUs add together."""
        (i, first), (j, second) = one, other
        free, pair, chosen = self._problem.free, 1 << i | 1 << j, first << i | second << j
        of_two = 1 << len(self._fabric)
        worth = 0
        if first and second:
            worth += self._index.rows[i][j] * self._lanes
        if not pair & ~free.shareable_after(chosen):
            worth += of_two * self._opened
        if not pair & ~free.unused_after(chosen):
            width = self._index.rows[i][j] // PER_LANE
            worth += of_two * self._groups + width * self._lanes_left
        return worth


def _choices(kinds: Sequence[int]) -> int:
    choices = 1
    for kind in kinds:
        choices *= kind.bit_count() + 1
    return choices
