"""Parses the head of a request to the `-listen` server, and checks its Host."""

import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

MOST_HEAD = 16 << 10
"""Bytes of a request's line and headers."""

ANY = "*"
"""A name that stands for all of them."""


class HttpRequest(NamedTuple):
    """A request. `host` is None if an HTTP/1.0 client sent none; header names are lower case."""

    method: str
    path: str
    query: str
    host: str | None
    headers: Mapping[str, str]


class MalformedRequestError(Exception):
    """Not a request: the client gets 400 with this line."""


# request-line = method SP request-target SP "HTTP/1." DIGIT ; method and field-name are tokens
# field-line   = field-name ":" OWS field-value OWS
# Each ends in CRLF, for which a bare LF is taken, too (RFC 9112, 2.2); no line is folded.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rf"({_WORD}) ([!-~]+) (HTTP/1\.[0-9])", re.ASCII)
_NAME = re.compile(_WORD, re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_END = re.compile(rb"\n\r?\n")
_LOOK_BACK = 2  # of the end's three bytes, two may have come before


def head_end(received: bytes | bytearray, before: int = 0) -> int | None:
    """Return where the head ends, None if it is incomplete; `before` bytes were searched."""
    found = _END.search(received, max(0, before - _LOOK_BACK))
    return found.end() if found else None


def parse(head: bytes) -> HttpRequest:
    """Read a head, its empty line included or not. Raises `MalformedRequestError`."""
    first, *rest = (line.removesuffix("\r") for line in head.decode("latin-1").split("\n"))
    line = _LINE.fullmatch(first)
    if not line:
        raise MalformedRequestError("this is no request of HTTP/1.0 or HTTP/1.1")
    method, target, version = line.groups()
    headers: dict[str, str] = {}
    for field in rest:
        if not field:
            break
        name, colon, value = field.partition(":")
        if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
            raise MalformedRequestError("a header is malformed")
        key = name.lower()
        if key == "host" and key in headers:
            raise MalformedRequestError("there are two Host headers")
        value = value.strip(" \t")
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    host, target = _authority(target, headers.get("host"))
    if not host and version != "HTTP/1.0":
        raise MalformedRequestError("there is no Host header")
    path, _, query = target.partition("?")
    return HttpRequest(method, path, query, host or None, headers)


# absolute-form = "http://" authority path-abempty [ "?" query ] ; its authority wins over Host
def _authority(target: str, host: str | None) -> tuple[str | None, str]:
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() != "http":
        return host, target
    authority, slash, path = rest.partition("/")
    return authority, slash + path


# Host = ( "[" IPv6 "]" / IPv4 / name ) [ ":" port ]
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{0,5})?", re.ASCII
)


def requested_name(host: str) -> str | None:
    """Return the name in a Host header, as by `normalized`; None for an address.

    An address can only be the server's own, while a name can resolve to any server. Anything else
    is
    returned as an empty name, which no host has.
    """
    found = _HOST.fullmatch(host)
    if not found:
        return ""
    address, name = found.groups()
    if address:
        return None if _is_address(socket.AF_INET6, address) else ""
    return None if _is_address(socket.AF_INET, name) else normalized(name)


def normalized(name: str) -> str:
    """Return a DNS name in the form in which names are compared."""
    return name.lower().removesuffix(".")


def is_answered(host: str | None, names: frozenset[str]) -> bool:
    """Return whether a request for this host is for us: an address, no host, or one of `names`."""
    if host is None or ANY in names:
        return True
    name = requested_name(host)
    return name is None or name in names


def own_names(hostname: str, environ: Mapping[str, str], more: frozenset[str]) -> frozenset[str]:
    """Return the names of this host: its own, the node's and the Pod's, `localhost`, and `more`."""
    given = (environ.get(name, "") for name in ("NODE_NAME", "POD_NAME"))
    return frozenset(filter(None, map(normalized, ("localhost", hostname, *given, *more))))


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True
