"""The earlier choice because of which `topology` did not link a Pod that another policy did. Pure.

A policy does not know which Pods will come and go. Looking back, another set for one earlier Pod
may have been luckier: it is found by placing the same Pods again with just that one choice changed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from typing import NamedTuple

from device_plugin.allocation import Clock
from device_plugin.masks import members
from device_plugin.wishes import Wish
from xelink.judgement import Judge
from xelink.placement import Choose, Decision, Host, Request
from xelink.schedule import Event, Pod

_MOST_TRIED = 200


class Earlier(NamedTuple):
    """A choice with which one more Pod would have been linked, had it been another.

    `chosen` and `instead` are bitmasks of GPUs. `wish` is the first on which they differ, `measure`
    and `other_measure` what they have of it: that of `chosen` is never less.
    """

    pod: int
    minute: int
    chosen: int
    instead: int
    wish: Wish
    measure: int
    other_measure: int


@dataclass(frozen=True)
class Story:
    """What happened on one node under `topology`."""

    host: Host
    judge: Judge
    events: Sequence[Event]
    pods: Sequence[Pod]
    decisions: Sequence[Decision]
    clock: Clock

    def earlier(self, lost: int) -> Earlier | None:
        """Look for the latest earlier choice that cost a Pod its links.

        Another set at that choice must link this Pod, and no fewer others up to then. None when
        there is no such choice among the Pods that ran when it came: more than one would have had
        to be different, or another Pod would have paid for it.
        """
        until = self._until(lost)
        linked = self._linked(self._decisions[pod] for pod in _started(until))
        for pod in self._running(until):
            decision = self._decisions[pod]
            for other in self._others(decision):
                again = self.host.place(until, self.pods, self._forced(decision, other), self.clock)
                better = self._linked(again)
                if lost in better and len(better) > len(linked):
                    return self._account(decision, other)
        return None

    @cached_property
    def _decisions(self) -> dict[int, Decision]:
        return {decision.pod: decision for decision in self.decisions}

    def _until(self, pod: int) -> Sequence[Event]:
        """Give all events up to the one in which a Pod starts."""
        last = next(at for at, event in enumerate(self.events) if event.starts and event.pod == pod)
        return self.events[: last + 1]

    @staticmethod
    def _running(until: Sequence[Event]) -> list[int]:
        """Give the Pods that run before the last event, the latest first."""
        ended = {event.pod for event in until if not event.starts}
        return [pod for pod in reversed(_started(until[:-1])) if pod not in ended]

    def _linked(self, decisions: Iterable[Decision]) -> set[int]:
        return {
            decision.pod
            for decision in decisions
            if self.pods[decision.pod].size > 1
            and self.judge.linked(decision.gpus, self.pods[decision.pod].size)
        }

    def _others(self, decision: Decision) -> list[int]:
        """Give other sets of as many free GPUs, best first: so the least is asked of hindsight.

        Where there are very many, those that differ in the fewest GPUs.
        """
        free, chosen = decision.free & ~decision.gpus, decision.gpus
        size = chosen.bit_count()
        sets = (
            chosen & ~sum(out) | sum(into)
            for change in range(1, min(size, free.bit_count()) + 1)
            for out in combinations([1 << gpu for gpu in members(chosen)], change)
            for into in combinations([1 << gpu for gpu in members(free)], change)
        )
        score = self.judge.fabric.score
        tried = islice(sets, _MOST_TRIED)
        return sorted(tried, key=lambda other: score(other, decision.before), reverse=True)

    def _forced(self, decision: Decision, gpus: int) -> Choose:
        choose = self.host.choose("topology", "", self.clock)

        def forced(request: Request) -> Iterable[str]:
            if request.pod != decision.pod:
                return choose(request)
            return self.host.devices_of(gpus, request)

        return forced

    def _account(self, decision: Decision, other: int) -> Earlier:
        wish, measure, other_measure = self.judge.deciding(decision.gpus, other, decision.before)
        events = (event for event in self.events if event.starts and event.pod == decision.pod)
        minute = next(events).minute
        return Earlier(decision.pod, minute, decision.gpus, other, wish, measure, other_measure)


def _started(events: Iterable[Event]) -> list[int]:
    return [event.pod for event in events if event.starts]
