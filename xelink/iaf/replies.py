"""What the replies of the driver say: devices, tiles and ports. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from xelink.iaf.wire import Attribute, Attributes, Command, DriverReply, MalformedFrameError

_WIDTHS = {1: 1, 2: 2, 4: 3, 8: 4}

DEVICE_LIMIT = 64
TILE_LIMIT = 4
PORT_LIMIT = 64


class DriverResult(IntEnum):
    """How the driver says that a query went."""

    SUCCESS = 0
    FAILURE = 1
    MAIL_BOX_ERROR = 2
    NOMEM = 3
    MSGSIZE = 4
    AGAIN = 5
    INVALID_INTERFACE_VERSION = 6
    MISSING_FABRIC_ID = 7
    MISSING_SD_INDEX = 8
    UNKNOWN_FABRIC_ID = 9
    SD_INDEX_OUT_OF_RANGE = 10
    PORT_RANGE_ERROR = 11
    MISSING_PORT_NUMBER = 12
    MISSING_MSG_TYPE = 13
    MSG_TYPE_NOT_REQUEST = 14


class PortHealth(IntEnum):
    """What the driver says of a port."""

    OFF = 0
    FAILED = 1
    DEGRADED = 2
    HEALTHY = 3


class PortType(IntEnum):
    """What a port leads to."""

    UNKNOWN = 0
    DISCONNECTED = 1
    FIXED = 2
    VARIABLE = 3
    STANDARD = 4
    SI_PHOTONICS = 5


class DriverError(Exception):
    """The driver could not answer; `code` is its result."""

    def __init__(self, command: Command, code: int) -> None:
        self.code = code
        name = DriverResult(code).name if code in {*DriverResult} else "unknown"
        super().__init__(f"{command.name} ended with result {code} ({name})")


class NotReadyError(DriverError):
    """Not every tile has been initialized: ask again."""


class Generation(NamedTuple):
    """The routing generation; a sweep is under way while both differ."""

    start: int
    end: int

    @property
    def settled(self) -> bool:
        """Whether no sweep is under way."""
        return self.start == self.end


class IafDevice(NamedTuple):
    """One GPU with Xe Links; `parent` is the name of its parent device, a PCI address."""

    fabric_id: int
    name: str
    parent: str
    tiles: int


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a tile.

    Lanes are 1 to 4; None where the driver names none, or a width that this version does not know.
    `issues` are why it is degraded, `errors` why it has failed.
    """

    number: int
    type: int
    enabled: bool
    health: int
    issues: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    neighbor: tuple[int, int] | None = None
    """GUID of the neighbor's tile and number of its port."""
    lanes_enabled: int | None = None
    lanes_active: int | None = None

    @property
    def ailment(self) -> str:
        """Why it is degraded or has failed; empty where it is neither."""
        match self.health:
            case PortHealth.DEGRADED:
                width = ""
                if self.lanes_active and self.lanes_enabled:
                    width = f", {self.lanes_active} of {self.lanes_enabled} lanes"
                return f"degraded ({', '.join(self.issues) or 'no reason given'}{width})"
            case PortHealth.FAILED:
                return f"failed ({', '.join(self.errors) or 'no reason given'})"
        return ""


@dataclass(frozen=True, slots=True)
class TileFabric:
    """One tile: its GUID and its ports."""

    guid: int
    ports: tuple[Port, ...] = ()


def checked(reply: DriverReply, command: Command) -> Attributes:
    """Return the attributes of a reply to a command that went well.

    Raises `DriverError`, as one of them `NotReadyError`, and `MalformedFrameError`.
    """
    attributes = reply.attributes
    if reply.command != command:
        raise MalformedFrameError(f"a reply to command {reply.command}", attributes.frame)
    if attributes.required(Attribute.MSG_TYPE, 1) != 1:
        raise MalformedFrameError("no response", attributes.frame)
    code = attributes.required(Attribute.RESULT, 1)
    if code == DriverResult.AGAIN:
        raise NotReadyError(command, code)
    if code != DriverResult.SUCCESS:
        raise DriverError(command, code)
    return attributes


def generation(reply: DriverReply) -> Generation:
    """Return the routing generation. Raises as `checked` does."""
    found = checked(reply, Command.ROUTING_GEN_QUERY)
    return Generation(
        found.required(Attribute.ROUTING_GEN_START, 4), found.required(Attribute.ROUTING_GEN_END, 4)
    )


def devices(reply: DriverReply) -> tuple[IafDevice, ...]:
    """Return every GPU with Xe Links. Raises as `checked` does."""
    found = checked(reply, Command.DEVICE_ENUM)
    entries = tuple(
        IafDevice(
            one.required(Attribute.FABRIC_ID, 4),
            one.text(Attribute.DEV_NAME),
            one.text(Attribute.PARENT_DEV_NAME),
            one.required(Attribute.SUBDEVICE_COUNT, 1),
        )
        for one in found.nested(Attribute.FABRIC_DEVICE)
    )
    if found.required(Attribute.ENTRIES, 2) != len(entries):
        raise MalformedFrameError("another number of devices than it says", found.frame)
    ids = {device.fabric_id for device in entries}
    if len(ids) != len(entries) or len(entries) > DEVICE_LIMIT:
        raise MalformedFrameError("fabric ids that repeat, or too many", found.frame)
    if any(not 1 <= device.tiles <= TILE_LIMIT for device in entries):
        raise MalformedFrameError("a device without tiles, or with too many", found.frame)
    return entries


def guid(reply: DriverReply) -> int:
    """Return the GUID of a tile. Raises as `checked` does."""
    return checked(reply, Command.SUB_DEVICE_PROPERTIES_GET).required(Attribute.GUID, 8)


def ports(properties: DriverReply, status: DriverReply, state: DriverReply) -> tuple[Port, ...]:
    """Return the ports of a tile that lead somewhere, from the three replies that describe them.

    Port 0 and those that are disconnected are none; a reply may list others that no other one has.
    Raises as `checked` does, and `MalformedFrameError` where one of the replies lacks a port.
    """
    every = dict(_by_number(checked(properties, Command.FPORT_PROPERTIES)))
    health = dict(_by_number(checked(status, Command.FPORT_STATUS_QUERY)))
    enabled = dict(_by_number(checked(state, Command.PORT_STATE_QUERY)))
    listed = [number for number, one in every.items() if number and _leads_somewhere(one)]
    for number in listed:
        if number not in health or number not in enabled:
            raise MalformedFrameError(
                f"port {number} is not in every reply", properties.attributes.frame
            )
    return tuple(
        _port(number, every[number], health[number], enabled[number]) for number in sorted(listed)
    )


def _leads_somewhere(properties: Attributes) -> bool:
    return properties.required(Attribute.PORT_TYPE, 1) != PortType.DISCONNECTED


def _by_number(attributes: Attributes) -> Iterator[tuple[int, Attributes]]:
    seen: set[int] = set()
    for one in attributes.nested(Attribute.FABRIC_PORT):
        number = one.required(Attribute.PORT_NUMBER, 1)
        if number in seen or len(seen) >= PORT_LIMIT:
            raise MalformedFrameError(f"port {number} twice, or too many", attributes.frame)
        seen.add(number)
        yield number, one


_ISSUES = {
    Attribute.ISSUE_LQI: "link quality",
    Attribute.ISSUE_LWD: "link width",
    Attribute.ISSUE_RATE: "bit rate",
}
_ERRORS = {
    Attribute.ERROR_FAILED: "failed",
    Attribute.ERROR_ISOLATED: "isolated",
    Attribute.ERROR_FLAPPING: "flapping",
    Attribute.ERROR_LINK_DOWN: "link down",
    Attribute.ERROR_DID_NOT_TRAIN: "did not train",
}


def _port(number: int, properties: Attributes, status: Attributes, state: Attributes) -> Port:
    remote = properties.number(Attribute.NEIGHBOR_GUID, 8)
    remote_port = properties.number(Attribute.NEIGHBOR_PORT_NUMBER, 1)
    active = [
        lanes
        for kind in (
            Attribute.WIDTH_ACTIVE,
            Attribute.WIDTH_DOWNGRADE_RX_ACTIVE,
            Attribute.WIDTH_DOWNGRADE_TX_ACTIVE,
        )
        if (lanes := _for_people(properties, kind)) is not None
    ]
    return Port(
        number=number,
        type=properties.required(Attribute.PORT_TYPE, 1),
        enabled=bool(state.required(Attribute.ENABLED_STATE, 1)),
        health=status.required(Attribute.HEALTH, 1),
        issues=tuple(name for kind, name in _ISSUES.items() if status.flag(kind)),
        errors=tuple(name for kind, name in _ERRORS.items() if status.flag(kind)),
        neighbor=(remote, remote_port) if remote and remote_port else None,
        lanes_enabled=_lanes(properties, Attribute.WIDTH_ENABLED),
        lanes_active=min(active, default=None),
    )


def _lanes(properties: Attributes, kind: Attribute) -> int | None:
    """Return the lanes of the widest of the widths in a mask; of an unknown one None."""
    mask = properties.number(kind, 1)
    return _WIDTHS.get(1 << mask.bit_length() - 1) if mask else None


def _for_people(properties: Attributes, kind: Attribute) -> int | None:
    """Return lanes on which no link rests, so that a malformed number is none."""
    try:
        return _lanes(properties, kind)
    except MalformedFrameError:
        return None
