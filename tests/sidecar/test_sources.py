"""The loop knows observations only: a source that is no XPU Manager has its own words."""

from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from sidecar.loop import Sidecar
from sidecar.publishing import Policy
from sidecar.status import status
from sidecar.telemetry import Telemetry
from tests.daemon.test_lazy_imports import told
from tests.sidecar.test_loop import START
from xelink.nfd.writer import Publisher
from xelink.topology.model import Link, Tile, Topology
from xelink.topology.observation import (
    NoFabricData,
    Observation,
    ObservedLinks,
    Result,
    SourceFacts,
    Unknown,
)
from xelink.topology.publication import LinkState

LINKED = ObservedLinks(Topology((Link(Tile(0, 0), Tile(1, 0), 4, 4),)))
UNLINKED = ObservedLinks(Topology(tiles=(Tile(0, 0), Tile(1, 0))), hint="no port is enabled")
STARTING = Unknown("starting", "the driver is not ready yet")
ABSENT = NoFabricData("no GPU here has fabric ports")


class Driver:
    """A kernel driver as the source: no HTTP, no TLS, reasons of its own."""

    name = "the driver"
    address = "netlink"
    reasons = ("no-driver", "starting", "timeout")
    facts = SourceFacts()

    def __init__(self) -> None:
        self.next: Observation = STARTING

    def observe(self) -> Observation:
        return self.next


class Node:
    """A sidecar that observes the driver."""

    def __init__(self, directory: Path) -> None:
        self.driver = Driver()
        self.logs = LogCapture()
        self.now = START
        self.telemetry = Telemetry(self.driver.reasons)
        log = structlog.wrap_logger(None, processors=[self.logs])
        target = Publisher(directory / "labels.txt", directory)
        self.sidecar = Sidecar(self.driver, target, Policy(), self.telemetry, log)
        self.sidecar.resume(self.now)

    def tick(self, observation: Observation) -> None:
        self.now += timedelta(seconds=10)
        self.driver.next = observation
        self.sidecar.tick(lambda: self.now, self.now.timestamp)

    def scrapes(self, result: str, reason: str = "") -> float | None:
        return self.telemetry.registry.get_sample_value(
            "xelink_sidecar_scrapes_total", {"result": result, "reason": reason}
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_results_are_the_words_of_the_state_label_and_unknown() -> None:
    assert {result.value for result in Result} == {state.value for state in LinkState} | {"unknown"}


def test_the_series_of_every_result_and_reason_is_there_from_the_start(node: Node) -> None:
    assert [node.scrapes("unknown", reason) for reason in Driver.reasons] == [0, 0, 0]
    assert [node.scrapes(state.value) for state in LinkState] == [0, 0, 0]
    assert node.scrapes("unknown", "refused") is None


def test_a_failure_has_the_name_and_the_reason_of_its_source(node: Node) -> None:
    node.tick(LINKED)
    node.tick(STARTING)
    (warning,) = [entry for entry in node.logs.entries if entry["log_level"] == "warning"]
    assert warning["event"] == "the driver gave no usable answer: the published labels stay"
    assert (warning["result"], warning["reason"]) == ("unknown", "starting")
    assert node.scrapes("unknown", "starting") == 1
    assert node.sidecar.not_ready() == (
        "last scrape unknown, starting: the driver is not ready yet"
    )


def test_a_source_without_fabric_data_says_so(node: Node) -> None:
    node.tick(ABSENT)
    assert node.scrapes("no-fabric-data") == 1
    (warning,) = [entry for entry in node.logs.entries if entry["log_level"] == "warning"]
    assert warning["event"] == "the driver has no fabric data: this state alone is published"
    assert warning["detail"] == ABSENT.detail
    (scrape,) = status(node.sidecar, "netlink", "", node.now, host="here")["scrapes"]
    assert (scrape["result"], scrape["reason"]) == ("no-fabric-data", None)
    assert scrape["detail"] == ABSENT.detail


def test_why_there_are_no_links_is_the_source_s_own_hint(node: Node) -> None:
    node.tick(UNLINKED)
    verdict = node.sidecar.ready()
    assert verdict is not None
    assert "no links: no port is enabled" in str(verdict)


def test_nothing_that_is_logged_names_another_source(node: Node) -> None:
    for observation in (STARTING, ABSENT, LINKED, UNLINKED, UNLINKED, STARTING):
        node.tick(observation)
    assert len(node.logs.entries) >= 5
    assert not [entry for entry in node.logs.entries if "XPU Manager" in str(entry)]


WITHOUT_A_SOURCE = """
import sys
from xelink.daemon.lazy_imports import no_openssl
no_openssl()
import sidecar.loop, sidecar.status, sidecar.telemetry
own = [name for name in sys.modules if name.startswith("xelink.xpu_manager")]
print(sys.modules.get("_ssl"), own, "httpx" in sys.modules)
"""


def test_the_loop_needs_neither_http_nor_tls() -> None:
    """For a source without them it runs in a Python that has no OpenSSL at all."""
    assert told(WITHOUT_A_SOURCE) == "None [] False"
