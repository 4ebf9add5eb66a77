"""The devices that kubelet counts: what is made of the node's GPUs, decided without reading it.

Ids, resources, monitoring and by-path are those of Intel's GPU plugin, so that Pods written for it
still find what they ask for. Pure.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from xelink.inventory.by_path import ByPath, mounts
from xelink.inventory.cdi import qualified_name
from xelink.inventory.devfs import DeviceNode, Mount
from xelink.inventory.gpus import DRIVERS, Card, Inventory

NAMESPACE = "gpu.intel.com"
MONITORING_ID = "all"


class Monitoring(Enum):
    """One monitoring resource for the node, or one for each driver."""

    SINGLE = "single"
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class ResourceOptions:
    """How GPUs are advertised: `shared` containers may use one at a time (at least 1).

    Without `monitoring` there is no monitoring resource. Raises `ValueError` when `shared` is less
    than 1.
    """

    shared: int = 1
    by_path: ByPath = ByPath.SINGLE
    monitoring: Monitoring | None = None

    def __post_init__(self) -> None:
        if self.shared < 1:
            raise ValueError(f"a GPU cannot be shared by {self.shared} containers")


@dataclass(frozen=True, slots=True)
class Device:
    """What kubelet counts: a share of one unit of hardware, or several units together.

    `unit` is the identity of that one (the PCI address of a GPU), empty for several. `numa` None
    means that no TopologyInfo may be sent: an empty one fails admissions. `cdi` is its qualified
    CDI name, empty where it must not be named so. `complaint` is why it cannot be used, None when
    it can.
    """

    id: str
    nodes: tuple[DeviceNode, ...]
    mounts: tuple[Mount, ...] = ()
    numa: int | None = None
    unit: str = ""
    cdi: str = ""
    complaint: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether it can be used."""
        return self.complaint is None


def devices(
    inventory: Inventory,
    options: ResourceOptions,
    complaints: Mapping[str, str] | None = None,
    cdi: AbstractSet[str] = frozenset(),
) -> dict[str, tuple[Device, ...]]:
    """Return the devices of each resource, by its full name (`gpu.intel.com/i915`).

    In the order of PCI addresses, then of shares. A resource without devices is not there; one
    that was registered before keeps an empty list. `complaints` are those of health monitoring
    by PCI address, `cdi` the DRM names of the cards that may be named as CDI devices.
    """
    found: dict[str, tuple[Device, ...]] = {}
    for driver in DRIVERS:
        cards = [card for card in inventory.cards if card.driver == driver]
        if cards:
            found[f"{NAMESPACE}/{driver}"] = tuple(
                Device(
                    id=f"{card.name}-{share}",
                    nodes=card.nodes,
                    mounts=mounts(card, inventory, options.by_path),
                    numa=card.numa,
                    unit=card.bdf,
                    cdi=qualified_name(card) if card.name in cdi else "",
                    complaint=(complaints or {}).get(card.bdf) or card.complaint,
                )
                for card in cards
                for share in range(options.shared)
            )
    return found | _monitoring(inventory.monitored, options.monitoring)


def _monitoring(
    cards: tuple[Card, ...], monitoring: Monitoring | None
) -> dict[str, tuple[Device, ...]]:
    match monitoring:
        case Monitoring.SINGLE:
            groups = {"monitoring": cards}
        case Monitoring.SPLIT:
            groups = {
                f"{driver}_monitoring": tuple(card for card in cards if card.driver == driver)
                for driver in DRIVERS
            }
        case _:
            groups = {}
    return {f"{NAMESPACE}/{name}": (_all_of(group),) for name, group in groups.items() if group}


def _all_of(cards: tuple[Card, ...]) -> Device:
    # No by-path mounts: a monitor often mounts the host's /dev/dri, where they cannot be made.
    nodes = {node: None for card in cards for node in (*card.present_nodes, *card.mei)}
    # Engines alone are no GPU to monitor.
    complaint = None if any(card.present_nodes for card in cards) else "it has no device node"
    return Device(MONITORING_ID, tuple(nodes), complaint=complaint)
