"""The probes over real sockets: what they answer, whom they drop, and that they end cleanly."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import structlog

from tests.daemon.listener import listening_at
from tests.patience import PATIENCE
from xelink.daemon.connections import MOST_CONNECTIONS
from xelink.daemon.http_requests import MOST_HEAD
from xelink.daemon.http_server import ListenError, PageReply, Probe, Site, serving
from xelink.daemon.metrics import Metrics
from xelink.daemon.setting_types import split_address

LISTEN = "127.0.0.1:0"

Answer = tuple[int, str, str]


class Health:
    """A probe that a test turns."""

    def __init__(self) -> None:
        self.problem: str | None = None

    def __call__(self) -> str | None:
        return self.problem


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def address(health: Health) -> Iterator[str]:
    with running({"/healthz": health, "/readyz": lambda: "never"}) as address:
        yield address


@contextmanager
def running(probes: Mapping[str, Probe], listen: str = LISTEN) -> Iterator[str]:
    with listening_at(listen, Site(probes)) as served:
        yield served.address


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    host, port = split_address(address)
    client = HTTPConnection(host, port, timeout=PATIENCE)
    try:
        client.request(method, path, headers=headers)
        response = client.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        client.close()


def connect(address: str) -> socket.socket:
    return socket.create_connection(split_address(address), PATIENCE)


def test_a_probe_answers_200_when_all_is_well_and_503_with_the_reason(
    address: str, health: Health
) -> None:
    plain = "text/plain; charset=utf-8"
    assert ask(address, "/healthz") == (200, plain, "ok\n")
    health.problem = "the loop has not ticked for 90 s"
    assert ask(address, "/healthz") == (503, plain, "the loop has not ticked for 90 s\n")
    assert ask(address, "/readyz") == (503, plain, "never\n")
    health.problem = None
    assert ask(address, "/healthz?verbose=1") == (200, plain, "ok\n")


@pytest.mark.parametrize("path", ["/", "/health", "/healthz/", "/metrics/x", "//", "/%00"])
def test_another_path_is_404_and_tells_which_there_are(address: str, path: str) -> None:
    status, _, text = ask(address, path)
    assert (status, text) == (404, "try /metrics /healthz /readyz\n")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/nowhere"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_told_to_it(address: str, method: str, path: str) -> None:
    assert ask(address, path, method)[0] == 405


def test_metrics_are_those_of_the_registry_and_no_others() -> None:
    metrics = Metrics("xelink_test")
    metrics.gauge("answer", "All of it.").set(42)
    with listening_at(LISTEN, metrics=metrics) as served:
        status, kind, text = ask(served.address, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain; version=")
        assert "\n# TYPE xelink_test_answer gauge\nxelink_test_answer 42.0\n" in text
        assert "python_gc" not in text
        only = ask(served.address, "/metrics?name[]=xelink_test_answer")[2]
        assert only.startswith("# HELP xelink_test_answer All of it.\n")
        packed = raw(
            served.address, b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\nAccept-Encoding: gzip\r\n\r\n"
        )
        assert b"\r\nContent-Encoding: gzip\r\n" in packed


def test_without_an_address_nothing_is_served() -> None:
    before = threading.active_count()
    log = structlog.wrap_logger(None, processors=[])
    with serving("", Metrics("xelink_test"), Site(), log) as address:
        assert address is None
        assert threading.active_count() == before


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", ":0", "0.0.0.0:0"])
def test_port_0_picks_a_free_one_and_tells_it(listen: str) -> None:
    with running({"/healthz": lambda: None}, listen) as address:
        host, port = split_address(address)
        assert host == split_address(listen)[0]
        assert port
        assert ask(f"127.0.0.1:{port}", "/healthz")[0] == 200


def test_ipv6_is_served() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with running({"/healthz": lambda: None}, "[::1]:0") as address:
        assert address.startswith("[::1]:")
        assert ask(address, "/healthz")[0] == 200


@pytest.mark.parametrize(
    "listen",
    [
        "192.0.2.1:0",
        "a..b:0",
        f"{'x' * 70}:0",
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "nul\0:0",
    ],
)
def test_an_address_that_cannot_be_had_is_one_line_of_advice(listen: str) -> None:
    with (
        pytest.raises(ListenError, match="give -listen another address, or none") as caught,
        listening_at(listen),
    ):
        pytest.fail("served")
    assert len(str(caught.value).splitlines()) == 1


def test_a_port_in_use_is_told(address: str) -> None:
    with pytest.raises(ListenError, match="Address already in use"), running({}, address):
        pytest.fail("served")
    assert ask(address, "/healthz")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost:"])
def test_a_slow_client_does_not_hold_up_another(address: str, sent: bytes) -> None:
    with connect(address) as slow:
        slow.sendall(sent)
        assert ask(address, "/healthz")[0] == 200


@pytest.mark.parametrize("sent", [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 70_000, b"\r\n"])
def test_a_client_that_speaks_no_http_harms_nobody(address: str, sent: bytes) -> None:
    with connect(address) as strange:
        strange.sendall(sent)
        strange.shutdown(socket.SHUT_WR)
        assert ask(address, "/healthz")[0] == 200


def test_in_a_crowd_the_oldest_makes_room_and_who_asks_at_once_is_answered(
    address: str,
) -> None:
    with ExitStack() as crowd:
        idle = [crowd.enter_context(connect(address)) for _ in range(MOST_CONNECTIONS + 3)]
        for _ in range(3):
            assert ask(address, "/healthz")[0] == 200
        told = idle[0].makefile("rb").read()
        assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert told.endswith(b"\r\n\r\nthere are too many connections\n")
        idle[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert idle[-1].makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_request_that_gets_no_thread_takes_no_place_for_ever(address: str) -> None:
    before = threading.stack_size(1 << 62)  # more than any address space: no thread can start
    try:
        for _ in range(MOST_CONNECTIONS + 1):
            assert ask(address, "/healthz")[0] == 503
            assert ask(address, "/nowhere")[0] == 404  # this takes none
    finally:
        threading.stack_size(before)
    assert ask(address, "/healthz")[0] == 200


def threads_of_ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("listen")]


def test_it_ends_without_a_thread_or_a_socket_left() -> None:
    for thread in threads_of_ours():  # of another test
        thread.join(PATIENCE)
    sockets = open_sockets()
    with running({"/healthz": lambda: None}) as address:
        assert ask(address, "/healthz")[0] == 200
        assert threads_of_ours()
    for thread in threads_of_ours():
        assert thread.name != "listen"
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert open_sockets() == sockets
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def open_sockets() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += str(link.readlink()).startswith("socket:")
        except FileNotFoundError:  # the directory that is being listed
            continue
    return found


def test_an_idle_client_does_not_hold_up_the_end() -> None:
    with running({"/healthz": lambda: None}) as address:
        idle = connect(address)
        assert ask(address, "/healthz")[0] == 200
    with idle, pytest.raises(ConnectionRefusedError):
        connect(address)


def raw(address: str, sent: bytes) -> bytes:
    """Send this, and give all that comes back."""
    with connect(address) as client:
        client.sendall(sent)
        return client.makefile("rb").read()


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/nowhere"])
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_head_is_answered_as_get_is_without_a_body(path: str, host: str) -> None:
    probes: Mapping[str, Probe] = {"/healthz": lambda: None, "/readyz": lambda: "never"}
    site = Site(probes, {"/": lambda: PageReply("text/html", b"<p>", (("X-Own", "1"),))})
    with listening_at(LISTEN, site) as served:
        rest = f" {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        head, _, body = raw(served.address, b"HEAD" + rest).partition(b"\r\n\r\n")
        as_get, _, got = raw(served.address, b"GET" + rest).partition(b"\r\n\r\n")
        assert got
        assert body == b""
        same = (b"Date:", b"Content-Length:")  # numbers in the metrics may have become longer
        assert [line for line in head.split(b"\r\n") if not line.startswith(same)] == [
            line for line in as_get.split(b"\r\n") if not line.startswith(same)
        ]
        assert b"\r\nContent-Length: " in head


@pytest.mark.parametrize(("more", "status"), [(0, b"200"), (1, b"431"), (100_000, b"431")])
def test_a_head_has_so_many_bytes_and_no_more(more: int, status: bytes) -> None:
    with listening_at(LISTEN, Site({"/healthz": lambda: None})) as served:
        first = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
        padding = MOST_HEAD - len(first) - len(b"\r\n\r\n") + more
        told = raw(served.address, first + b"x" * padding + b"\r\n\r\n")
        assert told.partition(b" ")[2][:3] == status
        assert (b"a request has at most 16384 bytes of headers" in told) is bool(more)
        assert served.refused("large") == bool(more)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET /healthz\r\n\r\n", b"no request of HTTP/1.0 or HTTP/1.1"),
        (b"GET /healthz HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n", b"no request of HTTP/1.0"),
        (b"GET /a b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"no request of HTTP/1.0"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"there is no Host header"),
        (b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", b"there is no Host header"),
        (b"GET / HTTP/1.1\r\nHost: ::1\r\nHost: a\r\n\r\n", b"two Host headers"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n folded\r\n\r\n", b"a header is malformed"),
        (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", b"a header is malformed"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\0\r\n\r\n", b"a header is malformed"),
    ],
)
def test_what_is_no_request_is_told_why_and_counted(sent: bytes, why: bytes) -> None:
    with listening_at(LISTEN, Site({"/healthz": lambda: None})) as served:
        told = raw(served.address, sent)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert why in told
        assert served.refused("malformed") == 1


def test_a_path_that_hangs_holds_up_no_other_and_is_asked_once_at_a_time() -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    def hangs() -> str | None:
        begun.release()
        go.wait(PATIENCE)
        return "it hung"

    with (
        listening_at(LISTEN, Site({"/readyz": hangs, "/healthz": lambda: None})) as served,
        connect(served.address) as one,
        connect(served.address) as other,
    ):
        for client in (one, other):
            client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert begun.acquire(timeout=PATIENCE)
        for _ in range(3):
            assert ask(served.address, "/healthz")[0] == 200
        assert not begun.acquire(blocking=False)
        go.set()
        for client in (one, other):
            assert client.makefile("rb").read().endswith(b"it hung\n")


def test_a_page_that_fails_is_500_and_said_once_until_it_is_well_again() -> None:
    faults: list[Exception | None] = [
        *[ValueError("x")] * 3,
        None,
        ValueError("x"),
        OSError(24, "y"),
    ]

    def page() -> PageReply:
        if fault := faults.pop(0):
            raise fault
        return PageReply("text/plain", b"well")

    with listening_at(LISTEN, Site(pages={"/": page})) as served:
        statuses = [ask(served.address, "/")[0] for _ in range(6)]
        assert statuses == [500, 500, 500, 200, 500, 500]
        assert served.events == ["an answer failed"] * 3
        traces = [bool(entry["exc_info"]) for entry in served.said.entries]
        assert traces == [True, True, False]  # what the system refuses is no fault of the program
