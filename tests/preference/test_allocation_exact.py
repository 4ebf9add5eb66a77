"""The preferred set is the best one: against brute force that knows only the list of criteria."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.preference.components import ComponentSearch
from xelink.preference.criteria import score
from xelink.preference.decision import NOTHING, Decisions
from xelink.preference.explanation import explain
from xelink.preference.fabric import Fabric, Free, GpuFacts
from xelink.preference.linked_groups import group_counts, linked_groups
from xelink.preference.problem import SearchIndex, SearchProblem
from xelink.preference.search import Search
from xelink.preference.shares import Preferences, prepare
from xelink.preference.subset_table import Subsets

Pairs = dict[tuple[int, int], int]


@dataclass(frozen=True)
class Oracle:
    """GPUs 0 to n-1 by address: the criteria, word for word, over plain sets of numbers."""

    gpus: list[GpuFacts]
    pairs: Pairs
    known: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def lanes(self, i: int, j: int) -> int | None:
        return self.pairs.get((i, j) if i < j else (j, i))

    def all_linked(self, some: Iterable[int]) -> bool:
        return all(self.lanes(i, j) is not None for i, j in combinations(some, 2))

    def connected(self, some: Iterable[int]) -> bool:
        parts = [{i} for i in some]
        for i, j in combinations(list(some), 2):
            if self.lanes(i, j) is not None:
                one = next(part for part in parts if i in part)
                other = next(part for part in parts if j in part)
                if one is not other:
                    parts.remove(other)
                    one |= other
        return len(parts) <= 1

    def criteria(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        lanes = [self.lanes(i, j) or 0 for i, j in combinations(chosen, 2)]
        ports = {True: 0, None: 1, False: 2}
        return (
            self.all_linked(chosen),
            self.connected(chosen),
            min(lanes, default=0),
            sum(lanes),
            -sum(ports[self.gpus[i].ports_healthy] for i in chosen),
            -len({self.gpus[i].numa for i in chosen}),
            sum(self.shared(i, j) for i, j in combinations(chosen, 2)),
        )

    def shared(self, i: int, j: int) -> int:
        """Return 2 behind one PCIe switch, 1 below one host bridge, else 0."""
        one, other = self.gpus[i].bridges, self.gpus[j].bridges
        if not one or not other or one[0] != other[0]:
            return 0
        return 2 if len(one) > 1 and one[:2] == other[:2] else 1

    def groups(self, left: tuple[int, ...]) -> list[int]:
        """Count the sets of each size that are linked throughout, the largest size first."""
        if left not in self.known:
            counts = [0] * (len(self.gpus) + 1)

            def grow(size: int, more: list[int]) -> None:
                """Count a set; `more` are linked with all of it, and come after its last."""
                counts[size] += 1
                for place, i in enumerate(more, 1):
                    grow(size + 1, [j for j in more[place:] if self.lanes(i, j) is not None])

            grow(0, [*left])
            self.known[left] = counts[:0:-1]
        return self.known[left]

    def left(
        self, chosen: tuple[int, ...], whole: Iterable[int], spare: Mapping[int, int]
    ) -> tuple[list[int], list[int], int]:
        untouched = tuple(i for i in whole if i not in chosen)
        return (
            self.groups(tuple(i for i, devices in spare.items() if devices > (i in chosen))),
            self.groups(untouched),
            sum(self.lanes(i, j) or 0 for i, j in combinations(untouched, 2)),
        )

    def best(
        self,
        available: Iterable[int],
        must: Iterable[int],
        whole: Iterable[int],
        size: int,
        spare: Mapping[int, int] | None = None,
    ) -> tuple[int, ...]:
        """Try every set; `spare` are the devices of each GPU that the Pod does not have yet."""
        must = [*must]
        # of a GPU that the Pod has already it takes no more
        spare = {i: devices + (i in must) for i, devices in (spare or {}).items() if devices}
        free = sorted(set(available) - set(must))
        sets = [tuple(sorted((*must, *some))) for some in combinations(free, size - len(must))]
        criteria = [self.criteria(some) for some in sets]
        top = max(criteria)
        ties = sorted(some for some, its in zip(sets, criteria, strict=True) if its == top)
        if len(ties) == 1:
            return ties[0]
        kept = [self.left(some, whole, spare) for some in ties]
        return ties[kept.index(max(kept))]


def standing() -> float:
    """Stand still: no deadline ever passes."""
    return 0.0


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def bridges(rng: random.Random, tree: tuple[int, int]) -> tuple[str, ...]:
    """Draw the bridges above one GPU of a tree with so many host bridges, and switches on each."""
    hosts, switches = tree
    if not hosts or not rng.randrange(8):
        return ()
    host, port = rng.randrange(hosts), rng.randrange(switches)
    switch = () if port > 90 else (f"up{host}.{port}", f"down{rng.random()}")
    return (f"pci{host}", f"port{host}.{port}", *switch)[: rng.choice((1, 4, 4, 4))]


def oracle(n: int, pairs: Pairs, rng: random.Random | None = None) -> Oracle:
    health = (True, True, True, None, False)
    # unknown, one root port each, or switches of several GPUs below one to three host bridges
    tree = (0, 0) if rng is None else rng.choice(((0, 0), (1, 99), (1, 2), (2, 2), (2, 3), (3, 1)))
    gpus = [
        GpuFacts(
            f"card{(i * 7 + 3) % 101}",
            bdf(i),
            i * 2 // n if rng is None else rng.choice((0, 0, 1, None)),
            ports_healthy=True if rng is None else rng.choice(health),
            bridges=() if rng is None else bridges(rng, tree),
        )
        for i in range(n)
    ]
    return Oracle(gpus, pairs)


def prepared(node: Oracle, replicas: int = 1) -> Preferences:
    lanes = {(bdf(i), bdf(j)): width for (i, j), width in node.pairs.items()}
    return prepare(node.gpus, lanes, clock=standing, replicas=replicas)


def fabric_of(node: Oracle) -> Fabric:
    """Return what of a snapshot knows no request: without tables, which take most of the time."""
    lanes = {(bdf(i), bdf(j)): width for (i, j), width in node.pairs.items()}
    return Fabric.of(node.gpus, lanes)


def mask(some: Iterable[int]) -> int:
    return sum(1 << i for i in some)


def mesh(n: int) -> Pairs:
    return dict.fromkeys(combinations(range(n), 2), 16)


def ring(n: int) -> Pairs:
    return {(min(i, j), max(i, j)): 16 for i in range(n) for j in [(i + 1) % n] if i != j}


def separate(n: int) -> Pairs:
    return {(i, j): 16 for i, j in combinations(range(n), 2) if i // 4 == j // 4}


def planes(n: int) -> Pairs:
    """Cards with tiles on both planes, and every third with one."""
    on = [(3, 3, 1, 3, 3, 2)[i % 6] for i in range(n)]
    return {
        (i, j): 8 * (on[i] & on[j]).bit_count()
        for i, j in combinations(range(n), 2)
        if on[i] & on[j]
    }


def degraded(n: int) -> Pairs:
    pairs = mesh(n)
    for lost in list(pairs)[2::7]:
        del pairs[lost]
    for weak in list(pairs)[1::5]:
        pairs[weak] = 8
    return pairs


def irregular(n: int) -> Pairs:
    rng = random.Random(n)  # noqa: S311 - the same nodes in every run
    return {pair: rng.choice((0, 4, 8, 16)) for pair in mesh(n) if rng.random() < 0.5}


def nothing(_n: int) -> Pairs:
    return {}


SHAPES = [mesh, ring, separate, planes, degraded, irregular, nothing]


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_every_size_is_the_best_by_brute_force(shape: Callable[[int], Pairs], n: int) -> None:
    rng = random.Random(n)  # noqa: S311 - the same nodes in every run
    node = oracle(n, shape(n))
    preferences = prepared(node)
    names = [f"{gpu.card}-0" for gpu in node.gpus]
    offers = [list(range(n)), sorted(rng.sample(range(n), n - n // 3))]
    for available in offers:
        for size in range(1, len(available) + 1):
            must = rng.sample(
                available, rng.randint(0, min(2, size)) if available != offers[0] else 0
            )
            expected = node.best(available, must, available, size)
            answer = preferences.prefer(
                [names[i] for i in available], [names[i] for i in must], size
            )
            assert answer.ids == tuple(names[i] for i in expected)
            assert answer.proven


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Oracle, list[int], list[int], list[int], int]:
    """A node of up to seven GPUs with any links, and a request on it."""
    rng = draw(st.randoms(use_true_random=False))
    n = rng.randint(1, 7)
    density = draw(st.sampled_from([0.0, 0.2, 0.4, 0.7, 1.0]))
    widths = draw(st.sampled_from([(16,), (0, 8), (4, 8, 16)]))
    pairs = {pair: rng.choice(widths) for pair in mesh(n) if rng.random() < density}
    node = oracle(n, pairs, draw(st.sampled_from([rng, None])))
    available = sorted(rng.sample(range(n), rng.randint(1, n)))
    size = rng.randint(1, len(available))
    must = rng.sample(available, rng.randint(0, size) if rng.random() < 0.5 else 0)
    whole = sorted(rng.sample(available, rng.randint(0, len(available))))
    return node, available, must, draw(st.sampled_from([available, whole])), size


@settings(max_examples=300, deadline=None)
@given(tasks())
def test_tables_and_search_agree_with_brute_force(
    problem: tuple[Oracle, list[int], list[int], list[int], int],
) -> None:
    node, available, must, whole, size = problem
    expected = mask(node.best(available, must, whole, size))
    fabric = fabric_of(node)
    request = mask(available), mask(must), Free(mask(whole)), size
    assert Subsets.of(fabric).best(*request) == expected
    found = Search(SearchProblem(SearchIndex.of(fabric), *request, clock=standing)).best(1.0)
    assert found == (expected, True)


def shared_is_best(
    node: Oracle, preferences: Preferences, rng: random.Random, size: int = 0
) -> None:
    """Ask for GPUs that others share already; brute force, tables, search and account agree."""
    replicas, n = preferences.replicas, len(node.gpus)
    names = [[f"{gpu.card}-{replica}" for replica in range(replicas)] for gpu in node.gpus]
    place = {name: i for i, own in enumerate(names) for name in own}
    used = rng.choice((0, 1, rng.randint(0, n * replicas - 1)))
    offer = sorted(rng.sample(sorted(place), n * replicas - used))
    size = min(size, len(offer)) or rng.randint(1, len(offer))
    must = rng.sample(offer, min(size, rng.choice((0, 0, 1, 2, 3))))
    counts = Counter(place[name] for name in offer)
    required = Counter(place[name] for name in must)
    wanted = min(len(counts), len(required) + size - len(must))
    expected = node.best(
        sorted(counts),
        required,
        [i for i in sorted(counts) if counts[i] == replicas],
        wanted,
        {i: counts[i] - required[i] for i in sorted(counts)},
    )
    answer = preferences.prefer(offer, must, size)
    assert answer.proven
    assert sorted({place[name] for name in answer.ids}) == [*expected]
    request = preferences.read(offer, must, size)
    assert preferences.engine
    problem = SearchProblem(
        preferences.engine.index, request.gpus, request.must, request.free, wanted, clock=standing
    )
    assert Search(problem).best(1.0) == (mask(expected), True)
    told = explain(preferences, offer, must, size, runners_up=1000)
    scores = [told.evaluation.score, *(other.evaluation.score for other in told.runners_up)]
    assert scores == sorted(scores, reverse=True)
    decided = Decisions(preferences).decide(answer)
    if wanted < len(counts) and wanted > len(required):
        assert told.decided
        runner_up = told.runners_up[0].evaluation.cards
        assert decided == (told.decided.name, runner_up)
    else:
        assert decided.criterion == NOTHING


@pytest.mark.parametrize("n", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("replicas", [2, 3])
def test_with_shared_gpus_every_size_is_the_best_by_brute_force(
    replicas: int, shape: Callable[[int], Pairs], n: int
) -> None:
    rng = random.Random(n)  # noqa: S311 - the same nodes in every run
    for node in (oracle(n, shape(n)), oracle(n, shape(n), rng)):
        preferences = prepared(node, replicas)
        for size in range(1, n + 1):
            shared_is_best(node, preferences, rng, size)


@settings(max_examples=200, deadline=None)
@given(tasks(), st.integers(2, 3), st.randoms(use_true_random=False))
def test_with_shared_gpus_any_node_and_request_gets_the_best_by_brute_force(
    problem: tuple[Oracle, list[int], list[int], list[int], int], replicas: int, rng: random.Random
) -> None:
    shared_is_best(problem[0], prepared(problem[0], replicas), rng)


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_without_links_the_direct_answer_is_the_best_by_brute_force(nodes: int) -> None:
    rng = random.Random(nodes)  # noqa: S311 - the same nodes in every run
    for _ in range(150):
        n = rng.randint(1, 9)
        health = rng.choice([(True,), (True, None, False)])
        gpus = [
            GpuFacts(f"card{i}", bdf(i), rng.randrange(nodes), rng.choice(health)) for i in range(n)
        ]
        node = Oracle(gpus, {})
        available = sorted(rng.sample(range(n), rng.randint(1, n)))
        size = rng.randint(1, len(available))
        must = rng.sample(available, rng.choice((0, 0, rng.randint(0, size))))
        whole = sorted(rng.sample(available, rng.randint(0, len(available))))
        whole = rng.choice((whole, available))
        request = mask(available), mask(must), Free(mask(whole)), size
        problem = SearchProblem(SearchIndex.of(fabric_of(node)), *request, clock=standing)
        assert Search(problem).best(1.0) == (mask(node.best(available, must, whole, size)), True)


def thinned(n: int) -> Pairs:
    return {(i, j): width for (i, j), width in irregular(n).items() if (i + j) % 3}


@pytest.mark.parametrize("size", [1, 2, 3, 15])
@pytest.mark.parametrize("shape", [ring, separate, thinned], ids=lambda shape: shape.__name__)
def test_the_search_is_exact_beyond_the_tables(shape: Callable[[int], Pairs], size: int) -> None:
    node = oracle(17, shape(17))
    available = [i for i in range(17) if i != 5]
    expected = node.best(available, [], available, size)
    answer = prepared(node).prefer([f"{node.gpus[i].card}-0" for i in available], [], size)
    assert answer.gpus == mask(expected)
    assert answer.proven


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [mesh, separate, planes, thinned], ids=lambda shape: shape.__name__
)
def test_with_shared_gpus_the_search_is_exact_beyond_the_tables(
    shape: Callable[[int], Pairs], size: int
) -> None:
    rng = random.Random(size)  # noqa: S311 - the same requests in every run
    preferences = prepared(oracle(18, shape(18)), 2)
    for used in (3, 12, 20):
        offer = rng.sample(sorted(preferences.bits), 36 - used)
        must = offer[: rng.choice((0, 0, 1)) if size > 1 else 0]
        free = preferences.read(offer, must, size).free
        counts = Counter(place(preferences, name) for name in offer)
        required = {place(preferences, name) for name in must}
        others = combinations(sorted(counts.keys() - required), size - len(required))
        best = max(
            (mask({*required, *some}) for some in others),
            key=lambda some: score(preferences.fabric, some, free),
        )
        answer = preferences.prefer(offer, must, size)
        assert (answer.gpus, answer.proven) == (best, True)


def place(preferences: Preferences, device: str) -> int:
    return [gpu.card for gpu in preferences.fabric.gpus].index(device.partition("-")[0])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_must_include_across_an_irregular_component_and_another_is_exact(size: int) -> None:
    pairs = irregular(13) | dict.fromkeys(combinations(range(13, 18), 2), 8)
    node = oracle(18, pairs)
    expected = node.best(list(range(18)), [2, 14], list(range(18)), size)
    names = [f"{gpu.card}-0" for gpu in node.gpus]
    answer = prepared(node).prefer(names, [names[2], names[14]], size)
    assert answer.gpus == mask(expected)
    assert answer.proven


@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_must_include_across_small_components_is_exact(size: int) -> None:
    pairs = {(i, j): 4 + (i + j) % 3 for i, j in combinations(range(14), 2) if i // 5 == j // 5}
    del pairs[0, 1], pairs[5, 9]
    node = oracle(14, pairs)
    fabric = fabric_of(node)
    expected = mask(node.best(list(range(14)), [2, 8], list(range(14)), size))
    everything = (1 << 14) - 1
    problem = SearchProblem(
        SearchIndex.of(fabric), everything, mask([2, 8]), Free(everything), size, standing
    )
    assert Search(problem).best(1.0) == (expected, True)


@pytest.mark.parametrize(
    ("pairs", "numa", "must", "size", "free"),
    [
        pytest.param(
            {(1, 2): 16, (2, 3): 0},
            [0] * 4,
            [0],
            2,
            Free(unused=0b1110, shareable=0b1111),
            id="lanes that are left of a path",
        ),
        pytest.param(
            {(0, 2): 16, (0, 3): 16, (0, 4): 16, (1, 4): 16, (2, 5): 16},
            [1, 0, 1, None, 0, 0],
            [],
            2,
            Free(unused=0b001001, shareable=0b111111, last_share=0b010100),
            id="GPUs that close and are not whole",
        ),
        pytest.param(
            {(0, 1): 16, (1, 2): 4, (2, 3): 4, (3, 4): 4, (4, 5): 16, (2, 6): 4},
            [0] * 7,
            [],
            4,
            Free(0b1111111),
            id="two wide pairs that are not connected",
        ),
        pytest.param(
            {(0, 2): 0, (1, 2): 0, (2, 3): 0},
            [0] * 4,
            [],
            3,
            Free(unused=0b0100, shareable=0b1111),
            id="links without lanes",
        ),
    ],
)
def test_what_one_measure_alone_decides_is_exact(
    pairs: Pairs, numa: list[int | None], must: list[int], size: int, free: Free
) -> None:
    n = len(numa)
    gpus = [GpuFacts(f"card{i}", bdf(i), node) for i, node in enumerate(numa)]
    fabric = Fabric.of(gpus, {(bdf(i), bdf(j)): width for (i, j), width in pairs.items()})
    every = [mask(some) for some in combinations(range(n), size) if {*must} <= {*some}]
    expected = max(every, key=lambda some: score(fabric, some, free))
    problem = SearchProblem(
        SearchIndex.of(fabric), (1 << n) - 1, mask(must), free, size, clock=standing
    )
    assert Search(problem).best(1.0) == (expected, True)


def some_free(available: list[int], must: int, rng: random.Random) -> Free:
    """Let GPUs be whole, begun, or down to their last device."""
    state = {i: rng.choice("wob") for i in available}
    whole = mask(i for i in available if state[i] == "w")
    last = mask(i for i in available if state[i] == "o") & ~must
    return rng.choice([Free(whole), Free(whole, mask(available), last)])


@pytest.mark.parametrize("n", [11, 14, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_tables_and_search_agree_where_brute_force_is_too_slow(
    shape: Callable[[int], Pairs], n: int
) -> None:
    rng = random.Random(n)  # noqa: S311 - the same nodes in every run
    node = oracle(n, shape(n), rng)
    fabric = fabric_of(node)
    subsets, index = Subsets.of(fabric), SearchIndex.of(fabric)
    for _ in range(6):
        available = rng.sample(range(n), rng.randint(n - 4, n))
        size = rng.randint(1, len(available))
        must = mask(rng.sample(available, min(size, rng.choice((0, 0, 1, 2)))))
        free = some_free(available, must, rng)
        problem = SearchProblem(index, mask(available), must, free, size, clock=standing)
        assert Search(problem).best(1.0) == (subsets.best(mask(available), must, free, size), True)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_sets_over_several_paths_and_rings_are_the_best(
    chains: list[tuple[int, bool]], rng: random.Random
) -> None:
    n = min(14, sum(length for length, _ in chains))
    places = rng.sample(range(n), n)
    pairs: Pairs = {}
    for length, closed in chains:
        way, places = places[:length], places[length:]
        ends = zip(way, [*way[1:], way[0]] if closed and way else way[1:], strict=False)
        pairs |= {(min(i, j), max(i, j)): rng.choice((0, 4, 16)) for i, j in ends if i != j}
    fabric = fabric_of(oracle(n, pairs, rng.choice((rng, None))))
    subsets, index = Subsets.of(fabric), SearchIndex.of(fabric)
    for _ in range(5):
        available = rng.sample(range(n), rng.randint(1, n))
        size = rng.randint(1, len(available))
        must = mask(rng.sample(available, min(size, rng.choice((0, 0, 1, 2, 3)))))
        free = some_free(available, must, rng)
        expected = subsets.best(mask(available), must, free, size)
        problem = SearchProblem(index, mask(available), must, free, size, clock=standing)
        assert Search(problem).best(1.0) == (expected, True)
        if problem.is_closeness_known:
            continue
        problem.end = 1.0
        apart = ComponentSearch(problem).best()  # from the lanes on: there all sets are compared
        assert apart
        assert score(fabric, apart, free)[3:] >= score(fabric, expected, free)[3:]


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_on_separate_groups_the_measure_of_what_is_left_is_their_sizes(
    groups: list[int], data: st.DataObject
) -> None:
    homes = [home for home, size in enumerate(groups) for _ in range(size)]
    n = len(homes)
    pairs = {(i, j): 16 for i, j in combinations(range(n), 2) if homes[i] == homes[j]}
    links = fabric_of(oracle(n, pairs)).links
    some = st.sets(st.integers(0, n - 1), min_size=data.draw(st.integers(0, n)))
    one, other = data.draw(some), data.draw(some)

    def sizes(left: set[int]) -> list[int]:
        return sorted((sum(homes[i] == home for i in left) for home in set(homes)), reverse=True)

    first, second = linked_groups(links, mask(one)), linked_groups(links, mask(other))
    assert (first > second) == (sizes(one) > sizes(other))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.randoms(use_true_random=False))
def test_linked_groups_are_counted_exactly(n: int, density: float, rng: random.Random) -> None:
    pairs = {pair: 4 for pair in mesh(n) if rng.random() < density}
    node = oracle(n, pairs)
    fabric = fabric_of(node)
    left = [i for i in range(n) if rng.random() < 0.8]
    counts = dict(group_counts(linked_groups(fabric.links, mask(left)) >> n, n))
    assert [counts.get(k, 0) for k in range(n, 0, -1)] == node.groups(tuple(left))


def test_linked_groups_of_a_large_mesh_are_binomials() -> None:
    fabric = fabric_of(oracle(64, mesh(64)))
    counts = dict(group_counts(linked_groups(fabric.links, (1 << 64) - 1) >> 64, 64))
    assert (counts[64], counts[2], counts[32]) == (1, 2016, 1832624140942590534)
