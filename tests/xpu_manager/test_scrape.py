"""One scrape against a real server: connections, retries, the budget, and a stop in its midst."""

import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import pytest

from sidecar.xpu_manager_source import OPTIONS
from tests.patience import NEVER, PATIENCE, Clock
from xelink.daemon.stopping import Stop, Stopped
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology.observation import Unknown as UnknownOutcome
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.errors import ScrapeError
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import Scraper, ScrapeTarget
from xelink.xpu_manager.wording import words

NODE = Blueprint(gpus=2).build()
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def stopping(clock: Callable[[], float] = time.monotonic) -> Iterator[Stop]:
    """A `Stop` with the signals of this process, which get their handlers back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    stop = Stop(clock)
    stop.install()
    try:
        yield stop
    finally:
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def scraping(
    target: ScrapeTarget | int,
    *,
    sleep: Callable[[float], None] = lambda _: None,
    monotonic: Callable[[], float] = time.monotonic,
    limit: Callable[[], float] = time.monotonic,
) -> Iterator[Scraper]:
    """A scraper of this target or port, which does not sleep between its retries.

    `limit` is the clock of its timeout, `monotonic` that of its patience after a refusal.
    """
    with stopping(limit) as stop:
        target = ScrapeTarget(target) if isinstance(target, int) else target
        scraper = Scraper(target, bounded=stop.bounded, sleep=sleep, monotonic=monotonic)
        try:
            yield scraper
        finally:
            scraper.close()


def refusal(scraper: Scraper) -> ScrapeError:
    """The error of a scrape that has to fail."""
    with pytest.raises(ScrapeError) as caught:
        scraper.scrape()
    return caught.value


def text_of(error: ScrapeError) -> str:
    """The error in the words of the sidecar, with its flags."""
    return str(words(error, OPTIONS))


@contextmanager
def time_is_up(clock: Clock, wait: Callable[[], object]) -> Iterator[None]:
    """Let the time of a scrape run out once there is no more to wait for; in another thread."""

    def run_out() -> None:
        wait()
        clock.run_out()

    thread = threading.Thread(target=run_out)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)


def outcome(scraper: Scraper) -> str:
    """The result of a scrape, or its reason."""
    try:
        seen = classify(scraper.scrape(), Rules())
    except ScrapeError as error:
        return error.reason
    return seen.reason if isinstance(seen, UnknownOutcome) else seen.result.value


class Answering:
    """A server that answers each connection with the same pieces, whatever is asked."""

    def __init__(self, pieces: Iterable[bytes] = (), tls: ssl.SSLContext | None = None) -> None:
        self.pieces = pieces
        self.asked = 0
        self.request = b""
        """What was asked last."""
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listener.getsockname()[1]

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        if self._tls:
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                self._send(secured)
        else:
            self._send(connection)

    def _send(self, connection: socket.socket) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n") and (piece := connection.recv(65536)):
            asked += piece
        self.request = asked
        self.asked += 1
        for piece in self.pieces:
            connection.sendall(piece)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def test_one_connection_serves_every_scrape_and_the_same_bytes_are_the_same_reading() -> None:
    with Simulator(NODE) as xpum, scraping(xpum.port) as scraper:
        readings = [scraper.scrape() for _ in range(5)]
        assert xpum.connections == 1
        assert xpum.requests == 5
        assert xpum.busiest == 1
    assert all(reading is readings[0] for reading in readings)


def test_a_server_that_hangs_up_between_scrapes_costs_none_of_them() -> None:
    with Answering([EMPTY]) as server, scraping(server.port) as scraper:
        assert [scraper.scrape().total for _ in range(200)] == [0] * 200
        assert server.asked == 200


def test_the_request_asks_for_plain_text_as_it_is_and_says_who_asks() -> None:
    with Simulator(NODE) as xpum, scraping(xpum.port) as scraper:
        scraper.scrape()
        headers = xpum.seen[0].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["accept"] == "text/plain"
    assert headers["user-agent"] == "xelink-sidecar"
    assert "authorization" not in headers


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for spelled in (name, name.upper()):
                monkeypatch.setenv(spelled, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Simulator(NODE) as xpum, scraping(xpum.port) as scraper:
            assert outcome(scraper) == "links"
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("name", ["reset", "reset-in-body", "close"])
def test_what_a_moment_heals_is_asked_again_up_to_three_times(name: str) -> None:
    slept: list[float] = []
    with Simulator(NODE) as xpum, scraping(xpum.port, sleep=slept.append) as scraper:
        xpum.misbehave(name, times=2)
        assert outcome(scraper) == "links"
        assert xpum.requests == 3
        xpum.misbehave(name)
        assert outcome(scraper) == "reset"
        assert xpum.requests == 6
    assert slept == [0.2, 0.4, 0.2, 0.4]


def test_a_refused_connection_is_tried_again_until_it_heals() -> None:
    with Simulator(NODE) as xpum:
        xpum.misbehave("refuse")
        with scraping(xpum.port, sleep=lambda _: xpum.recover()) as scraper:
            assert outcome(scraper) == "links"
        slept: list[float] = []
        xpum.misbehave("refuse")
        with scraping(xpum.port, sleep=slept.append) as scraper:
            assert refusal(scraper).reason is ScrapeReason.REFUSED
        assert len(slept) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unauthorized", "unauthorized"),
        ("status", "http-status"),
        ("daemon-down", "http-status"),
        ("redirect", "http-status"),
        ("zipped", "protocol"),
        ("cut", "protocol"),
        ("endless", "too-large"),
    ],
)
def test_what_no_moment_heals_is_asked_once(name: str, reason: str) -> None:
    with Simulator(NODE) as xpum, scraping(ScrapeTarget(xpum.port, max_body=1 << 20)) as scraper:
        xpum.misbehave(name)
        assert outcome(scraper) == reason
        assert xpum.requests == 1


def test_the_budget_holds_for_the_retries_and_their_sleeps_together() -> None:
    with Simulator(NODE) as xpum, stopping() as stop:
        xpum.misbehave("refuse")

        def sleep(_seconds: float) -> None:
            stop.wait(NEVER)

        scraper = Scraper(
            ScrapeTarget(xpum.port, timeout=0.2),
            bounded=stop.bounded,
            sleep=sleep,
            monotonic=time.monotonic,
        )
        assert refusal(scraper).reason is ScrapeReason.TIMEOUT


def test_a_port_that_accepts_nobody_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        with scraping(ScrapeTarget(port, timeout=0.2)) as scraper:
            error = refusal(scraper)
    assert (error.reason, text_of(error)) == ("timeout", "no whole answer within 0.2 s")


@pytest.mark.parametrize("name", ["hang", "hang-in-body", "drip-headers", "drip-body"])
def test_a_stop_leaves_a_hanging_scrape(name: str) -> None:
    with Simulator(NODE) as xpum, scraping(ScrapeTarget(xpum.port, timeout=NEVER)) as scraper:
        xpum.misbehave(name)

        def end() -> None:
            xpum.wait_for_request(1)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=end)
        thread.start()
        with pytest.raises(Stopped):
            scraper.scrape()
        thread.join(PATIENCE)


def test_no_scrape_begins_after_a_stop() -> None:
    with Simulator(NODE) as xpum, scraping(xpum.port) as scraper:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            scraper.scrape()
        assert xpum.connections == 0


def test_a_length_over_the_limit_is_refused_without_reading() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n"
    stuck = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield head
        stuck.wait(PATIENCE)

    with (
        Answering(pieces()) as server,
        scraping(ScrapeTarget(server.port, timeout=NEVER)) as scraper,
    ):
        error = refusal(scraper)
        stuck.set()
    assert error.reason is ScrapeReason.TOO_LARGE
    assert text_of(error) == "the body is longer than 67108864 bytes; see -max-body"


@pytest.mark.parametrize("code", [500, 401, 204])
def test_after_an_answer_that_is_no_good_the_next_scrape_has_a_connection_of_its_own(
    code: int,
) -> None:
    now = [0.0]
    with Simulator(NODE) as xpum, scraping(xpum.port, monotonic=lambda: now[0]) as scraper:
        assert outcome(scraper) == "links"
        xpum.misbehave("status", code=code, times=1)
        refusal(scraper)
        now[0] += 3600
        assert outcome(scraper) == "links"
        assert xpum.connections == 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param(b"a\x1b[31mb", r"a\x1b[31mb", id="an escape sequence"),
        pytest.param(b"a\x00b\x7fc", r"a\x00b\x7fc", id="controls"),
        pytest.param(b"a\tb\rc\x0b\x0cd", r"a\tb\rc\x0b\x0cd", id="blanks of one line"),
        pytest.param(
            "a\u2028b\u202ec\u200bd\x85e".encode(),
            r"a\u2028b\u202ec\u200bd\x85e",
            id="of Unicode",
        ),
        pytest.param(b"a\xff\xfeb", "a\ufffd\ufffdb", id="no UTF-8"),
        pytest.param(b"\r\n a \nb", "a", id="only the first line"),
        pytest.param(b"x" * 1000, "x" * 160, id="too long"),
    ],
)
def test_what_an_error_says_is_told_as_one_line_that_does_nothing(said: bytes, told: str) -> None:
    head = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(said)
    with Answering([head, said]) as server, scraping(server.port) as scraper:
        assert text_of(refusal(scraper)) == f"500 {told}"


@pytest.mark.parametrize("length", [b"-1", b"1_0", b"+10", b"ten", b"10, 11", b"\xb9"])
def test_a_length_that_is_none_makes_no_body(length: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % length
    with Answering([head, b"#" * 10]) as server, scraping(server.port) as scraper:
        assert refusal(scraper).reason is ScrapeReason.PROTOCOL


def test_a_body_of_just_the_limit_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with Answering([head, b"#" * 1000]) as server:
        with scraping(ScrapeTarget(server.port, max_body=1000)) as scraper:
            assert scraper.scrape().total == 0
        with scraping(ScrapeTarget(server.port, max_body=999)) as scraper:
            assert refusal(scraper).reason is ScrapeReason.TOO_LARGE
