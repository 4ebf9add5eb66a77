"""The resources of one node at one instant, ready for requests.

A snapshot is replaced, never changed: a reader may keep one.
Nothing here is about GPUs: a family of devices is its resources.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from device_plugin.resources import Device
from xelink.inventory.links import NodeLinks
from xelink.preference.decision import Decision
from xelink.preference.shares import Preference

Prefer: TypeAlias = Callable[[Sequence[str], Sequence[str], int], Preference]
"""Chooses `size` ids of `available` with all of `must_include`.

Pure, and run in a thread unless it is quick. Raises `shares.RequestError` for a
request that cannot be met.
"""

Decide: TypeAlias = Callable[[Preference], Decision]
"""Returns what decided a preference. Pure, run in a thread."""


@dataclass(frozen=True)
class DevicePreference:
    """How devices of one resource are preferred.

    `quick`: `prefer` takes microseconds, so that the event loop itself may call it.
    """

    prefer: Prefer
    decide: Decide
    quick: bool = False


@dataclass(frozen=True)
class Resource:
    """One extended resource: its devices, what is preferred, and the links that it knows of.

    `name` is the full one (`gpu.intel.com/i915`). `devices` are in the order in which they are
    advertised. `preference` is None where kubelet is to choose by itself. `links` are those between
    the units of its devices, None where they have none.
    """

    name: str
    devices: tuple[Device, ...] = ()
    preference: DevicePreference | None = field(default=None, compare=False)
    links: NodeLinks | None = None

    # Once for a snapshot: requests are many, and a node may have thousands of shares.

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Position of each device in `devices`, by id."""
        return {device.id: position for position, device in enumerate(self.devices)}

    @cached_property
    def usable(self) -> frozenset[str]:
        """The ids of the devices that can be used now."""
        return frozenset(device.id for device in self.devices if device.healthy)


@dataclass(frozen=True)
class Snapshot:
    """All resources of one node at one instant, by name."""

    resources: Mapping[str, Resource] = field(default_factory=dict)

    def resource(self, name: str) -> Resource:
        """Return a resource; one that has vanished has no devices."""
        return self.resources.get(name) or Resource(name)
