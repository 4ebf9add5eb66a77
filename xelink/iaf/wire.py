"""Netlink frames of the `iaf_ze` family: bytes of requests, attributes of replies. Pure.

Source: `drivers/gpu/drm/i915/fabric/{netlink.c,iaf_netlink.h}` of intel-gpu-i915-backports, and
https://docs.kernel.org/userspace-api/netlink/intro.html. Numbers are in the host's byte order.

    frame      = nlmsghdr genlmsghdr *attribute
    nlmsghdr   = length:u32 type:u16 flags:u16 sequence:u32 port:u32
    genlmsghdr = command:u8 version:u8 reserved:u16
    attribute  = length:u16 type:u16 value padding      ; length without the padding to 4 bytes
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

CONTROL = 0x10
"""The message type of generic netlink's own family, which resolves names."""

FAMILY_NAME = b"iaf_ze\0"
VERSION = 1
FRAME_LIMIT = 1 << 16
"""Bytes of the longest reply: the driver's are at most four pages."""

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBERS = {
    size: struct.Struct(f"={code}") for size, code in zip((1, 2, 4, 8), "BHIQ", strict=True)
}
_HEADERS = _HEADER.size + _GENERIC.size
_ERROR = 2  # NLMSG_ERROR
_REQUEST = 1  # NLM_F_REQUEST: one reply, and no acknowledgment beside it
_TYPE_BITS = 0x3FFF  # the other two say "nested" and "network byte order"
_QUOTED = 64  # bytes of a malformed frame


class Command(IntEnum):
    """The queries: every command that is ever sent.

    The family has others that need CAP_NET_ADMIN, and some of those take links down. That no other
    number can leave this process is why `request` takes a member and not a number.
    """

    DEVICE_ENUM = 1
    PORT_STATE_QUERY = 4
    ROUTING_GEN_QUERY = 13
    SUB_DEVICE_PROPERTIES_GET = 15
    FPORT_STATUS_QUERY = 16
    FPORT_PROPERTIES = 18


class Attribute(IntEnum):
    """Types of attributes, as far as they are read or written."""

    MSG_TYPE = 1
    CONTEXT = 2
    RESULT = 3
    FABRIC_ID = 4
    SD_INDEX = 5
    ENTRIES = 7
    FABRIC_DEVICE = 8
    DEV_NAME = 9
    PARENT_DEV_NAME = 10
    SUBDEVICE_COUNT = 13
    GUID = 17
    FABRIC_PORT = 24
    PORT_NUMBER = 25
    PORT_TYPE = 26
    ENABLED_STATE = 28
    ROUTING_GEN_START = 29
    ROUTING_GEN_END = 30
    HEALTH = 31
    ISSUE_LQI = 32
    ISSUE_LWD = 33
    ISSUE_RATE = 34
    ERROR_FAILED = 35
    ERROR_ISOLATED = 36
    ERROR_FLAPPING = 37
    ERROR_LINK_DOWN = 38
    ERROR_DID_NOT_TRAIN = 39
    NEIGHBOR_GUID = 47
    NEIGHBOR_PORT_NUMBER = 49
    WIDTH_ENABLED = 60
    WIDTH_ACTIVE = 61
    WIDTH_DOWNGRADE_RX_ACTIVE = 65
    WIDTH_DOWNGRADE_TX_ACTIVE = 66


class MalformedFrameError(ValueError):
    """A frame that is cut, stretched or impossible: nothing of it is used.

    `frame` is its beginning, for a report to the developers.
    """

    def __init__(self, what: str, frame: bytes) -> None:
        self.frame = frame[:_QUOTED]
        more = "..." if len(frame) > _QUOTED else ""
        super().__init__(f"{what}: {self.frame.hex()}{more}")


class NetlinkError(OSError):
    """The kernel's generic layer refused a request; `errno` is its code."""


class Attributes(NamedTuple):
    """The attributes at one level: the values of each type, in their order."""

    values: Mapping[int, Sequence[bytes]]
    frame: bytes
    """All of the frame, to be quoted where an attribute is malformed."""

    def nested(self, kind: Attribute) -> Iterator["Attributes"]:
        """Return the attributes within each attribute of one type."""
        for value in self.values.get(kind, ()):
            yield Attributes(_attributes(value, self.frame), self.frame)

    def number(self, kind: Attribute, size: int) -> int | None:
        """Return a number of `size` bytes; None where there is none.

        Raises `MalformedFrameError` for another size, or for two different numbers.
        """
        values = self.values.get(kind)
        if values is None:
            return None
        value = values[0]
        if len(value) != size or any(other != value for other in values[1:]):
            raise MalformedFrameError(f"{kind.name} is not one number of {size} bytes", self.frame)
        return _number(value)

    def required(self, kind: Attribute, size: int) -> int:
        """Return a number as `number` does; raise `MalformedFrameError` where there is none."""
        value = self.number(kind, size)
        if value is None:
            raise MalformedFrameError(f"no {kind.name}", self.frame)
        return value

    def text(self, kind: Attribute) -> str:
        """Return a text that ends with a zero byte. Raises `MalformedFrameError`."""
        values = self.values.get(kind, ())
        if len(values) != 1 or not values[0].endswith(b"\0") or b"\0" in values[0][:-1]:
            raise MalformedFrameError(f"{kind.name} is not one text", self.frame)
        try:
            return values[0][:-1].decode("ascii")
        except UnicodeDecodeError:
            raise MalformedFrameError(f"{kind.name} is not ASCII", self.frame) from None

    def flag(self, kind: Attribute) -> bool:
        """Return whether a flag is there and set."""
        return any(any(value) for value in self.values.get(kind, ()))


class DriverReply(NamedTuple):
    """One reply of the family, not yet understood."""

    command: int
    attributes: Attributes


def request(
    family: int,
    sequence: int,
    command: Command,
    fabric_id: int | None = None,
    tile: int | None = None,
) -> bytes:
    """Return the frame of a query; for all ports of a tile, as no port is named."""
    attributes = _attribute(Attribute.MSG_TYPE, b"\0")  # 0: a request
    if fabric_id is not None:
        attributes += _attribute(Attribute.FABRIC_ID, struct.pack("=I", fabric_id))
    if tile is not None:
        attributes += _attribute(Attribute.SD_INDEX, struct.pack("=B", tile))
    return _frame(family, sequence, Command(command), attributes)


def family_request(sequence: int) -> bytes:
    """Return the frame that asks for the number of the family (CTRL_CMD_GETFAMILY)."""
    return _frame(CONTROL, sequence, 3, _attribute(2, FAMILY_NAME))


def sequence_of(frame: bytes) -> int:
    """Return the sequence number of a frame. Raises `MalformedFrameError`."""
    return _header(frame)[3]


def family_of(frame: bytes) -> int:
    """Return the family's number from the reply to `family_request`.

    Raises `NetlinkError`, with ENOENT where there is no such family, and `MalformedFrameError`.
    """
    reply = parse(frame, CONTROL)
    values = reply.attributes.values.get(1, ())
    if len(values) != 1 or len(values[0]) != 2:  # noqa: PLR2004 - CTRL_ATTR_FAMILY_ID, u16
        raise MalformedFrameError("no family id", frame)
    return _number(values[0])


def parse(frame: bytes, family: int) -> DriverReply:
    """Return the reply in a frame, whole or not at all.

    Raises `NetlinkError` for an error of the generic layer and `MalformedFrameError` for a frame
    that is none of this family.
    """
    length, kind, _, _, _ = _header(frame)
    if kind == _ERROR:
        if length < _HEADER.size + 4:
            raise MalformedFrameError("an error without a code", frame)
        (code,) = struct.unpack_from("=i", frame, _HEADER.size)
        if code >= 0:
            raise MalformedFrameError("an acknowledgment that was not asked for", frame)
        raise NetlinkError(-code, f"netlink error {-code}")
    if kind != family:
        raise MalformedFrameError(f"a message of type {kind}, not {family}", frame)
    if length < _HEADERS:
        raise MalformedFrameError("cut before its command", frame)
    command, _, _ = _GENERIC.unpack_from(frame, _HEADER.size)
    return DriverReply(command, Attributes(_attributes(frame[_HEADERS:length], frame), frame))


def _header(frame: bytes) -> tuple[int, int, int, int, int]:
    if len(frame) < _HEADER.size:
        raise MalformedFrameError("shorter than a header", frame)
    header: tuple[int, int, int, int, int] = _HEADER.unpack_from(frame)
    if not _HEADER.size <= header[0] <= len(frame):
        raise MalformedFrameError(f"says {header[0]} bytes, and has {len(frame)}", frame)
    if len(frame) - header[0] >= 4:  # noqa: PLR2004 - more than the padding to 4 bytes
        raise MalformedFrameError(f"goes on after its {header[0]} bytes", frame)
    return header


def _attributes(block: bytes, frame: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    at, end = 0, len(block)
    while at < end:
        if end - at < _ATTRIBUTE.size:
            raise MalformedFrameError("an attribute is cut", frame)
        length, kind = _ATTRIBUTE.unpack_from(block, at)
        kind &= _TYPE_BITS
        if not _ATTRIBUTE.size <= length <= end - at:
            raise MalformedFrameError(f"attribute {kind} has {length} bytes", frame)
        found.setdefault(kind, []).append(block[at + _ATTRIBUTE.size : at + length])
        at += _padded(length)
    return found


def _frame(family: int, sequence: int, command: int, attributes: bytes) -> bytes:
    length = _HEADERS + len(attributes)
    return (
        _HEADER.pack(length, family, _REQUEST, sequence, 0)
        + _GENERIC.pack(command, VERSION, 0)
        + attributes
    )


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def _number(value: bytes) -> int:
    return int(_NUMBERS[len(value)].unpack(value)[0])


def _padded(length: int) -> int:
    return length + 3 & ~3
