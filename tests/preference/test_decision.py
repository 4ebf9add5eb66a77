"""One word for why: the criterion that decided, as the full explanation tells it."""

import random
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.preference.criteria import CRITERIA
from xelink.preference.decision import (
    FALLBACK,
    NOTHING,
    POLICY,
    UNKNOWN,
    WORDS,
    Decision,
    Decisions,
)
from xelink.preference.explanation import explain
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preferences, fallback, prepare


def standing() -> float:
    """Stand still: no deadline ever passes."""
    return 0.0


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def node(rng: random.Random, n: int, replicas: int = 1) -> Preferences:
    """A node with whatever links, ports and NUMA nodes."""
    gpus = [
        GpuFacts(
            f"card{i}", bdf(i), rng.choice((0, 1, None)), rng.choice((True, True, False, None))
        )
        for i in range(n)
    ]
    part = rng.choice((0.0, 0.3, 0.8, 1.0))
    widths = rng.choice(((16,), (4, 8, 16)))
    lanes = {
        (bdf(i), bdf(j)): rng.choice(widths)
        for i, j in combinations(range(n), 2)
        if rng.random() < part
    }
    return prepare(gpus, lanes, clock=standing, replicas=replicas)


def decided(preferences: Preferences, available: list[str], must: list[str], size: int) -> Decision:
    preference = preferences.prefer(available, must, size)
    return Decisions(preferences).decide(preference)


def explained(
    preferences: Preferences, available: list[str], must: list[str], size: int
) -> Decision:
    told = explain(preferences, available, must, size, runners_up=1)
    if told.decided is None:
        return Decision(NOTHING)
    return Decision(told.decided.name, told.runners_up[0].evaluation.cards)


def asked(rng: random.Random, preferences: Preferences) -> tuple[list[str], list[str], int]:
    names = list(preferences.bits)
    available = rng.sample(names, rng.randint(1, len(names)))
    size = rng.randint(1, len(available))
    return available, rng.sample(available, rng.randint(0, min(2, size))), size


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 1 << 32), n=st.integers(1, 9), replicas=st.integers(1, 3))
def test_up_to_16_gpus_it_is_what_the_explanation_tells(seed: int, n: int, replicas: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    preferences = node(rng, n, replicas)
    request = asked(rng, preferences)
    assert decided(preferences, *request) == explained(preferences, *request)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1 << 32), n=st.integers(17, 19), replicas=st.integers(1, 2))
def test_beyond_16_gpus_it_is_what_the_explanation_tells_of_single_swaps(
    seed: int, n: int, replicas: int
) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    preferences = node(rng, n, replicas)
    request = asked(rng, preferences)
    assert decided(preferences, *request) == explained(preferences, *request)


def mesh(n: int, **changes: object) -> Preferences:
    gpus = [GpuFacts(f"card{i}", bdf(i), 0, ports_healthy=True) for i in range(n)]
    lanes = {(bdf(i), bdf(j)): 16 for i, j in combinations(range(n), 2)}
    return prepare(gpus, lanes, **{"clock": standing, **changes})  # type: ignore[arg-type]  # fields of the caller


@pytest.mark.parametrize("n", [8, 16, 64])
def test_on_a_mesh_the_lowest_addresses_decide(n: int) -> None:
    preferences = mesh(n)
    found = decided(preferences, list(preferences.bits), [], 2)
    assert found == Decision("address", ("card0", "card2"))


def test_with_nothing_to_choose_nothing_decided() -> None:
    preferences = mesh(4)
    names = list(preferences.bits)
    assert decided(preferences, names, [], 4) == Decision(NOTHING)
    assert decided(preferences, names, names[:2], 2) == Decision(NOTHING)
    assert decided(preferences, ["gone-0"], [], 1) == Decision(NOTHING)


def test_a_policy_that_asks_no_criterion_says_so() -> None:
    preferences = mesh(4, policy=AllocationPolicy.PACKED)
    assert decided(preferences, list(preferences.bits), [], 2) == Decision(POLICY)


def test_a_plain_choice_says_so() -> None:
    preferences = mesh(4)
    names = list(preferences.bits)
    choice = fallback(names, [], 2)._replace(error="it fell")
    assert Decisions(preferences).decide(choice) == Decision(FALLBACK)


def test_what_is_not_found_in_time_is_not_known() -> None:
    late = count()
    preferences = mesh(20, clock=lambda: float(next(late)))
    names = list(preferences.bits)
    preference = preferences.prefer(names, [], 4)
    assert Decisions(preferences).decide(preference) == Decision(UNKNOWN)


def test_what_is_too_deep_for_the_stack_is_not_known() -> None:
    looks = count()
    deep = False

    def clock() -> float:
        # The first look is for the end of the time, those after it are amid the work.
        if deep and next(looks):
            raise RecursionError
        return 0.0

    preferences = mesh(20, clock=clock)
    names = list(preferences.bits)
    preference = preferences.prefer(names, [], 4)
    deep = True
    assert Decisions(preferences).decide(preference) == Decision(UNKNOWN)


def test_the_same_question_in_another_order_has_the_same_answer() -> None:
    preferences = mesh(8)
    decisions, names = Decisions(preferences), list(preferences.bits)
    once = decisions.decide(preferences.prefer(names, [], 3))
    assert decisions.decide(preferences.prefer(names[::-1], [], 3)) is once


def test_every_word_is_known_beforehand() -> None:
    assert len({*WORDS}) == len(WORDS) == len(CRITERIA) + 4
