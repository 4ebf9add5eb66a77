"""Which source the sidecar has: XPU Manager, the driver, or whichever of them answers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from sidecar.auto_source import AutoSource
from sidecar.daemon import UNKNOWN
from sidecar.sources import Advising
from sidecar.start import asks_driver_alone
from tests.patience import Clock
from tests.processes import address, get, mapped, running
from xelink.iaf.reasons import DriverReason
from xelink.simulators.iaf import Behavior, FrameFault, SimulatedDriver
from xelink.simulators.node import TreeBlueprint as Tree
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology.model import Link, Tile, Topology
from xelink.topology.observation import (
    NoFabricData,
    Observation,
    ObservedLinks,
    SourceFacts,
    Unknown,
)
from xelink.xpu_manager.reasons import ScrapeReason

LINKED = ObservedLinks(Topology((Link(Tile(0, 0), Tile(1, 0), 4, 4),)))
STARTING = Unknown(DriverReason.STARTING, "not ready")
ABSENT = Unknown(DriverReason.NO_DRIVER, "no driver")
REFUSED = Unknown(ScrapeReason.REFUSED, "nobody there")
V2 = NoFabricData("XPU Manager 2.x")
LIFE = 300.0


class Source:
    facts = SourceFacts()

    def __init__(self, name: str, *reasons: str) -> None:
        self.name = name
        self.address = f"at {name}"
        self.reasons = reasons
        self.next: Observation = STARTING
        self.asked = 0

    def observe(self) -> Observation:
        self.asked += 1
        return self.next


class Auto:
    def __init__(self) -> None:
        self.clock, self.logs = Clock(), LogCapture()
        self.driver, self.xpum = Source("driver", "starting"), Source("xpum", "refused")
        log = structlog.wrap_logger(None, processors=[self.logs])
        self.source = AutoSource(self.driver, self.xpum, log, life=LIFE, monotonic=self.clock)

    def observe(self, driver: Observation, xpum: Observation) -> Observation:
        self.driver.next, self.xpum.next = driver, xpum
        return self.source.observe()


def test_the_driver_is_chosen_where_it_answers_and_nobody_else_is_asked() -> None:
    auto = Auto()
    assert auto.source.name == "driver or xpum"
    assert auto.source.reasons == ("starting", "refused")
    assert auto.observe(LINKED, LINKED) is LINKED
    assert (auto.source.name, auto.source.address) == ("driver", "at driver")
    assert auto.xpum.asked == 0
    assert [entry["event"] for entry in auto.logs.entries] == ["source chosen"]


@pytest.mark.parametrize("driver", [STARTING, ABSENT], ids=["starting", "absent"])
def test_xpu_manager_is_chosen_where_it_has_links_and_the_driver_gives_none(
    driver: Unknown,
) -> None:
    auto = Auto()
    assert auto.observe(driver, LINKED) is LINKED
    assert auto.source.name == "xpum"
    auto.observe(LINKED, LINKED)
    assert auto.driver.asked == 1, "what is chosen stays"


def test_where_nobody_answers_both_reasons_are_given_and_nothing_is_chosen() -> None:
    auto = Auto()
    found = auto.observe(STARTING, REFUSED)
    assert found == Unknown(ScrapeReason.REFUSED, "nobody there; driver: not ready")
    assert auto.source.facts == SourceFacts()
    assert auto.observe(LINKED, REFUSED) is LINKED


def test_an_xpu_manager_without_links_does_not_keep_out_a_driver_that_starts_late() -> None:
    auto = Auto()
    found = auto.observe(STARTING, V2)
    assert found == NoFabricData("XPU Manager 2.x; driver: not ready")
    assert auto.observe(LINKED, V2) is LINKED


def test_an_xpu_manager_without_links_does_not_keep_out_a_driver_that_is_loaded_late() -> None:
    auto = Auto()
    found = auto.observe(ABSENT, V2)
    assert found == NoFabricData("XPU Manager 2.x; driver: no driver")
    assert auto.observe(LINKED, V2) is LINKED


def test_a_source_that_is_silent_for_half_the_life_of_labels_is_given_up() -> None:
    auto = Auto()
    auto.observe(LINKED, LINKED)
    auto.clock.now = LIFE / 2 - 1
    assert auto.observe(STARTING, LINKED) is STARTING
    assert auto.observe(LINKED, LINKED) is LINKED, "it has come back"
    auto.clock.now += LIFE / 2
    assert auto.observe(STARTING, LINKED) is LINKED, "before the labels expire"
    assert auto.source.name == "xpum"
    events = [entry["event"] for entry in auto.logs.entries]
    assert events == ["source chosen", "source given up", "source chosen"]


# Advice


@pytest.mark.parametrize("observation", [V2, REFUSED], ids=["2.x", "none"])
def test_where_the_driver_could_tell_the_flag_is_named(observation: Observation) -> None:
    source = Source("xpum", "refused")
    source.next = observation
    assert not isinstance(observation, ObservedLinks)
    with_driver = Advising(source, lambda: True).observe()
    assert not isinstance(with_driver, ObservedLinks)
    assert with_driver.detail.startswith(observation.detail)
    assert "-source driver" in with_driver.detail
    assert Advising(source, lambda: False).observe() is observation


@pytest.mark.parametrize(
    "observation", [LINKED, Unknown(ScrapeReason.TIMEOUT, "late")], ids=["links", "timeout"]
)
def test_an_xpu_manager_that_is_there_gets_no_advice(observation: Observation) -> None:
    source = Source("xpum", "timeout")
    source.next = observation
    assert Advising(source, lambda: True).observe() is observation


# Starting


@pytest.mark.parametrize(
    ("arguments", "variable", "alone"),
    [
        (["-source", "driver"], "", True),
        (["--source=driver"], "auto", True),
        (["-source=driver", "-source", "auto"], "", False),
        ([], "driver", True),
        (["-source", "xpum"], "driver", False),
        (["-driver-socket", "/driver"], "", False),
        (["-source"], "", False),
        ([], "", False),
    ],
)
def test_http_is_left_out_where_the_driver_is_certainly_the_only_source(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str, *, alone: bool
) -> None:
    monkeypatch.setenv("XELINK_SIDECAR_SOURCE", variable)
    assert asks_driver_alone(arguments) is alone


NODE = Blueprint(gpus=4).build()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[SimulatedDriver]:
    Tree(gpus=4).build(tmp_path / "n")
    with SimulatedDriver(tmp_path / "s", Behavior(NODE)) as driver:
        yield driver


def sidecar(path: Path, *flags: str) -> list[str]:
    return [
        *("-prefix", str(path / "n")),
        *("-driver-socket", str(path / "s"), "-dst-file-path", str(path / "labels.txt")),
        *("-tmp-dir-prefix", str(path), "-startup-delay=0", "-interval=1", "-listen=127.0.0.1:0"),
        *flags,
    ]


def test_the_daemon_publishes_what_the_driver_reports(
    driver: SimulatedDriver, tmp_path: Path
) -> None:
    with running("sidecar", *sidecar(tmp_path, "-source", "driver", "-confirmations=1")) as process:
        where = address(process)
        process.wait_for("labels published")
        assert "xe-links.count=12\n" in (tmp_path / "labels.txt").read_text()
        driver.behavior = driver.behavior.after(NODE.cut("0.0-1.0"))
        process.wait_for("lost=0.0-1.0")
        assert "xe-links.count=11\n" in (tmp_path / "labels.txt").read_text()
        assert "generic netlink iaf_ze" in get(f"{where}/status.json")[1]
        assert not mapped(process, "_ssl", "libssl", "libcrypto")


def test_silence_of_the_driver_changes_no_label(driver: SimulatedDriver, tmp_path: Path) -> None:
    with running("sidecar", *sidecar(tmp_path, "-source", "driver")) as process:
        process.wait_for("labels published")
        before = (tmp_path / "labels.txt").read_bytes()
        driver.close()
        process.wait_for("the published labels stay")
        assert (tmp_path / "labels.txt").read_bytes() == before


def test_the_end_does_not_wait_for_a_driver_that_hangs(
    driver: SimulatedDriver, tmp_path: Path
) -> None:
    driver.behavior = replace(driver.behavior, frames=FrameFault.SILENCE)
    with running("sidecar", *sidecar(tmp_path, "-source=driver", "-timeout=3600")) as process:
        process.wait_for("event=started")
        assert process.stop() == 0


def test_without_a_sysfs_the_reason_is_named(tmp_path: Path) -> None:
    flags = sidecar(tmp_path, "-source=driver", "-oneshot", f"-prefix={tmp_path / 'nothing'}")
    with running("sidecar", *flags) as process:
        process.wait_for("reason=bus-unreadable")
        assert process.wait() == UNKNOWN


def test_auto_goes_over_to_xpu_manager_where_there_is_no_driver(tmp_path: Path) -> None:
    Tree(gpus=4, model="flex-170").build(tmp_path / "n")
    with (
        Simulator(NODE) as xpum,
        running(
            "sidecar", *sidecar(tmp_path, "-source=auto", f"-xpum-port={xpum.port}")
        ) as process,
    ):
        process.wait_for('source="XPU Manager"')
        process.wait_for("labels published")


@pytest.mark.usefixtures("driver")
def test_what_is_for_xpu_manager_only_is_told_to_have_no_effect(tmp_path: Path) -> None:
    flags = sidecar(tmp_path, "-source=driver", "-oneshot", "-xpum-port=1", "-max-body=5")
    with running("sidecar", *flags) as process:
        process.wait_for("-max-body has no effect with -source=driver")
        process.wait_for("-xpum-port has no effect with -source=driver")
        assert process.wait() == 0
