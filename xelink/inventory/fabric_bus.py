"""What the bus says of Xe Links: which GPUs there are, and whether their driver has a fabric part.

Device ids are ranks of PCI addresses among all GPUs that the driver has, as XPU Manager counts
them.
"""

from collections.abc import Iterator
from contextlib import suppress

from xelink.iaf.fabric import GpuOnBus
from xelink.iaf.source import BusError, Node
from xelink.inventory import sysfs
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, ScanError, fingerprint, scan
from xelink.topology.model import Gpu

_FABRIC = ("i915.iaf.", "iaf.")
"""How directories of the fabric part begin, as an auxiliary device and as a platform one."""


class FabricBus:
    """The bus of one node; scans it again only when something changed. For one thread."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._known: tuple[tuple[str, ...], Node] | None = None

    def node(self) -> Node:
        """Return the GPUs and whether they have a fabric.

        Raises `BusError` without any sysfs, and where a GPU cannot be read: the ids of all others
        depend on it. Nothing of that is remembered.
        """
        signs = (*fingerprint(self._roots), *self._fabrics())
        if self._known is None or self._known[0] != signs:
            try:
                inventory = scan(self._roots)
            except ScanError as error:
                raise BusError(str(error)) from error
            if unread := unranked(inventory):
                raise BusError(f"{unread} cannot be read")
            self._known = signs, Node(bool([*self._fabrics()]), gpus_on_bus(inventory))
        return self._known[1]

    def has_fabric(self) -> bool:
        """Return whether the driver of any GPU has a fabric part."""
        return next(self._fabrics(), None) is not None

    def _fabrics(self) -> Iterator[str]:
        drm = f"{self._roots.sysfs}/class/drm"
        with suppress(OSError):
            for card in sysfs.listing(drm):
                if card.startswith("card") and card[4:].isdecimal():
                    with suppress(OSError):
                        for name in sysfs.listing(f"{drm}/{card}/device"):
                            if name.startswith(_FABRIC):
                                yield f"{card}/{name}"


def unranked(inventory: Inventory) -> str:
    """Return the name of a GPU whose place among the others is unknown; empty where none is."""
    ranked = {gpu.bdf for gpu in inventory.counted}
    return next((one.name for one in inventory.problems if one.bdf not in ranked), "")


def gpus_on_bus(inventory: Inventory) -> tuple[GpuOnBus, ...]:
    """Return the GPUs that the driver has, in the order of their ids."""
    cards = {card.bdf: card for card in inventory.monitored}
    found = []
    for rank, gpu in enumerate(inventory.counted):
        card = cards.get(gpu.bdf)
        found.append(
            GpuOnBus(
                Gpu(rank, gpu.bdf, gpu.name, numa=card.numa if card else None),
                card.tiles if card else None,
            )
        )
    return tuple(found)
