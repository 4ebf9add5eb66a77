"""Nodes of up to 64 GPUs: always an answer, proven where the node is regular, in time elsewhere."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.preference.criteria import score
from xelink.preference.fabric import Free, GpuFacts
from xelink.preference.problem import SearchIndex, SearchProblem
from xelink.preference.search import Search
from xelink.preference.shares import Preferences, prepare

Pairs = dict[tuple[int, int], int]


class Ticks:
    """A clock that goes on by one millisecond whenever somebody looks at it."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks / 1000


Read = TypeVar("Read")


class Spied(tuple[Read, ...]):
    """Facts of each GPU that tell a clock of their own how often they were read between looks."""

    __slots__ = ()
    reads = 0
    most = 0

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - as tuple has it
        Spied.reads += 1
        Spied.most = max(Spied.most, Spied.reads)
        return super().__getitem__(place)


class Late:
    """A clock at which the search is late from its first look on, but greed is not."""

    def __init__(self, greed: int) -> None:
        self.looks, self._until = 0, 2 + greed

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == 1:
            return 0.0
        return 0.9 if self.looks <= self._until else 1.0


def bdf(i: int) -> str:
    return f"{i >> 8:04x}:{i & 255:02x}:00.0"


def node(
    n: int, pairs: Pairs, clock: Callable[[], float], timeout: float = 0.05, numa: int = 2
) -> Preferences:
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


def test_what_no_arc_of_a_ring_holds_is_proven_soon() -> None:
    pairs = {(i, (i + 1) % 64): 16 for i in range(64)}
    preferences = node(64, pairs, Ticks(), timeout=0.5)
    names = ids(range(64))
    answer = preferences.prefer(names, [names[8], names[44]], 15)
    assert answer.proven
    # two paths, one link less than one has; what is left are two paths as well
    measures = score(preferences.fabric, answer.gpus, Free((1 << 64) - 1))
    assert (measures.lanes, measures.lanes_left) == (13 * 16, 47 * 16)
    offered = [name for i, name in enumerate(names) if i % 9]
    answer = preferences.prefer(offered, [], 29)
    assert answer.proven
    assert answer.ids == (
        *ids(range(1, 9)),
        *ids(range(10, 18)),
        *ids(range(19, 27)),
        *ids(range(28, 33)),
    )


@pytest.mark.parametrize("size", range(1, 24))
def test_an_irregular_node_of_24_is_proven_soon(size: int) -> None:
    pairs = links(24, random.Random(24), 0.5, 24)  # noqa: S311 - the same node in every run
    clock = Ticks()
    answer = node(24, pairs, clock, timeout=10.0).prefer(ids(range(24)), [], size)
    assert answer.proven
    assert clock.looks <= 450


@pytest.mark.parametrize("size", [2, 3, 15, 41, 59, 60, 61, 62])
def test_a_mesh_of_64_with_lost_and_weak_links_is_proven_soon(size: int) -> None:
    pairs = dict.fromkeys(combinations(range(64), 2), 16)
    for lost in ((14, 51), (17, 58), (25, 41)):
        del pairs[lost]
    pairs |= dict.fromkeys(((0, 35), (28, 49), (47, 52)), 8)
    clock = Ticks()
    answer = node(64, pairs, clock, timeout=10.0).prefer(ids(range(64)), ["card60-0"], size)
    assert answer.proven
    assert clock.looks <= 40


@pytest.mark.parametrize(("size", "looks"), [(48, 800), (61, 100)])
def test_small_rings_over_many_numa_nodes_are_proven_soon(size: int, looks: int) -> None:
    ways = [range(start, 64, 13) for start in range(13)]
    ends = [pair for way in ways for pair in zip(way, [*way[1:], way[0]], strict=True)]
    pairs = {(min(pair), max(pair)): 16 for pair in ends}
    clock = Ticks()
    answer = node(64, pairs, clock, timeout=10.0, numa=8).prefer(ids(range(64)), [], size)
    assert answer.proven
    assert clock.looks <= looks


def test_a_linked_set_that_was_found_is_kept_when_the_time_is_up() -> None:
    rng = random.Random(0)  # noqa: S311 - the same node in every run
    pairs = {
        pair: rng.randint(1, 60000) for pair in combinations(range(64), 2) if rng.random() < 0.5
    }
    preferences = node(64, pairs, Ticks(), timeout=0.2)
    answer = preferences.prefer(ids(range(64)), [], 8)
    assert not answer.proven
    assert score(preferences.fabric, answer.gpus, Free((1 << 64) - 1)).linked


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
        lanes.append(score(preferences.fabric, answer.gpus, Free(0)).lanes)
    assert lanes[0] <= lanes[1]
    assert lanes[0] <= lanes[2]


def test_64_gpus_without_links_are_a_plain_choice() -> None:
    answer = node(64, {}, Ticks(), timeout=2.0).prefer(ids(range(20, 64)), ["card63-0"], 5)
    assert answer.proven
    assert answer.ids == (*ids(range(32, 36)), "card63-0")


@pytest.mark.parametrize("numa", [1, 2, 12])
@pytest.mark.parametrize("n", [252, 504])
def test_hundreds_of_gpus_without_links_are_answered_at_once_and_proven(n: int, numa: int) -> None:
    clock = Ticks()
    preferences = node(n, {}, clock, timeout=0.005, numa=numa)
    for size in range(1, n + 1):
        clock.looks = 0
        answer = preferences.prefer(preferences.bits, [], size)
        assert answer.proven
        assert answer.ids == ids(range(size))
        assert clock.looks <= 2


def test_without_links_a_linked_gpu_that_is_taken_does_not_count() -> None:
    preferences = node(100, {(3, 4): 16}, Ticks(), timeout=0.005)
    answer = preferences.prefer(ids(range(4, 100)), [], 50)
    assert answer.proven
    # one NUMA node, and it has just so many
    assert answer.ids == ids(range(50, 100))


@pytest.mark.parametrize("size", [17, 60, 126, 247])
def test_greed_minds_the_clock_for_every_gpu_and_stops_when_the_time_is_up(size: int) -> None:
    pairs = links(252, random.Random(5), 0.3, 252)  # noqa: S311 - the same node in every run
    free = Late(greed=10**9)
    preferences = node(252, pairs, free, timeout=1.0)
    answer = preferences.prefer(ids(range(252)), [], size)
    assert free.looks > size
    assert not answer.proven
    greedy = score(preferences.fabric, answer.gpus, Free(0)).lanes
    assert preferences.engine
    for looks in (0, 1, size // 2, size + 1):
        clock = Late(greed=looks)
        late = replace(preferences.engine, clock=clock)
        short = replace(preferences, engine=late).prefer(ids(range(252)), [], size)
        assert len(set(short.ids)) == size
        assert score(preferences.fabric, short.gpus, Free(0)).lanes <= greedy
        # the one that says so, and one more of who has not heard
        assert clock.looks <= 2 + looks + 2


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("looks", [3, 60, 400])
def test_no_loop_of_a_search_goes_on_for_long_without_a_look(density: float, looks: int) -> None:
    pairs = links(252, random.Random(6), density, 252)  # noqa: S311 - the same node in every run
    index = SearchIndex.of(node(252, pairs, Ticks()).fabric)
    index = replace(index, rows=Spied(index.rows), own=Spied(index.own))
    now = 0

    def clock() -> float:
        nonlocal now
        now += 1
        Spied.reads = 0
        return now / looks

    everything = (1 << 252) - 1
    must = (1 << 150) - 1
    for problem_must in (0, must):
        now = Spied.reads = Spied.most = 0
        problem = SearchProblem(index, everything, problem_must, Free(everything), 200, clock)
        assert Search(problem).best(1.0).chosen.bit_count() == 200
        assert now <= looks + 3
        assert Spied.most <= 130
