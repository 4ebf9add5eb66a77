"""Pods find their nodes by numbers of free devices alone, as Kubernetes finds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.cli.simulate import random_scenarios
from xelink.cli.simulate.scenario import parse
from xelink.cli.simulate.schedule import Schedule, listed, schedule


def planned(nodes: str, *pods: str, rest: str = "") -> Schedule:
    scenario = parse(f"nodes: [{nodes}]\npods: [{', '.join(pods)}]\n{rest}")
    return schedule(scenario, listed(scenario))


def started(plan: Schedule) -> list[tuple[int, str, int]]:
    """When, which Pod, on which node."""
    return sorted(
        (event.minute, plan.pods[event.pod].name, node)
        for node, events in enumerate(plan.events)
        for event in events
        if event.starts
    )


def test_a_pod_waits_for_free_gpus_and_holds_up_no_other() -> None:
    plan = planned(
        "{gpus: 4}",
        "{name: first, gpus: 3, for: 10}",
        "{name: large, gpus: 4, at: 1, for: 10}",
        "{name: small, gpus: 1, at: 2, for: 3}",
    )
    assert started(plan) == [(0, "first", 0), (2, "small", 0), (10, "large", 0)]


def test_a_pod_that_ends_makes_room_in_the_same_minute() -> None:
    plan = planned("{gpus: 2}", "{name: a, gpus: 2, for: 5}", "{name: b, gpus: 2, at: 5}")
    assert started(plan) == [(0, "a", 0), (5, "b", 0)]


def test_a_pod_without_an_end_stays_and_others_may_never_start() -> None:
    plan = planned("{gpus: 2}", "{name: a, gpus: 2}", "{name: b, gpus: 1, at: 5}")
    assert plan.never_started == (1,)


@pytest.mark.parametrize(
    ("scheduler", "nodes"), [("first-fit", [0, 0, 1]), ("most-free", [1, 1, 0])]
)
def test_the_scheduler_fills_or_spreads(scheduler: str, nodes: list[int]) -> None:
    pods = [f"{{name: {name}, gpus: 2, at: {at}}}" for at, name in enumerate("abc")]
    plan = planned("{gpus: 4}, {gpus: 8}", *pods, rest=f"scheduler: {scheduler}")
    assert [node for _, _, node in started(plan)] == nodes


def test_pods_come_in_the_order_of_their_minutes() -> None:
    plan = planned("{gpus: 8}", "{gpus: 1, at: 9}", "{name: b, gpus: 1, at: 3, count: 2}")
    assert [pod.name for pod in plan.pods] == ["b-2", "b-3", "pod-1"]


@given(st.integers(0, 10**6))
def test_no_node_ever_has_more_than_its_devices_in_use(seed: int) -> None:
    scenario = random_scenarios.scenario(seed)
    plan = schedule(scenario, random_scenarios.pods_of(scenario))
    assert plan.never_started == ()
    for node, events in zip(scenario.every_node, plan.events, strict=True):
        used = 0
        assert [event.minute for event in events] == sorted(event.minute for event in events)
        for event in events:
            size = plan.pods[event.pod].size
            used += size if event.starts else -size
            assert 0 <= used <= node.gpus * scenario.shares
        assert used == 0
