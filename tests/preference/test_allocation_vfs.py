"""VFs of one physical GPU are what shares of one GPU are: the last to be taken together."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.preference.test_allocation_exact import standing
from xelink.preference.decision import Decisions
from xelink.preference.explanation import explain
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import POLICIES, AllocationPolicy
from xelink.preference.shares import Preferences, prepare
from xelink.preference.virtual_functions import physical


def home(gpu: int) -> str:
    return f"0000:{gpu:02x}:00.0"


def virtual(gpu: int, vf: int, *, numa: int | None = 0) -> GpuFacts:
    return GpuFacts(
        f"card{100 * gpu + vf}", f"0000:{gpu:02x}:{vf >> 3:02x}.{vf & 7}", numa, physfn=home(gpu)
    )


def vfs(*counts: int) -> list[GpuFacts]:
    """Make so many VFs for each physical GPU."""
    return [virtual(gpu, vf) for gpu, count in enumerate(counts) for vf in range(1, count + 1)]


def preferring(
    gpus: list[GpuFacts],
    lanes: Mapping[tuple[str, str], int] | None = None,
    *,
    shares: int = 1,
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY,
) -> Preferences:
    return prepare(gpus, lanes or {}, clock=standing, replicas=shares, policy=policy)


def ids(gpus: list[GpuFacts], shares: int = 1) -> list[str]:
    return [f"{gpu.card}-{share}" for gpu in gpus for share in range(shares)]


def homes(gpus: list[GpuFacts], chosen: tuple[str, ...]) -> Counter[str]:
    """Count the devices that are chosen of each physical GPU."""
    cards = {gpu.card: gpu.physfn or gpu.bdf for gpu in gpus}
    return Counter(cards[device.partition("-")[0]] for device in chosen)


def test_two_vfs_of_one_gpu_are_not_given_while_another_gpus_vf_is_free() -> None:
    assert preferring(vfs(4, 4)).prefer(ids(vfs(4, 4)), [], 2).ids == ("card1-0", "card101-0")
    available = ["card3-0", "card4-0", "card102-0"]
    assert preferring(vfs(4, 4)).prefer(available, [], 2).ids == ("card3-0", "card102-0")


def test_vfs_of_a_gpu_come_by_address_and_its_facts_are_those_of_the_first() -> None:
    later, first = virtual(1, 9, numa=1), replace(virtual(1, 2), card="card900")
    (found,), _ = physical([later, first], {})
    assert found.cards == ("card900", later.card)
    assert (found.facts.card, found.facts.bdf, found.facts.numa) == (home(1), home(1), first.numa)


def test_a_vf_that_must_be_included_counts_for_its_gpu() -> None:
    answer = preferring(vfs(4, 4)).prefer(ids(vfs(4, 4)), ["card104-0"], 2)
    assert answer.ids == ("card1-0", "card104-0")


def test_more_vfs_than_gpus_are_spread_evenly() -> None:
    answer = preferring(vfs(4, 2, 4)).prefer(ids(vfs(4, 2, 4)), [], 7)
    assert sorted(homes(vfs(4, 2, 4), answer.ids).values()) == [1, 3, 3]


def test_vfs_come_before_further_shares_of_one_of_them() -> None:
    node = preferring(vfs(3), shares=2)
    assert node.prefer(ids(vfs(3), 2), [], 3).ids == ("card1-0", "card2-0", "card3-0")
    available = ["card1-1", "card2-1", "card3-0", "card3-1"]
    assert node.prefer(available, ["card3-1"], 3).ids == ("card1-1", "card2-1", "card3-1")


def test_a_gpu_that_is_linked_stays_apart_from_vfs() -> None:
    whole = [GpuFacts(f"card{100 * gpu}", home(gpu), 0) for gpu in (2, 3)]
    gpus = [*vfs(2, 2), *whole]
    node = preferring(gpus, {(home(2), home(3)): 4})
    assert node.prefer(ids(gpus), [], 2).ids == ("card200-0", "card300-0")
    assert homes(gpus, node.prefer(ids(gpus), [], 4).ids) == dict.fromkeys(map(home, range(4)), 1)


def test_the_links_of_a_hidden_physical_function_are_not_those_of_its_vfs() -> None:
    node = preferring(vfs(2, 2, 2), {(home(1), home(2)): 8})
    assert node.prefer(ids(vfs(2, 2, 2)), [], 2).ids == ("card1-0", "card101-0")


@pytest.mark.parametrize("physfn", ["all", "0000:zz:00.0", "", "0000:01:00.8"])
def test_what_is_no_address_makes_no_physical_gpu(physfn: str) -> None:
    gpus = [GpuFacts(f"card{n}", home(n), 0, physfn=physfn) for n in (1, 2)]
    assert preferring(gpus).prefer(ids(gpus), [], 2).ids == ("card1-0", "card2-0")
    assert len(preferring(gpus).fabric) == 2


def test_a_vf_that_is_said_to_be_linked_is_a_gpu_of_its_own() -> None:
    one, other = vfs(2)
    node = preferring([one, other, *vfs(0, 1)], {(one.bdf, other.bdf): 4})
    assert node.prefer(["card1-0", "card2-0", "card101-0"], [], 2).ids == ("card1-0", "card2-0")


def test_an_account_names_a_gpu_with_vfs_by_its_own_address() -> None:
    node, every = preferring(vfs(2, 2, 2)), ids(vfs(2, 2, 2))
    answer = node.prefer(every, [], 2)
    told = explain(node, every, [], 2)
    assert told.evaluation.cards == (home(0), home(1))
    assert Decisions(node).decide(answer) == ("address", (home(0), home(2)))


def test_a_gpu_with_fewer_vfs_than_another_is_whole_when_all_of_its_own_are_free() -> None:
    node, every = preferring(vfs(4, 1)), ids(vfs(4, 1))
    assert node.read(every, [], 1).free.unused == 0b11
    assert explain(node, every, ["card1-0"], 1).evaluation.left == (home(1),)
    assert node.read([id_ for id_ in every if id_ != "card1-0"], [], 1).free.unused == 0b10


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "topology"])
def test_to_the_policies_of_intels_plugin_a_vf_is_a_gpu(policy: AllocationPolicy) -> None:
    node = preferring(vfs(2, 2), policy=policy)
    assert node.prefer(ids(vfs(2, 2)), [], 2).ids == ("card1-0", "card2-0")


@pytest.mark.parametrize("gpus", [4, 8, 12])
def test_a_node_of_hundreds_of_vfs_is_exact_and_looked_up(gpus: int) -> None:
    node = preferring(vfs(*[63] * gpus))
    answer = node.prefer(ids(vfs(*[63] * gpus)), [], gpus)
    assert answer.proven
    assert node.engine
    assert node.engine.subsets
    assert {*homes(vfs(*[63] * gpus), answer.ids).values()} == {1}


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    whole=st.integers(0, 4),
    shares=st.integers(1, 3),
    rng=st.randoms(use_true_random=False),
)
def test_as_many_physical_gpus_as_can_be_are_given(
    counts: list[int], whole: int, shares: int, rng: random.Random
) -> None:
    """Beyond what the tables hold, too; then as many different VFs as can be."""
    gpus = [
        virtual(gpu, vf, numa=rng.choice((0, 1, None)))
        for gpu, count in enumerate(counts)
        for vf in range(1, count + 1)
    ]
    alone = [GpuFacts(f"card{100 * n}", home(n), n % 2) for n in range(40, 40 + whole)]
    lanes = {
        (one.bdf, other.bdf): rng.choice((4, 8))
        for one, other in combinations(alone, 2)
        if rng.random() < 0.7
    }
    gpus += alone
    every = ids(gpus, shares)
    offer = sorted(rng.sample(every, rng.randint(1, len(every))))
    size = rng.randint(1, len(offer))
    must = rng.sample(offer, rng.randint(0, min(size, 3)))
    answer = preferring(gpus, lanes, shares=shares).prefer(offer, must, size)
    assert len({*answer.ids}) == size
    assert {*must} <= {*answer.ids} <= {*offer}
    given_, offered, had = (homes(gpus, tuple(some)) for some in (answer.ids, offer, must))
    assert len(given_) == min(len(offered), len(had) + size - len(must))
    cards = Counter(device.partition("-")[0] for device in answer.ids)
    for gpu, devices in given_.items():
        own = [one for one in gpus if (one.physfn or one.bdf) == gpu]
        here = {id_.partition("-")[0] for id_ in offer} & {one.card for one in own}
        required = [id_ for id_ in must if id_.partition("-")[0] in here]
        begun = {id_.partition("-")[0] for id_ in required}
        most = min(len(here), len(begun) + devices - len(required))
        assert sum(one.card in cards for one in own) == most


@settings(max_examples=200, deadline=None)
@given(gpus=st.integers(1, 6), each=st.integers(1, 4), rng=st.randoms(use_true_random=False))
def test_vfs_are_chosen_as_shares_of_their_gpus_would_be(
    gpus: int, each: int, rng: random.Random
) -> None:
    """So that all that holds of shares, the best by brute force, holds of VFs."""
    numa = [rng.choice((0, 1)) for _ in range(gpus)]
    virtuals = [virtual(n, vf + 1, numa=numa[n]) for n in range(gpus) for vf in range(each)]
    shared = [GpuFacts(f"card{n}", home(n), numa[n]) for n in range(gpus)]
    share_of = {
        f"card{100 * n + vf + 1}-0": f"card{n}-{vf}" for n in range(gpus) for vf in range(each)
    }
    offer = sorted(rng.sample(sorted(share_of), rng.randint(1, len(share_of))))
    size = rng.randint(1, len(offer))
    must = rng.sample(offer, rng.randint(0, min(size, 3)))
    ours = preferring(virtuals).prefer(offer, must, size)
    theirs = preferring(shared, shares=each).prefer(
        [share_of[id_] for id_ in offer], [share_of[id_] for id_ in must], size
    )
    assert sorted(share_of[id_] for id_ in ours.ids) == sorted(theirs.ids)
    assert ours[1:4] == theirs[1:4]


def test_two_vfs_at_one_address_or_card_are_no_node() -> None:
    one, other = vfs(2)
    for twin in (replace(other, card=one.card), one):
        with pytest.raises(ValueError, match="share a card or a PCI address"):
            preferring([one, twin])
