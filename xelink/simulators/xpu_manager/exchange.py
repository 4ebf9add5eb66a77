"""One GET of the metrics as a misbehaviour sees it: the good answer, and the bare connection."""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from functools import cached_property
from http import HTTPStatus
from threading import Event
from types import MappingProxyType

from xelink.simulators.xpu_manager.exposition import render
from xelink.simulators.xpu_manager.node import SimulatedNode

TEXT = "text/plain"
HTML = "text/html; charset=utf-8"
DAEMON_DOWN = b"#nodata: due to unexpected failure"
NO_DEVICES = b"#nodata: failed to get devices (1)"

_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class MetricsRequest:
    """What a client sent. Header names are in lower case; `body` is decoded by the receiver."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    version: str = "HTTP/1.1"

    @classmethod
    def of(cls, line: bytes, headers: Message, body: bytes) -> "MetricsRequest":
        """Read a request line; raises `ValueError`."""
        method, path, version = line.decode("latin-1").split()
        lowered = {name.lower(): value for name, value in headers.items()}
        return cls(method, path.partition("?")[0], MappingProxyType(lowered), body, version)

    @property
    def keeps_alive(self) -> bool:
        """Return whether the client may use the connection again."""
        return self.version == "HTTP/1.1" and self.headers.get("connection", "").lower() != "close"


@dataclass(frozen=True)
class Moment:
    """What holds when a worker takes a request; `recovered` is set when it behaves again."""

    node: SimulatedNode
    recovered: Event = field(default_factory=Event)
    scrape: int = 0
    overlapping: bool = False


class Exchange:
    """A request being answered: `answer` as the exporter would, or `send` any bytes at all.

    The connection ends after the exchange when `hang_up` or `reset` was called. `overlapping`
    is whether another GET of the metrics was being handled when this one came.
    """

    def __init__(self, connection: socket.socket, request: MetricsRequest, moment: Moment) -> None:
        self.request = request
        self.node = moment.node
        self.scrape = moment.scrape
        self.overlapping = moment.overlapping
        self.ends_here = not request.keeps_alive
        self._connection = connection
        self._recovered = moment.recovered

    @cached_property
    def body(self) -> bytes:
        """The body of the good answer."""
        return render(self.node, self.scrape)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait so long, or for ever; return True as soon as the simulator recovers or ends."""
        return self._recovered.wait(seconds)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connection.sendall(data)

    def head(self, status: int = 200, **headers: str) -> bytes:
        """Return a head as gunicorn writes it; `content_type` stands for `Content-Type`."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        lines = [
            f"HTTP/1.1 {status} {_reason(status)}",
            "Server: ",
            f"Date: {formatdate(usegmt=True)}",
            f"Connection: {'close' if self.ends_here else 'keep-alive'}",
            *(f"{name}: {value}" for name, value in named.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def answer(self, body: bytes, status: int = 200, kind: str = TEXT, **headers: str) -> None:
        """Answer in good form: a whole head, then the body unless it was asked to stay away."""
        head = self.head(status, content_type=kind, content_length=str(len(body)), **headers)
        self.send(head if self.request.method == "HEAD" else head + body)

    def answer_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON, as the control does."""
        self.answer(json.dumps(value, indent=1).encode() + b"\n", status, "application/json")

    def not_found(self) -> None:
        """Answer as Flask does for a path that it does not know."""
        text = (
            "The requested URL was not found on the server. "
            "If you entered the URL manually please check your spelling and try again."
        )
        self.answer(_page(404, text), 404, HTML)

    def not_allowed(self) -> None:
        """Answer as Flask does for a method that a path does not take."""
        text = "The method is not allowed for the requested URL."
        self.answer(_page(405, text), 405, HTML, allow="GET, HEAD, OPTIONS")

    def unauthorized(self) -> None:
        """Answer as the exporter does for wrong or missing credentials, after its sleep."""
        basic = 'Basic realm="Authentication Required"'
        self.answer(b"Unauthorized Access", 401, HTML, www_authenticate=basic)

    def daemon_down_page(self) -> None:
        """Answer as Flask does when the health check itself breaks."""
        text = (
            "The server encountered an internal error and was unable to complete your request. "
            "Either the server is overloaded or there is an error in the application."
        )
        self.answer(_page(500, text), 500, HTML)

    def hang_up(self) -> None:
        """End the connection after this exchange, in peace."""
        self.ends_here = True

    def reset(self) -> None:
        """End the connection after this exchange with a TCP reset."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.ends_here = True


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.upper()
    except ValueError:
        return "UNKNOWN"


def _page(status: int, text: str) -> bytes:
    title = f"{status} {HTTPStatus(status).phrase}"
    return (
        f"<!doctype html>\n<html lang=en>\n<title>{title}</title>\n"
        f"<h1>{HTTPStatus(status).phrase}</h1>\n<p>{text}</p>\n"
    ).encode()
