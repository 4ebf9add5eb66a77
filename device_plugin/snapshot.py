"""What the plugin knows at one instant, and word of every next instant.

A snapshot is replaced, never changed: whoever holds one can read it for as long as it likes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from device_plugin.resources import Device
from xelink.preference.decision import Decision
from xelink.preference.engine import Preference

Prefer: TypeAlias = Callable[[Sequence[str], Sequence[str], int], Preference]
"""Chooses `size` ids of `available` with all of `must_include`.

Pure, and run in a thread unless it is quick. Raises `allocation.RequestError` for what nobody
could choose.
"""


Decide: TypeAlias = Callable[[Sequence[str], Sequence[str], int, Preference], Decision]
"""Says what decided a preference that was asked for with these words. Pure, run in a thread."""


@dataclass(frozen=True)
class Snapshot:
    """Devices, health, topology and the prepared preference of one node at one instant.

    `resources` are the devices by the resource's full name (`gpu.intel.com/i915`), in the order of
    PCI addresses, as `devices.devices` gives them. `lanes` are the lanes of each pair of linked
    GPUs by their PCI addresses, 0 where nobody told how many, None while no topology is known.
    `mapped` are the PCI addresses that the topology speaks of, None for all. `guessed` says that
    `lanes` go by PCI order alone: worth a preference, but no claim and no number of lanes.
    `unhealthy` tells by PCI address why a GPU must not be used though its devices are there.
    `prefer` is the preference of each resource that has one, `decide` its account of one, `quick`
    are those resources whose preference takes microseconds, so that it may be asked for on the
    loop. `cdi` are the cards that may be named as CDI devices, by their DRM names.
    """

    resources: Mapping[str, tuple[Device, ...]] = field(default_factory=dict)
    lanes: Mapping[tuple[str, str], int] | None = None
    mapped: frozenset[str] | None = None
    guessed: bool = False
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

    def linked(self, one: str, other: str) -> int | None:
        """Give the lanes between two PCI addresses, None without a link that is known."""
        lanes = self.lanes or {}
        found = [lanes[pair] for pair in ((one, other), (other, one)) if pair in lanes]
        return min(found) if found else None

    def speaks_of(self, address: str) -> bool:
        """Tell whether a GPU's links are known, so that it has none but those in `lanes`."""
        certain = self.lanes is not None and not self.guessed
        return certain and (self.mapped is None or address in self.mapped)

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
