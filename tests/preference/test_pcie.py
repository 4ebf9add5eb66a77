"""GPUs that are close to each other on PCIe are preferred, where nothing before that differs."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.preference.criteria import score
from xelink.preference.decision import Decision, Decisions
from xelink.preference.fabric import LANES_LIMIT, Fabric, Free, GpuFacts
from xelink.preference.pcie import closeness, most_closeness, pcie_groups
from xelink.preference.shares import Preferences, prepare
from xelink.preference.subset_table import Subsets

# host bridge, root port, and below a switch its upstream and downstream ports
ALONE = [(f"pci0000:{n:02x}", f"0000:{n:02x}:01.0") for n in range(8)]
ONE_HOST = [("pci0000:00", f"0000:00:{n:02x}.0") for n in range(8)]


def behind(switch: int, port: int, host: int = 0) -> tuple[str, ...]:
    """Return the bridges above a GPU at one port of a switch."""
    root = f"0000:{host:02x}:{switch:02x}.0"
    return f"pci0000:{host:02x}", root, f"0001:{switch:02x}:00.0", f"0002:{switch:02x}:{port:02x}.0"


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def node(chains: list[tuple[str, ...]], width: int | None = 8, numa: int = 1) -> Preferences:
    """GPUs with these bridges above them, all linked or (`width` None) none."""
    n = len(chains)
    gpus = [
        GpuFacts(f"card{i}", bdf(i), i * numa // n, ports_healthy=True, bridges=chain)
        for i, chain in enumerate(chains)
    ]
    pairs = [] if width is None else combinations(range(n), 2)
    lanes = {(bdf(i), bdf(j)): width or 0 for i, j in pairs}
    return prepare(gpus, lanes, clock=lambda: 0.0)


PAIRS = [behind(0, 0), behind(1, 0), behind(0, 1), behind(1, 1)]
SPLIT = [behind(0, 0), behind(2, 0, 1), behind(1, 0), behind(3, 0, 1)]


@pytest.mark.parametrize(
    ("chains", "size", "chosen"),
    [
        pytest.param([()] * 4, 2, (0, 1), id="nothing known"),
        pytest.param(ALONE[:4], 2, (0, 1), id="a host bridge each"),
        pytest.param(ONE_HOST[:4], 2, (0, 1), id="a root port each"),
        pytest.param(PAIRS, 2, (0, 2), id="one switch before one host bridge"),
        pytest.param(SPLIT, 2, (0, 2), id="one host bridge before two"),
        pytest.param([(), behind(0, 0), (), behind(0, 1)], 2, (1, 3), id="known of some"),
        pytest.param([*SPLIT[:2], behind(1, 1, 2), behind(1, 2, 2)], 2, (2, 3), id="the switch"),
        pytest.param(PAIRS, 1, (0,), id="one GPU"),
        pytest.param([*PAIRS, behind(0, 2), behind(1, 2)], 3, (0, 2, 4), id="three on a switch"),
        pytest.param([*PAIRS, behind(1, 2)], 3, (1, 3, 4), id="the switch with enough"),
        pytest.param([*PAIRS, *PAIRS], 4, (0, 2, 4, 6), id="four of a switch"),
    ],
)
@pytest.mark.parametrize("width", [8, None], ids=["linked", "not linked"])
def test_the_closest_gpus_are_preferred(
    chains: list[tuple[str, ...]], size: int, chosen: tuple[int, ...], width: int | None
) -> None:
    preferences = node(chains, width)
    answer = preferences.prefer(preferences.bits, [], size)
    assert answer.ids == tuple(f"card{i}-0" for i in chosen)
    # beyond 16 GPUs it is searched for: others come last, and differ in nothing
    more = node([*chains, *[()] * (17 - len(chains))], width)
    assert more.prefer(list(preferences.bits), [], size).ids == answer.ids


def test_it_is_asked_for_after_numa_and_before_what_is_left() -> None:
    chains = [behind(0, 0), behind(1, 0), behind(0, 1), behind(1, 1)]
    assert node(chains, numa=2).prefer(("card0-0", "card1-0", "card2-0"), [], 2).ids == (
        "card0-0",
        "card1-0",
    )
    preferences = node(chains)
    answer = preferences.prefer(preferences.bits, [], 2)
    assert Decisions(preferences).decide(answer) == Decision("address", ("card1", "card3"))
    answer = preferences.prefer([f"card{i}-0" for i in (0, 1, 2)], [], 2)
    assert Decisions(preferences).decide(answer) == Decision("pcie", ("card0", "card1"))


@pytest.mark.parametrize(
    ("chains", "groups"),
    [
        pytest.param([(), ()], (), id="unknown"),
        pytest.param(ALONE[:3], (), id="apart"),
        pytest.param(ONE_HOST[:3], (), id="all below one host bridge"),
        pytest.param(PAIRS, ((0b0101, 0b1010),), id="two switches below one host bridge"),
        pytest.param(SPLIT, ((0b0101, 0b1010),), id="two host bridges"),
        pytest.param(
            [*PAIRS, ("pci0000:09",)], ((0b01111,), (0b00101, 0b01010)), id="switches and another"
        ),
        pytest.param([("pci0000:09",)] * 2 + [()], ((0b011,),), id="no root port"),
    ],
)
def test_groups_are_those_that_make_a_difference(
    chains: list[tuple[str, ...]], groups: tuple[tuple[int, ...], ...]
) -> None:
    assert pcie_groups(chains) == groups


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8), st.data())
def test_no_set_is_closer_than_the_bound(tree: list[tuple[int, int]], data: st.DataObject) -> None:
    levels = pcie_groups([behind(switch, n, host) for n, (host, switch) in enumerate(tree)])
    every = range(len(tree))
    chosen = data.draw(st.sets(st.sampled_from(every)))
    candidates = sorted({*every} - chosen)
    open_ = data.draw(st.integers(0, len(candidates)))

    def mask(some: object) -> int:
        return sum(1 << i for i in some)  # type: ignore[attr-defined]  # a collection of GPUs

    best = max(
        closeness(levels, mask({*chosen, *more})) for more in combinations(candidates, open_)
    )
    assert best <= most_closeness(levels, mask(chosen), mask(candidates), open_)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.randoms(use_true_random=False))
def test_where_nothing_is_known_or_all_are_as_close_it_changes_nothing(
    n: int, rng: random.Random
) -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i), rng.choice((0, 1, None))) for i in range(n)]
    lanes = {
        (bdf(i), bdf(j)): rng.choice((0, 8))
        for i, j in combinations(range(n), 2)
        if rng.random() < 0.5
    }
    plain = prepare(gpus, lanes, clock=lambda: 0.0)
    available = rng.sample(sorted(plain.bits), rng.randint(1, n))
    size = rng.randint(1, len(available))
    expected = plain.prefer(available, [], size).ids
    for chains in (ALONE + ALONE[:1], ONE_HOST + ONE_HOST[:1], [behind(1, i) for i in range(9)]):
        if len({chain[:2] for chain in chains[:n]}) not in {1, n}:
            continue
        known = [
            GpuFacts(gpu.card, gpu.bdf, gpu.numa, bridges=chain)
            for gpu, chain in zip(gpus, chains, strict=False)
        ]
        assert prepare(known, lanes, clock=lambda: 0.0).prefer(available, [], size).ids == expected


def test_the_weights_of_sixteen_gpus_fit_their_fields() -> None:
    gpus = [
        GpuFacts(f"card{i}", bdf(i), i, ports_healthy=False, bridges=behind(i // 8, i % 8))
        for i in range(15)
    ]
    gpus.append(GpuFacts("card15", bdf(15), 15, ports_healthy=True))
    pairs = combinations(range(16), 2)
    lanes = {(bdf(i), bdf(j)): LANES_LIMIT - n for n, (i, j) in enumerate(pairs)}
    fabric = Fabric.of(gpus, lanes)
    subsets, free = Subsets.of(fabric), Free((1 << 16) - 1)
    rng = random.Random(1)  # noqa: S311 - the same sets in every run
    sets = [sum(1 << i for i in rng.sample(range(16), 8)) for _ in range(200)]
    weighed = sorted(sets, key=lambda some: subsets.rank(some, free))
    assert weighed == sorted(sets, key=lambda some: score(fabric, some, free))
    assert max(subsets.weights) < 1 << 64
