"""Describes a container's GPUs and their links to it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations

from xelink.inventory.links import UNREAD, NodeLinks
from xelink.nfd.reader import FileState
from xelink.topology.publication import DEFAULT_NAMESPACE

GPUS = "gpus"
LINKS = "links"
ALL_LINKED = "linked"


class Linked(Enum):
    """How much of a set of GPUs is linked, pair by pair."""

    ALL = "all"
    SOME = "some"
    NONE = "none"
    SINGLE = "single"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class WorkloadFacts:
    """What describes its GPUs to a workload, by name; empty where it got no GPU of its own."""

    linked: Linked = Linked.UNKNOWN
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The facts as variables: `XELINK_GPUS`, `XELINK_LINKS`, `XELINK_LINKED`."""
        return {f"XELINK_{name.upper()}": value for name, value in self.values.items()}

    @property
    def annotations(self) -> dict[str, str]:
        """The facts as annotations of the container: `gpu.intel.com/xelink.gpus` and so on."""
        return {f"{DEFAULT_NAMESPACE}/xelink.{name}": value for name, value in self.values.items()}


def how_linked(links: NodeLinks, gpus: Sequence[str]) -> Linked:
    """Return how much of a set of PCI addresses is linked; all means every pair.

    Unknown where the links of one of them are.
    """
    if len(gpus) < 2:  # noqa: PLR2004 - a pair
        return Linked.SINGLE
    if not all(map(links.knows, gpus)):
        return Linked.UNKNOWN
    pairs = [links.lanes_between(one, other) is not None for one, other in combinations(gpus, 2)]
    if all(pairs):
        return Linked.ALL
    return Linked.SOME if any(pairs) else Linked.NONE


def facts(links: NodeLinks | None, gpus: Sequence[str]) -> WorkloadFacts:
    """Return how a container's GPUs, by their PCI addresses, are described to it.

    `gpus`: the addresses. `links`: `address-address=lanes`, without `=lanes` where the number is
    unknown. `linked`: whether all pairs are. Nothing for devices that have no links.
    """
    if links is None or not gpus:
        return WorkloadFacts(how_linked(UNREAD, gpus))
    linked = how_linked(links, gpus)
    widths = ((one, other, links.lanes_between(one, other)) for one, other in combinations(gpus, 2))
    pairs = (
        f"{one}-{other}"
        if links.state is FileState.INFERRED or not lanes
        else f"{one}-{other}={lanes}"
        for one, other, lanes in widths
        if lanes is not None
    )
    values = {GPUS: ",".join(gpus), LINKS: ",".join(pairs), ALL_LINKED: linked.value}
    return WorkloadFacts(linked, values)
