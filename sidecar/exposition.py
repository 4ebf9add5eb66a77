"""Rows from an exposition: the lines that matter out of a stream of bytes, parsed strictly.

A body is half a megabyte and more, the topology a sixth of it, and it hardly ever changes. So the
stream is sieved chunk by chunk with `bytes.find`, only the wanted lines are kept, and a topology
whose bytes are those of the last scrape is not parsed again.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from topology.model import Gpu, PortState, Tile

_LINK = b"xpum_topology_link"
_PORTS = b"xpum_xelink_port_status"
_LINE_LIMIT = 1 << 20
_BLANKS = b" \t"

# What every body of XPU Manager 1.x has, and a sample of 2.x in its place
_XPUM_1 = b"xpum_"
_XPUM_2 = b"\nhw_"

# sample = name "{" [ label *( "," label ) [ "," ] ] "}" value [ timestamp ]
# label = name "=" DQUOTE *( any but DQUOTE "\" LF / "\" any ) DQUOTE ; blanks between all of them
_SAMPLE = re.compile(
    rb"[ \t]*([a-z_]+)[ \t]*\{(.*)\}[ \t]*([^ \t]+)(?:[ \t]+-?[0-9.eE+]+)?[ \t]*\r?", re.DOTALL
)
_LABEL = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|\Z)',
    re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_NUMBER = re.compile(rb"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?")
_CARD = re.compile(rb"card[0-9]{1,6}")
_UUID = re.compile(rb"[0-9A-Za-z-]{1,64}")

_PLAIN_DIGITS = 18
_MOST = 10**9  # far above any id or lane count, far below what would not fit a label
_NUMA_UNKNOWN = 4294967295


class Connection(IntEnum):
    """The value of a row: how its two tiles are connected."""

    UNKNOWN = -1
    SELF = 0
    XE_LINK = 1
    XE_LINK_MDF = 2
    SYS = 3
    NODE = 4
    MDF = 5


# As the exporter writes them; other spellings are read as numbers
_CONNECTIONS = {b"%d.0" % connection: connection for connection in Connection}

_PORT_STATES = {
    0: PortState.HEALTHY,
    1: PortState.DEGRADED,
    2: PortState.FAILED,
    3: PortState.DISABLED,
}


class _MalformedError(ValueError):
    """The line is no sample that can be understood: count it and go on."""


class Row(NamedTuple):
    """One `xpum_topology_link` sample: what the local tile sees of the remote one.

    `gpu` is the GPU of the local tile; None where the row has no PCI address.
    """

    local: Tile
    remote: Tile
    connection: Connection
    lanes: int
    on_subdevice: bool
    gpu: Gpu | None


@dataclass(frozen=True)
class Reading:
    """What one exposition says of the topology."""

    rows: tuple[Row, ...]
    ports: Mapping[str, PortState]
    """State of the Xe Link ports by the PCI address of the GPU; the worst that was told."""
    unread: int
    """Rows that could not be understood."""
    unread_ports: int
    """Port states that could not be understood."""
    foreign: bool
    """The exposition is XPU Manager 2.x's, which has no fabric data."""

    @property
    def total(self) -> int:
        """How many rows there were, understood or not."""
        return len(self.rows) + self.unread


class TooManyRowsError(Exception):
    """The body has more topology rows than any node: it cannot be used."""


class Sieve:
    """Keeps, of a stream of bytes cut anywhere, the lines of the two families; constant memory."""

    def __init__(self, limit: int = 8 << 20) -> None:
        """Keep at most `limit` bytes: 32 tiles, the most that XPU Manager knows, need 0.7 MB."""
        self.links = bytearray()
        self.ports = bytearray()
        self.overlong = 0
        self._limit = limit
        self._rest = b""
        self._skipping = False
        self._is_xpum_1 = False
        self._is_xpum_2 = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises `TooManyRowsError`."""
        block = self._rest + chunk if self._rest else chunk
        end = block.rfind(b"\n") + 1
        if not end:
            self._keep_rest(block)
            return
        start = 0
        if self._skipping:
            start = block.find(b"\n") + 1
            self._skipping = False
        self._keep_rest(block[end:])
        self._sift(block, start, end)

    def finish(self) -> None:
        """Take what came after the last newline: the real exporter ends without one."""
        if self._rest and not self._skipping:
            last, self._rest = self._rest + b"\n", b""
            self._sift(last, 0, len(last))

    @property
    def foreign(self) -> bool:
        """Whether the body is of XPU Manager 2.x."""
        return self._is_xpum_2 and not self._is_xpum_1

    def _keep_rest(self, rest: bytes) -> None:
        if self._skipping or len(rest) > _LINE_LIMIT:
            self.overlong += not self._skipping
            self._skipping = True
            rest = b""
        self._rest = rest

    def _sift(self, block: bytes, start: int, end: int) -> None:
        if not self._is_xpum_1:
            self._is_xpum_1 = block.find(_XPUM_1, start, end) >= 0
            self._is_xpum_2 = (
                self._is_xpum_2
                or block.startswith(_XPUM_2[1:], start)
                or block.find(_XPUM_2, start, end) >= 0
            )
        for name, kept in ((_LINK, self.links), (_PORTS, self.ports)):
            # Most chunks have none; `rfind` tells so in half the time that `find` takes.
            last = block.rfind(name, start, end)
            if last >= 0 and (first := _first_sample(block, name, start, end)) is not None:
                kept.extend(block[first : block.find(b"\n", last) + 1])
        if len(self.links) + len(self.ports) > self._limit:
            raise TooManyRowsError(f"over {self._limit} bytes of topology rows")


def _first_sample(block: bytes, name: bytes, start: int, end: int) -> int | None:
    """Find the line that begins with `name`: comments and label values mention it, too."""
    while (found := block.find(name, start, end)) >= 0:
        line = block.rfind(b"\n", start, found) + 1 or start
        if not block[line:found].strip(_BLANKS):
            return line
        start = block.find(b"\n", found) + 1
    return None


class Reader:
    """Reads sieved lines, and knows a topology again that has not changed."""

    def __init__(self) -> None:
        # Key and value are one tuple, replaced together: a key alone that outlived its value
        # would answer for a topology that vanished and came back.
        self._last: tuple[bytes, bytes, int, bool, Reading] | None = None

    def read(self, sieve: Sieve) -> Reading:
        """Parse what the sieve kept; the same bytes give the very same `Reading`."""
        sieve.finish()
        last = self._last
        if (
            last
            and last[0] == sieve.links
            and last[1] == sieve.ports
            and last[2:4] == (sieve.overlong, sieve.foreign)
        ):
            return last[4]
        links, ports = bytes(sieve.links), bytes(sieve.ports)
        reading = read(links, ports, overlong=sieve.overlong, foreign=sieve.foreign)
        self._last = (links, ports, sieve.overlong, sieve.foreign, reading)
        return reading


def read(links: bytes, ports: bytes, *, overlong: int = 0, foreign: bool = False) -> Reading:
    """Parse the lines of both families; what cannot be understood is counted and skipped."""
    rows: list[Row] = []
    unread = overlong
    gpus: dict[tuple[bytes, ...], Gpu | None] = {}
    for line in _lines(links, _LINK):
        try:
            rows.append(_row(*_parse(line, _LINK), gpus))
        except (ValueError, KeyError):
            unread += 1
    states: dict[str, PortState] = {}
    unread_ports = 0
    for line in _lines(ports, _PORTS):
        try:
            labels, value = _parse(line, _PORTS)
            bdf = labels[b",pci_bdf="].decode().lower()
            if state := _PORT_STATES.get(_integer(value)):
                states[bdf] = max(state, states.get(bdf, state), key=_severity)
        except (ValueError, KeyError):
            unread_ports += 1
    return Reading(tuple(rows), states, unread, unread_ports, foreign)


def _lines(block: bytes, name: bytes) -> Iterator[bytes]:
    for line in block.split(b"\n"):
        if line.startswith(name) or line.lstrip(_BLANKS).startswith(name):
            yield line


def _parse(line: bytes, name: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    """Give the labels, each under the key `,name=`, and the value of a sample."""
    # Without a backslash every quote is a delimiter, and splitting at quotes is exact. What is not
    # in the exporter's own spelling, without a blank between its parts, goes the long way.
    parts = line.split(b'"')
    end = parts.pop()
    keys = parts[0::2]
    names = b"".join(keys)
    if (
        end.startswith(b"} ")
        and line.startswith(name + b"{")
        and b" " not in names
        and names.count(b"=") == len(keys)
        and b"\\" not in line
        and b" " not in end[2:]
    ):
        keys[0] = b"," + keys[0][len(name) + 1 :]
        return dict(zip(keys, parts[1::2], strict=True)), end[2:]
    return _parse_slowly(line, name)


def _parse_slowly(line: bytes, name: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    sample = _SAMPLE.fullmatch(line)
    if not sample or sample[1] != name:
        raise _MalformedError
    labels: dict[bytes, bytes] = {}
    position = 0
    while position < len(sample[2]):
        label = _LABEL.match(sample[2], position)
        if not label:
            raise _MalformedError
        labels[b",%s=" % label[1]] = _ESCAPE.sub(_unescape, label[2])
        position = label.end()
    return labels, sample[3]


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\n" if match[1] == b"n" else match[1]


def _row(
    labels: Mapping[bytes, bytes], value: bytes, gpus: dict[tuple[bytes, ...], Gpu | None]
) -> Row:
    connection = _CONNECTIONS.get(value) or Connection(_integer(value))
    lanes = labels.get(b",lane_count=") or labels.get(b",lan_count=")
    if lanes is None:
        if connection is Connection.XE_LINK:
            raise _MalformedError
        lanes = b"0"
    device = _natural(labels[b",local_device_id="])
    place = tuple(labels.get(key, b"") for key in _PLACE)
    if place not in gpus:
        gpus[place] = _gpu(device, *place[1:])
    return Row(
        Tile(device, _natural(labels[b",local_subdevice_id="])),
        Tile(_natural(labels[b",remote_device_id="]), _natural(labels[b",remote_subdevice_id="])),
        connection,
        _natural(lanes),
        labels.get(b",local_on_subdevice=", b"").lower() == b"true",
        gpus[place],
    )


_PLACE = (b",local_device_id=", b",pci_bdf=", b",dev_file=", b",uuid=", b",local_numa_index=")


def _gpu(device: int, bdf: bytes, card: bytes, uuid: bytes, numa: bytes) -> Gpu | None:
    try:
        return Gpu(
            id=device,
            bdf=bdf.decode().lower(),
            card=card.decode() if _CARD.fullmatch(card) else None,
            uuid=uuid.decode() if _UUID.fullmatch(uuid) else None,
            numa=_numa(numa),
        )
    except ValueError:  # without a place on the bus it is no entry of the id map
        return None


def _numa(text: bytes) -> int | None:
    try:
        numa = _integer(text)
    except ValueError:
        return None
    return None if numa < 0 or numa == _NUMA_UNKNOWN else numa


def _integer(text: bytes) -> int:
    """Read a number that is written as an integer, a float or with an exponent."""
    if text.isdigit() and len(text) <= _PLAIN_DIGITS:
        return int(text)
    text = text.strip()
    if not _NUMBER.fullmatch(text) or (number := float(text)) != int(number):
        raise _MalformedError
    return int(number)


def _natural(text: bytes) -> int:
    number = _integer(text)
    if not 0 <= number < _MOST:
        raise _MalformedError
    return number


def _severity(state: PortState) -> int:
    return list(PortState).index(state)
