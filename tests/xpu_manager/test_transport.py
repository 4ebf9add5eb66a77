"""One connection: kept as long as it is of use, and never taken for what it is not."""

import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import httpx
import pytest

from xelink.xpu_manager.transport import HungUpError, Transport

PATIENCE = 30.0
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CLOSING = GOOD.replace(b"OK", b"OK\r\nConnection: close")

Step = Callable[[socket.socket], object]


def hear(connection: socket.socket) -> None:
    """Take one request, or the end."""
    asked = b""
    while not asked.endswith(b"\r\n\r\n") and (piece := connection.recv(65536)):
        asked += piece


def say(text: bytes) -> Step:
    return lambda connection: connection.sendall(text)


def until_left(connection: socket.socket) -> None:
    """Wait until the client hangs up; what it sends before has no business here."""
    with suppress(ConnectionResetError):  # it left what came unasked unread
        assert connection.recv(65536) == b""


def end(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


class Server:
    """Does with each connection, one after the other, what it is told to; each step is heard of."""

    def __init__(self, *connections: Sequence[Step]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self._done: queue.Queue[BaseException | None] = queue.Queue()
        self.port: int = self._listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, args=connections, daemon=True)

    def _run(self, *connections: Sequence[Step]) -> None:
        for steps in connections:
            connection, _ = self._listener.accept()
            connection.settimeout(PATIENCE)
            with connection:
                for step in steps:
                    try:
                        step(connection)
                    except BaseException as error:
                        self._done.put(error)
                        raise
                    self._done.put(None)

    def steps(self, number: int) -> None:
        """Wait until it has done so many steps more."""
        for _ in range(number):
            if error := self._done.get(timeout=PATIENCE):
                raise error

    def close(self) -> None:
        self._listener.close()
        self.thread.join(PATIENCE)


@contextmanager
def asking(*connections: Sequence[Step]) -> Iterator[tuple[Server, Callable[[], bytes]]]:
    """Serve so many connections; give the server and what asks it for a whole body."""
    transport = Transport(None, PATIENCE)
    with closing(Server(*connections)) as server, closing(transport):
        server.thread.start()
        request = httpx.Request("GET", f"http://127.0.0.1:{server.port}/metrics")

        def ask() -> bytes:
            with closing(transport.handle_request(request)) as response:
                return b"".join(response.iter_raw())

        yield server, ask


def test_a_connection_that_the_server_keeps_is_used_again() -> None:
    with asking([hear, say(GOOD + b"first"), hear, say(GOOD + b"again")]) as (_, ask):
        assert [ask(), ask()] == [b"first", b"again"]


def test_a_connection_that_the_server_announces_to_close_is_not_used_again() -> None:
    with asking([hear, say(CLOSING + b"first"), until_left], [hear, say(GOOD + b"again")]) as (
        _,
        ask,
    ):
        assert [ask(), ask()] == [b"first", b"again"]


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(end, id="its end"),
        pytest.param(say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), id="an answer"),
        pytest.param(say(b"\0"), id="a byte"),
    ],
)
def test_a_connection_on_which_something_came_unasked_is_not_used_again(meanwhile: Step) -> None:
    """And costs no attempt: nothing is asked on it."""
    read = threading.Event()
    first = [hear, say(GOOD + b"first"), lambda _: read.wait(PATIENCE), meanwhile, until_left]
    with asking(first, [hear, say(GOOD + b"again")]) as (server, ask):
        assert ask() == b"first"
        read.set()
        server.steps(4)
        assert ask() == b"again"


def test_a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again() -> None:
    """Else the rest would be taken for the beginning of the next answer."""
    with (
        closing(
            Server([hear, say(GOOD + b"fi"), until_left], [hear, say(GOOD + b"again")])
        ) as server,
        closing(Transport(None, PATIENCE)) as transport,
    ):
        server.thread.start()
        request = httpx.Request("GET", f"http://127.0.0.1:{server.port}/metrics")
        transport.handle_request(request).close()
        with closing(transport.handle_request(request)) as response:
            assert b"".join(response.iter_raw()) == b"again"


def test_a_server_that_hangs_up_before_it_answers_is_told_apart() -> None:
    with asking([hear, end]) as (_, ask), pytest.raises(HungUpError):
        ask()


def test_a_body_that_ends_too_early_is_no_body() -> None:
    with (
        asking([hear, say(GOOD + b"fi"), end]) as (_, ask),
        pytest.raises(httpx.RemoteProtocolError, match="3 bytes are missing"),
    ):
        ask()
