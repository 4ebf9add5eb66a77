"""A snapshot from what was seen: GPUs on the bus, links in the feature file, health. Pure.

What of it takes time, the tables of the preference, is kept from one snapshot to the next as long
as the GPUs, their links and their ports are the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from device_plugin.allocation import Clock, Policy, Preferences, prefer_or_plain, prepare
from device_plugin.devices import Inventory
from device_plugin.health import Health, complaints
from device_plugin.links import UNREAD, NodeLinks, Pair
from device_plugin.offers import Device, Offer, devices
from device_plugin.snapshot import Prefer, Snapshot
from device_plugin.wishes import GpuFacts


@dataclass(frozen=True)
class Seen:
    """The latest of each source. `cdi` says that the CDI spec stands."""

    inventory: Inventory = field(default_factory=Inventory)
    links: NodeLinks = UNREAD
    health: Health = field(default_factory=Health)
    cdi: bool = False


@dataclass(frozen=True)
class Choosing:
    """How devices are offered and preferred."""

    clock: Clock
    offer: Offer = field(default_factory=Offer)
    policy: Policy = "topology"
    timeout: float = 0.05
    """Seconds that one preference may take beyond 16 GPUs."""


@dataclass(frozen=True)
class _Ground:
    """What a preference rests on."""

    gpus: tuple[GpuFacts, ...]
    lanes: frozenset[tuple[Pair, int]]


class Assembler:
    """Makes snapshots, and remembers the prepared preference of each resource."""

    def __init__(self, choosing: Choosing) -> None:
        self._choosing = choosing
        self._prepared: dict[str, tuple[_Ground, Preferences]] = {}

    def assemble(self, seen: Seen) -> Snapshot:
        """Make the snapshot of what was seen; up to 40 ms where a preference must be prepared."""
        resources = devices(seen.inventory, self._choosing.offer)
        lanes: Mapping[Pair, int] = seen.links.lanes if seen.links.usable else {}
        return Snapshot(
            resources=resources,
            lanes=dict(lanes) if seen.links.usable else None,
            unhealthy=complaints(seen.health, seen.inventory.cards),
            prefer={
                resource: self._prefer(resource, _ground(offered, seen.links, lanes))
                for resource, offered in resources.items()
                if any(device.card for device in offered)
            },
            cdi=seen.cdi,
        )

    def _prefer(self, resource: str, ground: _Ground) -> Prefer:
        known = self._prepared.get(resource)
        if known is None or known[0] != ground:
            prepared = prepare(
                ground.gpus,
                dict(ground.lanes),
                clock=self._choosing.clock,
                replicas=self._choosing.offer.shared,
                policy=self._choosing.policy,
                timeout=self._choosing.timeout,
            )
            self._prepared[resource] = known = (ground, prepared)
        return partial(prefer_or_plain, known[1])


def _ground(offered: Iterable[Device], links: NodeLinks, lanes: Mapping[Pair, int]) -> _Ground:
    cards = {device.card.bdf: device.card for device in offered if device.card}
    return _Ground(
        tuple(
            GpuFacts(card.name, bdf, card.numa, links.ports_healthy(bdf))
            for bdf, card in sorted(cards.items())
        ),
        frozenset((pair, width) for pair, width in lanes.items() if cards.keys() >= set(pair)),
    )
