"""The clock jumps, both ways: labels are true, and expire by the clock that everybody sees."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.faults.rig import NS, arguments, sidecar, truth
from tests.faults.shim import LackingError, Shim
from tests.processes import Running, address, get
from xelink.simulators.xpu_manager import Simulator
from xelink.topology.publication import ExpiredFileError, read

LIFE = timedelta(seconds=3600)  # as the rig has it
DAY = 86_400


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    try:
        yield Shim(tmp_path / "wrong", tmp_path)
    except LackingError as reason:
        pytest.skip(str(reason))


def test_after_a_jump_the_next_good_scrape_sets_the_expiry_right(
    tmp_path: Path, shim: Shim
) -> None:
    jumps = {
        "half a life forth": LIFE.seconds // 2,
        "a day forth": DAY,
        "a day back": -DAY,
        "to 1970": -int(time.time()) + DAY,
        "beyond 2038": 20 * 365 * DAY,
        "home": 0,
    }
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, tmp_path, env=shim.environment) as daemon:
        for name, seconds in jumps.items():
            shim.say("clock", seconds)
            xpum.wait_for_request(xpum.requests + 3)
            there = datetime.now(UTC) + timedelta(seconds=seconds)
            said = daemon.publication(there)
            assert said.topology == truth(4).topology, name
            assert said.expiry, name
            assert timedelta(0) < said.expiry - there <= LIFE, name
        daemon.expects(xpum)
        daemon.is_bounded()


@pytest.mark.parametrize("seconds", [LIFE.seconds // 4, -DAY, DAY])
def test_a_jump_in_an_outage_makes_labels_expire_and_never_lie(
    tmp_path: Path, shim: Shim, seconds: int
) -> None:
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, tmp_path, env=shim.environment) as daemon:
        before = daemon.content()
        xpum.misbehave("daemon-down")
        daemon.refuses("http-status")
        shim.say("clock", seconds)
        xpum.wait_for_request(xpum.requests + 2)
        assert daemon.content() == before  # in an outage nothing is written, whatever the clock
        there = datetime.now(UTC) + timedelta(seconds=seconds)
        if seconds > LIFE.total_seconds():
            with pytest.raises(ExpiredFileError):
                read(before, NS, there)
        else:
            assert daemon.publication(there).topology == truth(4).topology
        xpum.recover()
        daemon.process.wait_for("scrape result changed")
        xpum.wait_for_request(xpum.requests + 2)
        there = datetime.now(UTC) + timedelta(seconds=seconds)
        said = daemon.publication(there)
        assert said.topology == truth(4).topology
        assert said.expiry
        assert timedelta(0) < said.expiry - there <= LIFE


def test_what_a_jump_made_expire_is_not_brought_back(tmp_path: Path, shim: Shim) -> None:
    """A link that was lost meanwhile is gone at once: nothing that stands speaks for it."""
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, tmp_path, env=shim.environment) as daemon:
        xpum.misbehave("daemon-down")
        daemon.refuses("http-status")
        shim.say("clock", DAY)
        xpum.node = truth(4).cut("0.0-1.0")
        xpum.recover()
        daemon.process.wait_for("labels published")
        said = daemon.publication(datetime.now(UTC) + timedelta(seconds=DAY))
        assert said.topology == xpum.node.topology
        assert daemon.metrics()['xelink_sidecar_publications_total{outcome="renewed"}'] == 0


def test_a_loop_that_does_not_tick_is_told_at_healthz_whatever_the_time_of_day(
    tmp_path: Path, shim: Shim
) -> None:
    flags = (*arguments(1, tmp_path), f"-startup-delay={DAY}")
    with Running("sidecar", *flags, env=dict(shim.environment)) as process:
        url = address(process)
        assert get(f"{url}/healthz") == (200, "ok\n")
        shim.say("clock", 2 * DAY)
        assert get(f"{url}/healthz")[0] == 200
        shim.say("monotonic", DAY // 2)
        assert get(f"{url}/healthz")[0] == 200
        shim.say("monotonic", 2 * DAY)
        code, text = get(f"{url}/healthz")
        assert code == 503
        assert "the loop has not ticked for" in text
        assert process.stop() == 0
