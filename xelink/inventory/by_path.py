"""Links by PCI address, `/dev/dri/by-path`: which of them a container is given. Pure."""

from enum import Enum

from xelink.inventory.devfs import Mount
from xelink.inventory.gpus import Card, Inventory


class ByPath(Enum):
    """What of `/dev/dri/by-path` an allocation mounts.

    The device plugin API turns a mounted symlink into the node that it points to; only the whole
    directory keeps the symlinks, and shows those of every GPU.
    """

    SINGLE = "single"
    NONE = "none"
    ALL = "all"


def mounts(card: Card, inventory: Inventory, by_path: ByPath) -> tuple[Mount, ...]:
    """Return the by-path mounts of one card in one mode."""
    match by_path:
        case ByPath.SINGLE:
            return card.by_path
        case ByPath.ALL if inventory.by_path:
            return (inventory.by_path,)
        case _:
            return ()
