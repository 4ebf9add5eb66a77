"""One scenario under every policy, and what came of it. Pure: the clock is an argument."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from xelink.cli.simulate.counterfactual import EarlierChoice, NodeRun
from xelink.cli.simulate.evaluation import Evaluator, evaluator_of
from xelink.cli.simulate.placement import ALLOCATORS, Allocator, Host, Placement
from xelink.cli.simulate.random_scenarios import pods_of
from xelink.cli.simulate.scenario import Scenario
from xelink.cli.simulate.schedule import Schedule, asking_for_several, schedule
from xelink.preference.engine import Clock
from xelink.preference.policies import AllocationPolicy

OURS: Allocator = AllocationPolicy.TOPOLOGY


class Tally(NamedTuple):
    """What a policy got for the Pods that ask for several GPUs.

    `linked` are the places of those that were fully linked: as many GPUs as asked for, all linked
    to each other. `broken` counts groups that any Pod broke. `seconds` are those of each decision.
    """

    linked: frozenset[int]
    lanes: int
    broken: int
    seconds: tuple[float, ...]


class Even(Enum):
    """Why another policy linked as many Pods as `topology` did."""

    NOTHING = "no Pod could be linked: its node has no group of so many GPUs"
    ALL = "every Pod was linked that its node can link: nothing to gain"
    SAME = "the same Pods: for the others topology had no linked set free"
    OTHERS = "as many, but not the same Pods"


class Loss(NamedTuple):
    """The first Pod that another policy linked and `topology` did not, and the choice behind it.

    `free` and `other_free` are the GPUs that this Pod found free, `other_gpus` those that it got
    under the other policy, as bitmasks; `earlier` is None when no single choice was behind it, and
    has `paid` when another Pod would have paid for any.
    """

    pod: int
    minute: int
    node: int
    free: int
    other_free: int
    other_gpus: int
    earlier: EarlierChoice | None


class Comparison(NamedTuple):
    """How `topology` did against another policy: Pods fully linked more, or fewer, and why."""

    kind: Allocator
    more: int
    even: Even | None
    loss: Loss | None


@dataclass(frozen=True)
class SimulationResult:
    """One scenario, its Pods in time, and the decisions of each policy on each node."""

    scenario: Scenario
    schedule: Schedule
    evaluators: Sequence[Evaluator]
    decisions: Mapping[Allocator, Sequence[Sequence[Placement]]]
    clock: Clock

    @cached_property
    def several(self) -> tuple[int, ...]:
        """The places of the Pods that ran and ask for more than one GPU."""
        waiting = {*self.schedule.never_started}
        return tuple(pod for pod in asking_for_several(self.schedule.pods) if pod not in waiting)

    @cached_property
    def linkable(self) -> frozenset[int]:
        """Those of them that the node on which they ran could link if it were empty."""
        size = {pod: self.schedule.pods[pod].size for pod in self.several}
        return frozenset(
            pod for pod in self.several if self.evaluators[self.node_of[pod]].linkable(size[pod])
        )

    @cached_property
    def lanes_possible(self) -> int:
        """The most lanes that these Pods could have, each on its node alone."""
        pods = self.schedule.pods
        return sum(
            self.evaluators[self.node_of[pod]].lanes_possible(pods[pod].size)
            for pod in self.several
        )

    @cached_property
    def node_of(self) -> Mapping[int, int]:
        """The node on which each Pod ran."""
        return {
            event.pod: node
            for node, events in enumerate(self.schedule.events)
            for event in events
            if event.starts
        }

    @cached_property
    def tallies(self) -> Mapping[Allocator, Tally]:
        """What each policy got."""
        return {kind: self._tally(kind) for kind in self.decisions}

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """How `topology` did against each other policy."""
        return tuple(self._compare(kind) for kind in self.decisions if kind != OURS)

    def decision(self, kind: Allocator, pod: int) -> Placement:
        """Return the decision of a policy for a Pod that ran."""
        decisions = self.decisions[kind][self.node_of[pod]]
        return next(decision for decision in decisions if decision.pod == pod)

    def _tally(self, kind: Allocator) -> Tally:
        linked: set[int] = set()
        lanes = broken = 0
        seconds: list[float] = []
        for evaluator, decisions in zip(self.evaluators, self.decisions[kind], strict=True):
            for pod, gpus, free, unused, _, _, took in decisions:
                size = self.schedule.pods[pod].size
                seconds.append(took)
                broken += evaluator.breaks_group(gpus, free, unused)
                if size > 1:
                    lanes += evaluator.lanes(gpus)
                    if evaluator.linked(gpus, size):
                        linked.add(pod)
        return Tally(frozenset(linked), lanes, broken, tuple(seconds))

    def _compare(self, kind: Allocator) -> Comparison:
        ours, theirs = self.tallies[OURS].linked, self.tallies[kind].linked
        more = len(ours) - len(theirs)
        return Comparison(
            kind,
            more,
            even=self._even(ours, theirs) if more == 0 else None,
            loss=self._loss(kind, theirs - ours) if more < 0 else None,
        )

    def _even(self, ours: frozenset[int], theirs: frozenset[int]) -> Even:
        if not self.linkable:
            return Even.NOTHING
        if ours == self.linkable:
            return Even.ALL
        return Even.SAME if ours == theirs else Even.OTHERS

    def _loss(self, kind: Allocator, lost: frozenset[int]) -> Loss:
        minute, pod = min(
            (event.minute, event.pod)
            for events in self.schedule.events
            for event in events
            if event.starts and event.pod in lost
        )
        node = self.node_of[pod]
        theirs = self.decision(kind, pod)
        run = self._run(node)
        return Loss(
            pod,
            minute,
            node,
            self.decision(OURS, pod).free,
            theirs.free,
            theirs.gpus,
            run.earlier(pod) or run.at_a_price(pod),
        )

    def _run(self, node: int) -> NodeRun:
        return NodeRun(
            host=Host(self.scenario.every_node[node], self.scenario.shares),
            evaluator=self.evaluators[node],
            events=self.schedule.events[node],
            pods=self.schedule.pods,
            decisions=self.decisions[OURS][node],
            clock=self.clock,
        )


def simulate(scenario: Scenario, clock: Clock) -> SimulationResult:
    """Run a scenario under every policy and a plain kubelet; `clock` gives seconds."""
    planned = schedule(scenario, pods_of(scenario))
    hosts = [Host(node, scenario.shares) for node in scenario.every_node]
    return SimulationResult(
        scenario=scenario,
        schedule=planned,
        evaluators=[evaluator_of(host.node) for host in hosts],
        decisions={
            kind: [
                host.place(
                    events,
                    planned.pods,
                    host.choose(kind, f"kubelet {number} {scenario.seed}", clock),
                    clock,
                )
                for number, (host, events) in enumerate(zip(hosts, planned.events, strict=True))
            ]
            for kind in ALLOCATORS
        },
        clock=clock,
    )
