"""The simulated exporter over real sockets: its HTTP, its misbehaviours, its control, its end."""

import gzip
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.patience import NEVER, PATIENCE
from xelink.simulators.xpu_manager import (
    MISBEHAVIOURS,
    Blueprint,
    Exchange,
    Serving,
    Simulator,
    listener,
    render,
)
from xelink.simulators.xpu_manager.faults import describe

SMALL = Blueprint(gpus=2).build()

Answer = tuple[http.client.HTTPResponse, bytes]


@pytest.fixture
def xpum() -> Iterator[Simulator]:
    before = threading.active_count()
    with Simulator(SMALL) as simulator:
        yield simulator
    assert threading.active_count() == before


@contextmanager
def connected(
    xpum: Simulator, context: ssl.SSLContext | None = None
) -> Iterator[http.client.HTTPConnection]:
    client: http.client.HTTPConnection = (
        http.client.HTTPSConnection("127.0.0.1", xpum.port, timeout=PATIENCE, context=context)
        if context
        else http.client.HTTPConnection("127.0.0.1", xpum.port, timeout=PATIENCE)
    )
    with closing(client):
        yield client


def ask(client: http.client.HTTPConnection, path: str = "/metrics", **headers: str) -> Answer:
    client.request("GET", path, headers=headers)
    response = client.getresponse()
    return response, response.read()


def get(xpum: Simulator, path: str = "/metrics", **headers: str) -> Answer:
    with connected(xpum) as client:
        return ask(client, path, **headers)


def raw(xpum: Simulator) -> socket.socket:
    """Ask for the metrics on a bare socket."""
    client = socket.create_connection(("127.0.0.1", xpum.port), timeout=PATIENCE)
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def everything(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65_536), b""))


def post(xpum: Simulator, call: str, arguments: object = None) -> tuple[int, dict[str, Any]]:
    with connected(xpum) as client:
        body = b"" if arguments is None else json.dumps(arguments).encode()
        client.request("POST", f"/control/{call}", body)
        response = client.getresponse()
        return response.status, json.loads(response.read())


def topology(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.startswith(b"xpum_topology_link{")]


# --- HTTP as the contract has it ---


def test_an_answer_has_the_heads_of_the_real_one(xpum: Simulator) -> None:
    response, body = get(xpum)
    assert response.status == 200
    assert body == render(SMALL)
    names = ["Server", "Date", "Connection", "Content-Type", "Content-Length"]
    assert list(response.headers) == names
    assert response.headers["Server"] == ""
    assert response.headers["Content-Type"] == "text/plain"
    assert response.headers["Content-Length"] == str(len(body))


def test_a_connection_serves_again_while_it_is_kept_alive(xpum: Simulator) -> None:
    with connected(xpum) as client:
        for _ in range(3):
            assert ask(client)[0].status == 200
    xpum.wait_for_answer(3)
    assert (xpum.connections, xpum.requests, xpum.answers) == (1, 3, 3)


def test_an_idle_connection_is_closed_after_the_keep_alive() -> None:
    with Simulator(SMALL, Serving(keep_alive=0.1)) as xpum, raw(xpum) as client:
        assert everything(client).endswith(render(SMALL)[-100:])


def hung_up_on(client: socket.socket) -> bytes:
    """Give what a client still hears before its connection ends, in peace or not."""
    try:
        return everything(client)
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", id="a line"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", id="a header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: xxxxx\r\n" * 2000 + b"\r\n", id="many headers"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"x" * (1 << 20), id="a header without an end"),
    ],
)
def test_a_head_of_any_size_is_hung_up_on(xpum: Simulator, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", xpum.port), timeout=PATIENCE) as client:
        with suppress(ConnectionError):
            client.sendall(head)
        assert hung_up_on(client) == b""
    assert get(xpum)[0].status == 200
    assert xpum.requests == 1


def test_a_request_has_its_time_in_all_and_not_for_each_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "TIMEOUT", 0.5)
    with (
        Simulator(SMALL) as xpum,
        socket.create_connection(("127.0.0.1", xpum.port), timeout=PATIENCE) as client,
    ):
        begun = time.monotonic()
        client.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
        client.settimeout(0.05)
        with suppress(ConnectionError):
            while time.monotonic() < begun + PATIENCE:
                client.sendall(b"x")
                with suppress(TimeoutError):
                    if not client.recv(1):
                        break
        assert time.monotonic() < begun + PATIENCE, "it still listens"
        assert xpum.requests == 0


def test_connections_beyond_the_bound_are_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MOST", 2)
    with Simulator(SMALL) as xpum:
        address = "127.0.0.1", xpum.port
        with ExitStack() as held:
            for _ in range(2):
                client = held.enter_context(connected(xpum))
                assert ask(client)[0].status == 200  # and it is kept alive
            late = held.enter_context(socket.create_connection(address, timeout=PATIENCE))
            assert hung_up_on(late) == b""
        until = time.monotonic() + PATIENCE
        while True:  # those that left have still to be noticed
            try:
                assert get(xpum)[0].status == 200
                break
            except (ConnectionError, http.client.HTTPException):
                assert time.monotonic() < until


def test_a_client_that_wants_to_close_is_closed(xpum: Simulator) -> None:
    response, _ = get(xpum, Connection="close")
    assert response.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/healtz", 200, b"OK"),
        ("/healthz", 404, b"<h1>Not Found</h1>"),
        ("/", 404, b"<h1>Not Found</h1>"),
        ("/metrics?x=1", 200, b"xpum_topology_link"),
    ],
)
def test_paths_are_those_of_the_exporter(
    xpum: Simulator, path: str, status: int, words: bytes
) -> None:
    response, body = get(xpum, path)
    assert response.status == status
    assert words in body


def test_a_missing_page_is_as_long_as_the_real_one(xpum: Simulator) -> None:
    assert get(xpum, "/nothing")[0].headers["Content-Length"] == "207"


def test_head_has_no_body_and_post_is_not_allowed(xpum: Simulator) -> None:
    with connected(xpum) as client:
        client.request("HEAD", "/metrics")
        response = client.getresponse()
        assert (response.status, response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) == len(render(SMALL))
        client.request("POST", "/metrics", b"x")
        assert client.getresponse().status == 405


@pytest.mark.parametrize(
    "sent",
    [
        *(b"\r\n", b"nonsense\r\n\r\n", b"\x16\x03\x01"),
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_hung_up_on(xpum: Simulator, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", xpum.port), timeout=PATIENCE) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b""
    assert get(xpum)[0].status == 200


def test_the_next_answer_tells_of_the_node_of_now(xpum: Simulator) -> None:
    xpum.node = SMALL.cut("0.0-1.0")
    assert topology(get(xpum)[1]) == topology(render(xpum.node))


def test_only_four_requests_are_handled_at_a_time_and_the_rest_wait(xpum: Simulator) -> None:
    xpum.misbehave("hang")
    with ExitStack() as stack:
        clients = [stack.enter_context(raw(xpum)) for _ in range(5)]
        xpum.wait_for_request(4)
        with pytest.raises(TimeoutError):
            xpum.wait_for_request(5, timeout=0.05)
        assert xpum.busiest == 4
        xpum.recover()
        # The four that were taken are let go without a byte; the fifth finds a well server.
        assert sorted(client.recv(1) for client in clients) == [b"", b"", b"", b"", b"H"]


def test_what_was_asked_can_be_looked_at(xpum: Simulator) -> None:
    get(xpum, Accept="text/plain")
    assert xpum.seen[-1].headers["accept"] == "text/plain"
    assert xpum.seen[-1].path == "/metrics"


def test_waiting_for_a_request_ends_with_it_or_in_time(xpum: Simulator) -> None:
    with pytest.raises(TimeoutError):
        xpum.wait_for_request(timeout=0.01)
    thread = threading.Thread(target=get, args=[xpum])
    thread.start()
    xpum.wait_for_request(1)
    xpum.wait_for_answer(1)
    thread.join()


# --- Credentials ---


def basic(password: str) -> str:
    return "Basic " + b64encode(f"xpumadmin:{password}".encode()).decode()


def test_wrong_or_missing_credentials_get_401_and_right_ones_the_metrics() -> None:
    with Simulator(SMALL, Serving(password="s3cret", auth_sleep=0.0)) as xpum:  # noqa: S106 - made up
        response, body = get(xpum)
        assert (response.status, body) == (401, b"Unauthorized Access")
        assert response.headers["WWW-Authenticate"] == 'Basic realm="Authentication Required"'
        assert get(xpum, Authorization=basic("wrong"))[0].status == 401
        assert get(xpum, Authorization=basic("s3cret"))[0].status == 200
        assert get(xpum, "/healtz")[0].status == 200


def test_the_sleep_before_a_401_doubles_and_holds_a_worker() -> None:
    serving = Serving(password="s3cret", auth_sleep=0.02, workers=1)  # noqa: S106 - made up
    with Simulator(SMALL, serving) as xpum:
        start = time.monotonic()
        for _ in range(4):
            get(xpum)
        assert time.monotonic() - start >= 0.02 * (1 + 2 + 4 + 8)


def test_a_good_login_makes_the_next_sleep_the_first_again() -> None:
    def sleep(xpum: Simulator) -> float:
        refused: Any = xpum._refuse_in_time()  # noqa: SLF001 - to wait for it would take minutes
        return float(refused.keywords["sleep"])

    serving = Serving(password="s3cret", auth_sleep=2.0)  # noqa: S106 - made up
    with Simulator(SMALL, serving) as xpum:
        assert [sleep(xpum) for _ in range(9)] == [2, 4, 8, 16, 32, 64, 128, 256, 256]
        assert get(xpum, Authorization=basic("s3cret"))[0].status == 200
        assert sleep(xpum) == 2


# --- TLS ---


def save(certificate: trustme.LeafCert, folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "tls.crt", folder / "tls.key"
    key.write_bytes(certificate.private_key_pem.bytes())
    cert.write_bytes(certificate.cert_chain_pems[0].bytes())
    return cert, key


def test_a_rotated_certificate_is_served_to_the_next_connection(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    cert, key = save(first.issue_cert("127.0.0.1"), tmp_path)
    trusts = [ssl.create_default_context(), ssl.create_default_context()]
    first.configure_trust(trusts[0])
    second.configure_trust(trusts[1])
    with Simulator(SMALL, Serving(cert=cert, key=key)) as xpum:
        assert xpum.url.startswith("https://")
        with connected(xpum, trusts[0]) as client:
            response, body = ask(client)
            assert (response.status, body) == (200, render(SMALL))
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.version() == "TLSv1.3"
            cert.write_bytes(b"half written")
            with connected(xpum, trusts[0]) as meanwhile:
                assert ask(meanwhile)[0].status == 200
            save(second.issue_cert("127.0.0.1"), tmp_path)
            assert ask(client)[0].status == 200  # a connection keeps what it began with
        with connected(xpum, trusts[1]) as client:
            assert ask(client)[0].status == 200
        with connected(xpum, trusts[0]) as client, pytest.raises(ssl.SSLCertVerificationError):
            ask(client)


def test_tls_survives_clients_that_speak_none_or_leave(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert, key = save(authority.issue_cert("127.0.0.1"), tmp_path)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with Simulator(SMALL, Serving(cert=cert, key=key)) as xpum:
        with raw(xpum) as client:
            assert b"HTTP" not in everything_or_reset(client)
        silent = socket.create_connection(("127.0.0.1", xpum.port), timeout=PATIENCE)
        xpum.misbehave("reset", times=1)
        with connected(xpum, trust) as tls, pytest.raises(ConnectionResetError):
            ask(tls)
        with connected(xpum, trust) as tls:
            assert ask(tls)[0].status == 200
    silent.close()


def everything_or_reset(client: socket.socket) -> bytes:
    try:
        return everything(client)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "options", [{"cert": Path("c")}, {"key": Path("k")}, {"workers": 0}], ids=str
)
def test_serving_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"together|worker"):
        Serving(**options)


def test_a_certificate_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(FileNotFoundError):
        Simulator(SMALL, Serving(cert=missing, key=missing)).start()


# --- Misbehaviours: answers in good form ---


@pytest.mark.parametrize(
    ("name", "options", "status", "body", "kind"),
    [
        ("status", {"code": 418, "body": "tea"}, 418, b"tea", "text/html; charset=utf-8"),
        ("daemon-down", {}, 500, b"#nodata: due to unexpected failure", "text/plain"),
        ("no-devices", {}, 500, b"#nodata: failed to get devices (1)", "text/plain"),
        ("unauthorized", {}, 401, b"Unauthorized Access", "text/html; charset=utf-8"),
        ("redirect", {"location": "/x"}, 302, b"", "text/html; charset=utf-8"),
        ("no-content", {}, 204, b"", None),
        ("empty", {}, 200, b"", "text/plain"),
        ("text-html", {}, 200, render(SMALL), "text/html; charset=utf-8"),
        ("chunked", {}, 200, render(SMALL), "text/plain"),
        ("delay", {"by": 0.01}, 200, render(SMALL), "text/plain"),
        ("race", {}, 200, render(SMALL), "text/plain"),
        ("utf16", {}, 200, render(SMALL).decode().encode("utf-16"), "text/plain"),
        ("nul", {}, 200, render(SMALL).replace(b"{", b"{\0"), "text/plain"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_it_answers_as_told_and_then_well(
    xpum: Simulator, name: str, options: dict[str, Any], status: int, body: bytes, kind: str | None
) -> None:
    xpum.misbehave(name, times=1, **options)
    with connected(xpum) as client:
        response, found = ask(client)
        assert (response.status, response.headers["Content-Type"]) == (status, kind)
        assert found == body
        assert xpum.misbehaviour is None
        assert ask(client)[0].status == 200  # on the same connection


def test_gzip_comes_unasked(xpum: Simulator) -> None:
    xpum.misbehave("zipped")
    response, body = get(xpum)
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == render(SMALL)


def test_comments_only_has_no_row(xpum: Simulator) -> None:
    xpum.misbehave("comments-only")
    assert all(line.startswith(b"#") for line in get(xpum)[1].split(b"\n"))


def test_somebody_elses_page_is_no_exposition(xpum: Simulator) -> None:
    xpum.misbehave("html")
    assert get(xpum)[1].startswith(b"<!doctype html>")


@pytest.mark.parametrize("name", ["garbage", "bad-utf8"])
def test_a_body_can_be_no_utf8(xpum: Simulator, name: str) -> None:
    xpum.misbehave(name)
    with pytest.raises(UnicodeDecodeError):
        get(xpum)[1].decode()


def test_a_bad_row_is_the_last_of_the_topology(xpum: Simulator) -> None:
    xpum.misbehave("bad-row")
    rows = topology(get(xpum)[1])
    assert rows[-1] == topology(render(SMALL))[-1] + b"x"
    assert rows[:-1] == topology(render(SMALL))[:-1]


def test_overlapping_requests_lose_a_gpu_by_the_race(xpum: Simulator) -> None:
    second_is_done = threading.Event()

    def race(exchange: Exchange) -> None:
        if not exchange.overlapping:
            second_is_done.wait(PATIENCE)
        MISBEHAVIOURS["race"](exchange, device=1)

    xpum.misbehave(race)
    with connected(xpum) as first:
        first.request("GET", "/metrics")
        xpum.wait_for_request(1)
        assert topology(get(xpum)[1]) == topology(render(SMALL.hide(1)))
        second_is_done.set()
        assert topology(first.getresponse().read()) == topology(render(SMALL))
    assert xpum.busiest == 2


@pytest.mark.parametrize(
    ("name", "words"), [("daemon-down", "Internal"), ("no-devices", "devices")]
)
def test_the_health_check_fails_with_the_daemon(xpum: Simulator, name: str, words: str) -> None:
    xpum.misbehave(name, times=1)
    response, body = get(xpum, "/healtz")
    assert response.status == 500
    assert words in body.decode()
    assert xpum.misbehaviour == name  # asking for health uses up no answer


# --- Misbehaviours: time ---


@pytest.mark.parametrize("name", ["hang", "hang-in-body", "drip-headers", "drip-body"])
def test_a_slow_answer_ends_when_healed(xpum: Simulator, name: str) -> None:
    xpum.misbehave(name)
    with raw(xpum) as client:
        xpum.wait_for_request(1)
        xpum.recover()
        assert len(everything(client)) < len(render(SMALL))
    assert get(xpum)[0].status == 200


def test_headers_drip_byte_by_byte(xpum: Simulator) -> None:
    xpum.misbehave("drip-headers", rate=2.0)
    with raw(xpum) as client:
        begun = client.recv(65_536)  # more than a byte on a machine that takes its time
        assert begun
        assert b"HTTP/1.1 200 OK\r\n".startswith(begun[:17])
        assert b"\r\n\r\n" not in begun


def test_a_body_drips_after_a_whole_head(xpum: Simulator) -> None:
    xpum.misbehave("drip-body", rate=0.5)
    with connected(xpum) as client:
        client.request("GET", "/metrics")
        response = client.getresponse()
        assert response.read(1) == b"#"
        assert response.length == len(render(SMALL)) - 1


def test_a_delayed_answer_comes_at_once_when_healed(xpum: Simulator) -> None:
    xpum.misbehave("delay", by=600.0)
    with raw(xpum) as client:
        xpum.wait_for_request(1)
        xpum.recover()
        assert client.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"


def test_a_misbehaviour_can_end_by_itself(xpum: Simulator) -> None:
    xpum.misbehave("hang", seconds=0.5)
    with raw(xpum) as client:
        assert everything(client) == b""
    assert xpum.misbehaviour is None


def test_a_timer_that_comes_too_late_heals_nothing_else(xpum: Simulator) -> None:
    xpum.misbehave("hang", seconds=NEVER)
    xpum.misbehave("empty")
    xpum._recover_in_time()  # noqa: SLF001 - as a timer does that had fired already
    assert xpum.misbehaviour == "empty"


# --- Misbehaviours: broken HTTP ---


@pytest.mark.parametrize("name", ["reset", "reset-in-body"])
def test_a_connection_can_be_reset(xpum: Simulator, name: str) -> None:
    xpum.misbehave(name)
    with raw(xpum) as client, pytest.raises(ConnectionResetError):
        everything(client)


def test_a_connection_can_be_closed_without_a_byte(xpum: Simulator) -> None:
    xpum.misbehave("close")
    with pytest.raises(http.client.RemoteDisconnected):
        get(xpum)


def test_an_answer_can_be_no_http(xpum: Simulator) -> None:
    xpum.misbehave("not-http")
    with pytest.raises(http.client.BadStatusLine):
        get(xpum)


@pytest.mark.parametrize("name", ["cut", "wrong-length"])
def test_a_body_shorter_than_promised_can_be_told(xpum: Simulator, name: str) -> None:
    xpum.misbehave(name)
    with pytest.raises(http.client.IncompleteRead):
        get(xpum)


@pytest.mark.parametrize("announced", ["cut", "none"])
def test_a_body_can_be_cut_in_a_row_without_a_trace(xpum: Simulator, announced: str) -> None:
    xpum.misbehave("cut", announced=announced)
    response, body = get(xpum)
    assert (response.headers["Content-Length"] is None) is (announced == "none")
    whole = topology(render(SMALL))
    assert topology(body)[:-1] == whole[: len(whole) // 2]
    assert whole[len(whole) // 2].startswith(topology(body)[-1])


def test_a_body_can_be_cut_where_there_is_no_row(xpum: Simulator) -> None:
    xpum.node = Blueprint(gpus=0).build()
    xpum.misbehave("cut", announced="none")
    assert get(xpum)[0].status == 200


def test_a_body_can_be_longer_than_promised(xpum: Simulator) -> None:
    xpum.misbehave("wrong-length", by=-100)
    assert get(xpum)[1] == render(SMALL)[:-100]


def test_a_body_can_be_endless(xpum: Simulator) -> None:
    xpum.misbehave("endless")
    with connected(xpum) as client:
        client.request("GET", "/metrics")
        response = client.getresponse()
        assert len(response.read(3 * len(render(SMALL)))) == 3 * len(render(SMALL))


def test_headers_can_be_endless(xpum: Simulator) -> None:
    xpum.misbehave("endless-headers")
    with pytest.raises(http.client.HTTPException, match="more than 100 headers"):
        get(xpum)


def test_refused_connections_are_taken_again_on_the_same_port(xpum: Simulator) -> None:
    port = xpum.port
    with connected(xpum) as client:
        ask(client)
        xpum.misbehave("refuse")
        with pytest.raises(ConnectionError):
            ask(client)  # connections that stood are dropped
    with pytest.raises(ConnectionRefusedError):
        get(xpum)
    xpum.misbehave("refuse")
    xpum.recover()
    assert xpum.port == port
    assert get(xpum)[0].status == 200


@pytest.mark.parametrize("name", sorted(MISBEHAVIOURS))
def test_healing_ends_every_misbehaviour(xpum: Simulator, name: str) -> None:
    xpum.misbehave(name)
    with raw(xpum):
        xpum.wait_for_request(1)
        xpum.recover()
    response, body = get(xpum)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain")
    assert topology(body) == topology(render(SMALL))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sulk", {}, "unknown misbehaviour"),
        ("hang", {"by": 1}, "no options"),
        ("delay", {"by": "long"}, "of type float"),
        ("delay", {"of": 1}, "takes by"),
        ("hang", {"times": 0}, "times"),
        ("hang", {"seconds": 0}, "seconds"),
        ("refuse", {"times": 1}, "times"),
        ("refuse", {"by": 1}, "no options"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    xpum: Simulator, name: str, options: dict[str, Any], words: str
) -> None:
    xpum.misbehave("empty")
    with pytest.raises(ValueError, match=words):
        xpum.misbehave(name, **options)
    assert xpum.misbehaviour == "empty"


def test_a_whole_number_is_one_of_seconds_too(xpum: Simulator) -> None:
    xpum.misbehave("delay", by=0)
    assert topology(get(xpum)[1]) == topology(render(SMALL))


def test_every_misbehaviour_says_what_it_does() -> None:
    assert all(act.__doc__ for act in MISBEHAVIOURS.values())
    assert set(describe()) == set(MISBEHAVIOURS)


# --- Control ---


def test_links_are_cut_degraded_and_restored_by_calls(xpum: Simulator) -> None:
    assert post(xpum, "cut", {"links": ["0.0-1.0"]})[1]["node"]["altered"] == {"0.0-1.0": "0/0"}
    assert xpum.node == SMALL.cut("0.0-1.0")
    post(xpum, "degrade", {"links": ["0.1-1.1"], "lanes": 2, "lanes_back": 1})
    assert xpum.node == SMALL.cut("0.0-1.0").degrade(2, 1, "0.1-1.1")
    post(xpum, "restore")
    assert xpum.node == SMALL


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        ("ports", {"gpu": 1, "state": "degraded"}, b"have quality and/or speed degradation"),
        ("add", {"gpu": 5}, b'local_device_id="5"'),
        ("renumber", {"ids": {"0": 7}}, b'local_device_id="7"'),
        ("spelling", {}, b'lan_count="4"'),
        ("pod", {"gpu": 0, "namespace": "ml"}, b'kube_namespace="ml",kube_pod="train-0"'),
        ("host-network", {}, b"Device lacks Xe Link capability."),
        ("generation", {}, b"hw_temperature_celsius{"),
        ("node", {"gpus": 3, "id_gaps": [1]}, b'local_device_id="3"'),
        ("one-direction", {}, b'lane_count="0"'),
        ("cold", {}, b"xpum_"),
        ("stale", {}, b"xpum_"),
    ],
)
def test_calls_change_the_next_answer(
    xpum: Simulator, call: str, arguments: dict[str, object], words: bytes
) -> None:
    status, state = post(xpum, call, arguments)
    assert (status, "node" in state) == (200, True)
    assert words in get(xpum)[1]
    assert post(xpum, "reset")[0] == 200
    assert xpum.node == SMALL


def test_gpus_are_removed_and_hidden_and_the_topology_fails_by_calls(xpum: Simulator) -> None:
    post(xpum, "remove", {"gpu": 1})
    assert len(topology(get(xpum)[1])) == 4
    post(xpum, "add", {"gpu": 1})
    post(xpum, "hide", {"gpu": 1})
    assert len(topology(get(xpum)[1])) == 8
    post(xpum, "hide", {"gpu": None})
    assert len(topology(get(xpum)[1])) == 16
    post(xpum, "topology-fails", {"on": True})
    assert topology(get(xpum)[1]) == []


def test_misbehaviours_come_and_go_by_calls(xpum: Simulator) -> None:
    told = post(xpum, "misbehave", {"name": "status", "code": 503, "times": 2})[1]
    assert told["misbehaviour"] == {"name": "status", "left": 2, "code": 503}
    assert get(xpum)[0].status == 503
    assert post(xpum, "recover")[1]["misbehaviour"] is None
    assert get(xpum)[0].status == 200


def test_refusing_by_a_call_heals_itself(xpum: Simulator) -> None:
    assert post(xpum, "misbehave", {"name": "refuse"})[0] == 400
    with connected(xpum) as client:
        order = json.dumps({"name": "refuse", "seconds": 30}).encode()
        client.request("POST", "/control/misbehave", order)
        assert client.getresponse().read()
        with pytest.raises(ConnectionRefusedError):
            get(xpum)
        client.request("POST", "/control/recover")  # the connection that ordered it still stands
        assert client.getresponse().status == 200
    assert get(xpum)[0].status == 200


def test_the_control_works_while_every_worker_hangs(xpum: Simulator) -> None:
    xpum.misbehave("hang")
    with ExitStack() as stack:
        clients = [stack.enter_context(raw(xpum)) for _ in range(4)]
        xpum.wait_for_request(4)
        assert post(xpum, "recover")[0] == 200
        assert [everything(client) for client in clients] == [b""] * 4


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        ("explode", {}, "no call 'explode'"),
        ("cut", [], "JSON object"),
        ("cut", {"links": "0.0-1.0"}, "a list"),
        ("cut", {"links": ["0.0-9.0"]}, "no tile 9.0"),
        ("cut", {"links": [5]}, ""),
        ("remove", {"gpu": "1"}, "gpu cannot be '1'"),
        ("remove", {}, "gpu"),
        ("ports", {"gpu": 0, "state": "rusty"}, "rusty"),
        ("renumber", {"ids": {"0": 1}}, "given twice"),
        ("node", {"color": "red"}, "color"),
        ("node", {"gpus": "many"}, ""),
        ("misbehave", {}, "name"),
        ("misbehave", {"name": "sulk"}, "unknown misbehaviour"),
        ("misbehave", {"name": "hang", "seconds": "x"}, ""),
    ],
)
def test_a_call_that_cannot_be_says_why_and_changes_nothing(
    xpum: Simulator, call: str, arguments: object, words: str
) -> None:
    status, answer = post(xpum, call, arguments)
    assert status == 400
    assert words in answer["error"]
    assert xpum.node == SMALL
    assert xpum.misbehaviour is None


def test_the_control_explains_itself(xpum: Simulator) -> None:
    told = json.loads(get(xpum, "/control/help")[1])
    assert set(MISBEHAVIOURS) | {"refuse"} == set(told["misbehaviours"])
    assert {"cut", "misbehave", "recover"} <= set(told["calls"])
    assert json.loads(get(xpum, "/control")[1])["node"]["links"]["0.0-1.0"] == "4/4"
    assert get(xpum, "/control/cut")[0].status == 405


def test_there_is_no_control_unless_wanted() -> None:
    with Simulator(SMALL, Serving(control=False)) as xpum:
        assert get(xpum, "/control")[0].status == 404
        assert post_status(xpum) == 404


def post_status(xpum: Simulator) -> int:
    with connected(xpum) as client:
        client.request("POST", "/control/recover")
        return client.getresponse().status


# --- The end ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("hang", "endless", "drip-headers", "status")),
        ("delay", {"by": NEVER}),
    ],
)
def test_the_end_waits_for_no_client(name: str, options: dict[str, float]) -> None:
    with ExitStack() as clients:
        xpum = clients.enter_context(Simulator(SMALL))
        xpum.misbehave(name, **options)  # type: ignore[arg-type]  # no option is a number of seconds
        for _ in range(6):
            clients.enter_context(raw(xpum))
        xpum.wait_for_request(4)
        end = threading.Thread(target=xpum.close, daemon=True)
        end.start()
        end.join(PATIENCE)
        assert not end.is_alive()


def test_a_simulator_that_refuses_ends_as_well() -> None:
    with Simulator(SMALL) as xpum:
        xpum.misbehave("refuse", seconds=600)
    with pytest.raises(ConnectionRefusedError):
        get(xpum)


# --- The command line ---


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "xelink.simulators.xpu_manager", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_says_where_it_listens_and_ends_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    port_file = tmp_path / "port"
    with program("--gpus", "2", "--misbehave", "hang", "--port-file", str(port_file)) as running:
        assert running.stdout
        line = running.stdout.readline()
        port = int(port_file.read_text())
        assert line == f"simulating 2 GPUs with 2 links at http://127.0.0.1:{port}/metrics\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            running.send_signal(number)
            assert running.wait(PATIENCE) == 0


def test_flags_make_the_node_and_the_server(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    flags = "--gpus 2 --tiles 1 --igpu --id-gap 1 --cards reversed --spelling lan_count --lanes 8"
    with program(*flags.split(), "--password-file", str(secret), "--control") as running:
        assert running.stdout
        url = running.stdout.readline().split()[-1]
        port = int(url.rpartition(":")[2].partition("/")[0])
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as client:
            assert ask(client)[0].status == 401
            body = ask(client, Authorization=basic("s3cret"))[1]
            state = json.loads(ask(client, "/control")[1])
    assert b'lan_count="8"' in body
    assert state["node"]["links"] == {"2.0-3.0": "8/8"}
    assert [gpu["card"] for gpu in state["node"]["gpus"].values()] == ["card0", "card2", "card1"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpus", "-1"], 2, "cannot be negative"),
        (["--cert", "tls.crt"], 2, "go together"),
        (["--password-file", "/nonexistent"], 2, "No such file"),
        (["--bind", "203.0.113.1"], 1, "cannot serve"),
    ],
)
def test_a_wrong_call_says_so_and_ends(arguments: list[str], code: int, words: str) -> None:
    with program(*arguments) as running:
        _, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == code
        assert words in errors


def test_help_teaches_with_examples() -> None:
    with program("--help") as running:
        output, _ = running.communicate(timeout=PATIENCE)
        assert "examples:" in output
        assert "control/misbehave" in output


# --- Adding a row to the table ---


def test_a_misbehaviour_is_a_function_of_an_exchange(xpum: Simulator) -> None:
    def shout(exchange: Exchange) -> None:
        exchange.answer(exchange.body.upper())

    xpum.misbehave(shout)
    assert get(xpum)[1] == render(SMALL).upper()
