"""The probes over real sockets: what they answer, whom they drop, and that they end cleanly."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.probes import ListenError, Probe, serving
from service.values import split_address
from tests.patience import PATIENCE

MOST = 16
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
    registry = CollectorRegistry()
    Gauge("xelink_answer", "All of it.", registry=registry).set(42)
    with serving(listen, registry, probes) as address:
        assert address
        yield address


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
    assert ask(address, path, "HEAD")[2] == ""


def test_metrics_are_those_of_the_registry_and_no_others(address: str) -> None:
    status, kind, text = ask(address, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert text == (
        "# HELP xelink_answer All of it.\n# TYPE xelink_answer gauge\nxelink_answer 42.0\n"
    )


def test_without_an_address_nothing_is_served() -> None:
    before = threading.active_count()
    with serving("", CollectorRegistry(), {}) as address:
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
        serving(listen, CollectorRegistry(), {}),
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


def test_clients_over_the_limit_are_dropped_not_queued_and_places_come_free(address: str) -> None:
    with ExitStack() as crowd:
        idle = [crowd.enter_context(connect(address)) for _ in range(MOST)]
        for _ in range(3):
            with connect(address) as late:
                assert dropped(late)
        for client in idle:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().startswith(b"HTTP/1.0 200 OK\r\n")
    assert served_in_the_end(address)


def dropped(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def served_in_the_end(address: str) -> bool:
    """Tell whether a place comes free: a thread lets go of its own just after it has answered."""
    for _ in range(10_000):
        with connect(address) as client:
            try:
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                if client.recv(12) == b"HTTP/1.0 200":
                    return True
            except OSError:
                continue
    return False


def test_a_request_that_gets_no_thread_takes_no_place_for_ever(address: str) -> None:
    before = threading.stack_size(1 << 62)  # more than any address space: no thread can start
    try:
        for _ in range(MOST + 1):
            with connect(address) as client:
                assert dropped(client)
    finally:
        threading.stack_size(before)
    assert served_in_the_end(address)


def test_it_ends_without_a_thread_or_a_socket_left() -> None:
    threads, sockets = threading.active_count(), open_sockets()
    with running({"/healthz": lambda: None}) as address:
        assert ask(address, "/healthz")[0] == 200
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(PATIENCE)
    assert threading.active_count() == threads
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
