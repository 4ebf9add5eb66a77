"""HTTP/1.1 for httpx over the standard library's client: one connection, one request at a time.

httpx's own transport takes most of a scrape's processor time, for what a scrape does not need:
pools, locks, events, a parser over every chunk. Only httpx's exceptions come out.
"""

import select
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    RemoteDisconnected,
)

import httpx

_CHUNK = 1 << 17

CERTIFICATE = "certificate"
"""Extension of a response: the server's certificate, as `ssl` gives it; not there without TLS."""


class HungUpError(httpx.RemoteProtocolError):
    """The server closed the connection before it answered."""


class Transport(httpx.BaseTransport):
    """Keeps one connection, as long as the server does."""

    def __init__(self, context: ssl.SSLContext | None, timeout: float) -> None:
        """Take what HTTPS is verified with, and seconds for each step."""
        self._context = context
        self._timeout = timeout
        self._idle: HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection."""
        idle, self._idle = self._idle, None
        if idle:
            idle.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and read the head of the answer. Raises `httpx.TransportError`."""
        connection = self._connected(request.url)
        try:
            sock = connection.sock
            certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
            with suppress(OSError):  # a server that hangs up may have said why before
                _send(connection, request)
            with _as_httpx(httpx.ReadTimeout, httpx.ReadError):
                answer = connection.getresponse()
            return httpx.Response(
                answer.status,
                headers=[
                    (name.encode("latin-1"), value.encode("latin-1", "replace"))
                    for name, value in answer.getheaders()
                ],
                stream=_Body(answer, connection, self._keep),
                extensions={CERTIFICATE: certificate} if certificate else {},
            )
        except BaseException:
            connection.close()
            raise

    def _connected(self, url: httpx.URL) -> HTTPConnection:
        idle, self._idle = self._idle, None
        if idle:
            # Whatever came meanwhile, an end or bytes that nobody asked for: it is of no use.
            if not select.select([idle.sock], [], [], 0)[0]:
                return idle
            idle.close()
        connection = HTTPConnection(url.host, url.port, timeout=self._timeout)
        if url.scheme == "https":
            connection = HTTPSConnection(
                url.host, url.port, timeout=self._timeout, context=self._context
            )
        with _as_httpx(httpx.ConnectTimeout, httpx.ConnectError):
            connection.connect()
        return connection

    def _keep(self, connection: HTTPConnection) -> None:
        self._idle = connection


def _send(connection: HTTPConnection, request: httpx.Request) -> None:
    target = request.url.raw_path.decode("ascii")
    connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.raw:
        connection.putheader(name.decode("ascii"), value)
    connection.endheaders()


class _Body(httpx.SyncByteStream):
    """The body as it comes, never all of it at once."""

    def __init__(
        self,
        answer: HTTPResponse,
        connection: HTTPConnection,
        keep: Callable[[HTTPConnection], None],
    ) -> None:
        self._answer = answer
        self._connection = connection
        self._keep = keep
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with _as_httpx(httpx.ReadTimeout, httpx.ReadError):
                chunk = self._answer.read(_CHUNK)
            if not chunk:
                break
            yield chunk
        if self._answer.length:  # what is still to come of the length that was promised
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body"
                f" ({self._answer.length} bytes are missing)"
            )
        self._whole = True

    def close(self) -> None:
        self._answer.close()
        if self._whole and not self._answer.will_close:
            self._keep(self._connection)
        else:
            self._connection.close()


@contextmanager
def _as_httpx(
    timeout: type[httpx.TimeoutException], network: type[httpx.NetworkError]
) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except RemoteDisconnected as error:
        raise HungUpError("Server disconnected without sending a response.") from error
    except OSError as error:
        raise network(str(error)) from error
    except BadStatusLine as error:
        raise httpx.RemoteProtocolError(f"this is no HTTP: {str(error)!r}") from error
    except (HTTPException, ValueError) as error:  # ValueError: a chunk's length, for one
        raise httpx.RemoteProtocolError(str(error) or type(error).__name__) from error
