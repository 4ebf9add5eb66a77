"""The status of the plugin as JSON values; `page` shows it to people.

Made in a thread of the `-listen` server while the loop goes on: whatever is read here is replaced
there, never changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from device_plugin.endpoints import Endpoint, Endpoints
from device_plugin.history import MOST_PREFERENCES
from device_plugin.snapshot import Snapshot
from device_plugin.updates import Updates
from xelink.daemon.html import StatusDocument, iso
from xelink.daemon.http_server import ProbeResult
from xelink.daemon.watch import Watch
from xelink.inventory.gpus import Card, Inventory
from xelink.inventory.links import NodeLinks
from xelink.topology.model import Gpu, Topology
from xelink.topology.publication import id_map, shape

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The plugin on the node `host`: what its status is made of."""

    host: str
    policy: str
    file: Path
    ready: Callable[[], ProbeResult]
    updates: Updates
    watch: Watch[Snapshot]
    endpoints: Endpoints


def status(parts: Parts, now: datetime) -> StatusDocument:
    """Return the status; nothing of it is secret."""
    ready, snapshot, observed = parts.ready(), parts.watch.current, parts.updates.observation
    unknown, complaints = observed.health_unknown, _complaints(snapshot)
    every = sorted(parts.endpoints.every, key=lambda one: one.plugin.resource)
    allocations = [facts for one in every for facts in _allocations(one)]
    preferences = [facts for one in every for facts in _preferences_of(one)]
    return {
        "now": iso(now),
        "host": parts.host,
        "ready": ready.ok,
        "readyz": ready.text,
        "policy": parts.policy,
        "health": observed.health_state,
        "links": _links(observed.links, observed.inventory, parts.file, now),
        "resources": [_resource(one, snapshot) for one in every],
        "gpus": [
            _gpu(card, complaints, observed.links, unknown) for card in observed.inventory.cards
        ],
        "excluded": [str(gpu) for gpu in observed.inventory.excluded],
        "warnings": list(parts.updates.warnings),
        "allocations": _newest_first(allocations),
        "preferences": _newest_first(preferences)[:MOST_PREFERENCES],
    }


def _links(links: NodeLinks, inventory: Inventory, file: Path, now: datetime) -> JsonObject:
    age = links.age(now)
    topology = _mapped(links, inventory) if links.usable and links.topology else None
    return {
        "file": str(file),
        "state": links.state.value,
        "reason": links.reason or None,
        "written": iso(links.published),
        "age_seconds": None if age is None else int(age.total_seconds()),
        "expires": iso(links.expiry),
        "linked_pairs": len(links.lanes),
        "topology": {**shape(topology), "gpus": id_map(topology)} if topology else None,
    }


def _mapped(links: NodeLinks, inventory: Inventory) -> Topology:
    """Return the topology with this node's own cards in its id map; without one, as inferred."""
    topology = links.topology or Topology()
    cards = {card.bdf: card for card in inventory.cards}
    gpus = topology.gpus or tuple(Gpu(id_, bdf) for id_, bdf in links.addresses.items())
    return replace(topology, gpus=tuple(_on_bus(gpu, cards.get(gpu.bdf)) for gpu in gpus))


def _on_bus(gpu: Gpu, card: Card | None) -> Gpu:
    if card is None:
        return replace(gpu, card=None)
    return replace(gpu, card=card.name, numa=gpu.numa if card.numa is None else card.numa)


def _resource(endpoint: Endpoint, snapshot: Snapshot) -> JsonObject:
    devices = snapshot.resource(endpoint.plugin.resource).devices
    return {
        "resource": endpoint.plugin.resource,
        "registered": endpoint.known,
        "since": iso(endpoint.since),
        "error": endpoint.error or None,
        "streams": endpoint.plugin.streams,
        "socket": str(endpoint.path),
        "devices": len(devices),
        "unhealthy": {device.id: device.complaint for device in devices if device.complaint},
    }


def _complaints(snapshot: Snapshot) -> Mapping[str, str | None]:
    """Return why units of hardware cannot be used, None where they can."""
    return {
        device.unit: device.complaint
        for resource in snapshot.resources.values()
        for device in resource.devices
        if device.unit
    }


def _gpu(
    card: Card, complaints: Mapping[str, str | None], links: NodeLinks, unknown: Sequence[str]
) -> JsonObject:
    linked = {bdf for pair in links.lanes if card.bdf in pair for bdf in pair} - {card.bdf}
    known = linked or links.knows(card.bdf)
    return {
        "card": card.name,
        "pci": card.bdf,
        "model": card.model,
        "device_id": f"0x{card.device_id:04x}",
        "numa": card.numa,
        "driver": card.driver,
        "tiles": card.tiles,
        "vf_of": card.physfn,
        "unhealthy": complaints.get(card.bdf),
        "health_known": card.bdf not in unknown,
        "linked_to": sorted(linked) if known else None,
    }


Dated: TypeAlias = tuple[float, JsonObject]


def _newest_first(dated: Iterable[Dated]) -> list[JsonObject]:
    return [facts for _, facts in sorted(dated, key=lambda item: -item[0])]


def _allocations(endpoint: Endpoint) -> Iterator[Dated]:
    """Return each container that got a device which was not reallocated since.

    `devices` are these; some of the same container may have been `reallocated`.
    """
    last = endpoint.plugin.history.allocations
    for one in {id(one): one for one in last.values()}.values():
        again = [id_ for id_ in one.ids if last.get(id_) is not one]
        yield (
            one.at,
            {
                "at": iso(one.at),
                "resource": endpoint.plugin.resource,
                "devices": [id_ for id_ in one.ids if id_ not in again],
                "reallocated": again,
                "gpus": list(one.gpus),
                "linked": one.linked.value,
                "preference": one.followed.value,
            },
        )


def _preferences_of(endpoint: Endpoint) -> Iterator[Dated]:
    for one in endpoint.plugin.history.preferences:
        yield (
            one.at,
            {
                "at": iso(one.at),
                "resource": endpoint.plugin.resource,
                "size": one.size,
                "available": one.available,
                "must_include": list(one.must),
                "chosen": list(one.chosen),
                "decided": one.decision.criterion,
                "runner_up": list(one.decision.runner_up),
                "proven": one.proven,
                "error": one.error,
                "seconds": round(one.seconds, 6),
            },
        )
