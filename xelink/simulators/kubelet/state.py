"""The state of a kubelet: devices, Pods and registrations, and waiting for changes of it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xelink.api import deviceplugin_pb2 as pb
from xelink.simulators.kubelet.admission import AdmittedPod, Devices

if TYPE_CHECKING:
    from xelink.simulators.kubelet.plugin_client import PluginClient

TIMEOUT = 120.0  # seconds, long enough for a busy machine


@dataclass(frozen=True)
class Registered:
    """One registration that came, in the order in which they came."""

    resource: str
    endpoint: str
    options: pb.DevicePluginOptions
    accepted: bool


class KubeletState:
    """Devices, Pods and registrations of one kubelet; may be read from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._devices: dict[str, Devices] = {}
        self._clients: dict[str, list[PluginClient]] = {}
        self._pods: dict[str, AdmittedPod] = {}
        self._registered: list[Registered] = []
        self._history: dict[str, list[int]] = {}

    def capacity(self, resource: str) -> int:
        """Count the devices of a resource, healthy or not."""
        with self._changed:
            return self._of(resource).capacity

    def allocatable(self, resource: str) -> int:
        """Count the healthy devices of a resource."""
        with self._changed:
            return len(self._of(resource).healthy)

    def devices(self, resource: str) -> tuple[pb.Device, ...]:
        """Return the devices of a resource as they were advertised last, in their order."""
        with self._changed:
            return self._of(resource).advertised

    def history(self, resource: str) -> tuple[int, ...]:
        """Return each number of allocatable devices so far, in order, without repetition."""
        with self._changed:
            return tuple(self._history.get(resource, ()))

    @property
    def registrations(self) -> tuple[Registered, ...]:
        """Every registration that ever came."""
        with self._changed:
            return tuple(self._registered)

    @property
    def streams(self) -> int:
        """How many ListAndWatch streams are open."""
        with self._changed:
            return self._open_streams()

    @property
    def pods(self) -> Mapping[str, AdmittedPod]:
        """The Pods that run, by name."""
        with self._changed:
            return dict(self._pods)

    # Waiting

    def wait_for_capacity(self, resource: str, devices: int, timeout: float = TIMEOUT) -> None:
        """Wait until a resource has so many devices. Raises `TimeoutError`."""
        self._wait(lambda: self._of(resource).capacity, devices, f"devices of {resource}", timeout)

    def wait_for_allocatable(self, resource: str, devices: int, timeout: float = TIMEOUT) -> None:
        """Wait until so many devices of a resource are healthy. Raises `TimeoutError`."""
        self._wait(
            lambda: len(self._of(resource).healthy), devices, f"healthy ones of {resource}", timeout
        )

    def wait_for_streams(self, streams: int, timeout: float = TIMEOUT) -> None:
        """Wait until so many streams are open. Raises `TimeoutError`."""
        self._wait(self._open_streams, streams, "streams", timeout)

    def wait_for_registrations(self, total: int, timeout: float = TIMEOUT) -> None:
        """Wait until so many registrations have come, accepted or not. Raises `TimeoutError`."""
        self._wait(lambda: min(len(self._registered), total), total, "registrations", timeout)

    def _wait(self, now: Callable[[], int], wanted: int, what: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: now() == wanted, timeout):
                raise TimeoutError(f"{now()} {what} instead of {wanted} after {timeout} s")

    # For the kubelet itself, which holds the lock

    def _of(self, resource: str) -> Devices:
        return self._devices.get(resource, Devices())

    def _open_streams(self) -> int:
        return sum(map(len, self._clients.values()))

    def _note(self, resource: str) -> None:
        history = self._history.setdefault(resource, [])
        now = len(self._of(resource).healthy)
        if history[-1:] != [now]:
            history.append(now)
        self._changed.notify_all()
