"""What kubelet is answered: functions of a resource and a request. Pure.

No protobuf here: `messages` translates. A rejected request raises one of two exceptions, which are
the two ways in which it can be wrong.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from device_plugin.resources import Device
from device_plugin.snapshot import Resource
from xelink.inventory.devfs import DeviceNode, Mount
from xelink.inventory.links import NodeLinks
from xelink.inventory.workload_facts import Linked, how_linked
from xelink.preference.shares import Preference

_MOST_NAMED = 8  # ids in one message: it travels in a header of 8 KiB
_LONGEST_ID = 40
_LONGEST_REASON = 200


class InvalidRequestError(Exception):
    """No node could meet this request: kubelet gets INVALID_ARGUMENT and the Pod fails."""


class UnusableDeviceError(Exception):
    """A device of this request cannot be used now: FAILED_PRECONDITION, and the Pod fails.

    Failing the Pod is better than starting it without a working GPU; kubelet already has the new
    health.
    """


class NotLinkedError(UnusableDeviceError):
    """The GPUs of this request are not all linked, as this node requires of several."""


class WrongPreferenceError(Exception):
    """The preference does not answer the request: a fallback does instead."""


class AdvertisedDevice(NamedTuple):
    """One device as ListAndWatch reports it; without `numa`, no TopologyInfo is sent."""

    id: str
    healthy: bool
    numa: int | None


@dataclass(frozen=True)
class Container:
    """What one container gets; `units` are the hardware units of its devices (PCI addresses)."""

    ids: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    cdi: tuple[str, ...] = ()


def advertised(resource: Resource) -> tuple[AdvertisedDevice, ...]:
    """Return what ListAndWatch reports of a resource, in the order of its devices."""
    return tuple(
        AdvertisedDevice(device.id, device.healthy, device.numa) for device in resource.devices
    )


def removed(
    before: Iterable[AdvertisedDevice], now: Iterable[AdvertisedDevice]
) -> tuple[AdvertisedDevice, ...]:
    """Return those of `before` that have vanished, as unhealthy: kubelet gets that once."""
    ids = {device.id for device in now}
    return tuple(device._replace(healthy=False) for device in before if device.id not in ids)


def container(resource: Resource, ids: Sequence[str], known: AbstractSet[str]) -> Container:
    """Return what a container gets with these ids, whose order means nothing.

    `known` are ids that were ever advertised. Raises `InvalidRequestError` for others and
    `UnusableDeviceError` for those that are gone or unhealthy.
    """
    positions, every = resource.positions, resource.devices
    wanted = set(ids)
    gone = sorted(wanted - positions.keys())
    _require_known(gone, known, resource.name)
    devices = [every[place] for place in sorted(positions[id_] for id_ in wanted.difference(gone))]
    complaints = dict.fromkeys(gone, "it is gone")
    complaints |= {device.id: device.complaint for device in devices if device.complaint}
    if complaints:
        raise UnusableDeviceError(
            _some(f"{id_}: {why[:_LONGEST_REASON]}" for id_, why in complaints.items())
        )
    return _container(devices)


def usable(resource: Resource, ids: Sequence[str], must: Sequence[str], size: int) -> Sequence[str]:
    """Return those of the available ids that can be used, all of them when these are too few.

    kubelet may not know yet what has just become unhealthy or gone, and remembers what an earlier
    instance advertised: ids that are unknown here are no reason to fail a Pod.
    """
    good = [id_ for id_ in ids if id_ in resource.usable]
    return good if len({*good, *must}) >= size else ids


def require_answer(
    preference: Preference, available: Iterable[str], must: Iterable[str], size: int
) -> None:
    """Raise `WrongPreferenceError` for a preference that kubelet could not use."""
    chosen, needed = set(preference.ids), set(must)
    if len(chosen) != size or len(preference.ids) != size:
        raise WrongPreferenceError(f"preferred {len(preference.ids)} devices instead of {size}")
    if not needed <= chosen:
        raise WrongPreferenceError("a device that must be included was not preferred")
    if not chosen <= {*available} | needed:
        raise WrongPreferenceError("a device was preferred that is not available")


def require_links(links: NodeLinks, gpus: Sequence[str]) -> None:
    """Raise `NotLinkedError`, with the first pair, for GPUs that are known not to be all linked.

    Unknown links reject no container: an outage would fail every Pod of the node.
    """
    if how_linked(links, gpus) not in {Linked.SOME, Linked.NONE}:
        return
    pairs = list(combinations(gpus, 2))
    apart = [pair for pair in pairs if links.lanes_between(*pair) is None]
    raise NotLinkedError(
        f"{len(pairs) - len(apart)} of {len(pairs)} pairs of these GPUs are linked"
        f" ({' and '.join(apart[0])} are not), and -require-links is set"
    )


def _container(devices: Sequence[Device]) -> Container:
    # Two shares of one GPU bring the same nodes, mounts and CDI name: each is given once.
    return Container(
        ids=tuple(device.id for device in devices),
        units=tuple(dict.fromkeys(device.unit for device in devices if device.unit)),
        nodes=tuple(dict.fromkeys(node for device in devices for node in device.nodes)),
        mounts=tuple(dict.fromkeys(mount for device in devices for mount in device.mounts)),
        cdi=tuple(dict.fromkeys(device.cdi for device in devices if device.cdi)),
    )


def _require_known(ids: Iterable[str], known: AbstractSet[str], resource: str) -> None:
    if unknown := [id_ for id_ in ids if id_ not in known]:
        raise InvalidRequestError(f"{resource} has no device {_some(map(_quoted, unknown))}")


def _quoted(id_: str) -> str:
    return ascii(id_ if len(id_) <= _LONGEST_ID else f"{id_[:_LONGEST_ID]}...")


def _some(texts: Iterable[str]) -> str:
    every = list(texts)
    more = len(every) - _MOST_NAMED
    return "; ".join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
