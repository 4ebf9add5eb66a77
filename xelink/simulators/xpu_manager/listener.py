"""A port that can be opened, shut and opened again, with a thread for each connection.

TLS files are read again for each new connection, because XPU Manager serves a rotated certificate
without a restart.
"""

import io
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread, current_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TIMEOUT = 30.0  # seconds for a handshake, and for the first request of a connection
MOST = 256  # connections at a time; who comes later is hung up on

_BACKLOG = 64


class _Line(io.RawIOBase):
    """What comes over a connection until an instant: not so long for each piece of it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.end = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class RequestReader(io.BufferedReader):
    """Reads requests, each within a time of its own. Raises `TimeoutError`, an `OSError`."""

    def __init__(self, connection: socket.socket) -> None:
        self._line = _Line(connection)
        super().__init__(self._line)

    def allow(self, seconds: float | None = None) -> None:
        """Allow so many seconds from now on, or as many as a request may take."""
        self._line.end = time.monotonic() + (TIMEOUT if seconds is None else seconds)


Serve = Callable[[socket.socket, RequestReader], bool]


class Listener:
    """Listen on an address and give each request on each connection to `serve`.

    `serve` reads one request, answers it and returns whether the connection goes on; what it raises
    as `OSError` ends the connection, as a client that went away does. A listener that is closed
    stays bound to its port: clients are refused, and the system gives the port to nobody who asks
    for any free one.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: tuple[Path, Path] | None,
        keep_alive: float,
        serve: Serve,
    ) -> None:
        self.host, self.port = address
        self.accepted = 0
        self._tls_files = tls
        self._tls: ssl.SSLContext | None = None
        self._keep_alive = keep_alive
        self._serve = serve
        self._changed = Condition()
        self._ended = False
        self._held: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._acceptor: Thread | None = None
        self._connections: dict[Thread, socket.socket] = {}

    def open(self) -> None:
        """Listen, from now on or again; raises `OSError` for a port or TLS file not to be had."""
        if self._tls_files and not self._tls:
            self._tls = _load(self._tls_files)
        with self._changed:
            if self._ended or self._listener:
                return
            if self._held is None:
                self._hold()
            listener, self._held = self._held, None
            if listener is None:
                return
            listener.listen(_BACKLOG)
            self._listener = listener
            self._acceptor = Thread(target=self._accept, args=[listener], name="simulator-listener")
            self._acceptor.start()

    def shut(self) -> None:
        """Refuse: stop listening and drop every connection but the caller's own."""
        with self._changed:
            listener, self._listener = self._listener, None
            acceptor, self._acceptor = self._acceptor, None
        if listener and acceptor:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            acceptor.join()
            listener.close()
            if not self._ended:
                self._hold()
        with self._changed:
            for thread, connection in self._connections.items():
                if thread is not current_thread():
                    _shut_down(connection)

    def end(self) -> None:
        """Shut for ever, let go of the port, and wait for every thread."""
        with self._changed:
            self._ended = True
        self.shut()
        if self._held:
            self._held.close()
            self._held = None
        while thread := self._any_thread():
            thread.join()

    def _any_thread(self) -> Thread | None:
        with self._changed:
            return next(iter(self._connections), None)

    def _hold(self) -> None:
        """Own the port without listening on it."""
        held = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.host == "::":  # of both families, whatever the system's default is
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            held.bind((self.host, self.port))
        except OSError:
            held.close()
            raise
        self.port = held.getsockname()[1]
        self._held = held

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # `shut` woke us
            with self._changed:
                if self._listener is not listener:
                    connection.close()
                    return
                if len(self._connections) >= MOST:
                    connection.close()
                    continue
                thread = Thread(target=self._attend, args=[connection], name="simulator-guest")
                self._connections[thread] = connection
                self.accepted += 1
                try:
                    thread.start()
                except RuntimeError:  # there is no thread to be had
                    self._connections.pop(thread).close()

    def _attend(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(TIMEOUT)
            connection = self._secured(connection)
            with RequestReader(connection) as reader:
                reader.allow()
                while self._serve(connection, reader):
                    reader.allow(self._keep_alive)
        except OSError:
            pass  # the client went away, was too slow, or was shut out
        finally:
            with self._changed:
                self._connections.pop(current_thread()).close()

    def _secured(self, connection: socket.socket) -> socket.socket:
        if not self._tls_files or not self._tls:
            return connection
        with suppress(OSError):  # in the middle of a rotation what was good before serves on
            self._tls = _load(self._tls_files)
        with self._changed:
            secured = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
            self._connections[current_thread()] = secured
        secured.do_handshake()
        return secured


def _load(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*files)
    return context


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # gone already
        # Not the method of a TLS socket: that would take its state from the thread that uses it.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
