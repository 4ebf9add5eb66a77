"""How a kubelet counts devices and chooses those of a container.

After `ManagerImpl.devicesToAllocate` of
https://github.com/kubernetes/kubernetes/tree/master/pkg/kubelet/cm/devicemanager.
"""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from xelink.api import deviceplugin_pb2 as pb

HEALTHY = "Healthy"

Shuffle: TypeAlias = Callable[[Iterable[str]], list[str]]
AskPlugin: TypeAlias = Callable[[AbstractSet[str], AbstractSet[str], int], AbstractSet[str]]
"""Asks the plugin: available ids, those that must be included, how many in all."""


class AdmissionError(Exception):
    """The Pod is not admitted and will not be tried again: `UnexpectedAdmissionError`."""


@dataclass(frozen=True)
class AdmittedPod:
    """A Pod that was admitted: the ids of its container as Allocate was sent them, and the answer.

    `held` are all of its devices, those of its init container included.
    """

    name: str
    resource: str
    ids: tuple[str, ...]
    response: pb.ContainerAllocateResponse
    held: frozenset[str]

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that the plugin gave."""
        return dict(self.response.envs)


@dataclass(frozen=True)
class Devices:
    """The devices of one resource, as a plugin advertised them last.

    While no plugin is `connected` none is healthy; kubelet goes on counting them.
    """

    advertised: tuple[pb.Device, ...] = ()
    connected: bool = False

    @property
    def healthy(self) -> frozenset[str]:
        """Ids that may be allocated."""
        usable = (device.ID for device in self.advertised if device.health == HEALTHY)
        return frozenset(usable if self.connected else ())

    @property
    def capacity(self) -> int:
        """How many there are, healthy or not."""
        return len({device.ID for device in self.advertised})

    def on(self, numa: AbstractSet[int], ids: Iterable[str]) -> frozenset[str]:
        """Return those of these ids that are on one of these NUMA nodes."""
        near = {
            device.ID
            for device in self.advertised
            if any(node.ID in numa for node in device.topology.nodes)
        }
        return frozenset(near.intersection(ids))

    def require_topology(self, ids: Iterable[str]) -> None:
        """Raise `AdmissionError` when one of these ids came with an empty `TopologyInfo`."""
        for device in self.advertised:
            if device.HasField("topology") and not device.topology.nodes and device.ID in {*ids}:
                raise AdmissionError(f"{device.ID} has TopologyInfo without a NUMA node")


@dataclass(frozen=True)
class ContainerRequest:
    """What a container asks for: `required` devices, `reusable` those of its init container.

    `numa` are the nodes that the topology manager chose, None when there is none.
    """

    required: int
    reusable: frozenset[str] = frozenset()
    numa: frozenset[int] | None = None


def choose(
    devices: Devices,
    in_use: AbstractSet[str],
    request: ContainerRequest,
    prefer: AskPlugin,
    shuffle: Shuffle,
) -> list[str]:
    """Choose the devices of a container, in no order. Raises `AdmissionError`.

    The preference only counts among the devices that kubelet would have chosen from; it is not
    asked for where aligned devices are just enough.
    """
    allocated = shuffle(request.reusable)[: request.required]

    def take(ids: Iterable[str]) -> bool:
        free = [id_ for id_ in shuffle(ids) if id_ not in allocated]
        allocated.extend(free[: request.required - len(allocated)])
        return len(allocated) == request.required

    if len(allocated) == request.required:
        return allocated
    needed = request.required - len(allocated)
    available = devices.healthy - in_use
    if len(available) < needed:
        raise AdmissionError(
            f"requested number of devices unavailable: {needed}, available: {len(available)}"
        )
    aligned = devices.on(request.numa, available) if request.numa is not None else frozenset()
    if needed < len(aligned):
        preferred = prefer(aligned.union(allocated), frozenset(allocated), request.required)
        if take(preferred & aligned) or take(aligned):
            return allocated
    if take(aligned):
        return allocated
    preferred = prefer(available.union(allocated), frozenset(allocated), request.required)
    if not take(preferred & available):
        take(available)
    return allocated
