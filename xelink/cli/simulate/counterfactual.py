"""The earlier choice because of which `topology` did not link a Pod that another policy did. Pure.

A policy does not know which Pods will come and go. Looking back, another set for one earlier Pod
may have been luckier: it is found by placing the same Pods again with just that one choice changed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from typing import NamedTuple

from xelink.cli.simulate.evaluation import Evaluator
from xelink.cli.simulate.placement import Choose, Host, Placement, PodRequest
from xelink.cli.simulate.schedule import Event, ScheduledPod
from xelink.preference.bitmask import members
from xelink.preference.criteria import Criterion, score
from xelink.preference.engine import Clock
from xelink.preference.policies import AllocationPolicy

_MOST_TRIED = 200


class EarlierChoice(NamedTuple):
    """A choice with which a Pod would have been linked, had it been another.

    `chosen` and `instead` are bitmasks of GPUs. `criterion` is the first on which they differ,
    `measure` and `other_measure` what they have of it: that of `chosen` is never less. `ended`
    is whether the Pod that got `chosen` ran no longer, `paid` are Pods that would not have been
    linked instead.
    """

    pod: int
    minute: int
    chosen: int
    instead: int
    criterion: Criterion
    measure: int
    other_measure: int
    ended: bool = False
    paid: tuple[int, ...] = ()


@dataclass(frozen=True)
class NodeRun:
    """What happened on one node under `topology`."""

    host: Host
    evaluator: Evaluator
    events: Sequence[Event]
    pods: Sequence[ScheduledPod]
    decisions: Sequence[Placement]
    clock: Clock

    def earlier(self, lost: int) -> EarlierChoice | None:
        """Look for the latest earlier choice that cost a Pod its links.

        Another set at that choice must link this Pod, and no fewer others up to then. The Pods that
        ran when it came are looked at first, then those that had ended: what was chosen after them
        depends on them. None when there is no such choice.
        """
        return next(self._luckier(lost, at_a_price=False), None)

    def at_a_price(self, lost: int) -> EarlierChoice | None:
        """Look for the latest earlier choice that would have linked a Pod instead of others."""
        return next(self._luckier(lost, at_a_price=True), None)

    def _luckier(self, lost: int, *, at_a_price: bool) -> Iterator[EarlierChoice]:
        until = self._until(lost)
        linked = self._linked(self._decisions[pod] for pod in _started(until))
        ended = {event.pod for event in until if not event.starts}
        before = _started(until[:-1])[::-1]
        for pod in sorted(before, key=ended.__contains__):
            decision = self._decisions[pod]
            for other in self._others(decision):
                again = self.host.place(until, self.pods, self._forced(decision, other), self.clock)
                better = self._linked(again)
                if lost in better and (at_a_price or len(better) > len(linked)):
                    paid = tuple(sorted(linked - better)) if at_a_price else ()
                    yield self._account(decision, other)._replace(ended=pod in ended, paid=paid)

    @cached_property
    def _decisions(self) -> dict[int, Placement]:
        return {decision.pod: decision for decision in self.decisions}

    def _until(self, pod: int) -> Sequence[Event]:
        """Return all events up to the one in which a Pod starts."""
        last = next(at for at, event in enumerate(self.events) if event.starts and event.pod == pod)
        return self.events[: last + 1]

    def _linked(self, decisions: Iterable[Placement]) -> set[int]:
        return {
            decision.pod
            for decision in decisions
            if self.pods[decision.pod].size > 1
            and self.evaluator.linked(decision.gpus, self.pods[decision.pod].size)
        }

    def _others(self, decision: Placement) -> list[int]:
        """Return other sets of as many free GPUs, best first.

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
        fabric, before = self.evaluator.fabric, decision.before
        tried = islice(sets, _MOST_TRIED)
        return sorted(tried, key=lambda other: score(fabric, other, before), reverse=True)

    def _forced(self, decision: Placement, gpus: int) -> Choose:
        choose = self.host.choose(AllocationPolicy.TOPOLOGY, "", self.clock)

        def forced(request: PodRequest) -> Iterable[str]:
            if request.pod != decision.pod:
                return choose(request)
            return self.host.devices_of(gpus, request)

        return forced

    def _account(self, decision: Placement, other: int) -> EarlierChoice:
        deciding = self.evaluator.deciding(decision.gpus, other, decision.before)
        events = (event for event in self.events if event.starts and event.pod == decision.pod)
        minute = next(events).minute
        return EarlierChoice(decision.pod, minute, decision.gpus, other, *deciding)


def _started(events: Iterable[Event]) -> list[int]:
    return [event.pod for event in events if event.starts]
