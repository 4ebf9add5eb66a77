"""What the plugin knows at one instant, and word of every next instant.

A snapshot is replaced, never changed: whoever holds one can read it for as long as it likes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from device_plugin.resources import Device
from xelink.inventory.links import UNREAD, NodeLinks
from xelink.preference.decision import Decision
from xelink.preference.shares import Preference

Prefer: TypeAlias = Callable[[Sequence[str], Sequence[str], int], Preference]
"""Chooses `size` ids of `available` with all of `must_include`.

Pure, and run in a thread unless it is quick. Raises `shares.RequestError` for what nobody
could choose.
"""


Decide: TypeAlias = Callable[[Preference], Decision]
"""Says what decided a preference. Pure, run in a thread."""


@dataclass(frozen=True)
class Snapshot:
    """Devices, health, topology and the prepared preference of one node at one instant.

    `resources` are the devices by the resource's full name (`gpu.intel.com/i915`), in the order of
    PCI addresses, as `resources.devices` gives them. `links` are those between the node's GPUs,
    without lanes while they cannot be used. `unhealthy` tells by PCI address why a GPU must not be
    used though its devices are there. `prefer` is the preference of each resource that has one,
    `decide` its account of one, `quick` are those resources whose preference takes microseconds, so
    that it may be asked for on the loop. `cdi` are the cards that may be named as CDI devices, by
    their DRM names.
    """

    resources: Mapping[str, tuple[Device, ...]] = field(default_factory=dict)
    links: NodeLinks = UNREAD
    unhealthy: Mapping[str, str] = field(default_factory=dict)
    prefer: Mapping[str, Prefer] = field(default_factory=dict, compare=False)
    decide: Mapping[str, Decide] = field(default_factory=dict, compare=False)
    quick: frozenset[str] = field(default=frozenset(), compare=False)
    cdi: frozenset[str] = frozenset()

    def devices(self, resource: str) -> tuple[Device, ...]:
        """Give the devices of a resource; one that has vanished has none."""
        return self.resources.get(resource, ())

    def places(self, resource: str) -> Mapping[str, int]:
        """Tell by id where each device of a resource stands in `devices`."""
        return self._places.get(resource, {})

    def usable(self, resource: str) -> frozenset[str]:
        """Give the ids of a resource's devices that can be used now."""
        return self._usable.get(resource, frozenset())

    def complaint(self, device: Device) -> str | None:
        """Say why a device cannot be used, None when it can."""
        if device.card and device.card.bdf in self.unhealthy:
            return self.unhealthy[device.card.bdf]
        if device.healthy:
            return None
        return (device.card and device.card.complaint) or "it has no device node"

    # Once for a snapshot: requests are many, and a node may have thousands of shares.

    @cached_property
    def _places(self) -> Mapping[str, Mapping[str, int]]:
        return {
            resource: {device.id: place for place, device in enumerate(devices)}
            for resource, devices in self.resources.items()
        }

    @cached_property
    def _usable(self) -> Mapping[str, frozenset[str]]:
        return {
            resource: frozenset(device.id for device in devices if self.complaint(device) is None)
            for resource, devices in self.resources.items()
        }
