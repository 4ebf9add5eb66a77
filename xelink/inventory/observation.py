"""What this node's sources reported last, and what that means in words. Pure."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from xelink.inventory import health as gpu_health
from xelink.inventory.gpus import DriState, Inventory
from xelink.inventory.health import Health
from xelink.inventory.links import UNREAD, NodeLinks
from xelink.inventory.units import Units


@dataclass(frozen=True, eq=False)
class NodeObservation:
    """The latest report of each source: GPUs, their links, their health and their CDI names.

    `cdi` are the DRM names of the cards that may be named as CDI devices, `cdi_error` is what keeps
    others from it. `monitored`: whether any source reports health. `units` are those of the
    families beside GPUs.

    Two observations are equal only where they are the same one: a feature file that was renewed
    changes no link, and yet its new expiry is news.
    """

    inventory: Inventory = field(default_factory=Inventory)
    links: NodeLinks = UNREAD
    health: Health = field(default_factory=Health)
    cdi: frozenset[str] = frozenset()
    cdi_error: str = ""
    monitored: bool = False
    units: Units = field(default_factory=dict)

    @property
    def link_state(self) -> str:
        """Where the links come from, or why there are none, in one line."""
        reason = f": {self.links.reason}" if self.links.reason else ""
        return f"links {self.links.state.value}{reason}"

    @property
    def health_state(self) -> str:
        """Where the GPUs' health comes from, or why it is not known, in one line."""
        if not self.monitored:
            return "by device nodes alone, as there is no -xpumd-endpoint"
        error = self.health.error
        return f"unknown: {error}" if error else "as reported by XPU Manager"

    @property
    def health_unknown(self) -> tuple[str, ...]:
        """PCI addresses of GPUs that are missing from the health reports of the others."""
        if not self.monitored or self.health.error:
            return ()
        return gpu_health.unknown(self.health, self.inventory.cards)

    @property
    def device_error(self) -> str:
        """Why no GPU, or no CDI name, can be allocated, in one line; empty where some can."""
        complaints = {card.bdf: card.complaint for card in self.inventory.cards}
        complaints |= gpu_health.complaints(self.health, self.inventory.cards)
        reason = _nothing_to_allocate(self.inventory, complaints)
        return "; ".join(filter(None, (reason, self.cdi_error)))

    @property
    def must_restart(self) -> str | None:
        """What only a restart of this container fixes; None where there is nothing."""
        dri = self.inventory.dri
        return dri.value if dri is DriState.GONE else None

    @property
    def warnings(self) -> frozenset[str]:
        """Conditions that need attention, without `cdi_warning`."""
        return frozenset(_warnings(self))

    @property
    def cdi_warning(self) -> str:
        """Which GPUs have no CDI name and why; empty where all have one, or none is to have one."""
        return f"{cdi_consequence(self.cdi)}: {self.cdi_error}" if self.cdi_error else ""


def cdi_consequence(named: AbstractSet[str]) -> str:
    """Return what an error of the CDI spec means, where these cards are named all the same."""
    return "not every GPU is named as a CDI device" if named else "no CDI devices are named"


def _warnings(observed: NodeObservation) -> Iterator[str]:
    inventory, links = observed.inventory, observed.links
    yield from (str(problem) for problem in inventory.problems)
    if not inventory.cards:
        yield _no_gpu(inventory)
    for card in inventory.cards:
        if card.complaint and not card.broken:  # what is broken is a problem already
            yield f"{card.name} at {card.bdf} is unhealthy: {card.complaint}"
    if inventory.dri is not DriState.FINE:
        yield inventory.dri.value
    if links.not_on_bus:
        yield f"in the id map but not on this bus: {' '.join(links.not_on_bus)}"
    if links.not_in_map:
        yield f"on this bus but not in the id map: {' '.join(links.not_in_map)}"
    if links.without_address:
        ids = " ".join(map(str, links.without_address))
        yield f"linked but without an address in the id map: {ids}"


def _nothing_to_allocate(inventory: Inventory, complaints: Mapping[str, str | None]) -> str:
    if not complaints:
        return _no_gpu(inventory)
    if not all(complaints.values()):
        return ""
    reasons = dict.fromkeys(filter(None, complaints.values()))
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"every GPU is unhealthy: {next(iter(reasons))}{more}"


def _no_gpu(inventory: Inventory) -> str:
    if inventory.excluded:
        return f"no GPU is advertised: {len(inventory.excluded)} of Intel's are excluded"
    if inventory.problems:
        return "no GPU is advertised: none can be read"
    return "no GPU is advertised: this node has none of Intel's, or its driver is not loaded"
