"""Which criterion decided a preference, and what came second: for the log and the metrics, pure.

`explanation` explains one choice in full; this names one word for every choice; made after
kubelet has its answer, within a time that is bounded.
"""

from functools import lru_cache, partial
from typing import NamedTuple

from xelink.preference.criteria import CRITERIA, Criterion
from xelink.preference.engine import Engine
from xelink.preference.fabric import Free
from xelink.preference.problem import SearchProblem, TimeUpError
from xelink.preference.shares import Preference, Preferences
from xelink.preference.subset_table import Subsets

NOTHING = "none"
"""There was no other set of GPUs to choose."""
POLICY = "policy"
"""The policy goes by devices, and asks no criterion."""
FALLBACK = "fallback"
"""The preference failed, and the fallback was used."""
UNKNOWN = "unknown"
"""It was not found in time, or lost to an error."""

WORDS = (*(criterion.name for criterion in CRITERIA), NOTHING, POLICY, FALLBACK, UNKNOWN)
"""Every word for what may have decided."""

TIMEOUT = 0.25
_REMEMBERED = 256


class Decision(NamedTuple):
    """The name of the criterion that decided, or a word for why none did, and the runner-up.

    `runner_up` are the cards of the set that came second, by PCI address: the best of all others up
    to 16 GPUs, beyond that the best of those that differ in one GPU.
    """

    criterion: str
    runner_up: tuple[str, ...] = ()


class Decisions:
    """Finds what decided on one node, and remembers it: kubelet asks for the same again and again.

    Takes up to two milliseconds for 16 GPUs, beyond that up to `TIMEOUT` seconds.
    """

    def __init__(self, preferences: Preferences) -> None:
        engine = preferences.engine
        self._of = lru_cache(_REMEMBERED)(partial(_decide, engine)) if engine else None

    def decide(self, preference: Preference) -> Decision:
        """Return what decided this preference."""
        request, chosen = preference.request, preference.gpus
        if request is None:
            return Decision(FALLBACK)
        if not chosen & ~request.must or not request.gpus & ~chosen:
            return Decision(NOTHING)
        if self._of is None:
            return Decision(POLICY)
        return self._of(request.gpus, request.must, request.free, chosen)


def _decide(engine: Engine, available: int, must: int, free: Free, chosen: int) -> Decision:
    fabric, clock = engine.fabric, engine.clock
    if engine.subsets:
        other = _second(engine.subsets, available, must, free, chosen)
        return Decision(
            next(
                criterion.name
                for criterion in CRITERIA
                if criterion.measure(fabric, chosen, free) != criterion.measure(fabric, other, free)
            ),
            fabric.cards(other),
        )
    problem = SearchProblem(engine.index, available, must, free, chosen.bit_count(), clock)
    problem.end = clock() + TIMEOUT
    try:
        criterion, other = _best_swap(problem, chosen)
    except (TimeUpError, RecursionError):  # hundreds of GPUs may be too deep for the stack
        return Decision(UNKNOWN)
    return Decision(criterion, fabric.cards(other))


def _second(subsets: Subsets, available: int, must: int, free: Free, chosen: int) -> int:
    """Find the best set of as many GPUs that is not the chosen one; there is one."""
    care = ~available | must
    sets = (
        mask
        for mask in subsets.ranking[chosen.bit_count()]
        if mask & care == must and mask != chosen
    )
    best = next(sets)
    heaviest = subsets.weights[best]
    ties = [best]
    for mask in sets:
        if subsets.weights[mask] != heaviest:
            break
        ties.append(mask)
    return subsets.leaving_most(ties, free)  # the sets came by PCI address


def _best_swap(problem: SearchProblem, chosen: int) -> tuple[str, int]:
    """Find the best set that differs in one GPU, and the first criterion in which it differs.

    Of GPUs that are alike the last one that was taken, and the first one that was not, stand for
    all. Criteria are measured for as long as sets are equal. Raises `TimeUpError`.
    """
    kinds = problem.kinds(problem.available)
    taken = [kind & chosen for kind in kinds if kind & chosen]
    free = [kind & ~chosen for kind in kinds if kind & ~chosen]
    rest = [
        chosen & ~(1 << out.bit_length() - 1) | (into & -into) for out in taken for into in free
    ]
    decided = None
    for criterion in CRITERIA:
        own = _measure(problem, criterion, chosen)
        measures = [_measure(problem, criterion, other) for other in rest]
        best = max(measures)
        rest = [other for other, measure in zip(rest, measures, strict=True) if measure == best]
        if decided is None and best != own:
            decided = criterion.name
        if decided and len(rest) == 1:
            break
    # Two sets always differ in their addresses.
    return decided or CRITERIA[-1].name, rest[0]


def _measure(problem: SearchProblem, criterion: Criterion, chosen: int) -> int:
    fabric = problem.index.fabric
    problem.tick()
    if criterion.name == "groups_open":
        return problem.groups(problem.free.shareable_after(chosen)) >> len(fabric)
    if criterion.name == "groups_left":
        return problem.groups(problem.free.unused_after(chosen)) >> len(fabric)
    return criterion.measure(fabric, chosen, problem.free)
