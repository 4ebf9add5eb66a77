"""Why a look at the driver proves nothing. Pure."""

from enum import StrEnum


class DriverReason(StrEnum):
    """Why a look at the driver proves nothing about the links."""

    NO_DRIVER = "no-driver"
    """No Intel GPU of this node has the fabric part of the driver."""
    BUS = "bus-unreadable"
    """Some GPU of this node cannot be read, so that no device id is certain."""
    NOT_HOST_NETWORK = "not-host-network"
    """It has, and the netlink family is not there: another network namespace."""
    STARTING = "starting"
    """Not every tile has been initialized, or a routing sweep is under way."""
    DRIVER_ERROR = "driver-error"
    MALFORMED = "malformed-reply"
    TIMEOUT = "timeout"
    RESOURCES = "resources"
    """This process has no socket to ask with."""
