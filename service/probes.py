"""The `-listen` server: probes for kubelet, metrics for Prometheus, pages for people.

prometheus_client's WSGI application on the standard library's server: no further dependency, a
short-lived thread for each request, nothing in it can hold up the daemon's loop.
"""

import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from service.command import CannotStartError
from service.values import split_address

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_REQUEST_SECONDS = 5
_MOST_REQUESTS = 16


class Verdict(NamedTuple):
    """What a probe says that has more to tell than what is wrong."""

    fine: bool
    text: str


Probe: TypeAlias = Callable[[], Verdict | str | None]
"""Gives None when all is well, a line that says what is not, or a verdict."""


class Reply(NamedTuple):
    """What a page answers: a media type, further headers, a body."""

    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Page: TypeAlias = Callable[[], Reply]


class ListenError(CannotStartError):
    """The address cannot be listened on: a daemon that nobody can probe does not start."""


@contextmanager
def serving(
    listen: str,
    registry: CollectorRegistry,
    probes: Mapping[str, Probe],
    pages: Mapping[str, Page] | None = None,
) -> Iterator[str | None]:
    """Serve `/metrics` and one path for each probe and each page while the block runs.

    Gives the `host:port` in use (port 0 picks a free one), or None where `listen` is empty. Raises
    `ListenError`.
    """
    if not listen:
        yield None
        return
    try:
        host, port = split_address(listen)
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = _server_class(family)(address[:2], _Handler)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded
        raise ListenError(
            f"cannot listen on {listen}: {error}; give -listen another address, or none"
        ) from None
    server.set_app(_application(registry, probes, pages or {}))
    # The standard library's way to stop a server wakes it several times a second, for years.
    stopped, stop = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(server, stopped), daemon=True)
    thread.start()
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"{name}:{server.server_address[1]}"
    finally:
        stop.close()
        thread.join()
        stopped.close()
        server.server_close()


def _serve(server: WSGIServer, stopped: socket.socket) -> None:
    server.timeout = 0  # a connection that is gone when it is looked for is not waited for
    awaited = server.fileno(), stopped.fileno()
    while stopped.fileno() not in select.select(awaited, (), ())[0]:
        server.handle_request()


_PLAIN = ("Content-Type", "text/plain; charset=utf-8")


def _application(
    registry: CollectorRegistry, probes: Mapping[str, Probe], pages: Mapping[str, Page]
) -> "WSGIApplication":
    metrics = make_wsgi_app(registry)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), _PLAIN])
            return [b"this only tells: GET or HEAD\n"]
        if path == "/metrics":
            body: Iterable[bytes] = metrics(environ, start_response)
            return body
        if path in pages:
            reply = pages[path]()
            start_response("200 OK", [("Content-Type", reply.type), *reply.headers])
            return [reply.body]
        if path in probes:
            found = probes[path]()
            fine, said = found if isinstance(found, Verdict) else (not found, found or "ok")
            status, text = "200 OK" if fine else "503 Service Unavailable", f"{said}\n"
        else:
            status, text = "404 Not Found", f"try {' '.join(['/metrics', *probes, *pages])}\n"
        start_response(status, [_PLAIN])
        return [text.encode()]

    return answer


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base names it
        """Say nothing: a probe every few seconds is no news."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = _MOST_REQUESTS  # connections over it would be late by a second
    block_on_close = False

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 - handed on as they are
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__(*args)

    def server_bind(self) -> None:
        # The base class asks DNS for the name of the address; nothing here needs it, and a node
        # whose DNS hangs would not start.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base
        """Drop it: a client that hung up is no event of the daemon's."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


def _server_class(family: int) -> type[_Server]:
    return _ServerV6 if family == socket.AF_INET6 else _Server
