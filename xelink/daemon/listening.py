"""The socket of `-listen`: one for IPv6 and IPv4, if the kernel has both."""

import errno
import socket
from collections.abc import Iterator
from typing import Any, TypeAlias

from xelink.daemon.setting_types import split_address

_Address: TypeAlias = tuple[Any, ...]
"""Host and port, and for IPv6 more fields of the resolver."""

_BACKLOG = 128
# Buffer in the kernel, which doubles it, for each connection.
_BUFFER = 32 << 10

_WILDCARDS = {"", "::"}
# A family that the kernel does not have, or has no address of
_NOT_HERE = {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL}


def open_listener(listen: str) -> tuple[socket.socket, str]:
    """Listen on `host:port`; return the socket, and the address with the port that it got.

    Without a host, or with `[::]`, it is every address of both families, as in Go programs. Without
    a host and IPv6, it is every IPv4 address. Raises `OSError`, and `ValueError` for an invalid
    address.
    """
    host, port = split_address(listen)
    name = f"[{host}]" if ":" in host else host
    missing: OSError | None = None
    for family, address in _candidates(host, port):
        try:
            opened = _opened(family, address, both=host in _WILDCARDS)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            missing = missing or error
        else:
            return opened, f"{name}:{opened.getsockname()[1]}"
    raise missing or OSError("it has no address")


def _candidates(host: str, port: int) -> Iterator[tuple[int, _Address]]:
    """Return what to try in turn: a name may have addresses of a family that is missing."""
    if host in _WILDCARDS:
        yield socket.AF_INET6, ("::", port)
        if not host:
            yield socket.AF_INET, ("0.0.0.0", port)  # noqa: S104 - every address is what was asked for
        return
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in found:
        yield family, address


def _opened(family: int, address: _Address, *, both: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Before it listens: each connection inherits them.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        opened.bind(address)
        opened.listen(_BACKLOG)
        opened.setblocking(False)  # noqa: FBT003 - it has no name
    except BaseException:
        opened.close()
        raise
    return opened
