from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from topology.groups import largest_group


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
    group = largest_group(neighbors)
    assert len(group) == brute_force(neighbors)
    assert all(b in neighbors[a] for a, b in combinations(group, 2))


def test_without_links_there_is_no_group() -> None:
    assert largest_group({}) == ()


def test_a_node_of_32_gpus_with_many_equal_groups_is_no_burden() -> None:
    # The complement of disjoint triangles has 3**10 largest groups: the worst case by number.
    neighbors = graph([(a, b) for a, b in combinations(range(30), 2) if a // 3 != b // 3])
    assert len(largest_group(neighbors)) == 10
