"""Units of hardware of any family but GPUs, and what finds them. Pure.

GPUs are more than this (`gpus`): they have links, health, shares and a preference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xelink.inventory.devfs import DeviceNode, Roots


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of hardware, which one container gets as a whole.

    `name` is unique in its family and kubelet's id of the device. `numa` is None where it is
    unknown. `complaint` is why the unit cannot be used, None where it can; kubelet then shows it as
    unhealthy, and its allocation fails with that text.
    """

    name: str
    nodes: tuple[DeviceNode, ...]
    numa: int | None = None
    complaint: str | None = None


Finder: TypeAlias = Callable[[Roots], Sequence[Unit]]
"""Finds the units of one family in bounded time, in a fixed order; called in a thread.

Raises `OSError` where they cannot be listed: those that were found before are kept.
"""

Units: TypeAlias = Mapping[str, tuple[Unit, ...]]
"""Units by the full name of their resource (`example.com/camera`)."""
