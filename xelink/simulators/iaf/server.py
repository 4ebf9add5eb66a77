"""The simulated driver on a unix socket: each datagram is one frame, as with netlink."""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from xelink.iaf.wire import FRAME_LIMIT
from xelink.simulators.iaf.driver import Behavior, reply

_MOST_CONNECTIONS = 16


class SimulatedDriver:
    """Serves a behavior until it is closed; `behavior` may be replaced at any time.

    `requests` counts the frames that came. Raises `OSError` where it cannot listen.
    """

    def __init__(self, path: Path, behavior: Behavior) -> None:
        self.path = path
        self.behavior = behavior
        self.requests = 0
        self._room = threading.Semaphore(_MOST_CONNECTIONS)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._listening.bind(str(path))
            self._listening.listen()
        except OSError:
            self._listening.close()
            raise
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every connection, and wait until all threads have ended."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self._thread.ident:
            self._thread.join()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        with suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108 - as it was bound

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            with self._lock:
                self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError, ValueError):
                while frame := connection.recv(FRAME_LIMIT):
                    self.requests += 1
                    answer = reply(self.behavior, frame)
                    if answer is not None:
                        connection.send(answer)
        finally:
            with self._lock:
                self._connections.discard(connection)
            self._room.release()
