"""Any bytes at all: a reading or a `ScrapeError` of one readable line, in bounded memory."""

import re
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import PATIENCE, Ticks
from tests.xpu_manager.test_scrape import NODE, Answering, refusal, scraping, text_of
from xelink.simulators.xpu_manager import render
from xelink.xpu_manager.errors import ScrapeError
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import Scraper, ScrapeTarget

ROWS = b"\n".join(line for line in render(NODE).split(b"\n") if b"topology" in line)
OK = b"HTTP/1.1 200 OK\r\n"

status_lines = st.sampled_from(
    [OK, b"HTTP/1.0 200\r\n", b"HTTP/1.1 401 NO\r\n", b"HTTP/1.1 302 GO\r\n", b"HTTP/9.9 200\r\n"]
) | st.from_regex(rb"HTTP/1\.[01] [0-9]{1,4} ?[ -~]{0,5}\r\n", fullmatch=True)
header_names = st.sampled_from(
    [
        *(b"Content-Length", b"Content-Encoding", b"Content-Type", b"Transfer-Encoding"),
        *(b"Connection", b"Location", b"Set-Cookie", b"WWW-Authenticate", b"Upgrade"),
    ]
)
header_values = st.sampled_from(
    [
        *(b"0", b"10", b"-1", b"1e9", b"9" * 30, b"chunked", b"gzip", b"identity", b"close"),
        *(b"//", b"http://[::1", b"http://x:99999/", b"http://a..b/", b"a=b; expires=\xff"),
    ]
) | st.binary(max_size=20)
heads = st.builds(
    lambda first, headers: first + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n",
    status_lines,
    st.lists(st.tuples(header_names, header_values), max_size=4),
)
bodies = st.binary(max_size=200) | st.just(ROWS) | st.just(b"5\r\nxpum_\r\n0\r\n\r\n")
answers = st.builds(lambda head, body: head + body, heads, bodies) | st.binary(max_size=300)


@pytest.fixture(scope="module")
def server() -> Iterator[Answering]:
    with Answering() as server:
        yield server


def said(scraper: Scraper) -> str:
    try:
        scraper.scrape()
    except ScrapeError as error:
        return text_of(error)
    return ""


@settings(deadline=None, max_examples=300)
@given(answers)
def test_any_answer_is_a_reading_or_one_readable_line(server: Answering, answer: bytes) -> None:
    server.pieces = [answer]
    with scraping(ScrapeTarget(server.port, timeout=PATIENCE)) as scraper:
        detail = said(scraper)
    assert detail.isprintable()
    assert len(detail) < 300


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(ROWS)), st.binary(max_size=8), st.integers(1, 5000))
def test_a_damaged_body_cut_anywhere_is_read(
    server: Answering, at: int, damage: bytes, size: int
) -> None:
    body = ROWS[:at] + damage + ROWS[at + len(damage) :]
    server.pieces = [OK + b"\r\n", *(body[i : i + size] for i in range(0, len(body), size))]
    with scraping(server.port) as scraper:
        assert scraper.scrape().total >= ROWS.count(b"\nxpum_topology_link{") - 9


def test_an_answer_that_is_one_long_line_of_noise_is_told_in_a_short_one(
    server: Answering,
) -> None:
    server.pieces = [b"x" * 90_000 + b"\r\n\r\n"]
    with scraping(server.port) as scraper:
        error = refusal(scraper)
    assert error.reason is ScrapeReason.PROTOCOL
    assert len(text_of(error)) < 300


@pytest.mark.parametrize("start", [b"", b"xpum_topology_link{", b"# HELP "])
def test_an_endless_line_takes_a_few_megabytes_at_most(server: Answering, start: bytes) -> None:
    server.pieces = _endless(OK + b"\r\n" + start)
    with scraping(ScrapeTarget(server.port, max_body=24 << 20)) as scraper:
        tracemalloc.start()
        try:
            assert refusal(scraper).reason is ScrapeReason.TOO_LARGE
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 6 << 20


def _endless(head: bytes) -> Iterator[bytes]:
    yield head
    yield from repeat(b"x" * 65536)


def test_endless_rows_end_at_the_limit_of_rows_before_that_of_the_body(server: Answering) -> None:
    server.pieces = (OK + b"\r\n" if first else ROWS + b"\n" for first in _first_only())
    with scraping(server.port) as scraper:
        error = refusal(scraper)
    assert error.reason is ScrapeReason.TOO_LARGE
    assert "topology rows" in text_of(error)


def _first_only() -> Iterator[bool]:
    yield True
    yield from repeat(False)  # noqa: FBT003 - what is repeated


def test_a_line_of_any_length_is_read_in_its_turn(server: Answering) -> None:
    # In time that grows with its length: tests/test_linear.py.
    server.pieces = [OK + b"\r\nxpum_topology_link{" + b"}" * 900_000 + b" 1 2 3\n"]
    with scraping(ScrapeTarget(server.port)) as scraper:
        assert scraper.scrape().unread == 1


@pytest.mark.parametrize("status", [b"401 NO", b"500 BROKEN"])
@pytest.mark.parametrize("end", ["short", "none"])
def test_a_status_counts_whatever_becomes_of_its_body(
    server: Answering, status: bytes, end: str
) -> None:
    stuck = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"HTTP/1.1 %s\r\nContent-Length: 1000\r\n\r\n#nodata" % status
        if end == "none":
            stuck.wait(PATIENCE)

    server.pieces = pieces()
    asked = server.asked
    # Its time is up when it has had its turn three times, and has got nothing more.
    with scraping(ScrapeTarget(server.port, timeout=3.0), limit=Ticks()) as scraper:
        error = refusal(scraper)
        stuck.set()
    assert error.reason is (ScrapeReason.UNAUTHORIZED if b"401" in status else ScrapeReason.STATUS)
    assert re.match(status[:3].decode(), text_of(error))
    assert server.asked == asked + 1


@pytest.mark.parametrize("status", [b"401 NO", b"500 BROKEN"])
def test_a_status_counts_where_its_body_is_no_http(server: Answering, status: bytes) -> None:
    server.pieces = [b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\nlots\r\n" % status]
    with scraping(server.port) as scraper:
        error = refusal(scraper)
    assert error.reason is (ScrapeReason.UNAUTHORIZED if b"401" in status else ScrapeReason.STATUS)
    assert text_of(error).startswith(status[:3].decode())


def test_every_scrape_asks_the_same_whatever_was_answered_cookies_included() -> None:
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n" % len(ROWS) + ROWS
    requests = []
    with Answering([answer]) as server, scraping(ScrapeTarget(server.port)) as scraper:
        for _ in range(2):
            scraper.scrape()
            scraper.hang_up()
            requests.append(server.request)
    assert requests[0] == requests[1]
    assert requests[0].startswith(b"GET /metrics HTTP/1.1\r\n")
    assert b"cookie" not in requests[0].lower()
