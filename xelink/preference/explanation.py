"""Why these GPUs and not others: for people, never inside an RPC.

It ranks the sets that lost, names the criterion on which each lost, and shows what the next Pod
finds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nlargest
from itertools import combinations, takewhile

from xelink.preference.bitmask import members
from xelink.preference.criteria import CRITERIA, Criterion, Score, SetComparison
from xelink.preference.engine import Clock
from xelink.preference.fabric import Fabric, Free
from xelink.preference.linked_groups import group_counts, linked_groups
from xelink.preference.problem import TimeUpError
from xelink.preference.shares import Preference, Preferences

TIMEOUT = 2.0
"""Seconds to count what sets leave beyond 16 GPUs, the chosen one included."""

_LEFT = ("groups_open", "groups_left")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One set of GPUs measured by every criterion, and what it leaves.

    `left` are the cards that stay unused, `groups_left` how many sets of how many of them are all
    linked, as (size, count) from the largest size down. `groups_open` is the same for the cards
    that keep a device to share; it is empty where no set takes a card's last one. Where the time
    was up before these were `counted`, they are empty and their measures are 0.
    """

    cards: tuple[str, ...]
    score: Score
    left: tuple[str, ...]
    groups_left: tuple[tuple[int, int], ...]
    groups_open: tuple[tuple[int, int], ...] = ()
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Alternative:
    """A set that was not chosen: the first criterion in which it differs, and both measures.

    `difference` is that in words.
    With the policy `topology` it is worse there; other policies do not ask the criteria.
    """

    evaluation: Evaluation
    decided: Criterion
    chosen_measure: int
    measure: int
    difference: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A choice with its runners-up, the best first.

    `complete`: every possible set was ranked; otherwise the runners-up are the best of
    those that differ in one GPU, and `unweighed` is how many of these were not weighed in time:
    they are equal in all that is asked before what is left, and that was not counted.
    `decided` is the criterion that put the first runner-up behind, None when there was nothing to
    choose.
    """

    preference: Preference
    evaluation: Evaluation
    runners_up: tuple[Alternative, ...]
    complete: bool
    unweighed: int = 0

    @property
    def decided(self) -> Criterion | None:
        """The criterion that decided."""
        return self.runners_up[0].decided if self.runners_up else None


class _Evaluator:
    """Measures sets of GPUs, when so much was free before, and counts until `end` of the clock."""

    def __init__(self, fabric: Fabric, free: Free, clock: Clock, end: float | None) -> None:
        self._fabric = fabric
        self._free = free
        self._clock = clock
        self._end = end
        self._known: dict[int, int] = {}

    def evaluate(self, chosen: int) -> Evaluation:
        """Measure every criterion; what is left only for as long as there is time."""
        fabric, free = self._fabric, self._free
        groups = self._groups(free.shareable_after(chosen), free.unused_after(chosen))
        left = dict(zip(_LEFT, groups or (0, 0), strict=True))
        score = Score(
            *(
                left[criterion.name]
                if criterion.name in left
                else criterion.measure(fabric, chosen, free)
                for criterion in CRITERIA
            )
        )
        return Evaluation(
            cards=fabric.cards(chosen),
            score=score,
            left=fabric.cards(free.unused_after(chosen)),
            groups_left=group_counts(score.groups_left, len(fabric)),
            groups_open=group_counts(score.groups_open, len(fabric)),
            counted=groups is not None,
        )

    def _groups(self, *left: int) -> tuple[int, ...] | None:
        """Count the linked groups as their criteria do: similar sets share most groups."""
        links, size = self._fabric.links, len(self._fabric)
        try:
            self._tick()
            return tuple(
                linked_groups(links, gpus, self._known, self._tick) >> size for gpus in left
            )
        except (TimeUpError, RecursionError):  # hundreds of GPUs may be too deep for the stack
            return None

    def _tick(self) -> None:
        if self._end is not None and self._clock() >= self._end:
            raise TimeUpError


def explain(
    preferences: Preferences,
    available: Iterable[str],
    must: Iterable[str],
    size: int,
    *,
    runners_up: int = 5,
) -> Explanation:
    """Choose as `Preferences.prefer` does, and explain it.

    Raises `RequestError` as that does. Takes some seconds at most, `TIMEOUT` of them to count what
    sets leave beyond 16 GPUs: those that come close by all that is asked before come first.
    """
    request = preferences.read(available, must, size)
    preference = preferences.answer(request)
    fabric, free, chosen = preferences.fabric, request.free, preference.gpus
    subsets = preferences.engine and preferences.engine.subsets
    fresh = request.gpus & ~request.must
    taken = chosen & ~request.must
    end = None if subsets else preferences.clock() + TIMEOUT
    scale = _Evaluator(fabric, free, preferences.clock, end)
    own = scale.evaluate(chosen)
    if subsets:
        bits = [1 << i for i in members(fresh)]
        others = [request.must + sum(some) for some in combinations(bits, taken.bit_count())]
        others = [other for other in others if other != chosen]
        others = nlargest(runners_up, others, key=lambda other: subsets.rank(other, free))
    else:
        others = [
            chosen & ~(1 << out) | 1 << into
            for out in members(taken)
            for into in members(fresh & ~chosen)
        ]
        others.sort(key=lambda other: _before_left(fabric, other, free), reverse=True)
    weighed = [
        alternative
        for other in others
        if (alternative := _alternative(fabric, (chosen, own), (other, scale.evaluate(other))))
    ]
    best = nlargest(runners_up, weighed, key=lambda other: other.evaluation.score)
    return Explanation(
        preference=preference,
        evaluation=own,
        runners_up=tuple(best),
        complete=subsets is not None,
        unweighed=len(others) - len(weighed),
    )


def _before_left(fabric: Fabric, chosen: int, free: Free) -> list[int]:
    """Measure the criteria that come before what is left: all of them are quick."""
    quick = takewhile(lambda criterion: criterion.name not in _LEFT, CRITERIA)
    return [criterion.measure(fabric, chosen, free) for criterion in quick]


def _alternative(
    fabric: Fabric, one: tuple[int, Evaluation], two: tuple[int, Evaluation]
) -> Alternative | None:
    """Find the first criterion in which the two differ; two sets always differ in their addresses.

    None when that depends on what was not counted.
    """
    (chosen, own), (other, its) = one, two
    for criterion, measure, its_measure in zip(CRITERIA, own.score, its.score, strict=True):
        if criterion.name in _LEFT and not (own.counted and its.counted):
            return None
        if measure != its_measure:
            pair = SetComparison(fabric, chosen, other, measure, its_measure)
            return Alternative(its, criterion, measure, its_measure, criterion.difference(pair))
    raise AssertionError("two sets with the same addresses")
