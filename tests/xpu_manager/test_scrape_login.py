"""HTTP Basic: the password comes from its file alone, a refusal is answered with patience."""

import resource
import socket
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.patience import NEVER, PATIENCE, Clock
from tests.xpu_manager.test_scrape import NODE, outcome, refusal, scraping, text_of, time_is_up
from xelink.simulators.xpu_manager import Serving, Simulator
from xelink.xpu_manager.errors import ScrapeError
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import Credentials, ScrapeTarget
from xelink.xpu_manager.tls import TlsFiles

WORD = "s3cr3t-word"
SERVING = Serving(password=WORD, auth_sleep=0.0)


@pytest.fixture
def xpum() -> Iterator[Simulator]:
    with Simulator(NODE, SERVING) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "password"


def login(xpum: Simulator, file: Path, timeout: float = PATIENCE) -> ScrapeTarget:
    return ScrapeTarget(xpum.port, credentials=Credentials("xpumadmin", file), timeout=timeout)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_password_is_the_file_without_its_last_newline(
    xpum: Simulator, file: Path, end: str
) -> None:
    file.write_bytes(f"{WORD}{end}".encode())
    with scraping(login(xpum, file)) as scraper:
        assert outcome(scraper) == "links"
        assert xpum.seen[0].headers["authorization"] == "Basic eHB1bWFkbWluOnMzY3IzdC13b3Jk"


def test_a_want_of_descriptors_is_not_told_of_the_password(xpum: Simulator, file: Path) -> None:
    file.write_text(WORD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with scraping(login(xpum, file)) as scraper:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            error = refusal(scraper)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error.reason is ScrapeReason.RESOURCES
        assert outcome(scraper) == "links"


def test_a_password_need_not_be_utf8(file: Path) -> None:
    file.write_bytes(b"s\xffcret")
    with Simulator(NODE) as xpum, scraping(login(xpum, file)) as scraper:
        assert outcome(scraper) == "links"
        assert xpum.seen[0].headers["authorization"] == "Basic eHB1bWFkbWluOnP/Y3JldA=="


def test_a_rotated_password_is_used_by_the_next_scrape(xpum: Simulator, file: Path) -> None:
    now = [0.0]
    file.write_text("old")
    with scraping(login(xpum, file), monotonic=lambda: now[0]) as scraper:
        assert outcome(scraper) == "unauthorized"
        assert outcome(scraper) == "unauthorized"
        assert xpum.requests == 1
        file.write_text(WORD)
        assert outcome(scraper) == "links"
        assert xpum.requests == 2
        file.write_text("old")
        assert outcome(scraper) == "unauthorized"
        assert xpum.requests == 3


def test_a_rotated_password_is_tried_until_the_server_has_answered_to_it(
    xpum: Simulator, file: Path
) -> None:
    file.write_text("old")
    with scraping(login(xpum, file), monotonic=lambda: 0.0) as scraper:
        assert outcome(scraper) == "unauthorized"
        file.write_text(WORD)
        xpum.misbehave("refuse")
        assert outcome(scraper) == "refused"
        xpum.recover()
        assert outcome(scraper) == "links"


@pytest.mark.parametrize("what", ["missing", "a directory", "empty", "a newline"])
def test_without_a_password_nothing_is_asked(xpum: Simulator, file: Path, what: str) -> None:
    if what == "a directory":
        file.mkdir()
    elif what != "missing":
        file.write_text("" if what == "empty" else "\n")
    with scraping(login(xpum, file)) as scraper:
        error = refusal(scraper)
        assert error.reason is ScrapeReason.UNAUTHORIZED
        assert text_of(error).startswith(f"-password-file {file}: ")
        assert xpum.connections == 0
        if what == "a directory":
            file.rmdir()
        file.write_text(WORD)
        assert outcome(scraper) == "links"


def test_a_refusal_doubles_the_wait_and_nothing_is_asked_in_between(
    xpum: Simulator, file: Path
) -> None:
    now = [0.0]
    file.write_text("wrong")
    waits = [60, 120, 240, 480, 960, 1920, 3600, 3600]
    with scraping(login(xpum, file), monotonic=lambda: now[0]) as scraper:
        for asked, wait in enumerate(waits, start=1):
            assert text_of(refusal(scraper)).startswith("401 Unauthorized Access; check -username")
            assert xpum.requests == asked
            for early in (0, wait / 2, wait - 1):
                now[0] += early
                assert f"rejected {asked} times" in text_of(refusal(scraper))
                now[0] -= early
            assert xpum.requests == asked
            now[0] += wait


def test_a_good_answer_ends_the_patience(file: Path) -> None:
    now = [0.0]
    file.write_text(WORD)
    with Simulator(NODE) as xpum, scraping(login(xpum, file), monotonic=lambda: now[0]) as scraper:
        for _ in range(3):
            xpum.misbehave("unauthorized", times=1)
            assert "asked again in 60 s" in text_of(refusal(scraper))
            now[0] += 60
            assert outcome(scraper) == "links"


def test_who_has_no_password_is_as_patient() -> None:
    now = [0.0]
    with Simulator(NODE, SERVING) as xpum, scraping(xpum.port, monotonic=lambda: now[0]) as scraper:
        assert "give -username and -password-file" in text_of(refusal(scraper))
        now[0] = 59
        assert outcome(scraper) == "unauthorized"
        assert xpum.requests == 1
        now[0] = 60
        assert outcome(scraper) == "unauthorized"
        assert xpum.requests == 2
        assert all("authorization" not in request.headers for request in xpum.seen)


@pytest.mark.parametrize("known", [True, False], ids=["with a password", "without one"])
def test_silence_after_a_refusal_is_another_one(file: Path, *, known: bool) -> None:
    now, limit = [0.0], Clock()
    file.write_text(WORD)
    with Simulator(NODE) as xpum:
        target = login(xpum, file, NEVER) if known else ScrapeTarget(xpum.port, timeout=NEVER)
        with scraping(target, monotonic=lambda: now[0], limit=limit) as scraper:
            assert outcome(scraper) == "links"
            xpum.misbehave("unauthorized")
            assert outcome(scraper) == "unauthorized"
            xpum.misbehave("hang")  # it sleeps before its next 401, for longer than we wait
            now[0] = 60
            with time_is_up(limit, lambda: xpum.wait_for_request(3)):
                assert outcome(scraper) == "timeout"
            now[0] = 60 + 119
            assert outcome(scraper) == "unauthorized"
            assert xpum.requests == 3
            xpum.recover()
            now[0] = 60 + 120
            assert outcome(scraper) == "links"


def test_silence_to_a_password_never_accepted_asks_for_patience(file: Path) -> None:
    now, limit = [0.0], Clock()
    file.write_text(WORD)
    with (
        Simulator(NODE) as xpum,
        scraping(login(xpum, file, NEVER), monotonic=lambda: now[0], limit=limit) as scraper,
    ):

        def unanswered() -> str:
            asked = xpum.requests
            with time_is_up(limit, lambda: xpum.wait_for_request(asked + 1)):
                return outcome(scraper)

        for name in ("hang", "drip-headers"):
            xpum.misbehave(name)
            assert unanswered() == "timeout"
            assert outcome(scraper) == "unauthorized"
            now[0] += 120
        xpum.recover()
        assert outcome(scraper) == "links"
        xpum.misbehave("hang")
        assert [unanswered() for _ in range(3)] == ["timeout"] * 3
        assert xpum.requests == 6


def test_silence_before_the_password_was_sent_asks_for_no_patience(file: Path) -> None:
    file.write_text(WORD)
    ca = file.with_name("ca.crt")
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        target = ScrapeTarget(
            deaf.getsockname()[1],
            tls=TlsFiles(ca),
            credentials=Credentials("xpumadmin", file),
            timeout=NEVER,
        )
        limit = Clock()
        with ExitStack() as held, scraping(target, limit=limit) as scraper:
            for _ in range(2):
                with time_is_up(limit, lambda: held.enter_context(deaf.accept()[0])):
                    assert outcome(scraper) == "tls"


@pytest.mark.parametrize("name", ["unauthorized", "daemon-down", "reset", "refuse", "cut"])
def test_no_error_tells_the_password(file: Path, name: str) -> None:
    file.write_bytes(f"{WORD}\xff".encode("latin-1"))
    with Simulator(NODE) as xpum, scraping(login(xpum, file)) as scraper:
        xpum.misbehave(name)
        told = "".join(everything(refusal(scraper)))
    assert told
    assert WORD not in told
    assert "s3cr3t" not in told


def everything(error: ScrapeError) -> Iterator[str]:
    """All that a log could say of an error and of what led to it."""
    yield from traceback.format_exception(error)
    chain: list[BaseException | None] = [error]
    while chain:
        if link := chain.pop():
            yield f"{link} {link!r} {vars(link)}"
            chain += [link.__cause__, link.__context__]
