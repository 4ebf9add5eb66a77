"""What a request gets: ids, order, replicas, policies, and what is refused."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preferences, RequestError, fallback, prepare

LANES = 16


def standing() -> float:
    """Stand still: no deadline ever passes."""
    return 0.0


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def node(
    groups: list[int],
    *,
    replicas: int = 1,
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY,
    numa: int | None = 0,
) -> Preferences:
    """Cards in separate groups, all linked inside: [4, 2] is card0 to card3 and card4 to card5."""
    gpus = [GpuFacts(f"card{i}", bdf(i), numa, ports_healthy=True) for i in range(sum(groups))]
    lanes: dict[tuple[str, str], int] = {}
    first = 0
    for size in groups:
        inside = range(first, first + size)
        lanes |= {(bdf(i), bdf(j)): LANES for i, j in product(inside, inside) if i < j}
        first += size
    return prepare(gpus, lanes, clock=standing, replicas=replicas, policy=policy)


def ids(*cards: int, replica: int = 0) -> list[str]:
    return [f"card{card}-{replica}" for card in cards]


@pytest.mark.parametrize(
    ("groups", "gone", "size", "expected"),
    [
        pytest.param([4, 2, 1], [], 1, [6], id="lone-GPU-before-one-of-a-pair"),
        pytest.param([4, 2], [], 1, [4], id="one-of-a-pair-before-one-of-four"),
        pytest.param([4, 2], [], 2, [4, 5], id="a-pair-before-a-part-of-four"),
        pytest.param([4, 3], [], 2, [4, 5], id="part-of-three-before-part-of-four"),
        pytest.param([2, 4], [], 3, [2, 3, 4], id="three-linked-even-from-the-four"),
        pytest.param([4, 4], [0], 1, [1], id="the-group-that-is-broken-already"),
        pytest.param([4, 4], [0], 3, [1, 2, 3], id="three-where-three-are-left"),
        pytest.param([2, 2, 2], [0, 2], 2, [4, 5], id="linked-before-what-is-left"),
        pytest.param([1, 1, 1, 1], [], 2, [0, 1], id="no-links-lowest-addresses"),
        pytest.param([4, 2, 1], [], 7, [0, 1, 2, 3, 4, 5, 6], id="everything"),
    ],
)
def test_one_pod_leaves_the_largest_linked_groups_to_the_next(
    groups: list[int], gone: list[int], size: int, expected: list[int]
) -> None:
    preferences = node(groups)
    available = [name for name in preferences.bits if name not in ids(*gone)]
    assert preferences.prefer(available, [], size).ids == tuple(ids(*expected))


def test_without_topology_one_numa_node_comes_before_addresses() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i), numa=i % 2) for i in range(4)]
    preferences = prepare(gpus, {}, clock=standing)
    assert preferences.prefer(ids(0, 1, 2, 3), [], 2).ids == ("card0-0", "card2-0")


def test_healthy_ports_come_before_unknown_and_unknown_before_unhealthy() -> None:
    health = [False, None, True]
    gpus = [GpuFacts(f"card{i}", bdf(i), 0, healthy) for i, healthy in enumerate(health)]
    preferences = prepare(gpus, {}, clock=standing)
    assert preferences.prefer(ids(0, 1, 2), [], 1).ids == ("card2-0",)
    assert preferences.prefer(ids(0, 1), [], 1).ids == ("card1-0",)


def test_the_order_is_that_of_addresses_and_not_of_card_numbers() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(20 - i)) for i in range(12)]
    preferences = prepare(gpus, {}, clock=standing)
    assert preferences.prefer(ids(2, 10, 3), [], 2).ids == ("card10-0", "card3-0")


def test_addresses_are_ordered_as_numbers_and_not_as_text() -> None:
    domains = ["10000", "2000", "0000000a", "0009"]
    gpus = [GpuFacts(f"card{i}", f"{domain}:00:00.0") for i, domain in enumerate(domains)]
    preferences = prepare(gpus, {}, clock=standing)
    assert list(preferences.bits) == ids(3, 2, 1, 0)
    assert preferences.prefer(ids(0, 1, 2, 3), [], 3).ids == tuple(ids(3, 2, 1))
    assert preferences.prefer(ids(0, 1), [], 1).ids == ("card1-0",)
    with pytest.raises(ValueError, match="share"):
        prepare(
            [GpuFacts("card0", "0000:00:00.0"), GpuFacts("card1", "00000000:00:00.0")],
            {},
            clock=standing,
        )


def test_the_weaker_direction_counts_when_both_are_given() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i)) for i in range(3)]
    lanes = {(bdf(0), bdf(1)): 16, (bdf(1), bdf(0)): 4, (bdf(1), bdf(2)): 8}
    preferences = prepare(gpus, lanes, clock=standing)
    assert preferences.prefer(ids(0, 1, 2), [], 2).ids == ("card1-0", "card2-0")


def test_links_of_unknown_gpus_and_nonsense_widths_are_harmless() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i)) for i in range(3)]
    lanes = {
        (bdf(0), bdf(9)): 16,
        (bdf(1), bdf(1)): 16,
        (bdf(1), bdf(2)): -5,
        (bdf(0), bdf(2)): 1 << 80,
    }
    preferences = prepare(gpus, lanes, clock=standing)
    assert preferences.prefer(ids(0, 1, 2), [], 2).ids == ("card0-0", "card2-0")


def test_different_gpus_come_before_replicas_of_one() -> None:
    preferences = node([2, 2], replicas=3)
    chosen = preferences.prefer(preferences.bits, [], 4).ids
    assert chosen == tuple(ids(0, 1, 2, 3))


def test_more_devices_than_gpus_spread_evenly_over_all() -> None:
    preferences = node([2], replicas=4)
    chosen = preferences.prefer(preferences.bits, [], 4).ids
    assert chosen == ("card0-0", "card0-1", "card1-0", "card1-1")


def test_a_shared_gpu_is_used_before_a_whole_one_is_begun() -> None:
    preferences = node([2, 2], replicas=3)
    available = [name for name in preferences.bits if name != "card3-0"]
    assert preferences.prefer(available, [], 1).ids == ("card3-1",)


def test_a_whole_gpu_is_begun_before_the_last_share_of_one_is_used() -> None:
    preferences = node([4], replicas=2)
    offer = list(preferences.bits)
    for card in range(2):
        single = preferences.prefer(offer, [], 1).ids
        assert single == tuple(ids(card))
        offer.remove(single[0])
    # so a Pod that wants all four still finds them
    assert preferences.prefer(offer, [], 4).ids == ("card0-1", "card1-1", *ids(2, 3))


def test_where_last_shares_are_left_only_they_are_used_where_it_hurts_least() -> None:
    preferences = node([2, 3, 1], replicas=2)
    offer = [f"card{card}-1" for card in range(6)]
    assert preferences.prefer(offer, [], 1).ids == ("card5-1",)
    assert preferences.prefer(offer, [], 2).ids == ("card0-1", "card1-1")


def test_the_rest_of_a_required_gpu_counts_among_what_is_left_to_share() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i)) for i in range(5)]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 4)]
    lanes = {(bdf(i), bdf(j)): LANES for i, j in pairs}
    preferences = prepare(gpus, lanes, clock=standing, replicas=2)
    others = ids(1, 2, 3, 4, replica=1)
    # with the other share of card0 the next Pod may have three: card0, card1 and card3
    answer = preferences.prefer([*ids(0), "card0-1", *others], ids(0), 2)
    assert answer.ids == ("card0-0", "card2-1")
    # when card0 has no other share, one pair is left in any case
    answer = preferences.prefer([*ids(0), *others], ids(0), 2)
    assert answer.ids == ("card0-0", "card1-1")


def test_must_include_pulls_its_own_group_along() -> None:
    preferences = node([4, 2])
    assert preferences.prefer(preferences.bits, ids(1), 2).ids == tuple(ids(0, 1))
    assert preferences.prefer(ids(0, 2, 4, 5), ids(1), 2).ids == tuple(ids(0, 1))


def test_ids_of_a_gpu_that_is_gone_are_taken_last() -> None:
    preferences = node([2])
    offer = [*ids(0, 1), "card7-0", "card12-0"]
    assert preferences.prefer(offer, [], 2).ids == tuple(ids(0, 1))
    answer = preferences.prefer(offer, [], 3)
    assert answer.ids == (*ids(0, 1), "card7-0")
    assert answer.request
    assert answer.request.unknown == ("card7-0", "card12-0")


def test_an_unknown_id_that_must_be_included_is() -> None:
    preferences = node([2])
    answer = preferences.prefer(ids(0, 1), ["elsewhere"], 2)
    assert answer.ids == ("card0-0", "elsewhere")
    assert preferences.prefer([], ["b", "a"], 2).ids == ("a", "b")


def test_a_node_without_gpus_still_answers() -> None:
    preferences = prepare([], {}, clock=standing)
    assert preferences.prefer(["card0-0"], [], 1).ids == ("card0-0",)


@pytest.mark.parametrize(
    ("must", "size", "message"),
    [
        pytest.param([], 0, "at least one", id="nothing-asked-for"),
        pytest.param([], -1, "at least one", id="negative"),
        pytest.param([], 4, "only 3 devices", id="more-than-there-are"),
        pytest.param(ids(0, 1), 1, "2 devices must", id="must-include-longer-than-size"),
    ],
)
def test_what_nobody_could_meet_is_refused(must: list[str], size: int, message: str) -> None:
    preferences = node([3])
    with pytest.raises(RequestError, match=message):
        preferences.prefer(ids(0, 1, 2, 2), must, size)
    with pytest.raises(RequestError, match=message):
        fallback(ids(0, 1, 2, 2), must, size)


def test_two_gpus_at_one_address_are_no_node() -> None:
    with pytest.raises(ValueError, match="share"):
        prepare([GpuFacts("card0", bdf(0)), GpuFacts("card1", bdf(0))], {}, clock=standing)
    with pytest.raises(ValueError, match="at least one device"):
        prepare([], {}, clock=standing, replicas=0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("none", ["card0-1", "card0-2", "card1-0", "card2-0"], id="none-takes-turns"),
        pytest.param(
            "balanced", ["card0-1", "card1-0", "card1-1", "card2-0"], id="most-free-first"
        ),
        pytest.param(
            "packed", ["card0-1", "card0-2", "card0-3", "card1-0"], id="one-after-another"
        ),
    ],
)
def test_the_policies_of_the_intel_gpu_plugin(
    policy: AllocationPolicy, expected: list[str]
) -> None:
    preferences = node([3], replicas=4, policy=policy)
    available = [name for name in preferences.bits if name not in ("card0-0", "card2-3")]
    assert preferences.prefer(available, [], 4).ids == tuple(expected)


@pytest.mark.parametrize("policy", ["topology", "balanced", "packed", "none"])
def test_every_policy_honors_must_include(policy: AllocationPolicy) -> None:
    preferences = node([2, 2], replicas=2, policy=policy)
    answer = preferences.prefer(preferences.bits, ["card3-1"], 2)
    assert "card3-1" in answer.ids
    assert len(answer.ids) == 2


@pytest.mark.parametrize(
    ("must", "size", "expected"),
    [
        pytest.param([], 3, ids(0, 1, 2), id="one-of-each"),
        pytest.param(["card1-2"], 3, ["card0-0", "card1-2", "card2-0"], id="others-than-begun"),
        pytest.param(
            ["card1-2"], 5, ["card0-0", "card0-1", "card1-0", "card1-2", "card2-0"], id="then-again"
        ),
        pytest.param(
            [],
            7,
            [*ids(0), "card0-1", "card0-2", *ids(1), "card1-1", *ids(2), "card2-1"],
            id="round-after-round",
        ),
    ],
)
def test_none_takes_as_many_different_shared_gpus_as_it_can_in_stable_order(
    must: list[str], size: int, expected: list[str]
) -> None:
    preferences = node([2, 1], replicas=3, policy=AllocationPolicy.NONE)
    offer = list(preferences.bits)
    assert preferences.prefer(offer, must, size).ids == tuple(expected)
    assert preferences.prefer(offer[::-1], must, size).ids == tuple(expected)


def test_packed_goes_on_where_the_pod_has_begun() -> None:
    preferences = node([2], replicas=2, policy=AllocationPolicy.PACKED)
    assert preferences.prefer(preferences.bits, ["card1-1"], 2).ids == ("card1-0", "card1-1")


@settings(deadline=None)
@given(st.lists(st.text(max_size=8)), st.lists(st.text(max_size=8)), st.integers(-2, 12))
def test_any_text_gets_an_answer_or_a_refusal(
    available: list[str], must: list[str], size: int
) -> None:
    preferences = node([2, 1], replicas=2)
    offer = [*available, *preferences.bits]
    for ask in (preferences.prefer, fallback):
        try:
            answer = ask(offer, must, size)
        except RequestError:
            continue
        assert len(set(answer.ids)) == size
        assert set(must) <= set(answer.ids) <= {*offer, *must}


@settings(deadline=None)
@given(
    st.sampled_from(["topology", "balanced", "packed", "none"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_every_answer_has_the_size_keeps_must_and_ignores_the_order(
    policy: AllocationPolicy, groups: list[int], replicas: int, rng: random.Random
) -> None:
    preferences = node(groups, replicas=replicas, policy=policy)
    available = rng.sample(sorted(preferences.bits), rng.randint(1, len(preferences.bits)))
    size = rng.randint(1, len(available))
    must = rng.sample(available, rng.randint(0, size))
    answer = preferences.prefer(available, must, size)
    assert len(answer.ids) == len(set(answer.ids)) == size
    assert set(must) <= set(answer.ids) <= set(available)
    assert answer.error is None
    shuffled = rng.sample(available * 2, 2 * len(available))
    assert preferences.prefer(shuffled, must[::-1], size) == answer
    if policy == "topology":
        began = {name.partition("-")[0] for name in must}
        others = {name.partition("-")[0] for name in available} - began
        wanted = len(began) + min(size - len(must), len(others))
        assert len({name.partition("-")[0] for name in answer.ids}) == wanted


def test_a_link_whose_lanes_are_unknown_is_still_a_link() -> None:
    gpus = [GpuFacts(f"card{i}", bdf(i)) for i in range(3)]
    preferences = prepare(gpus, {(bdf(1), bdf(2)): 0}, clock=standing)
    assert preferences.prefer(ids(0, 1, 2), [], 2).ids == tuple(ids(1, 2))
