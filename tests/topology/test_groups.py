import random
from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.topology.groups import MOST_GROUPS, STEPS, largest_group, maximal_groups
from xelink.topology.model import GPU_LIMIT


def graph(edges: list[tuple[int, int]]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for a, b in edges:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return found


def brute_force(neighbors: dict[int, set[int]]) -> int:
    return max(
        (
            size
            for size in range(2, len(neighbors) + 1)
            for group in combinations(neighbors, size)
            if all(b in neighbors[a] for a, b in combinations(group, 2))
        ),
        default=0,
    )


pairs = st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] != pair[1])


@given(st.lists(pairs, max_size=28))
def test_no_group_is_larger(edges: list[tuple[int, int]]) -> None:
    neighbors = graph(edges)
    group, complete = largest_group(neighbors)
    assert complete
    assert len(group) == brute_force(neighbors)
    assert all(b in neighbors[a] for a, b in combinations(group, 2))


def test_without_links_there_is_no_group() -> None:
    assert largest_group({}) == ((), True)
    assert maximal_groups({}) == ((), True)


def test_a_node_of_32_gpus_with_many_equal_groups_is_no_burden() -> None:
    # The complement of disjoint triangles has 3**10 largest groups: the worst case by number.
    neighbors = graph([(a, b) for a, b in combinations(range(30), 2) if a // 3 != b // 3])
    largest = largest_group(neighbors)
    assert (len(largest.group), largest.complete, largest.size_text) == (10, True, "10")


def joined_rings(count: int) -> dict[int, set[int]]:
    """Join rings of five GPUs: a ring needs three colors and has groups of two, so bounds fail."""
    return graph(
        [
            (a, b)
            for a, b in combinations(range(5 * count), 2)
            if a // 5 != b // 5 or (b - a) % 5 in {1, 4}
        ]
    )


def test_a_search_that_would_never_end_is_cut_short_and_says_so() -> None:
    neighbors = joined_rings(12)
    largest = largest_group(neighbors)
    assert not largest.complete
    assert largest.size_text == f"at least {len(largest.group)}"
    assert all(b in neighbors[a] for a, b in combinations(largest.group, 2))
    listed = maximal_groups(neighbors)
    assert (len(listed.groups), listed.complete) == (MOST_GROUPS, False)


@given(st.lists(pairs, max_size=28), st.integers(1, 40))
def test_what_is_not_said_to_be_cut_short_is_exact(
    edges: list[tuple[int, int]], steps: int
) -> None:
    neighbors = graph(edges)
    largest, listed = largest_group(neighbors, steps), maximal_groups(neighbors, steps=steps)
    every = maximal_groups(neighbors)
    assert every.complete
    assert set(listed.groups) <= set(every.groups)
    if largest.complete:
        assert len(largest.group) == brute_force(neighbors)
    if listed.complete:
        assert listed == every


SHAPES = {
    "mesh": lambda _a, _b: True,
    "two islands": lambda a, b: a % 2 == b % 2,
    "planes": lambda a, b: a % 4 == b % 4 or a // 4 == b // 4,
    "ring": lambda a, b: b - a == 1,
}


@pytest.mark.parametrize("gpus", [8, 16, GPU_LIMIT])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nodes_like_real_ones_are_far_from_the_bound(
    gpus: int, shape: Callable[[int, int], bool]
) -> None:
    whole = [(a, b) for a, b in combinations(range(gpus), 2) if shape(a, b)]
    chance = random.Random(1)  # noqa: S311 - no secret
    for lost in range(12):
        edges = chance.sample(whole, max(0, len(whole) - lost))
        assert largest_group(graph(edges), STEPS // 10).complete
