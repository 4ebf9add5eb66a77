"""What a source observes of a node's Xe Links: links, none, no fabric data, or unknown. Pure.

A source is whatever knows the links of this node: XPU Manager, or a driver. Failure is not absence:
what proves nothing is `Unknown`, with a reason that is the source's own.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

from xelink.topology.model import Tile, Topology
from xelink.topology.publication import LinkState


class Result(Enum):
    """An observation in one word; the words of the `xe-links.state` label, and `unknown`."""

    LINKS = LinkState.LINKS.value
    NONE = LinkState.NONE.value
    NO_FABRIC_DATA = LinkState.NO_FABRIC_DATA.value
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ObservedLinks:
    """The whole topology was observed: these are the links that pass the rules, possibly none.

    `topology` holds the id map and the state of ports, too. A source that misunderstands nothing
    and filters nothing leaves the rest as it is.
    """

    topology: Topology
    reported: frozenset[tuple[Tile, Tile]] = frozenset()
    """Directions, local to remote, of which the source reported anything, linked or not."""
    ambiguous: frozenset[int] = frozenset()
    """Device ids reported for two PCI addresses, or addresses reported for two ids."""
    unread: int = 0
    """Rows that could not be understood: what they would have reported is unknown."""
    contradicting: frozenset[tuple[Tile, Tile]] = frozenset()
    """Directions of which two rows differ: one of them is out of date."""
    stale_hint: str = ""
    """Why rows may be out of date, in the source's words."""
    narrow: int = 0
    """Xe Links that are filtered, as neither direction has the lanes."""
    one_tile: int = 0
    """Xe Links that have the lanes and are filtered, as their GPUs have one tile."""
    hint: str = ""
    """Why there may be no Xe Link at all, in the source's words."""

    @property
    def filtered(self) -> int:
        """Xe Links that were observed and do not pass the rules."""
        return self.narrow + self.one_tile

    @property
    def result(self) -> Result:
        """`links` or `none`."""
        return Result.LINKS if self.topology.links else Result.NONE


@dataclass(frozen=True)
class NoFabricData:
    """The source works, and has no data of Xe Links: only this state is published."""

    detail: str

    @property
    def result(self) -> Result:
        """`no-fabric-data`."""
        return Result.NO_FABRIC_DATA


@dataclass(frozen=True)
class Unknown:
    """Nothing is proven: what is published stays until it expires.

    `reason` is one of the source's codes, a word for metrics; `detail` is a sentence for people.
    """

    reason: str
    detail: str
    quotes: bool = False
    """The detail quotes whoever answered: other words are no news."""

    @property
    def result(self) -> Result:
        """`unknown`."""
        return Result.UNKNOWN


Observation: TypeAlias = ObservedLinks | NoFabricData | Unknown


class SourceFacts(NamedTuple):
    """What is known of a source besides links, after its last observation."""

    rows: int = 0
    """Rows of the topology that were read, understood or not."""
    rows_skipped: int = 0
    """Rows that could not be understood, those of port states included."""
    warning: str | None = None
    """What is wrong with it, although it still observes."""
    certificate_expiry: float | None = None
    """When its server's certificate ends, in seconds since 1970."""


class Source(Protocol):
    """Where observations come from."""

    @property
    def name(self) -> str:
        """Its name in a sentence."""

    @property
    def address(self) -> str:
        """Where it is read."""

    @property
    def reasons(self) -> Collection[str]:
        """Every reason of an `Unknown` that it can return."""

    @property
    def facts(self) -> SourceFacts:
        """What is known of it after the last observation."""

    def observe(self) -> Observation:
        """Look once, within bounded time; whatever fails is `Unknown`."""
