"""A snapshot from an observation: GPUs on the bus, links in the feature file, health. Pure.

What of it takes time, the tables of the preference, is kept from one snapshot to the next as long
as the GPUs, their links and their ports are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin.resources import Device, ResourceOptions, devices
from device_plugin.snapshot import DevicePreference, Resource, Snapshot
from xelink.inventory.gpus import Card
from xelink.inventory.health import complaints
from xelink.inventory.links import UNREAD, AddressPair, NodeLinks
from xelink.inventory.observation import NodeObservation
from xelink.preference.decision import Decisions
from xelink.preference.engine import DEFAULT_TIMEOUT, Clock
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preferences, prepare


@dataclass(frozen=True)
class PreferenceConfig:
    """How devices are advertised and preferred."""

    clock: Clock
    options: ResourceOptions = field(default_factory=ResourceOptions)
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY
    timeout: float = DEFAULT_TIMEOUT
    """Seconds that one preference may take beyond 16 GPUs."""


@dataclass(frozen=True)
class _PreferenceInputs:
    """What a preference rests on."""

    gpus: tuple[GpuFacts, ...]
    lanes: frozenset[tuple[AddressPair, int]]


class Assembler:
    """Makes snapshots, and remembers the prepared preference of each resource."""

    def __init__(self, config: PreferenceConfig) -> None:
        self._config = config
        self._prepared: dict[str, tuple[_PreferenceInputs, Preferences]] = {}

    def assemble(self, observed: NodeObservation) -> Snapshot:
        """Return the snapshot of an observation: up to 40 ms if a preference must be prepared."""
        advertised = devices(
            observed.inventory,
            self._config.options,
            complaints(observed.health, observed.inventory.cards),
            observed.cdi,
        )
        cards = {card.bdf: card for card in observed.inventory.cards}
        links = _known(observed.links)
        gpus = {
            name: self._resource(name, every, cards, observed.links, links)
            for name, every in advertised.items()
        }
        return Snapshot(gpus | _units(observed))

    def _resource(
        self,
        name: str,
        every: tuple[Device, ...],
        cards: Mapping[str, Card],
        observed: NodeLinks,
        links: NodeLinks,
    ) -> Resource:
        gpus = {device.unit: cards[device.unit] for device in every if device.unit}
        if not gpus:
            return Resource(name, every)
        preferences = self._prepare(name, _inputs(gpus, observed, links.lanes))
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

    def _prepare(self, resource: str, inputs: _PreferenceInputs) -> Preferences:
        known = self._prepared.get(resource)
        if known is None or known[0] != inputs:
            prepared = prepare(
                inputs.gpus,
                dict(inputs.lanes),
                clock=self._config.clock,
                replicas=self._config.options.shared,
                policy=self._config.policy,
                timeout=self._config.timeout,
            )
            self._prepared[resource] = known = (inputs, prepared)
        return known[1]


def _units(observed: NodeObservation) -> dict[str, Resource]:
    """Return the resources of the families beside GPUs: kubelet chooses their devices itself."""
    return {
        name: Resource(
            name,
            tuple(
                Device(unit.name, unit.nodes, numa=unit.numa, complaint=unit.complaint)
                for unit in units
            ),
        )
        for name, units in observed.units.items()
        if units
    }


def _known(links: NodeLinks) -> NodeLinks:
    """Return what of the links answers requests: of anything else no stream need hear."""
    if not links.usable:
        return UNREAD
    return NodeLinks(links.state, lanes=dict(links.lanes), not_in_map=links.not_in_map)


def _inputs(
    gpus: Mapping[str, Card], links: NodeLinks, every: Mapping[AddressPair, int]
) -> _PreferenceInputs:
    return _PreferenceInputs(
        tuple(
            GpuFacts(card.name, bdf, card.numa, links.ports_healthy(bdf), card.physfn, card.bridges)
            for bdf, card in sorted(gpus.items())
        ),
        frozenset((pair, width) for pair, width in every.items() if gpus.keys() >= set(pair)),
    )
