"""Nodes of up to 64 GPUs: always an answer, proven where the node is regular, in time elsewhere."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_plugin.allocation import GpuFacts, Preferences, prepare

Pairs = dict[tuple[int, int], int]


class Ticks:
    """A clock that goes on by one millisecond whenever somebody looks at it."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks / 1000


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def node(n: int, pairs: Pairs, clock: Ticks, timeout: float = 0.05, numa: int = 2) -> Preferences:
    gpus = [GpuFacts(f"card{i}", bdf(i), i * numa // n, ports_healthy=True) for i in range(n)]
    lanes = {(bdf(i), bdf(j)): width for (i, j), width in pairs.items()}
    return prepare(gpus, lanes, clock=clock, timeout=timeout)


def links(n: int, rng: random.Random, density: float, group: int) -> Pairs:
    """Link GPUs of the same group with some density; every GPU is in one group of `group`."""
    inside = [pair for pair in combinations(range(n), 2) if pair[0] // group == pair[1] // group]
    return {pair: rng.choice((4, 8, 16)) for pair in inside if rng.random() < density}


def ids(some: range) -> tuple[str, ...]:
    return tuple(f"card{i}-0" for i in some)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(17, 64),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([4, 8, 64]),
    st.randoms(use_true_random=False),
)
def test_every_answer_is_sound_and_independent_of_the_order(
    n: int, density: float, group: int, rng: random.Random
) -> None:
    preferences = node(n, links(n, rng, density, group), Ticks())
    available = rng.sample(sorted(preferences.bits), rng.randint(1, n))
    size = rng.randint(1, len(available))
    must = rng.sample(available, rng.randint(0, size) if rng.random() < 0.5 else 0)
    answer = preferences.prefer(available, must, size)
    assert len(answer.ids) == len(set(answer.ids)) == size
    assert set(must) <= set(answer.ids) <= set(available)
    shuffled = rng.sample(available * 2, 2 * len(available))
    assert preferences.prefer(shuffled, must[::-1], size) == answer


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("group", [8, 16, 64])
def test_regular_nodes_of_64_are_proven(group: int, size: int) -> None:
    pairs = dict.fromkeys(links(64, random.Random(0), 1.0, group), 16)  # noqa: S311 - no secret
    answer = node(64, pairs, Ticks(), timeout=2.0).prefer(ids(range(64)), [], size)
    assert answer.proven
    # all groups are equal: whole ones first, then the part of the next, by address
    assert answer.ids == ids(range(size))


def test_no_group_of_eight_is_broken_while_a_broken_one_will_do() -> None:
    pairs = dict.fromkeys(links(64, random.Random(0), 1.0, 8), 16)  # noqa: S311 - no secret
    preferences = node(64, pairs, Ticks(), timeout=2.0)
    available = [
        name for name in ids(range(64)) if name not in ("card40-0", "card57-0", "card58-0")
    ]
    assert preferences.prefer(available, [], 1).ids == ("card56-0",)
    assert preferences.prefer(available, [], 6).ids[0] == "card56-0"
    assert preferences.prefer(available, [], 7).ids == ids(range(41, 48))
    assert preferences.prefer(available, [], 8).ids == ids(range(8))


def test_a_few_lost_links_are_avoided_and_proven_so() -> None:
    pairs = dict.fromkeys(combinations(range(32), 2), 16)
    del pairs[0, 1], pairs[2, 3]
    preferences = node(32, pairs, Ticks(), timeout=2.0)
    answer = preferences.prefer(ids(range(32)), [], 15)
    assert answer.proven
    assert answer.ids == ids(range(16, 31))


def test_a_set_larger_than_any_group_takes_one_group_whole() -> None:
    pairs = dict.fromkeys(links(20, random.Random(0), 1.0, 10), 8)  # noqa: S311 - no secret
    answer = node(20, pairs, Ticks(), timeout=2.0).prefer(ids(range(20)), ["card15-0"], 13)
    assert answer.proven
    assert answer.ids == (*ids(range(12)), "card15-0")


def test_an_irregular_node_answers_when_the_time_is_up() -> None:
    rng = random.Random(7)  # noqa: S311 - the same node in every run
    clock = Ticks()
    preferences = node(48, links(48, rng, 0.5, 48), clock, timeout=0.2)
    answer = preferences.prefer(ids(range(48)), [], 20)
    assert not answer.proven
    assert len(answer.ids) == 20
    # one look per step: what comes after the deadline looks at the clock no more
    assert clock.looks <= 202


def test_more_time_never_makes_a_worse_choice_than_greed() -> None:
    rng = random.Random(3)  # noqa: S311 - the same node in every run
    pairs = links(40, rng, 0.5, 40)
    lanes = []
    for timeout in (0.0, 0.1, 0.4):
        preferences = node(40, pairs, Ticks(), timeout)
        answer = preferences.prefer(ids(range(40)), [], 16)
        lanes.append(preferences.fabric.score(answer.gpus, 0).lanes)
    assert lanes[0] <= lanes[1]
    assert lanes[0] <= lanes[2]


def test_64_gpus_without_links_are_a_plain_choice() -> None:
    answer = node(64, {}, Ticks(), timeout=2.0).prefer(ids(range(20, 64)), ["card63-0"], 5)
    assert answer.proven
    assert answer.ids == (*ids(range(32, 36)), "card63-0")
