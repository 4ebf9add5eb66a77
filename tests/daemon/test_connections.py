"""What a connection may cost: time by a clock that a test turns, bytes, descriptors."""

import errno
import os
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import structlog
from structlog.testing import LogCapture

from tests.patience import PATIENCE
from xelink.daemon.connections import (
    CONNECTION_SECONDS,
    HEAD_SECONDS,
    MOST_CONNECTIONS,
    MOST_UNSENT,
    Connections,
    Later,
    Refusal,
)
from xelink.daemon.listening import open_listener

LONG = MOST_UNSENT - 1024  # and something of another connection
WHOLE = b"GET / HTTP/1.0\r\n\r\n"


class Port(socket.socket):
    """A listening socket that can be short of descriptors."""

    problem: int | None = None
    asked_in_vain: threading.Semaphore

    def accept(self) -> tuple[socket.socket, object]:
        if self.problem:
            self.asked_in_vain.release()
            raise OSError(self.problem, os.strerror(self.problem))
        return super().accept()


class Bench:
    """A server, what it refuses, and the clock that it goes by."""

    def __init__(self) -> None:
        found, address = open_listener("127.0.0.1:0")
        self.port = Port(fileno=found.detach())
        self.port.asked_in_vain = threading.Semaphore(0)
        self.address = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.now = 1000.0
        self.said = LogCapture()
        self.refused: list[Refusal] = []
        self.reply: Callable[[bytes], bytes | Later] = lambda _: b"well"

    def answer(self, head: bytes) -> bytes | Later:
        return b"pong" if head.startswith(b"PING") else self.reply(head)

    def refuse(self, refusal: Refusal) -> bytes:
        self.refused.append(refusal)
        return refusal.value.encode()

    def connect(self, sent: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.address, PATIENCE)
        client.sendall(sent)
        return client

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and the server see it."""
        self.now += seconds
        with self.connect(b"PING / HTTP/1.0\r\n\r\n") as client:
            assert everything(client) == b"pong"

    @property
    def events(self) -> list[str]:
        return [str(entry["event"]) for entry in self.said.entries]


def everything(client: socket.socket) -> bytes:
    """Give what comes until the end, by whatever end."""
    got = b""
    try:
        while more := client.recv(1 << 16):
            got += more
    except ConnectionResetError:
        pass
    return got


@contextmanager
def bench() -> Iterator[Bench]:
    made = Bench()
    stopped, stop = socket.socketpair()
    log = structlog.wrap_logger(None, processors=[made.said])
    connections = Connections(made.port, made, log, lambda: made.now)
    thread = threading.Thread(target=connections.run, args=(stopped,))
    thread.start()
    try:
        yield made
    finally:
        stop.close()
        thread.join(PATIENCE)
        stopped.close()
        made.port.close()
        assert not thread.is_alive()


def test_a_head_has_its_seconds_in_all_and_not_from_byte_to_byte() -> None:
    with bench() as it, it.connect() as client:
        for byte in (WHOLE[at : at + 1] for at in range(8)):
            client.sendall(byte)
            it.turn(HEAD_SECONDS / 10)
        assert it.refused == []
        client.sendall(WHOLE[8:9])
        it.turn(HEAD_SECONDS / 2)
        assert everything(client) == b"slow"
        assert it.refused == [Refusal.SLOW]


def test_an_answer_that_nobody_takes_is_held_for_its_seconds() -> None:
    with bench() as it, it.connect() as client:
        it.reply = lambda _: b"x" * LONG
        client.sendall(WHOLE)
        it.turn()
        it.turn(CONNECTION_SECONDS - 0.1)
        assert it.refused == []
        it.turn(0.1)
        assert len(everything(client)) < LONG
        assert it.refused == [Refusal.SLOW]


def test_an_answer_that_is_taken_slowly_but_in_time_comes_whole() -> None:
    with bench() as it, it.connect() as client:
        it.reply = lambda _: b"x" * LONG
        client.sendall(WHOLE)
        it.turn()
        it.turn(CONNECTION_SECONDS - 0.1)
        assert len(everything(client)) == LONG
        assert it.refused == []


def test_answers_that_nobody_takes_are_so_many_bytes_in_all_and_the_oldest_goes() -> None:
    quarter = LONG // 4
    with bench() as it, ExitStack() as crowd:
        it.reply = lambda _: b"x" * quarter
        clients = []
        for _ in range(6):
            clients.append(crowd.enter_context(it.connect(WHOLE)))
            it.turn()
        assert it.refused == [Refusal.SLOW] * 2
        lengths = [len(everything(client)) for client in clients]
        assert all(length < quarter for length in lengths[:2])
        assert lengths[2:] == [quarter] * 4


def test_an_answer_that_is_late_is_told_so_and_one_that_comes_later_goes_nowhere() -> None:
    go, made = threading.Event(), threading.Event()

    def work() -> bytes:
        go.wait(PATIENCE)
        made.set()
        return b"late after all"

    with bench() as it, it.connect() as client:
        it.reply = lambda _: Later("/", work)
        client.sendall(WHOLE)
        it.turn()
        it.turn(CONNECTION_SECONDS)
        assert everything(client) == b"late"
        assert it.refused == [Refusal.LATE]
        go.set()
        assert made.wait(PATIENCE)
        it.reply = lambda _: Later("/", lambda: b"soon")
        with it.connect(WHOLE) as next_one:
            assert everything(next_one) == b"soon"


def test_who_has_gone_while_the_answer_is_made_is_forgotten_and_the_next_is_served() -> None:
    go = threading.Event()

    def work() -> bytes:
        go.wait(PATIENCE)
        return b"well"

    with bench() as it:
        it.reply = lambda _: Later("/", work)
        gone = [it.connect(WHOLE) for _ in range(3)]
        it.turn()
        for client in gone:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        with it.connect(WHOLE) as client:
            it.turn()
            go.set()
            assert everything(client) == b"well"


def test_a_client_that_goes_on_sending_gets_its_answer_and_no_more_of_our_time() -> None:
    with bench() as it, it.connect(WHOLE + b"x" * 10_000) as client:
        assert client.recv(4, socket.MSG_WAITALL) == b"well"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(b"x" * 100_000_000)
        assert it.refused == []


def test_who_has_the_answer_and_does_not_hang_up_is_left_after_a_second() -> None:
    with bench() as it, it.connect(WHOLE) as client:
        assert everything(client) == b"well"  # to its end: from then on the second counts
        it.turn(1.1)
        client.sendall(b"x")
        poll = select.poll()
        poll.register(client, 0)  # it can be heard of a reset all the same
        assert poll.poll(PATIENCE * 1000)
        assert it.refused == []


def test_of_few_descriptors_a_part_is_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with bench() as it, ExitStack() as crowd:
        clients = [crowd.enter_context(it.connect()) for _ in range(16)]
        it.turn()
        assert it.refused == [Refusal.CROWD]
        assert everything(clients[0]) == b"crowd"


def test_the_oldest_makes_room_and_one_that_has_its_answer_before() -> None:
    with bench() as it, ExitStack() as crowd:
        oldest, _ = (crowd.enter_context(it.connect()) for _ in range(2))
        answered = crowd.enter_context(it.connect(WHOLE))
        assert everything(answered) == b"well"  # to its end, and it does not hang up
        for _ in range(MOST_CONNECTIONS - 2):
            crowd.enter_context(it.connect())
        it.turn()
        assert it.refused == [Refusal.CROWD]  # for the one that asked whether all are there
        assert everything(oldest) == b"crowd"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EPERM])
def test_a_port_that_cannot_accept_says_so_once_waits_and_recovers(number: int) -> None:
    with bench() as it:
        for _ in range(2):
            it.port.problem = number
            with it.connect(WHOLE) as waiting:
                assert it.port.asked_in_vain.acquire(timeout=PATIENCE)
                it.port.problem = None
                it.now += 1.0
                assert everything(waiting) == b"well"
        again = sum(it.port.asked_in_vain.acquire(blocking=False) for _ in range(10))
        assert again <= 2  # where a connection had its end before it; else it waited in between
        (entry,) = it.said.entries
        assert entry["event"] == "connections at -listen are not accepted"
        assert entry["reason"] == os.strerror(number)
        it.turn(60.0)
        assert it.events[1:] == ["connections at -listen are accepted again"]


def test_what_is_no_lack_of_descriptors_costs_no_connection() -> None:
    with bench() as it, it.connect():
        it.turn()
        it.port.problem = errno.EPERM
        with it.connect(WHOLE) as waiting:
            assert it.port.asked_in_vain.acquire(timeout=PATIENCE)
            it.port.problem = None
            it.now += 1.0
            assert everything(waiting) == b"well"
        assert it.refused == []


def test_without_descriptors_the_oldest_connection_gives_its_own() -> None:
    with bench() as it, it.connect() as oldest:
        it.turn()
        it.port.problem = errno.EMFILE
        with it.connect(WHOLE) as client:
            assert everything(oldest) == b"crowd"
            it.port.problem = None
            it.now += 1.0
            assert everything(client) == b"well"
