"""Handshakes that fail are told apart: no TLS, too old a TLS, no client certificate, silence."""

import socket
import ssl
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.patience import NEVER, PATIENCE, Clock
from tests.xpu_manager.test_scrape import (
    EMPTY,
    NODE,
    Answering,
    outcome,
    refusal,
    scraping,
    text_of,
    time_is_up,
)
from tests.xpu_manager.test_tls_servers import CA, HERE, Authority, https, written
from xelink.simulators.xpu_manager import Serving, Simulator, listener
from xelink.xpu_manager.reasons import ScrapeReason


def test_https_to_a_plain_port_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "TIMEOUT", 0.5)  # it waits for the end of a line
    trust = written(tmp_path, "ca.crt", CA.pem)
    with Simulator(NODE) as xpum, scraping(https(xpum.port, trust)) as scraper:
        error = refusal(scraper)
        assert error.reason is ScrapeReason.TLS
        assert "HTTPS on this port" in text_of(error)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_a_server_that_answers_something_else_than_tls_is_told(
    tmp_path: Path, answer: bytes
) -> None:
    trust = written(tmp_path, "ca.crt", CA.pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with scraping(https(listener.getsockname()[1], trust)) as scraper:
            error = refusal(scraper)
        thread.join(PATIENCE)
    assert error.reason is ScrapeReason.TLS
    assert text_of(error).endswith("; does XPU Manager speak HTTPS on this port?")


def test_plain_http_to_an_https_port_is_told(tmp_path: Path) -> None:
    cert = written(tmp_path, "tls.pem", CA.issue(HERE))
    with Simulator(NODE, Serving(cert=cert, key=cert)) as xpum, scraping(xpum.port) as scraper:
        error = refusal(scraper)
    assert error.reason is ScrapeReason.RESET
    assert text_of(error).endswith("; XPU Manager restarts, or speaks HTTPS on this port (-cert)")


def test_a_handshake_that_hangs_ends_in_time(tmp_path: Path) -> None:
    trust = written(tmp_path, "ca.crt", CA.pem)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        limit = Clock()
        with (
            ExitStack() as held,
            scraping(https(port, trust, timeout=NEVER), limit=limit) as scraper,
            time_is_up(limit, lambda: held.enter_context(deaf.accept()[0])),
        ):
            error = refusal(scraper)
    assert error.reason is ScrapeReason.TLS
    assert text_of(error).startswith("no TLS handshake within 3600 s; XPU Manager hangs, or")


def test_a_refused_connection_is_no_matter_of_trust(tmp_path: Path) -> None:
    trust = written(tmp_path, "ca.crt", CA.pem)
    cert = written(tmp_path, "tls.pem", CA.issue(HERE))
    with Simulator(NODE, Serving(cert=cert, key=cert)) as xpum:
        for name, reason in (("refuse", "refused"), ("reset", "reset"), ("close", "reset")):
            xpum.misbehave(name)
            with scraping(https(xpum.port, trust)) as scraper:
                assert outcome(scraper) == reason


def server_context(served: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served)
    return context


def test_a_server_that_knows_only_tls_1_1_is_refused(tmp_path: Path) -> None:
    context = server_context(written(tmp_path, "tls.pem", CA.issue(HERE)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what is tested is deprecated
        try:
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1_1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        except (ValueError, ssl.SSLError) as lacking:
            pytest.skip(f"this OpenSSL cannot serve TLS 1.1: {lacking}")
    with Answering([EMPTY], context) as server:
        trust = written(tmp_path, "ca.crt", CA.pem)
        with scraping(https(server.port, trust)) as scraper:
            error = refusal(scraper)
    assert error.reason is ScrapeReason.TLS
    assert text_of(error).endswith("; XPU Manager must offer TLS 1.2 or later")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_asks_for_a_client_certificate_gets_ours(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = server_context(written(tmp_path, "tls.pem", CA.issue(HERE)))
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    trust = written(tmp_path, "ca.crt", CA.pem)
    context.load_verify_locations(trust)
    ours = written(tmp_path, "client.pem", CA.issue())
    foreign = written(tmp_path, "foreign.pem", Authority("other").issue())
    with Answering([EMPTY], context) as server:
        for client, advice in ((None, "-client-cert"), (foreign, "the CA of the -client-cert")):
            with scraping(https(server.port, trust, client)) as scraper:
                error = refusal(scraper)
            assert error.reason is ScrapeReason.TLS
            assert advice in text_of(error)
        assert server.asked == 0
        with scraping(https(server.port, trust, ours)) as scraper:
            assert scraper.scrape().total == 0


def test_a_server_that_hangs_up_between_scrapes_costs_none_of_them(tmp_path: Path) -> None:
    context = server_context(written(tmp_path, "tls.pem", CA.issue(HERE)))
    trust = written(tmp_path, "ca.crt", CA.pem)
    with Answering([EMPTY], context) as server, scraping(https(server.port, trust)) as scraper:
        assert [scraper.scrape().total for _ in range(100)] == [0] * 100
        assert server.asked == 100
