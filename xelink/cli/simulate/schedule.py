"""Which Pod starts where and when: as the scheduler sees it, by numbers of free devices. Pure.

No policy has a part in this, for none changes how many devices are free: so the same Pods run at
the same times on the same nodes under each, and what differs is only which GPUs they get.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from xelink.cli.simulate.scenario import Scenario, Scheduler


class ScheduledPod(NamedTuple):
    """A Pod that asks for `size` devices at minute `at`; None lasts to the end."""

    name: str
    size: int
    at: int
    lasting: int | None = None


class Event(NamedTuple):
    """A Pod starts on a node, or ends there; `pod` is its place among the Pods."""

    minute: int
    starts: bool
    pod: int


class Schedule(NamedTuple):
    """What happens on each node in its order, and the Pods that never found a place."""

    pods: tuple[ScheduledPod, ...]
    events: tuple[tuple[Event, ...], ...]
    never_started: tuple[int, ...]


def listed(scenario: Scenario) -> tuple[ScheduledPod, ...]:
    """Return the Pods that a scenario lists, in the order in which they come."""
    shapes = [shape for shape in scenario.pods for _ in range(shape.count)]
    pods = [
        ScheduledPod(_name(shape.name, shape.count, number), shape.gpus, shape.at, shape.lasting)
        for number, shape in enumerate(shapes, start=1)
    ]
    return tuple(sorted(pods, key=lambda pod: pod.at))


def schedule(scenario: Scenario, pods: Sequence[ScheduledPod]) -> Schedule:
    """Place Pods, given in the order in which they come.

    A Pod for which no node has enough free devices waits. Whenever a Pod ends, those that wait are
    tried again in their order; one that still does not fit holds up no other, as in Kubernetes.
    """
    free = [node.gpus * scenario.shares for node in scenario.every_node]
    pick = _SCHEDULERS[scenario.scheduler]
    events: list[list[Event]] = [[] for _ in free]
    running: list[tuple[int, int, int]] = []
    waiting: list[int] = []

    def start_what_fits(minute: int) -> None:
        for number in list(waiting):
            pod = pods[number]
            fitting = {node: left for node, left in enumerate(free) if left >= pod.size}
            if fitting:
                node = pick(fitting)
                free[node] -= pod.size
                waiting.remove(number)
                events[node].append(Event(minute, starts=True, pod=number))
                if pod.lasting is not None:
                    heapq.heappush(running, (minute + pod.lasting, number, node))

    def end_until(minute: int | None) -> None:
        while running and (minute is None or running[0][0] <= minute):
            now = running[0][0]
            while running and running[0][0] == now:
                _, number, node = heapq.heappop(running)
                free[node] += pods[number].size
                events[node].append(Event(now, starts=False, pod=number))
            start_what_fits(now)

    for number, pod in enumerate(pods):
        end_until(pod.at)
        waiting.append(number)
        start_what_fits(pod.at)
    end_until(None)
    return Schedule(tuple(pods), tuple(map(tuple, events)), tuple(waiting))


def _name(name: str | None, count: int, number: int) -> str:
    if name is None:
        return f"pod-{number}"
    return name if count == 1 else f"{name}-{number}"


def _first_fit(fitting: Mapping[int, int]) -> int:
    return min(fitting)


def _most_free(fitting: Mapping[int, int]) -> int:
    return max(fitting, key=lambda node: (fitting[node], -node))


_SCHEDULERS: Mapping[Scheduler, Callable[[Mapping[int, int]], int]] = {
    "first-fit": _first_fit,
    "most-free": _most_free,
}


def asking_for_several(pods: Iterable[ScheduledPod]) -> list[int]:
    """Return the places of the Pods that ask for more than one GPU."""
    return [number for number, pod in enumerate(pods) if pod.size > 1]
