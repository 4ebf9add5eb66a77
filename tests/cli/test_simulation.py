"""Policies side by side: valid, the same every time, judged by what is written in the docs."""

from itertools import combinations
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xelink.cli.simulate import random_scenarios
from xelink.cli.simulate.counterfactual import NodeRun
from xelink.cli.simulate.evaluation import evaluator_of
from xelink.cli.simulate.placement import ALLOCATORS, Host
from xelink.cli.simulate.report import LEFT, OWN, PAID, TIE, UNKNOWN, SimulationReport
from xelink.cli.simulate.scenario import Scenario, parse
from xelink.cli.simulate.schedule import listed, schedule
from xelink.cli.simulate.simulation import OURS, Even, SimulationResult, simulate
from xelink.preference.bitmask import members
from xelink.preference.policies import AllocationPolicy


def mask(*gpus: int) -> int:
    return sum(1 << gpu for gpu in gpus)


def run(text: str) -> SimulationResult:
    return simulate(parse(text), perf_counter)


def without_times(outcome: SimulationResult) -> object:
    return {
        kind: [[decision[:-1] for decision in node] for node in nodes]
        for kind, nodes in outcome.decisions.items()
    }


scenarios = st.builds(
    lambda seed, shares: random_scenarios.scenario(seed).model_copy(update={"shares": shares}),
    st.integers(0, 10**6),
    st.integers(1, 3),
)


@settings(max_examples=30, deadline=None)
@given(scenarios)
def test_every_policy_gives_free_devices_and_as_many_as_were_asked_for(scenario: Scenario) -> None:
    outcome = simulate(scenario, perf_counter)
    for kind in ALLOCATORS:
        for node, events, decisions in zip(
            scenario.every_node, outcome.schedule.events, outcome.decisions[kind], strict=True
        ):
            held: dict[int, int] = {}
            found = iter(decisions)
            for event in events:
                if not event.starts:
                    del held[event.pod]
                    continue
                decision = next(found)
                assert decision.pod == event.pod
                assert decision.devices < 1 << node.gpus * scenario.shares
                assert decision.devices.bit_count() == outcome.schedule.pods[event.pod].size
                assert not any(decision.devices & devices for devices in held.values())
                assert decision.gpus == mask(*{i % node.gpus for i in members(decision.devices)})
                used = [i % node.gpus for devices in held.values() for i in members(devices)]
                assert decision.unused == mask(*{*range(node.gpus)} - {*used})
                full = {gpu for gpu in used if used.count(gpu) == scenario.shares}
                assert decision.free == mask(*{*range(node.gpus)} - full)
                held[event.pod] = decision.devices
            assert next(found, None) is None


@settings(max_examples=15, deadline=None)
@given(scenarios)
def test_the_same_scenario_is_the_same_in_every_run(scenario: Scenario) -> None:
    one, other = simulate(scenario, perf_counter), simulate(scenario, perf_counter)
    assert without_times(one) == without_times(other)


@settings(max_examples=30, deadline=None)
@given(scenarios)
def test_no_policy_gets_more_than_there_is(scenario: Scenario) -> None:
    outcome = simulate(scenario, perf_counter)
    for tally in outcome.tallies.values():
        assert tally.linked <= outcome.linkable <= {*outcome.several}
        assert tally.lanes <= outcome.lanes_possible
        assert len(tally.seconds) == len(outcome.schedule.pods)


@settings(max_examples=30, deadline=None)
@given(scenarios)
def test_no_single_choice_links_a_pod_that_topology_does_not_link_although_it_could(
    scenario: Scenario,
) -> None:
    outcome = simulate(scenario, perf_counter)
    for evaluator, decisions in zip(outcome.evaluators, outcome.decisions[OURS], strict=True):
        for decision in decisions:
            size = outcome.schedule.pods[decision.pod].size
            if evaluator.linked(decision.gpus, size):
                continue
            some = combinations([1 << gpu for gpu in members(decision.free)], size)
            assert not any(evaluator.linked(sum(gpus), size) for gpus in some)


# What is counted

ISLANDS = parse("nodes: [{gpus: 8, islands: 2}]\npods: [{gpus: 1}]\n").nodes[0]


@pytest.mark.parametrize(
    ("chosen", "free", "breaks"),
    [
        (mask(4), mask(1, 2, 3, 4, 5, 6, 7), True),
        (mask(1), mask(1, 2, 3, 4, 5, 6, 7), False),
        (mask(4), mask(4, 5, 6, 7), False),
        (mask(3, 4), mask(0, 1, 2, 3, 4, 5, 6, 7), True),
        (mask(4, 5), mask(0, 1, 4, 5, 6, 7), True),
        (mask(1, 4), mask(1, 2, 4, 5, 6, 7), True),
        (mask(4, 5), mask(1, 4, 5, 6, 7), False),
        (mask(4, 5, 6, 7), mask(0, 1, 4, 5, 6, 7), False),
    ],
    ids=[
        "one of four, though a rest was there",
        "one of the rest",
        "nothing but the four",
        "one of each four, though a pair of one would leave the other",
        "two of four, though a pair was there",
        "one of each, though a pair was there",
        "the only pair that is linked",
        "four that need the four",
    ],
)
def test_a_group_is_broken_when_a_pod_did_not_need_it(
    chosen: int,
    free: int,
    breaks: bool,  # noqa: FBT001 - a case of a table
) -> None:
    assert evaluator_of(ISLANDS).breaks_group(chosen, free, free) is breaks


def test_a_group_is_not_broken_where_the_pod_itself_would_have_paid() -> None:
    loners = parse("nodes: [{gpus: 6, islands: [[0, 1, 2, 3], [4], [5]]}]\npods: [{gpus: 1}]\n")
    evaluator = evaluator_of(loners.nodes[0])
    every = mask(*range(6))
    assert not evaluator.breaks_group(mask(0, 1), every, every)
    assert evaluator.breaks_group(mask(0, 4), every, every)


def test_a_gpu_that_others_share_is_no_member_that_could_be_lost() -> None:
    evaluator = evaluator_of(ISLANDS)
    every = mask(*range(8))
    assert evaluator.breaks_group(mask(4), every, mask(4, 5, 6, 7))
    assert not evaluator.breaks_group(mask(0), every, mask(4, 5, 6, 7))


def test_two_shares_of_one_gpu_are_not_two_linked_gpus() -> None:
    evaluator = evaluator_of(ISLANDS)
    assert evaluator.linked(mask(0, 1), 2)
    assert not evaluator.linked(mask(0), 2)
    assert not evaluator.linked(mask(3, 4), 2)


def test_lanes_possible_are_those_of_the_best_set_of_the_empty_node() -> None:
    degraded = parse("nodes: [{gpus: 4, lost: [0-1], narrow: {0-2: 4}}]\npods: [{gpus: 1}]\n")
    evaluator = evaluator_of(degraded.nodes[0])
    assert [evaluator.lanes_possible(size) for size in (1, 2, 3, 4, 5)] == [0, 8, 24, 36, 36]


# What is told where topology is not better

TRAP = """
nodes: [{gpus: 4, wiring: ring, numa: 1}]
pods:
  - {name: a, gpus: 1, at: 0, for: 10}
  - {name: b, gpus: 1, at: 1}
  - {name: c, gpus: 1, at: 2, for: 8}
  - {name: d, gpus: 1, at: 3}
  - {name: e, gpus: 2, at: 20}
"""


def story(text: str) -> NodeRun:
    scenario = parse(text)
    plan = schedule(scenario, listed(scenario))
    host = Host(scenario.nodes[0], scenario.shares)
    choose = host.choose(AllocationPolicy.TOPOLOGY, "", perf_counter)
    decisions = host.place(plan.events[0], plan.pods, choose, perf_counter)
    return NodeRun(
        host, evaluator_of(scenario.nodes[0]), plan.events[0], plan.pods, decisions, perf_counter
    )


def test_looking_back_finds_the_choice_that_cost_a_pod_its_links() -> None:
    told = story(TRAP)
    assert [decision.gpus for decision in told.decisions] == [
        *(mask(0), mask(1), mask(2), mask(3), mask(0, 2))
    ]
    earlier = told.earlier(4)
    assert earlier
    assert told.pods[earlier.pod].name == "b"
    assert (earlier.minute, earlier.chosen, earlier.instead) == (1, mask(1), mask(3))
    assert earlier.criterion.name == "address"


def test_looking_back_blames_nobody_where_no_single_choice_would_have_helped() -> None:
    full = "nodes: [{gpus: 4, wiring: none}]\npods: [{name: a, gpus: 1}, {name: b, gpus: 2}]\n"
    assert story(full).earlier(1) is None


def test_looking_back_takes_nothing_from_another_pod() -> None:
    one_pair = """
nodes: [{gpus: 4, islands: [[0, 1], [2], [3]]}]
pods: [{gpus: 2}, {gpus: 2, at: 1}]
"""
    told = story(one_pair)
    assert [decision.gpus for decision in told.decisions] == [mask(0, 1), mask(2, 3)]
    assert told.earlier(1) is None


def test_looking_back_tells_who_would_have_paid() -> None:
    one_pair = """
nodes: [{gpus: 4, islands: [[0, 1], [2], [3]]}]
pods: [{gpus: 2}, {gpus: 2, at: 1}]
"""
    found = story(one_pair).at_a_price(1)
    assert found
    assert (found.pod, found.chosen, found.paid) == (0, mask(0, 1), (0,))


def test_looking_back_looks_at_pods_that_have_ended_too() -> None:
    """What was free for d, and so what is free for e, is as c chose."""
    told = story("""
nodes: [{gpus: 4, wiring: ring, numa: 1}]
pods:
  - {name: a, gpus: 1, at: 0, for: 4}
  - {name: b, gpus: 1, at: 1, for: 2}
  - {name: c, gpus: 1, at: 2, for: 3}
  - {name: d, gpus: 2, at: 3}
  - {name: e, gpus: 2, at: 8}
""")
    assert [decision.gpus for decision in told.decisions] == [
        *(mask(0), mask(1), mask(2), mask(1, 3), mask(0, 2))
    ]
    earlier = told.earlier(4)
    assert earlier
    assert told.pods[earlier.pod].name == "c"
    assert (earlier.chosen, earlier.instead, earlier.ended) == (mask(2), mask(3), True)


@pytest.mark.parametrize(
    ("text", "even"),
    [
        ("nodes: [{gpus: 4, wiring: none}]\npods: [{gpus: 2}]", Even.NOTHING),
        ("nodes: [{gpus: 4}]\npods: [{gpus: 2}, {gpus: 2}]", Even.ALL),
        ("nodes: [{gpus: 4, wiring: ring}]\npods: [{gpus: 1}, {gpus: 3}]", Even.NOTHING),
        (f"{TRAP.strip()}\n", Even.SAME),
    ],
)
def test_the_report_says_why_another_policy_is_even(text: str, even: Even) -> None:
    found = {comparison.kind: comparison for comparison in run(text).comparisons}
    assert found[AllocationPolicy.NONE].more == 0
    assert found[AllocationPolicy.NONE].even is even


def test_over_random_scenarios_topology_links_the_most_and_each_loss_is_told() -> None:
    report = SimulationReport()
    for seed in range(1, 61):
        report.add(simulate(random_scenarios.scenario(seed), perf_counter))
    linked = {kind: sums.linked for kind, sums in report.sums.items()}
    lanes = {kind: sums.lanes for kind, sums in report.sums.items()}
    broken = {kind: sums.broken for kind, sums in report.sums.items()}
    for kind in report.others:
        assert linked[OURS] > linked[kind]
        assert lanes[OURS] > lanes[kind]
        assert broken[OURS] < broken[kind]
        even = sum(report.even[kind].values())
        assert report.better[kind] + even + len(report.worse_than(kind)) == len(report.seeds)
    for worse in report.worse:
        assert worse.why in {OWN, LEFT, TIE, PAID, UNKNOWN}
        assert (worse.criterion is None) == (worse.why == UNKNOWN)
        assert worse.explanation.startswith("minute ")


def test_gpus_behind_one_switch_are_kept_together_where_the_scenario_has_switches() -> None:
    switches = "switches: [[0, 2], [1, 3]]"
    for shape, gpus in (("", mask(0, 1)), (f", {switches}", mask(0, 2))):
        outcome = run(f"nodes: [{{gpus: 4, numa: 1{shape}}}]\npods: [{{gpus: 2}}]")
        ((placement,),) = outcome.decisions[OURS]
        assert placement.gpus == gpus


@pytest.mark.parametrize("switches", ["[[0, 4]]", "[[0, 1], [1, 2]]", "[[0, 0]]", "[[-1]]", "[0]"])
def test_switches_name_gpus_of_the_node_once(switches: str) -> None:
    with pytest.raises(ValueError, match="switches"):
        parse(f"nodes: [{{gpus: 4, switches: {switches}}}]\npods: [{{gpus: 2}}]")
