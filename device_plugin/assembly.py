"""A snapshot from what was seen: GPUs on the bus, links in the feature file, health. Pure.

What of it takes time, the tables of the preference, is kept from one snapshot to the next as long
as the GPUs, their links and their ports are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin.resources import Device, Offer, devices
from device_plugin.snapshot import DevicePreference, Resource, Snapshot
from xelink.inventory.gpus import Card, Inventory
from xelink.inventory.health import Health, complaints
from xelink.inventory.links import UNREAD, NodeLinks, Pair
from xelink.preference.criteria import GpuFacts
from xelink.preference.decision import Decisions
from xelink.preference.engine import DEFAULT_TIMEOUT, Clock
from xelink.preference.policies import Policy
from xelink.preference.shares import Preferences, prepare


@dataclass(frozen=True)
class Seen:
    """The latest of each source.

    `cdi` names the cards that may be named as CDI devices, `cdi_trouble` says what keeps others
    from it.
    """

    inventory: Inventory = field(default_factory=Inventory)
    links: NodeLinks = UNREAD
    health: Health = field(default_factory=Health)
    cdi: frozenset[str] = frozenset()
    cdi_trouble: str = ""


@dataclass(frozen=True)
class Choosing:
    """How devices are offered and preferred."""

    clock: Clock
    offer: Offer = field(default_factory=Offer)
    policy: Policy = "topology"
    timeout: float = DEFAULT_TIMEOUT
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
        """Return the snapshot of what was seen; up to 40 ms where a preference must be prepared."""
        offered = devices(
            seen.inventory,
            self._choosing.offer,
            complaints(seen.health, seen.inventory.cards),
            seen.cdi,
        )
        cards = {card.bdf: card for card in seen.inventory.cards}
        links = _known(seen.links)
        return Snapshot(
            {
                name: self._resource(name, every, cards, seen.links, links)
                for name, every in offered.items()
            }
        )

    def _resource(
        self,
        name: str,
        every: tuple[Device, ...],
        cards: Mapping[str, Card],
        seen: NodeLinks,
        links: NodeLinks,
    ) -> Resource:
        gpus = {device.unit: cards[device.unit] for device in every if device.unit}
        if not gpus:
            return Resource(name, every)
        preferences = self._prepare(name, _ground(gpus, seen, links.lanes))
        return Resource(
            name,
            every,
            DevicePreference(
                preferences.prefer,
                Decisions(preferences).decide,
                quick=preferences.is_quick,
            ),
            links,
        )

    def _prepare(self, resource: str, ground: _Ground) -> Preferences:
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
        return known[1]


def _known(links: NodeLinks) -> NodeLinks:
    """Return what of the links answers requests: of anything else no stream need hear."""
    if not links.usable:
        return UNREAD
    return NodeLinks(links.state, lanes=dict(links.lanes), not_in_map=links.not_in_map)


def _ground(gpus: Mapping[str, Card], links: NodeLinks, every: Mapping[Pair, int]) -> _Ground:
    return _Ground(
        tuple(
            GpuFacts(card.name, bdf, card.numa, links.ports_healthy(bdf), card.physfn)
            for bdf, card in sorted(gpus.items())
        ),
        frozenset((pair, width) for pair, width in every.items() if gpus.keys() >= set(pair)),
    )
