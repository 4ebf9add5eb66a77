"""Connections of the `-listen` server, limited in number, size and time.

One thread moves all bytes and never blocks. Each path is answered by at most one more thread at a
time, so a page that hangs blocks no probe. Everything that is kept for a client is limited: the
head in bytes and time, the answer in time, all answers together in bytes, and the number of
connections. Beyond that number the oldest connection is closed. A probe sends its request at once,
so it is answered in any crowd.
"""

import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeAlias

from structlog.typing import FilteringBoundLogger

from xelink.daemon.descriptors import is_shortage
from xelink.daemon.http_requests import MOST_HEAD, head_end

MOST_CONNECTIONS = 64
_LEAST_CONNECTIONS = 4
_PART = 4  # of the descriptors that the process may have: the rest is for its work
HEAD_SECONDS = 5.0
"""From the beginning of a connection to the end of the request's head."""
CONNECTION_SECONDS = 10.0
"""From its beginning to its end, the answer included."""
MOST_UNSENT = 4 << 20
"""Bytes of all answers that clients have not read yet; a single one may be longer."""

_LINGER_SECONDS = 1.0
_MOST_LINGERED = 64 << 10
_ACCEPTED_AT_ONCE = 16
_PAUSE_SECONDS = 1.0
_RECOVERED_SECONDS = 10.0

Clock: TypeAlias = Callable[[], float]


class Refusal(Enum):
    """Why a connection got no answer; the value is the reason in the metrics."""

    CROWD = "crowd"
    SLOW = "slow"
    LATE = "late"
    LARGE = "large"
    MALFORMED = "malformed"
    HOST = "host"


class Later(NamedTuple):
    """An answer that takes work; one of each name is prepared at a time, in its own thread."""

    name: str
    work: Callable[[], bytes]
    """Returns the answer. Raises nothing."""


class Answerer(Protocol):
    """What the server needs for requests and answers."""

    def answer(self, head: bytes) -> bytes | Later:
        """Return the answer to a request, or the work that prepares it."""

    def refuse(self, refusal: Refusal) -> bytes:
        """Count a rejected request; return its answer."""


class _State(Enum):
    READING = auto()
    WAITING = auto()
    SENDING = auto()
    LINGERING = auto()


class _Connection:
    """One client, and what is kept for it."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.state = _State.READING
        self.end = now + HEAD_SECONDS
        self.last_end = now + CONNECTION_SECONDS
        self.head = bytearray()
        self.later: Later | None = None
        self.answer = b""
        self.sent = 0
        self.lingered = 0

    def send(self) -> bool:
        """Send what the client accepts now; return whether everything is sent."""
        # A view: otherwise each piece would copy the rest.
        with suppress(BlockingIOError), memoryview(self.answer) as whole:
            self.sent += self.sock.send(whole[self.sent :])
        return self.sent == len(self.answer)


class Connections:
    """Serves the connections of a listening socket until it is stopped."""

    def __init__(
        self,
        listener: socket.socket,
        answerer: Answerer,
        log: FilteringBoundLogger,
        clock: Clock = time.monotonic,
    ) -> None:
        self._listener = listener
        self._answerer = answerer
        self._log = log
        self._clock = clock
        self._poll = select.poll()
        self._open: dict[int, _Connection] = {}  # by descriptor, oldest first
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(MOST_CONNECTIONS, max(_LEAST_CONNECTIONS, descriptors // _PART))
        self._buffer = bytearray(MOST_HEAD + 1)
        self._working: set[str] = set()
        self._made: deque[tuple[_Connection, Later, bytes]] = deque()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)  # noqa: FBT003 - it has no name
        self._resume_at: float | None = None
        self._short_at: float | None = None

    def run(self, stopped: socket.socket) -> None:
        """Serve until `stopped` is readable; then close every connection."""
        for awaited in (self._listener, self._woken, stopped):
            self._poll.register(awaited, select.POLLIN)
        try:
            while True:
                ready = {number for number, _ in self._poll.poll(self._milliseconds())}
                if stopped.fileno() in ready:
                    return
                self._turn(ready)
        finally:
            for connection in [*self._open.values()]:
                self._drop(connection)
            self._woken.close()
            self._waker.close()

    def _turn(self, ready: set[int]) -> None:
        # Existing connections come first: a new one must not close one that has just sent a
        # request.
        for number in ready & self._open.keys():
            if connection := self._open.get(number):
                self._advance(connection)
        if self._woken.fileno() in ready:
            with suppress(BlockingIOError):
                self._woken.recv(len(self._buffer))
        while self._made:
            self._finish(*self._made.popleft())
        if self._listener.fileno() in ready:
            self._accept()
        elif self._resume_at is not None and self._resume_at <= self._clock():
            self._resume_at = None
            self._poll.register(self._listener, select.POLLIN)
        self._expire(self._clock())

    def _milliseconds(self) -> int | None:
        """Return the time until something is due; None if nothing is."""
        due = [connection.end for connection in self._open.values()]
        if self._resume_at is not None:
            due.append(self._resume_at)
        return max(0, int((min(due) - self._clock()) * 1000) + 1) if due else None

    # Coming and going

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(error, self._clock())
                return
            now = self._clock()
            if self._short_at is not None and now - self._short_at > _RECOVERED_SECONDS:
                self._short_at = None
                self._log.info("connections at -listen are accepted again")
            if len(self._open) >= self._most:
                self._make_room()
            sock.setblocking(False)  # noqa: FBT003 - it has no name
            connection = self._open[sock.fileno()] = _Connection(sock, now)
            self._poll.register(sock, select.POLLIN)
            self._advance(connection)

    def _cannot_accept(self, error: OSError, now: float) -> None:
        if self._short_at is None:
            reason = error.strerror or str(error)
            self._log.warning("connections at -listen are not accepted", reason=reason)
        self._short_at = now
        # The oldest connection gives up its descriptor, and the next turn tries again. Without any,
        # a listener that stays ready would be polled in a busy loop.
        if not is_shortage(error) or not self._make_room():
            self._poll.unregister(self._listener)
            self._resume_at = now + _PAUSE_SECONDS

    def _make_room(self) -> bool:
        """Close the least important connection: one that has its answer, or else the oldest."""
        answered = (each for each in self._open.values() if each.state is _State.LINGERING)
        least = next(answered, None) or next(iter(self._open.values()), None)
        if least:
            self._end(least, Refusal.CROWD)
        return least is not None

    def _expire(self, now: float) -> None:
        for connection in [each for each in self._open.values() if each.end <= now]:
            waits = connection.state is _State.WAITING
            self._end(connection, Refusal.LATE if waits else Refusal.SLOW)

    def _end(self, connection: _Connection, refusal: Refusal) -> None:
        """Close a connection; send the reason if possible at once and if no answer has begun."""
        if connection.state is not _State.LINGERING:
            answer = self._answerer.refuse(refusal)
            if not connection.sent:
                with suppress(OSError):
                    connection.sock.send(answer)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._open.pop(connection.sock.fileno(), None):
            self._poll.unregister(connection.sock)
            connection.sock.close()

    # One connection

    def _advance(self, connection: _Connection) -> None:
        try:
            match connection.state:
                case _State.READING:
                    self._read(connection)
                case _State.SENDING:
                    self._send(connection)
                case _State.LINGERING:
                    self._linger(connection)
                case _State.WAITING:  # it can only have closed
                    self._drop(connection)
        except BlockingIOError:
            return
        except OSError:  # the client has gone
            self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        head, before = connection.head, len(connection.head)
        with memoryview(self._buffer) as free:
            got = connection.sock.recv_into(free[: MOST_HEAD + 1 - before])
            head += free[:got]
        end = head_end(head, before)
        if end is not None and end <= MOST_HEAD:
            connection.end = connection.last_end
            self._answer(connection, bytes(head[:end]))
        elif len(head) > MOST_HEAD:
            self._begin(connection, self._answerer.refuse(Refusal.LARGE))
        elif not got:  # it closed during its request, or before
            if head:
                self._answerer.refuse(Refusal.MALFORMED)
            self._drop(connection)

    def _answer(self, connection: _Connection, head: bytes) -> None:
        connection.head = bytearray()
        answer = self._answerer.answer(head)
        if isinstance(answer, bytes):
            self._begin(connection, answer)
            return
        connection.state = _State.WAITING
        connection.later = answer
        self._poll.modify(connection.sock, 0)
        if answer.name not in self._working:
            self._start(connection, answer)

    def _start(self, connection: _Connection, later: Later) -> None:
        def run() -> None:
            self._hand_in(connection, later, later.work())

        self._working.add(later.name)
        connection.later = None
        try:
            threading.Thread(target=run, name=f"listen {later.name}", daemon=True).start()
        except RuntimeError:  # no thread can be had
            self._hand_in(connection, later, self._answerer.refuse(Refusal.CROWD))

    def _hand_in(self, connection: _Connection, later: Later, answer: bytes) -> None:
        self._made.append((connection, later, answer))
        with suppress(OSError):  # full: the thread is awake; closed: it has ended
            self._waker.send(b"\0")

    def _finish(self, connection: _Connection, later: Later, answer: bytes) -> None:
        """Send the answer of a connection, and start the same work for the next one."""
        self._working.discard(later.name)
        for following in self._open.values():
            if following.later and following.later.name == later.name:
                self._start(following, following.later)
                break
        if self._open.get(connection.sock.fileno()) is connection:
            try:
                self._begin(connection, answer)
            except OSError:
                self._drop(connection)

    def _begin(self, connection: _Connection, answer: bytes) -> None:
        connection.state = _State.SENDING
        connection.answer = answer
        for other in [*self._too_much(connection)]:
            self._end(other, Refusal.SLOW)
        self._poll.modify(connection.sock, select.POLLOUT)
        self._send(connection)

    def _too_much(self, newest: _Connection) -> Iterator[_Connection]:
        """Return, oldest first, the connections to close to keep all answers within the limit."""
        held = [each for each in self._open.values() if each.answer]
        over = sum(len(each.answer) for each in held) - MOST_UNSENT
        for each in held:
            if over > 0 and each is not newest:
                over -= len(each.answer)
                yield each

    def _send(self, connection: _Connection) -> None:
        if connection.send():
            connection.answer = b""
            connection.state = _State.LINGERING
            connection.end = min(connection.last_end, self._clock() + _LINGER_SECONDS)
            # Closing at once would lose the answer if the client is still sending.
            connection.sock.shutdown(socket.SHUT_WR)
            self._poll.modify(connection.sock, select.POLLIN)

    def _linger(self, connection: _Connection) -> None:
        got = connection.sock.recv_into(self._buffer)
        connection.lingered += got
        if not got or connection.lingered > _MOST_LINGERED:
            self._drop(connection)
