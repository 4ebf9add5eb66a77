"""The `-listen` server: probes for kubelet, metrics for Prometheus, pages for people.

`http_requests` parses requests and `connections` holds connections; this module answers.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from prometheus_client import make_wsgi_app
from structlog.typing import FilteringBoundLogger

from xelink.daemon.command import CannotStartError
from xelink.daemon.connections import Connections, Later, Refusal
from xelink.daemon.http_requests import (
    MOST_HEAD,
    HttpRequest,
    MalformedRequestError,
    is_answered,
    own_names,
    parse,
)
from xelink.daemon.listening import open_listener
from xelink.daemon.logs import Changes
from xelink.daemon.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication


class ProbeResult(NamedTuple):
    """The result of a probe that has a text in any case."""

    ok: bool
    text: str


Probe: TypeAlias = Callable[[], ProbeResult | str | None]
"""Returns None if all is well, a line with the problem, or a `ProbeResult`."""


class PageReply(NamedTuple):
    """The answer of a page: a media type, further headers, a body."""

    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Page: TypeAlias = Callable[[], PageReply]


@dataclass(frozen=True)
class Site:
    """What is served in addition to the metrics, by path, and under which names."""

    probes: Mapping[str, Probe] = field(default_factory=dict)
    pages: Mapping[str, Page] = field(default_factory=dict)
    names: frozenset[str] = own_names("", {}, frozenset())


class ListenError(CannotStartError):
    """The address cannot be listened on: a daemon without probes does not start."""


@contextmanager
def serving(
    listen: str, metrics: Metrics, site: Site, log: FilteringBoundLogger
) -> Iterator[str | None]:
    """Serve `/metrics` and one path for each probe and each page while the block runs.

    Gives the `host:port` in use (port 0 picks a free one), or None where `listen` is empty. Raises
    `ListenError`.
    """
    if not listen:
        yield None
        return
    try:
        listener, address = open_listener(listen)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded
        raise ListenError(
            f"cannot listen on {listen}: {error}; give -listen another address, or none"
        ) from None
    connections = Connections(listener, _Application(metrics, site, log), log)
    stopped, stop = socket.socketpair()
    thread = threading.Thread(target=connections.run, args=(stopped,), name="listen", daemon=True)
    thread.start()
    try:
        yield address
    finally:
        stop.close()
        thread.join()
        stopped.close()
        listener.close()


_PLAIN = (("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff"))
_METHODS = ("GET", "HEAD")

_ERRORS = {
    Refusal.CROWD: ("503 Service Unavailable", "there are too many connections"),
    Refusal.SLOW: ("408 Request Timeout", "the request or its answer takes too long"),
    Refusal.LATE: ("503 Service Unavailable", "the answer takes too long to make"),
    Refusal.LARGE: (
        "431 Request Header Fields Too Large",
        f"a request has at most {MOST_HEAD} bytes of headers",
    ),
    Refusal.MALFORMED: ("400 Bad Request", "this is no request"),
    Refusal.HOST: (
        "421 Misdirected Request",
        "this name is not answered: ask by address, or add it with -listen-names",
    ),
}


class _Application:
    """Answers requests."""

    def __init__(self, metrics: Metrics, site: Site, log: FilteringBoundLogger) -> None:
        self._registry = make_wsgi_app(metrics.registry)
        self._refused = metrics.refused
        self._site = site
        self._log = log
        self._errors = Changes()
        for refusal in Refusal:
            self._refused.labels(refusal.value)

    def answer(self, head: bytes) -> bytes | Later:
        """Return the answer to a request, or the work that prepares it."""
        try:
            request = parse(head)
        except MalformedRequestError as error:
            return self.refuse(Refusal.MALFORMED, str(error))
        body = request.method != "HEAD"
        if not is_answered(request.host, self._site.names):
            return self.refuse(Refusal.HOST, body=body)
        if request.method not in _METHODS:
            allow = ("Allow", ", ".join(_METHODS))
            said = b"this is read-only: GET or HEAD\n"
            return _render("405 Method Not Allowed", (allow, *_PLAIN), said)
        paths = ("/metrics", *self._site.probes, *self._site.pages)
        if request.path not in paths:
            return _render("404 Not Found", _PLAIN, f"try {' '.join(paths)}\n".encode(), body=body)
        return Later(request.path, partial(self._work, request))

    def refuse(self, refusal: Refusal, why: str | None = None, *, body: bool = True) -> bytes:
        """Count a rejected request; return its answer."""
        self._refused.labels(refusal.value).inc()
        status, said = _ERRORS[refusal]
        return _render(status, _PLAIN, f"{why or said}\n".encode(), body=body)

    def _work(self, request: HttpRequest) -> bytes:
        failure: Exception | None = None
        try:
            status, headers, said = self._found(request)
        except Exception as error:  # noqa: BLE001 - an error of a page does not end the daemon
            status, headers, said = "500 Internal Server Error", _PLAIN, b"an error; see the log\n"
            failure = error
        if self._errors.of(request.path, repr(failure)) and failure:
            # An error of the system, such as no descriptor, needs no trace of the program.
            trace = None if isinstance(failure, OSError) else failure
            self._log.error(
                "an answer failed", path=request.path, reason=repr(failure), exc_info=trace
            )
        return _render(status, headers, said, body=request.method != "HEAD")

    def _found(self, request: HttpRequest) -> "_Answer":
        if request.path == "/metrics":
            return _asked(self._registry, request)
        if page := self._site.pages.get(request.path):
            reply = page()
            return "200 OK", (("Content-Type", reply.type), *reply.headers), reply.body
        found = self._site.probes[request.path]()
        ok, said = found if isinstance(found, ProbeResult) else (not found, found or "ok")
        return "200 OK" if ok else "503 Service Unavailable", _PLAIN, f"{said}\n".encode()


_Headers: TypeAlias = tuple[tuple[str, str], ...]
_Answer: TypeAlias = tuple[str, _Headers, bytes]


def _asked(application: "WSGIApplication", request: HttpRequest) -> _Answer:
    """Call prometheus_client's application, which reads these keys and does not support HEAD."""
    started: list[tuple[str, _Headers]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: object = None, /) -> None:
        started.append((status, tuple(headers)))

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "HTTP_ACCEPT": request.headers.get("accept", ""),
        "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
    }
    body = b"".join(application(environ, start_response))  # type: ignore[arg-type]  # it writes nothing else
    return *started[0], body


def _render(status: str, headers: _Headers, said: bytes, *, body: bool = True) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"Date: {formatdate(usegmt=True)}",
        *(f"{name}: {value}" for name, value in headers),
        f"Content-Length: {len(said)}",
        "Connection: close",
    )
    head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"
    return head + said if body else head
