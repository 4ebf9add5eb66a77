"""One exposition: what its filtered lines say of the topology.

A topology hardly ever changes: one whose bytes are those of the last scrape is not parsed
again. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xelink.topology.model import PortState
from xelink.topology.pci import PciAddress
from xelink.xpu_manager.line_filter import LineFilter
from xelink.xpu_manager.rows import Matrix, TopologyRow
from xelink.xpu_manager.samples import integer, is_sample, parse

_PORTS = b"xpum_xelink_port_status"
_PORT_STATES = {
    0: PortState.HEALTHY,
    1: PortState.DEGRADED,
    2: PortState.FAILED,
    3: PortState.DISABLED,
}


@dataclass(frozen=True)
class Exposition:
    """What one exposition reports of the topology."""

    rows: tuple[TopologyRow, ...]
    ports: Mapping[str, PortState]
    """State of the Xe Link ports by the PCI address of the GPU; the worst that was reported."""
    unread: int
    """Rows that could not be understood."""
    unread_ports: int
    """Port states that could not be understood."""
    foreign: bool
    """The exposition is XPU Manager 2.x's, which has no fabric data."""
    strange: str = ""
    """What the body is where it is no exposition of XPU Manager at all."""

    @property
    def total(self) -> int:
        """How many rows there were, understood or not."""
        return len(self.rows) + self.unread


class _Memory(NamedTuple):
    """What was read last, and out of what: one value, so that neither outlives the other.

    A key alone that outlived its reading would answer for a topology that came back.
    """

    links: bytes
    ports: bytes
    overlong: int
    origin: tuple[bool, str]
    reading: Exposition
    ports_follow: bool


class ExpositionReader:
    """Reads filtered lines, and recognizes a topology that has not changed."""

    def __init__(self) -> None:
        self._last: _Memory | None = None

    def line_filter(self) -> LineFilter:
        """Return the filter for the next body, which looks where the last one had its lines."""
        return LineFilter(ports_follow=self._last is not None and self._last.ports_follow)

    def read(self, lines: LineFilter) -> Exposition:
        """Parse what the filter kept; the same bytes give the very same `Exposition`."""
        lines.finish()
        last, origin = self._last, (lines.foreign, lines.strange)
        if (
            last
            and last.links == lines.links
            and last.ports == lines.ports
            and (last.overlong, last.origin) == (lines.overlong, origin)
        ):
            return last.reading
        links, ports = bytes(lines.links), bytes(lines.ports)
        follow = bool(links) and not lines.ports_lead
        if last and lines.ports_follow and not ports and last.ports:
            # Not found where they were looked for, which is no news: the next filter looks at all.
            ports, follow = last.ports, False
        reading = read(links, ports, overlong=lines.overlong, origin=origin)
        self._last = _Memory(links, ports, lines.overlong, origin, reading, follow)
        return reading


def read(
    links: bytes, ports: bytes, *, overlong: int = 0, origin: tuple[bool, str] = (False, "")
) -> Exposition:
    """Parse the lines of both families; what cannot be understood is counted and skipped."""
    rows, unread = Matrix().read(links)
    states: dict[str, PortState] = {}
    unread_ports = 0
    for line in ports.split(b"\n"):
        if is_sample(line, _PORTS):
            try:
                labels, value = parse(line, _PORTS)
                bdf = PciAddress(labels[b",pci_bdf="].decode().lower())
                if state := _PORT_STATES.get(integer(value)):
                    states[bdf] = max(state, states.get(bdf, state), key=_SEVERITY.__getitem__)
            except (ValueError, KeyError):
                unread_ports += 1
    return Exposition(tuple(rows), states, unread + overlong, unread_ports, *origin)


_SEVERITY = {state: severity for severity, state in enumerate(PortState)}
