"""Whatever the simulator can do has one expected end, and the next good scrape is good."""

import inspect
from contextlib import nullcontext
from typing import Any

import pytest

from tests.patience import NEVER, Clock
from tests.xpu_manager.test_scrape import outcome, scraping, time_is_up
from xelink.simulators.xpu_manager import MISBEHAVIOURS, Blueprint, Simulator
from xelink.xpu_manager.scrape import ScrapeTarget

NODE = Blueprint(gpus=2).build()
LIMIT = 1 << 20

# By name and options: the class of the scrape, or the reason why it has none.
EXPECTED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "bad-chunk": [({}, "protocol")],
    "bad-row": [({}, "links")],
    "bad-utf8": [({}, "links")],
    "chunked": [({}, "links")],
    "close": [({}, "reset")],
    "comments-only": [({}, "no-topology-rows")],
    "cut": [
        ({}, "protocol"),
        ({"announced": "cut", "share": 0.9}, "links"),
        ({"announced": "none", "share": 0.9}, "links"),
        ({"announced": "cut", "share": 0.0}, "no-self-rows"),
    ],
    "daemon-down": [({}, "http-status")],
    "delay": [({"by": NEVER}, "timeout"), ({"by": 0.01}, "links")],
    "drip-body": [({}, "timeout")],
    "drip-headers": [({}, "timeout")],
    "empty": [({}, "not-xpu-manager")],
    "endless": [({}, "too-large")],
    "endless-continue": [({}, "timeout")],
    "endless-headers": [({}, "protocol")],
    "garbage": [({}, "not-xpu-manager"), ({"size": LIMIT + 1}, "too-large")],
    "hang": [({}, "timeout")],
    "hang-in-body": [({}, "timeout"), ({"after": 0}, "timeout")],
    "html": [({}, "not-xpu-manager")],
    "huge": [({}, "too-large"), ({"announced": False}, "too-large")],
    "injected": [({}, "links"), ({"label": "local_device_id"}, "no-self-rows")],
    "long-line": [({}, "too-large"), ({"size": 100_000}, "links")],
    "long-numbers": [({}, "no-self-rows")],
    "many-rows": [({}, "too-large")],
    "no-content": [({}, "http-status")],
    "no-devices": [({}, "http-status")],
    "not-http": [({}, "protocol")],
    "nul": [({}, "links")],
    "race": [({}, "links")],
    "redirect": [
        ({}, "http-status"),
        ({"code": 301, "location": "http://127.0.0.1:1/metrics"}, "http-status"),
        ({"code": 308, "location": "http://[::1"}, "http-status"),
    ],
    "refuse": [({}, "refused")],
    "reset": [({}, "reset")],
    "reset-in-body": [({}, "reset"), ({"after": 0}, "reset")],
    "status": [
        ({}, "http-status"),
        ({"code": 404}, "http-status"),
        ({"code": 206}, "http-status"),
        ({"code": 304}, "http-status"),
        ({"code": 500, "body": "#nodata: because"}, "http-status"),
    ],
    "text-html": [({}, "links")],
    "unauthorized": [({}, "unauthorized"), ({"sleep": NEVER}, "timeout")],
    "utf16": [({}, "not-xpu-manager")],
    "wrong-length": [({}, "protocol"), ({"by": -100}, "links")],
    "zipped": [({}, "protocol")],
}


def cases() -> list[object]:
    return [
        pytest.param(name, options, expected, id=" ".join([name, *map(str, options.values())]))
        for name, rows in EXPECTED.items()
        for options, expected in rows
    ]


def test_every_misbehaviour_has_an_expected_end() -> None:
    assert set(EXPECTED) == {*MISBEHAVIOURS, "refuse"}
    for name, rows in EXPECTED.items():
        known = inspect.signature(MISBEHAVIOURS[name]).parameters if name in MISBEHAVIOURS else ()
        assert all(set(options) <= set(known) for options, _ in rows)


@pytest.mark.parametrize(("name", "options", "expected"), cases())
def test_a_misbehaviour_ends_as_expected_in_time_and_heals(
    name: str, options: dict[str, Any], expected: str
) -> None:
    clock = Clock()
    with (
        Simulator(NODE) as xpum,
        scraping(
            ScrapeTarget(xpum.port, timeout=NEVER, max_body=LIMIT), monotonic=clock, limit=clock
        ) as scraper,
    ):
        assert outcome(scraper) == "links"
        xpum.misbehave(name, **options)
        hangs = time_is_up(clock, lambda: xpum.wait_for_request(2))
        with hangs if expected == "timeout" else nullcontext():
            assert outcome(scraper) == expected
        xpum.recover()
        clock.now += 3600
        assert outcome(scraper) == "links"
