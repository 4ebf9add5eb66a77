"""Why a scrape of XPU Manager proves nothing. Pure."""

from enum import StrEnum


class ScrapeReason(StrEnum):
    """Why a scrape proves nothing about the links."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    TLS = "tls"
    UNAUTHORIZED = "unauthorized"
    STATUS = "http-status"
    PROTOCOL = "protocol"
    TOO_LARGE = "too-large"
    NOT_XPU_MANAGER = "not-xpu-manager"
    RESOURCES = "resources"
    NO_ROWS = "no-topology-rows"
    NO_SELF_ROWS = "no-self-rows"
    UNREADABLE_ROWS = "unreadable-rows"
    TOO_MANY_GPUS = "too-many-gpus"
