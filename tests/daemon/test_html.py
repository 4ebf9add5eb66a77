"""The page: safe whatever it shows, whole in itself, and alive in a real browser."""

import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.browser import CHROMIUM, needs_browser
from tests.daemon.listener import listening_at
from tests.patience import PATIENCE
from tests.processes import get
from xelink.daemon.html import (
    Html,
    StatusDocument,
    badge,
    code,
    instant,
    iso,
    pages,
    section,
    table,
    tag,
    words,
)
from xelink.daemon.http_server import Site
from xelink.daemon.version import FORMAT_VERSION

NASTY = '<script>alert("x")</script>&amp;\'"'


class Elements(HTMLParser):
    """Collects elements, texts and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(told: StatusDocument) -> Sequence[Html]:
    drawing = Html("<svg><style>circle { fill: red; }</style></svg>")
    return (
        section("now", "Now", tag("p", badge(told["state"], good=False), data_news="")),
        section("times", "Times", tag("p", instant(told["expires"])), drawing),
        section("rows", "Rows", table("rows", ("name", "value"), [("a", told["state"])])),
    )


def page_of(status: StatusDocument) -> tuple[str, dict[str, str]]:
    reply = pages("a title", lambda: status, shown)["/"]()
    return reply.body.decode(), dict(reply.headers)


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_shown_stays_text(text: str, value: str) -> None:
    clean = text.replace("\r", "").replace("\0", "")
    seen = Elements(tag("p", clean, title=value.replace("\r", "").replace("\0", "")))
    assert seen.tags == ["p"]
    assert "".join(seen.texts) == clean


def test_a_page_shows_what_is_told_and_runs_nothing_but_its_own_script() -> None:
    text, headers = page_of({"state": NASTY, "expires": None})
    seen = Elements(text)
    assert seen.tags.count("script") == 1
    assert any(NASTY in part for part in seen.texts)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for element in ("script", "style"):
        found = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        allowed = re.search(f"{element}-src ([^;]*)", policy)
        assert allowed
        digests = [b64encode(sha256(part.encode()).digest()).decode() for part in found]
        assert sorted(f"'sha256-{digest}'" for digest in digests) == sorted(allowed[1].split())
    links = [value for name, value in seen.attributes if name in ("src", "href")]
    assert links == ["status.json", "metrics", "readyz"]


def test_every_part_has_a_heading_that_names_it_and_every_table_says_what_it_is() -> None:
    text, _ = page_of({"state": "fine", "expires": None})
    seen = Elements(text)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in seen.attributes if name == "aria-labelledby"} <= set(ids)
    assert seen.tags.count("caption") == seen.tags.count("table") == 1


def test_an_empty_table_says_so() -> None:
    assert Elements(table("losses", ("what",), [])).texts == ["losses: none."]


def test_bytes_that_are_no_text_are_shown_as_question_marks() -> None:
    text, _ = page_of({"state": "a\udcffb", "expires": None})
    assert "✗ a?b" in Elements(text).texts


def test_names_in_a_row_are_told_one_by_one_and_none_as_a_word() -> None:
    seen = Elements(words(["card1-0", NASTY]))
    assert seen.tags == ["span", "span"]
    assert "".join(seen.texts) == f"card1-0 {NASTY}"
    assert words([], "no <b>") == "no &lt;b&gt;"


def test_a_code_stays_the_same_text_and_breaks_after_one_letter_only() -> None:
    for text in ("a_b-c", "_a__", NASTY):
        assert "".join(Elements(code(text)).texts) == text
        assert "".join(Elements(code(text, "_")).texts) == text
    assert Elements(code("a_b-c")).tags == ["code", "span"]
    assert Elements(code("a_b-c", "_")).tags == ["code", "span", "wbr", "span"]


def test_instants_are_told_with_their_zone_or_not_at_all() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert iso(moment) == "2026-01-02T03:04:05+00:00"
    assert datetime.fromisoformat(iso(moment.timestamp()) or "") == moment.replace(microsecond=0)
    assert iso(None) is iso(0) is None


@contextmanager
def served_pages(
    status: StatusDocument, body: Callable[[StatusDocument], Sequence[Html]]
) -> Iterator[str]:
    with listening_at("127.0.0.1:0", Site(pages=pages("a title", lambda: status, body))) as served:
        yield served.address


@contextmanager
def served(status: StatusDocument) -> Iterator[str]:
    with served_pages(status, shown) as address:
        yield f"http://{address}"


def test_what_is_shown_is_kept_nowhere_told_nobody_and_taken_for_nothing_else() -> None:
    shows = pages("a title", lambda: {"state": "fine", "expires": None}, shown)
    for path, kind in (("/", "text/html; charset=utf-8"), ("/status.json", "application/json")):
        reply = shows[path]()
        assert reply.type == kind
        headers = dict(reply.headers)
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_but_what_the_page_brings_is_loaded_and_nobody_frames_it() -> None:
    _, headers = page_of({"state": "fine", "expires": None})
    policy = headers["Content-Security-Policy"]
    assert re.sub("'sha256-[^']*'", "DIGEST", policy) == (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'; script-src DIGEST; style-src DIGEST DIGEST"
    )


def test_without_a_script_the_page_is_loaded_again_by_itself() -> None:
    text, _ = page_of({"state": "fine", "expires": None})
    assert (
        '<noscript><meta http-equiv="refresh" content="10"></noscript>'
        in text.partition("<body")[0]
    )


def test_programs_get_the_same_as_json() -> None:
    status = {"state": NASTY, "expires": None}
    with served(status) as url:
        code, text = get(f"{url}/status.json")
        assert (code, json.loads(text)) == (200, {"format_version": FORMAT_VERSION, **status})
        assert get(f"{url}/")[0] == 200


def browsed(url: str, directory: Path, seconds: int = 12) -> tuple[Elements, str]:
    """Let a browser look at a page for so long; give what stands there, and its complaints."""
    assert CHROMIUM
    dumped = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", f"--user-data-dir={directory}"),
            *(f"--virtual-time-budget={seconds}000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return Elements(dumped.stdout), dumped.stderr


@needs_browser
def test_a_browser_counts_down_and_follows_what_changes(tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    status = {"state": "first", "expires": soon}
    answered = 0

    def shown_once(told: StatusDocument) -> Sequence[Html]:
        nonlocal answered
        answered += 1
        return shown(told if answered < 3 else {**told, "state": "later"})

    with served_pages(status, shown_once) as address:
        seen, complaints = browsed(f"http://{address}/", tmp_path)
    assert any(re.fullmatch(r"in (1 h 0|59 min \d+|60 min 0) (min|s)", text) for text in seen.texts)
    assert "✗ later" in seen.texts
    assert "✗ first" not in seen.texts
    assert seen.texts.count("✗ later") == 2  # where it stands, and as news
    assert "Refused" not in complaints


@needs_browser
def test_a_browser_says_that_the_daemon_is_gone_until_it_answers_again(tmp_path: Path) -> None:
    answers = 0

    def shown_sometimes(told: StatusDocument) -> Sequence[Html]:
        nonlocal answers
        answers += 1
        if answers == 3:
            raise OSError("on purpose")
        return shown(told)

    status = {"state": "fine", "expires": None}
    for seconds, news in ((8, "No answer since"), (13, "It answers again.")):
        answers = 0
        with served_pages(status, shown_sometimes) as address:
            seen, _ = browsed(f"http://{address}/", tmp_path, seconds)
        assert [text for text in seen.texts if text.startswith(news)], seen.texts
