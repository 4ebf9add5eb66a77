"""The order in which a search decides about GPUs, and what is the same in all its branches.

Whatever is still open at a place of the order are the GPUs from there on, however it was decided
before. So what they can add to each other is found once for each place.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add

from xelink.preference.bitmask import members
from xelink.preference.problem import SearchProblem

Rows = Sequence[Sequence[int]]
"""What the links of the last GPU of each kind are worth, by GPU."""


class BranchingOrder:
    """Kinds of candidates, one after the other, by their places.

    `kinds` are they as sets, `counts` their GPUs, `later` all GPUs from a place on as a set, `left`
    how many these are. Twice the worth of links: `between` two GPUs of a kind, `pairs` from one of
    a kind to one of each kind after it.
    """

    def __init__(self, problem: SearchProblem, kinds: Sequence[int], rows: Rows) -> None:
        self.kinds, self.counts = kinds, [kind.bit_count() for kind in kinds]
        self.later = [*accumulate(reversed(kinds), initial=0)][::-1]
        self.left = [later.bit_count() for later in self.later]
        self.between: list[int] = []
        self.pairs: list[list[int]] = []
        lasts = [kind.bit_length() - 1 for kind in kinds]
        for place, kind in enumerate(kinds):
            problem.tick(1 + len(kinds) // 16)
            row = rows[place]
            self.between.append(2 * row[(kind & -kind).bit_length() - 1])
            self.pairs.append([2 * row[last] for last in lasts[place + 1 :]])
        self._halves = _Halves(problem, kinds, rows)

    def bound(self, near: Sequence[int], place: int, open_: int) -> int:
        """Add up twice the most that so many GPUs from a place on can add; there are as many.

        `near` is what each kind adds by itself, twice. Of a link between two of them each gets one
        half, and none gets more than its widest ones give.
        """
        each: Iterable[int] = map(add, near, self._halves[place, open_])
        if self.left[place] == len(near):
            return sum(sorted(each)[-open_:])
        most = 0
        for more, count in sorted(zip(each, self.counts[place:], strict=True), reverse=True):
            if count >= open_:
                return most + more * open_
            most += more * count
            open_ -= count
        return most


class _Halves(dict[tuple[int, int], list[int]]):
    """What a GPU of each kind from a place on gets of links to others, if so many are taken."""

    def __init__(self, problem: SearchProblem, kinds: Sequence[int], rows: Rows) -> None:
        super().__init__()
        self._problem, self._kinds, self._rows = problem, kinds, rows
        self._lasts = [kind.bit_length() - 1 for kind in kinds]
        # by place, for each kind: its links to those from there on, the widest first, and the sums
        gpus = [*members(sum(kinds))]
        self._widest = [[self._sorted(place, gpus) for place in range(len(kinds))]]
        self._sums: dict[int, list[list[int]]] = {}

    def __missing__(self, key: tuple[int, int]) -> list[int]:
        place, taken = key
        while len(self._widest) <= place:
            self._widest.append(self._narrowed())
        if place not in self._sums:
            widest = self._widest[place]
            self._problem.tick(len(widest) * (1 + len(widest[0]) // 32))
            most = self._problem.size  # no more are ever taken
            self._sums[place] = [[*accumulate(row[:most], initial=0)] for row in widest]
        halves = self[key] = [sums[taken - 1] for sums in self._sums[place]]
        return halves

    def _sorted(self, place: int, gpus: Sequence[int]) -> list[int]:
        self._problem.tick(1 + len(gpus) // 16)
        row, last = self._rows[place], self._lasts[place]
        return sorted([row[j] for j in gpus if j != last], reverse=True)

    def _narrowed(self) -> list[list[int]]:
        """Leave one more kind behind, and the links to it."""
        place = len(self._widest) - 1
        row, gone = self._rows[place], self._kinds[place].bit_count()
        narrowed = []
        for last, widest in zip(self._lasts[place + 1 :], self._widest[place][1:], strict=True):
            self._problem.tick(1 + gone // 4 + len(widest) // 32)
            start = widest.index(row[last])
            narrowed.append(widest[:start] + widest[start + gone :])
        return narrowed
