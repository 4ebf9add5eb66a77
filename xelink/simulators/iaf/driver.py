"""What the driver would reply about a simulated node, in bytes. Pure.

Every port of a link is there on both of its tiles: the k-th at one end names the k-th at the other.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from typing import NamedTuple

from xelink.iaf.replies import DriverResult, PortHealth, PortType
from xelink.iaf.wire import CONTROL, FAMILY_NAME, VERSION, Attribute, Command
from xelink.simulators.xpu_manager.gpu import SimulatedGpu
from xelink.simulators.xpu_manager.node import SimulatedNode
from xelink.topology.model import Link, Tile

FAMILY = 0x1F
_LANES_PER_PORT = 4
_WIDTHS = {0: 0, 1: 1, 2: 2, 3: 4, 4: 8}
_UNKNOWN_GUID = 0xDEAD
# What the driver says, too, and nobody reads
_LINK_DOWN_COUNT, _SPEED_ENABLED, _SPEED_ACTIVE, _LINK_QUALITY = 46, 63, 64, 71
_PVC = 1 << 16
_HEAD = 4  # bytes of an attribute before its value


class PortFault(Enum):
    """What may be wrong with one port."""

    OFF = "off"
    DISABLED = "disabled"
    DEGRADED = "degraded"
    FAILED = "failed"
    ISOLATED = "isolated"
    UNKNOWN_NEIGHBOR = "unknown-neighbor"
    ONE_SIDED = "one-sided"


class FrameFault(Enum):
    """What may be wrong with every reply."""

    CUT = "cut"
    STRETCHED = "stretched"
    GARBAGE = "garbage"
    SILENCE = "silence"


@dataclass(frozen=True)
class Behavior:
    """A node as its driver reports it, with what is wrong.

    `ports` are faults by tile and number of the port. `result` is what every query ends with.
    `sweep` is a routing sweep that never ends. `generation` should differ whenever the node does.
    """

    node: SimulatedNode
    generation: int = 1
    ports: Mapping[tuple[Tile, int], PortFault] = field(default_factory=dict)
    frames: FrameFault | None = None
    result: int = DriverResult.SUCCESS
    sweep: bool = False
    has_family: bool = True

    def after(self, node: SimulatedNode) -> "Behavior":
        """Return the driver after a change of the node."""
        return replace(self, node=node, generation=self.generation + 1)


class _Port(NamedTuple):
    number: int
    neighbor: tuple[int, int]
    lanes: int
    fault: PortFault | None


def reply(behavior: Behavior, request: bytes) -> bytes | None:
    """Return the reply to a frame; None for silence. Raises `ValueError` for no frame at all."""
    try:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", request)
        command, _, _ = struct.unpack_from("=BBH", request, 16)
        attributes = dict(_attributes(request[20:length]))
    except struct.error as error:
        raise ValueError(f"no frame: {error}") from error
    match behavior.frames:
        case FrameFault.SILENCE:
            return None
        case FrameFault.GARBAGE:
            return b"\xff" * 40
    answer = _answer(behavior, kind, sequence, command, attributes)
    match behavior.frames:
        case FrameFault.CUT:
            return answer[:-8]
        case FrameFault.STRETCHED:
            return answer + bytes(12)
    return answer


def _answer(
    behavior: Behavior, kind: int, sequence: int, command: int, attributes: Mapping[int, bytes]
) -> bytes:
    if kind == CONTROL:
        if not behavior.has_family or attributes.get(2) != FAMILY_NAME:
            return _error(sequence, 2)
        return _frame(CONTROL, sequence, 1, _attribute(1, struct.pack("=H", FAMILY)))
    if kind != FAMILY:
        return _error(sequence, 2)
    if command not in {*Command}:
        return _error(sequence, 95)
    try:
        content = _content(behavior, Command(command), attributes)
        code = behavior.result
    except _RefusedError as error:
        content, code = b"", error.code
    if code != DriverResult.SUCCESS:
        content = b""
    content += _u8(Attribute.RESULT, code) + _u8(Attribute.MSG_TYPE, 1)
    return _frame(FAMILY, sequence, command, content)


class _RefusedError(Exception):
    def __init__(self, code: DriverResult) -> None:
        self.code = code


def _content(behavior: Behavior, command: Command, attributes: Mapping[int, bytes]) -> bytes:
    if attributes.get(Attribute.MSG_TYPE) != b"\0":
        raise _RefusedError(DriverResult.MISSING_MSG_TYPE)
    fabric = {fabric_id(gpu): gpu for gpu in behavior.node.present if gpu.model.fabric}
    if command is Command.ROUTING_GEN_QUERY:
        return _u32(Attribute.ROUTING_GEN_START, behavior.generation) + _u32(
            Attribute.ROUTING_GEN_END, behavior.generation - behavior.sweep
        )
    if command is Command.DEVICE_ENUM:
        return b"".join(_device(number, gpu) for number, gpu in fabric.items()) + _attribute(
            Attribute.ENTRIES, struct.pack("=H", len(fabric))
        )
    tile = _tile(fabric, attributes)
    write = {
        Command.SUB_DEVICE_PROPERTIES_GET: _kind,
        Command.FPORT_PROPERTIES: _properties,
        Command.FPORT_STATUS_QUERY: _status,
        Command.PORT_STATE_QUERY: _state,
    }[command]
    ports = b"".join(_nested(Attribute.FABRIC_PORT, write(port)) for port in _ports(behavior, tile))
    if command is Command.SUB_DEVICE_PROPERTIES_GET:
        return _u64(Attribute.GUID, guid(tile)) + ports
    return ports


def _tile(fabric: Mapping[int, SimulatedGpu], attributes: Mapping[int, bytes]) -> Tile:
    if Attribute.FABRIC_ID not in attributes:
        raise _RefusedError(DriverResult.MISSING_FABRIC_ID)
    if Attribute.SD_INDEX not in attributes:
        raise _RefusedError(DriverResult.MISSING_SD_INDEX)
    gpu = fabric.get(struct.unpack("=I", attributes[Attribute.FABRIC_ID])[0])
    if gpu is None:
        raise _RefusedError(DriverResult.UNKNOWN_FABRIC_ID)
    index = attributes[Attribute.SD_INDEX][0]
    if index >= gpu.tiles:
        raise _RefusedError(DriverResult.SD_INDEX_OUT_OF_RANGE)
    return Tile(gpu.id, index)


def fabric_id(gpu: SimulatedGpu) -> int:
    """Return the driver's id of a GPU, which follows sockets: here, PCI order backwards."""
    return _PVC | (0xFFFF - gpu.id)


def guid(tile: Tile) -> int:
    """Return the GUID of a tile."""
    return 0xFF << 56 | tile.device << 8 | tile.subdevice


def _ports(behavior: Behavior, tile: Tile) -> Iterator[_Port]:
    now = {link.ends: link for link in behavior.node.current}
    if not any(tile in link.ends for link in behavior.node.links):
        # A tile without links still has ports.
        yield _Port(1, (0, 0), _LANES_PER_PORT, behavior.ports.get((tile, 1)))
    for number, link, at in places(behavior.node, tile):
        there = now.get(link.ends, Link(link.a, link.b))
        left = there.lanes if tile == link.a else there.lanes_back
        other = link.b if tile == link.a else link.a
        lanes = max(0, min(_LANES_PER_PORT, left - at * _LANES_PER_PORT))
        fault = behavior.ports.get((tile, number)) or (None if lanes else PortFault.FAILED)
        remote = next(
            found
            for found, its, place in places(behavior.node, other)
            if (its, place) == (link, at)
        )
        neighbor = guid(other), remote
        if fault is PortFault.UNKNOWN_NEIGHBOR:
            neighbor = _UNKNOWN_GUID, 1
        elif fault is PortFault.ONE_SIDED:
            neighbor = guid(other), 0xFF
        yield _Port(number, neighbor, lanes or _LANES_PER_PORT, fault)


def places(node: SimulatedNode, tile: Tile) -> Iterator[tuple[int, Link, int]]:
    """Return the ports of a tile: number, link, and which port of that link it is."""
    numbers = count(1)
    for link in node.links:
        if tile in link.ends:
            for at in range(-(-max(link.lanes, link.lanes_back) // _LANES_PER_PORT)):
                yield next(numbers), link, at


def _device(number: int, gpu: SimulatedGpu) -> bytes:
    return _nested(
        Attribute.FABRIC_DEVICE,
        _u32(Attribute.FABRIC_ID, number)
        + _attribute(Attribute.DEV_NAME, f"i915.iaf.{gpu.id}".encode() + b"\0")
        + _attribute(Attribute.PARENT_DEV_NAME, gpu.bdf.encode() + b"\0")
        + _u8(12, 0)
        + _u8(11, gpu.id & 0x1F)
        + _u8(14, 1)
        + _u8(15, 1)
        + _u8(Attribute.SUBDEVICE_COUNT, gpu.tiles),
    )


def _kind(port: _Port) -> bytes:
    return _u8(Attribute.PORT_NUMBER, port.number) + _u8(Attribute.PORT_TYPE, PortType.FIXED)


def _properties(port: _Port) -> bytes:
    neighbor, remote = port.neighbor
    active = max(1, port.lanes - 1) if port.fault is PortFault.DEGRADED else port.lanes
    return (
        _kind(port)
        + _u32(_LINK_DOWN_COUNT, 0)
        + _u64(Attribute.NEIGHBOR_GUID, neighbor)
        + _u8(Attribute.NEIGHBOR_PORT_NUMBER, remote)
        + _u8(Attribute.WIDTH_ENABLED, _WIDTHS[port.lanes])
        + _u8(Attribute.WIDTH_ACTIVE, _WIDTHS[active])
        + _u8(_SPEED_ENABLED, 8)
        + _u8(_SPEED_ACTIVE, 8)
        + _u8(_LINK_QUALITY, 3 if port.fault is PortFault.DEGRADED else 5)
    )


def _status(port: _Port) -> bytes:
    head = _u8(Attribute.PORT_NUMBER, port.number)
    match port.fault:
        case PortFault.OFF:
            return head + _u8(Attribute.HEALTH, PortHealth.OFF)
        case PortFault.DEGRADED:
            return head + _u8(Attribute.HEALTH, PortHealth.DEGRADED) + _u8(Attribute.ISSUE_LWD, 1)
        case PortFault.FAILED:
            return (
                head + _u8(Attribute.HEALTH, PortHealth.FAILED) + _u8(Attribute.ERROR_LINK_DOWN, 1)
            )
        case PortFault.ISOLATED | PortFault.UNKNOWN_NEIGHBOR:
            return (
                head + _u8(Attribute.HEALTH, PortHealth.FAILED) + _u8(Attribute.ERROR_ISOLATED, 1)
            )
    return head + _u8(Attribute.HEALTH, PortHealth.HEALTHY)


def _state(port: _Port) -> bytes:
    enabled = port.fault not in {PortFault.OFF, PortFault.DISABLED}
    return _u8(Attribute.PORT_NUMBER, port.number) + _u8(Attribute.ENABLED_STATE, enabled)


# Frames


def _frame(kind: int, sequence: int, command: int, content: bytes) -> bytes:
    head = struct.pack("=IHHII", 20 + len(content), kind, 0, sequence, 0)
    return head + struct.pack("=BBH", command, VERSION, 0) + content


def _error(sequence: int, code: int) -> bytes:
    return struct.pack("=IHHII", 36, 2, 0, sequence, 0) + struct.pack("=i", -code) + bytes(16)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, content: bytes) -> bytes:
    return _attribute(kind | 0x8000, content)


def _u8(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=B", value))


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    # The kernel puts padding before it, where the value would not stand on 8 bytes.
    return _attribute(6, b"") + _attribute(kind, struct.pack("=Q", value))


def _attributes(block: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(block):
        length, kind = struct.unpack_from("=HH", block, at)
        if length < _HEAD:
            raise ValueError("no frame: an attribute without a head")
        yield kind, block[at + 4 : at + length]
        at += length + 3 & ~3
