"""The GPUs that a policy gives to the Pods of one node, one after the other. Pure.

The plugin's policies are asked as kubelet asks them: with the ids of the free devices. A plain
kubelet asks nobody, and takes free devices in no order: its set is a Go map. Here the order is
drawn from a seed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from random import Random
from typing import Literal, NamedTuple, TypeAlias

from xelink.cli.simulate.evaluation import gpu_facts, lanes_by_address
from xelink.cli.simulate.scenario import NodeShape
from xelink.cli.simulate.schedule import Event, ScheduledPod
from xelink.preference.bitmask import members, union
from xelink.preference.engine import Clock
from xelink.preference.fabric import Free, GpuFacts
from xelink.preference.policies import POLICIES, AllocationPolicy
from xelink.preference.shares import Preferences, prepare

Allocator: TypeAlias = AllocationPolicy | Literal["kubelet"]
ALLOCATORS: tuple[Allocator, ...] = (*POLICIES, "kubelet")
"""The policies of the plugin, and a kubelet that asks for no preference."""


class Placement(NamedTuple):
    """One Pod and its GPUs; `free` have a free device before, `unused` are in nobody's use.

    `last` have just one free device, where several can share a GPU.
    `devices` is a bitmask, device r * n + i being share r of GPU i of n; the others are bitmasks
    of GPUs. `seconds` is what the choice alone took.
    """

    pod: int
    gpus: int
    free: int
    unused: int
    last: int
    devices: int
    seconds: float

    @property
    def before(self) -> Free:
        """What was free, as the criteria take it."""
        return Free(self.unused, self.free, self.last) if self.last else Free(self.unused)


class PodRequest(NamedTuple):
    """What is to be chosen from: free devices, by bitmask and by id, for one Pod."""

    pod: int
    size: int
    devices: int
    ids: tuple[str, ...]


Choose: TypeAlias = Callable[[PodRequest], Iterable[str]]
"""Returns the ids of the devices that a Pod gets."""


@dataclass(frozen=True)
class Host:
    """One node of a scenario: its shape, and the ids of its devices in the order of their bits."""

    node: NodeShape
    shares: int

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of all devices, as the plugin names them."""
        gpus = range(self.node.gpus)
        return tuple(f"card{gpu}-{share}" for share in range(self.shares) for gpu in gpus)

    def place(
        self, events: Iterable[Event], pods: Sequence[ScheduledPod], choose: Choose, clock: Clock
    ) -> list[Placement]:
        """Let Pods come and go; give the decision for each that came."""
        ids = self.ids
        bits = {id_: 1 << place for place, id_ in enumerate(ids)}
        every = (1 << len(ids)) - 1
        held: dict[int, int] = {}
        used = 0
        decisions: list[Placement] = []
        for event in events:
            if not event.starts:
                used &= ~held.pop(event.pod)
                continue
            free = every & ~used
            request = PodRequest(
                event.pod, pods[event.pod].size, free, tuple(ids[i] for i in members(free))
            )
            start = clock()
            chosen = choose(request)
            seconds = clock() - start
            taken = union(bits[id_] for id_ in chosen)
            held[event.pod] = taken
            decisions.append(
                Placement(
                    pod=event.pod,
                    gpus=self.gpus(taken),
                    free=self.gpus(free),
                    unused=self.unused(free),
                    last=self.last(free),
                    devices=taken,
                    seconds=seconds,
                )
            )
            used |= taken
        return decisions

    def gpus(self, devices: int) -> int:
        """Return the GPUs of which there is a device in a set."""
        n = self.node.gpus
        return union(devices >> share * n for share in range(self.shares)) & (1 << n) - 1

    def unused(self, free: int) -> int:
        """Return the GPUs of which all devices are in a set."""
        every = (1 << len(self.ids)) - 1
        return self.gpus(every) & ~self.gpus(every & ~free)

    def last(self, free: int) -> int:
        """Return the GPUs of which just one device is in a set; none where nobody shares."""
        if self.shares == 1:
            return 0
        shares = [free >> share * self.node.gpus for share in range(self.shares)]
        return self.gpus(free) & ~union(one & other for one, other in combinations(shares, 2))

    def devices_of(self, gpus: int, request: PodRequest) -> tuple[str, ...]:
        """Take free devices of these GPUs for a Pod, one of each before a second one of any."""
        n = self.node.gpus
        free = [i for i in members(request.devices) if gpus >> i % n & 1]
        turns = [sum(before % n == i % n for before in free[:at]) for at, i in enumerate(free)]
        places = sorted(zip(turns, free, strict=True))[: request.size]
        return tuple(self.ids[i] for _, i in places)

    def choose(self, kind: Allocator, seed: str, clock: Clock) -> Choose:
        """Make the choice of a policy, or of a plain kubelet that shuffles by this seed."""
        if kind == "kubelet":
            random = Random(seed)  # noqa: S311 - an order that can be had again, not a secret
            return lambda request: random.sample(request.ids, request.size)
        preferences = self.preferences(kind, clock)
        return lambda request: preferences.prefer(request.ids, (), request.size).ids

    def preferences(self, policy: AllocationPolicy, clock: Clock) -> Preferences:
        """Prepare a policy for this node."""
        lanes = frozenset(lanes_by_address(self.node).items())
        return _prepared(gpu_facts(self.node), lanes, policy, self.shares, clock)


# Nodes of one scenario are mostly alike, and a thousand runs share their shapes.
@lru_cache(maxsize=64)
def _prepared(
    facts: tuple[GpuFacts, ...],
    lanes: frozenset[tuple[tuple[str, str], int]],
    policy: AllocationPolicy,
    shares: int,
    clock: Clock,
) -> Preferences:
    given: Mapping[tuple[str, str], int] = dict(lanes)
    return prepare(facts, given, clock=clock, replicas=shares, policy=policy)
