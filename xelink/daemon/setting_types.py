"""Types of settings, for the parser and for their users. Imports no library."""

from enum import Enum


class LogFormat(Enum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


def split_address(listen: str) -> tuple[str, int]:
    """Split `host:port`, `[v6]:port` or `:port`. Raises `ValueError`."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the highest port
        raise ValueError("should be host:port, such as 127.0.0.1:29998 or [::1]:29998")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("should be [host]:port, as the host has colons: [::1]:29998")
    return host.removeprefix("[").removesuffix("]"), int(port)
