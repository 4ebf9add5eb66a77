"""Frames of the family: built as the vectors have them, read whole or not at all."""

import errno
import json
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data import DATA, needs_data
from xelink.iaf import replies, wire
from xelink.iaf.replies import IafDevice, NotReadyError, Port, PortHealth
from xelink.iaf.wire import Attribute, Command, MalformedFrameError, NetlinkError

FAMILY = 0x1F
VECTORS = DATA / "fabric" / "vectors.json"


@pytest.fixture
def frames() -> dict[str, bytes]:
    found: dict[str, Any] = json.loads(VECTORS.read_text())["iaf_netlink_wire_constructed"]
    return {name: bytes.fromhex(text) for name, text in found.items() if name != "source"}


@needs_data
def test_the_request_for_the_family_is_that_of_the_vectors(frames: dict[str, bytes]) -> None:
    assert wire.family_request(1) == frames["getfamily_request"]


@needs_data
@pytest.mark.parametrize(
    ("name", "sequence", "call"),
    [
        ("device_enum_request", 2, (Command.DEVICE_ENUM,)),
        (
            "fport_properties_request_fabric_0x10000_sd_1",
            3,
            (Command.FPORT_PROPERTIES, 0x10000, 1),
        ),
    ],
)
def test_requests_are_those_of_the_vectors_but_for_the_optional_context(
    frames: dict[str, bytes], name: str, sequence: int, call: tuple[Any, ...]
) -> None:
    theirs, ours = (
        wire.parse(frame, FAMILY) for frame in (frames[name], wire.request(FAMILY, sequence, *call))
    )
    assert wire.sequence_of(frames[name]) == sequence
    optional = (Attribute.CONTEXT, Attribute.MSG_TYPE)
    assert ours.command == theirs.command == call[0]
    assert ours.attributes.number(Attribute.MSG_TYPE, 1) == 0
    assert [item for item in ours.attributes.values.items() if item[0] not in optional] == [
        item for item in theirs.attributes.values.items() if item[0] not in optional
    ]


@needs_data
def test_the_list_of_devices_of_the_vectors_is_read(frames: dict[str, bytes]) -> None:
    reply = wire.parse(frames["device_enum_reply"], FAMILY)
    assert replies.devices(reply) == (IafDevice(0x10000, "i915.iaf.0", "0000:29:00.0", 2),)


@needs_data
def test_the_port_of_the_vectors_is_read(frames: dict[str, bytes]) -> None:
    reply = wire.parse(frames["fport_properties_reply_one_port"], FAMILY)
    status = frame(Command.FPORT_STATUS_QUERY, nested(u8(25, 1) + u8(31, PortHealth.HEALTHY)))
    state = frame(Command.PORT_STATE_QUERY, nested(u8(25, 1) + u8(28, 1)))
    (port,) = replies.ports(reply, wire.parse(status, FAMILY), wire.parse(state, FAMILY))
    assert port == Port(
        number=1,
        type=3,
        enabled=True,
        health=PortHealth.HEALTHY,
        neighbor=(0x0123456789ABCDEF, 7),
        lanes_enabled=4,
        lanes_active=4,
    )


@needs_data
def test_a_driver_that_is_not_ready_is_told_as_that(frames: dict[str, bytes]) -> None:
    reply = wire.parse(frames["error_reply_again"], FAMILY)
    with pytest.raises(NotReadyError, match="FPORT_PROPERTIES ended with result 5"):
        replies.checked(reply, Command.FPORT_PROPERTIES)


@needs_data
def test_no_part_of_a_vector_is_used_where_the_rest_is_missing(frames: dict[str, bytes]) -> None:
    for name in ("device_enum_reply", "fport_properties_reply_one_port"):
        whole = frames[name]
        for length in range(len(whole)):
            with pytest.raises(MalformedFrameError):
                wire.parse(whole[:length], FAMILY)


# What may be sent


def test_only_the_six_queries_can_be_sent() -> None:
    assert {*Command} == {1, 4, 13, 15, 16, 18}
    for number in {*range(256)} - {*Command}:
        with pytest.raises(ValueError, match="is not a valid Command"):
            wire.request(FAMILY, 1, number)


# What is refused


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(content: bytes) -> bytes:
    return attribute(24 | 0x8000, content)


def frame(command: int, content: bytes, kind: int = FAMILY, result: int = 0) -> bytes:
    content += u8(3, result) + u8(1, 1)
    return struct.pack("=IHHIIBBH", 20 + len(content), kind, 0, 1, 0, command, 1, 0) + content


def error(code: int) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, 1, 0, code) + bytes(16)


@pytest.mark.parametrize(
    ("code", "number"),
    [(-2, errno.ENOENT), (-1, errno.EPERM), (-22, errno.EINVAL), (-95, errno.EOPNOTSUPP)],
)
def test_an_error_of_the_generic_layer_is_its_number(code: int, number: int) -> None:
    with pytest.raises(NetlinkError) as caught:
        wire.parse(error(code), FAMILY)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("malformed", "reason"),
    [
        pytest.param(b"", "shorter than a header", id="nothing"),
        pytest.param(frame(1, b"")[:15], "shorter than a header", id="cut in the header"),
        pytest.param(frame(1, b"")[:-4], "says 36 bytes, and has 32", id="cut"),
        pytest.param(frame(1, b"") + bytes(4), "goes on after", id="stretched"),
        pytest.param(frame(1, b"", kind=0x20), "a message of type 32, not 31", id="another family"),
        pytest.param(frame(1, struct.pack("=HH", 3, 7)), "has 3 bytes", id="attribute too short"),
        pytest.param(frame(1, struct.pack("=HH", 99, 7)), "has 99 bytes", id="attribute too long"),
        pytest.param(error(0), "acknowledgment", id="an acknowledgment"),
    ],
)
def test_a_frame_that_cannot_be_is_refused_and_quoted(malformed: bytes, reason: str) -> None:
    with pytest.raises(MalformedFrameError, match=reason) as caught:
        wire.parse(malformed, FAMILY)
    assert caught.value.frame == malformed[:64]
    assert malformed[:8].hex() in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(frame(4, b""), "a reply to command 4", id="of another command"),
        pytest.param(frame(13, u8(29, 1) + u8(30, 1)), "not one number of 4", id="a short number"),
        pytest.param(frame(13, b""), "no ROUTING_GEN_START", id="a number is missing"),
    ],
)
def test_a_reply_that_says_too_little_is_refused(reply: bytes, reason: str) -> None:
    with pytest.raises(MalformedFrameError, match=reason):
        replies.generation(wire.parse(reply, FAMILY))


def ports(*numbers: int) -> bytes:
    return b"".join(nested(u8(25, number) + u8(26, 2)) for number in numbers)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        pytest.param(ports(1, 1), "port 1 twice", id="a port twice"),
        pytest.param(ports(1, 2), "port 2 is not in every reply", id="a port too many"),
        pytest.param(nested(u8(26, 2)), "no PORT_NUMBER", id="a port without a number"),
    ],
)
def test_ports_that_contradict_each_other_are_refused(properties: bytes, reason: str) -> None:
    parsed = (
        wire.parse(one, FAMILY)
        for one in (
            frame(Command.FPORT_PROPERTIES, properties),
            frame(Command.FPORT_STATUS_QUERY, nested(u8(25, 1) + u8(31, 3))),
            frame(Command.PORT_STATE_QUERY, nested(u8(25, 1) + u8(28, 1))),
        )
    )
    with pytest.raises(MalformedFrameError, match=reason):
        replies.ports(*parsed)


# What is overlooked


def test_unknown_attributes_padding_and_nested_marks_are_overlooked() -> None:
    content = (
        attribute(6, b"")  # padding
        + attribute(0x3FF, b"new")
        + attribute(29 | 0x8000, struct.pack("=I", 7))
        + attribute(30 | 0x4000, struct.pack("=I", 7))
    )
    generation = replies.generation(wire.parse(frame(13, content), FAMILY))
    assert generation == (7, 7)
    assert generation.settled


@given(st.binary(max_size=200))
@example(frame(1, nested(struct.pack("=HH", 200, 1))))
def test_any_bytes_are_a_reply_or_refused(block: bytes) -> None:
    for whole in (block, frame(1, block), frame(18, nested(block))):
        try:
            reply = wire.parse(whole, FAMILY)
            replies.devices(reply)
        except (MalformedFrameError, NetlinkError, replies.DriverError):
            continue
