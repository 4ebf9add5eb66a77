"""What kubelet is answered: pure functions of a snapshot and a request.

No protobuf here: `messages` translates. What is refused raises one of two exceptions, which are
the two ways in which kubelet's request can be wrong.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import NamedTuple

from device_plugin.resources import Device
from device_plugin.snapshot import Snapshot
from xelink.inventory.cdi import qualified_name
from xelink.inventory.devfs import DeviceNode, Mount
from xelink.inventory.links import NodeLinks
from xelink.inventory.workload_facts import Linked, how_linked
from xelink.preference.shares import Preference

_MOST_NAMED = 8  # ids in one message: it travels in a header of 8 KiB
_LONGEST_ID = 40
_LONGEST_REASON = 200


class MalformedError(Exception):
    """No node could meet this request: kubelet hears INVALID_ARGUMENT and the Pod fails."""


class UnusableError(Exception):
    """A device of this request cannot be used now: FAILED_PRECONDITION, and the Pod fails.

    Better so than a container that cannot open its GPU; kubelet has the news already.
    """


class NotLinkedError(UnusableError):
    """The GPUs of this request are not all linked, and the node gives several only if they are."""


class WrongPreferenceError(Exception):
    """The preference does not answer the request: a plain choice does instead."""


class Told(NamedTuple):
    """One device as ListAndWatch tells it; `numa` None tells nothing of NUMA."""

    id: str
    healthy: bool
    numa: int | None


class Choice(Enum):
    """What became of our preference when kubelet allocated."""

    PREFERRED = "preferred"
    OTHER = "other"
    UNASKED = "unasked"


@dataclass(frozen=True)
class Container:
    """What one container gets; `gpus` are PCI addresses in their order."""

    ids: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    cdi: tuple[str, ...] = ()


def listing(snapshot: Snapshot, resource: str) -> tuple[Told, ...]:
    """Give what ListAndWatch tells of a resource, in the order of PCI addresses and shares."""
    return tuple(
        Told(device.id, snapshot.complaint(device) is None, device.numa)
        for device in snapshot.devices(resource)
    )


def farewell(before: Iterable[Told], now: Iterable[Told]) -> tuple[Told, ...]:
    """Give those of `before` that have vanished, as unhealthy: kubelet hears so once."""
    ids = {told.id for told in now}
    return tuple(told._replace(healthy=False) for told in before if told.id not in ids)


def container(
    snapshot: Snapshot, resource: str, ids: Sequence[str], known: AbstractSet[str]
) -> Container:
    """Give what a container gets with these ids; kubelet's order of them means nothing.

    `known` are ids that kubelet was ever told of. Raises `MalformedError` for others and
    `UnusableError` for those that are gone or unhealthy.
    """
    places, every = snapshot.places(resource), snapshot.devices(resource)
    wanted = set(ids)
    gone = sorted(wanted - places.keys())
    _require_known(gone, known, resource)
    devices = [every[place] for place in sorted(places[id_] for id_ in wanted.difference(gone))]
    complaints = dict.fromkeys(gone, "it is gone")
    for device in devices:
        if complaint := snapshot.complaint(device):
            complaints[device.id] = complaint
    if complaints:
        raise UnusableError(
            _some(f"{id_}: {why[:_LONGEST_REASON]}" for id_, why in complaints.items())
        )
    return _container(snapshot, devices)


def offered(
    snapshot: Snapshot, resource: str, ids: Sequence[str], must: Sequence[str], size: int
) -> Sequence[str]:
    """Give those of the offered ids that can be used, all of them when these are too few.

    kubelet may not have heard yet of what has just become unhealthy or gone, and remembers what an
    instance before us told: ids that nobody here knows are no reason to fail a Pod.
    """
    usable = snapshot.usable(resource)
    good = [id_ for id_ in ids if id_ in usable]
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

    What is not known refuses nobody: an outage would fail every Pod of the node.
    """
    if how_linked(links, gpus) not in {Linked.SOME, Linked.NONE}:
        return
    pairs = list(combinations(gpus, 2))
    apart = [pair for pair in pairs if links.lanes_between(*pair) is None]
    raise NotLinkedError(
        f"{len(pairs) - len(apart)} of {len(pairs)} pairs of these GPUs are linked"
        f" ({' and '.join(apart[0])} are not), and -require-links is set"
    )


def _container(snapshot: Snapshot, devices: Sequence[Device]) -> Container:
    # Two shares of one GPU bring the same nodes and mounts: each is given once.
    cards = tuple({device.card.bdf: device.card for device in devices if device.card}.values())
    return Container(
        ids=tuple(device.id for device in devices),
        gpus=tuple(card.bdf for card in cards),
        nodes=tuple(dict.fromkeys(node for device in devices for node in device.nodes)),
        mounts=tuple(dict.fromkeys(mount for device in devices for mount in device.mounts)),
        cdi=tuple(qualified_name(card) for card in cards if card.name in snapshot.cdi),
    )


def _require_known(ids: Iterable[str], known: AbstractSet[str], resource: str) -> None:
    if unknown := [id_ for id_ in ids if id_ not in known]:
        raise MalformedError(f"{resource} has no device {_some(map(_quoted, unknown))}")


def _quoted(id_: str) -> str:
    return ascii(id_ if len(id_) <= _LONGEST_ID else f"{id_[:_LONGEST_ID]}...")


def _some(texts: Iterable[str]) -> str:
    every = list(texts)
    more = len(every) - _MOST_NAMED
    return "; ".join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
