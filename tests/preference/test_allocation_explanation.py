"""The account of a choice: what decided, what came next, what it would have cost."""

from itertools import combinations

import pytest

from xelink.preference.criteria import CRITERIA, Score
from xelink.preference.explanation import explain
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preferences, RequestError, prepare


def standing() -> float:
    """Stand still: no deadline ever passes."""
    return 0.0


def bdf(i: int) -> str:
    return f"0000:{i:02x}:00.0"


def node(
    groups: list[int],
    weak: int = 16,
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY,
    replicas: int = 1,
) -> Preferences:
    """Separate groups with 16 lanes per pair, but `weak` in the first one."""
    homes = [home for home, size in enumerate(groups) for _ in range(size)]
    lanes = {
        (bdf(i), bdf(j)): 16 if homes[i] else weak
        for i, j in combinations(range(len(homes)), 2)
        if homes[i] == homes[j]
    }
    gpus = [GpuFacts(f"card{i}", bdf(i), 0, ports_healthy=True) for i in range(len(homes))]
    return prepare(gpus, lanes, clock=standing, policy=policy, replicas=replicas)


def test_every_criterion_is_one_field_of_a_score() -> None:
    assert tuple(criterion.name for criterion in CRITERIA) == Score._fields


def test_what_is_left_decides_between_equal_pairs() -> None:
    preferences = node([4, 2])
    told = explain(preferences, preferences.bits, [], 2)
    assert told.evaluation.cards == ("card4", "card5")
    assert told.evaluation.left == ("card0", "card1", "card2", "card3")
    assert told.evaluation.groups_left == ((4, 1), (3, 4), (2, 6), (1, 4))
    assert told.decided is not None
    assert told.decided.name == "groups_left"
    assert told.runners_up[0].evaluation.cards == ("card0", "card1")
    assert told.runners_up[0].evaluation.groups_left == ((2, 2), (1, 4))
    assert told.complete


def test_lanes_decide_before_what_is_left_and_the_cost_is_told() -> None:
    preferences = node([2, 4], weak=8)
    told = explain(preferences, preferences.bits, [], 2, runners_up=20)
    assert told.evaluation.cards == ("card2", "card3")
    weak = next(other for other in told.runners_up if other.evaluation.cards == ("card0", "card1"))
    assert (weak.decided.name, weak.chosen_measure, weak.measure) == ("weakest", 16, 8)
    assert len(told.runners_up) == 14
    scores = [other.evaluation.score for other in told.runners_up]
    assert scores == sorted(scores, reverse=True)
    assert told.evaluation.score > scores[0]


def test_what_is_left_to_share_decides_before_what_is_left_whole() -> None:
    preferences = node([4], replicas=2)
    offer = [name for name in preferences.bits if name != "card0-0"]
    told = explain(preferences, offer, [], 1, runners_up=9)
    assert told.evaluation.cards == ("card1",)
    assert told.evaluation.groups_open == ((4, 1), (3, 4), (2, 6), (1, 4))
    assert told.evaluation.groups_left == ((2, 1), (1, 2))
    last = told.runners_up[-1]
    assert (last.evaluation.cards, last.decided.name) == (("card0",), "groups_open")
    assert last.evaluation.groups_open == ((3, 1), (2, 3), (1, 3))
    assert last.evaluation.groups_left == ((3, 1), (2, 3), (1, 3))


def test_where_gpus_are_not_shared_nothing_is_told_of_shares() -> None:
    preferences = node([4, 2])
    told = explain(preferences, preferences.bits, [], 1)
    assert told.evaluation.groups_open == ()
    assert "groups_open" not in {other.decided.name for other in told.runners_up}


def test_with_nothing_to_choose_nothing_decided() -> None:
    preferences = node([2])
    told = explain(preferences, preferences.bits, [], 2)
    assert told.decided is None
    assert told.runners_up == ()


def test_must_include_is_part_of_every_alternative() -> None:
    preferences = node([4, 2])
    told = explain(preferences, preferences.bits, ["card0-0"], 2, runners_up=9)
    assert told.evaluation.cards == ("card0", "card1")
    assert len(told.runners_up) == 4
    assert all("card0" in other.evaluation.cards for other in told.runners_up)


def test_beyond_16_gpus_the_runners_up_differ_in_one_gpu() -> None:
    preferences = node([16, 2, 2])
    told = explain(preferences, preferences.bits, [], 2)
    assert told.evaluation.cards == ("card16", "card17")
    assert not told.complete
    assert {
        len(set(other.evaluation.cards) & {"card16", "card17"}) for other in told.runners_up
    } == {1}
    assert told.decided is not None
    assert told.decided.name == "linked"


@pytest.mark.parametrize("policy", ["packed", "none", "balanced"])
def test_other_policies_can_be_compared_with_what_the_criteria_say(
    policy: AllocationPolicy,
) -> None:
    preferences = node([2, 4], weak=8, policy=policy)
    told = explain(preferences, preferences.bits, [], 2)
    assert told.evaluation.cards == ("card0", "card1")
    assert not told.complete


def test_a_request_that_cannot_be_met_cannot_be_explained() -> None:
    with pytest.raises(RequestError, match="only 2 devices"):
        explain(node([2]), ["card0-0", "card1-0"], [], 3)
