"""Whole ticks: a source that says what the test wants, a real file, a clock of the test's own."""

import errno
import json
import re
import resource
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest
import structlog
from prometheus_client import generate_latest
from structlog.testing import LogCapture

from sidecar.loop import Sidecar
from sidecar.publishing import Policy
from sidecar.telemetry import Telemetry
from sidecar.xpu_manager_source import OPTIONS
from tests.xpu_manager.bodies import body, both, read_body, row, self_rows
from xelink.nfd.writer import HangingError, OnExit, Publisher, PublishError
from xelink.topology import nfd_format
from xelink.topology.observation import Observation
from xelink.topology.publication import read
from xelink.xpu_manager.errors import ErrorCode, ScrapeError
from xelink.xpu_manager.exposition import Exposition
from xelink.xpu_manager.source import XpuManagerSource

NS = "gpu.intel.com"
START = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
TILES = ("0.0", "1.0", "2.0")
MESH = [*both("0.0", "1.0"), *both("0.0", "2.0"), *both("1.0", "2.0")]
CUT = [*both("0.0", "1.0"), *both("0.0", "2.0")]
DOWN = ScrapeError(ErrorCode.NOTHING_LISTENS)
FOREIGN = b"hw_status 1\n"


class Scenario:
    """A sidecar with everything around it in the hands of the test."""

    url = "http://here"

    def __init__(self, directory: Path, policy: Policy | None = None) -> None:
        self.path = directory / "labels.txt"
        self.publisher = Publisher(self.path, directory)
        self.publisher.prepare()
        self.policy = policy or Policy()
        self.now = START
        self.tls_error: ScrapeError | None = None
        self.certificate_expiry: float | None = None
        self._next: Exposition | ScrapeError = DOWN
        self._broken = False
        self.restart()

    def restart(self) -> None:
        self.logs = LogCapture()
        log = structlog.wrap_logger(None, processors=[self.logs])
        source = XpuManagerSource(self, self.policy.rules, OPTIONS)
        self.telemetry = Telemetry(source.reasons)
        self.sidecar = Sidecar(source, self.publisher, self.policy, self.telemetry, log)
        self.sidecar.resume(self.now)

    def break_source(self) -> None:
        self._broken = True

    def mend_source(self) -> None:
        self._broken = False

    def scrape(self) -> Exposition:
        if self._broken:
            raise ZeroDivisionError
        if isinstance(self._next, ScrapeError):
            raise self._next
        return self._next

    def tick(self, answer: Sequence[str] | bytes | ScrapeError, seconds: float = 10) -> Observation:
        """Let time pass, then scrape links, a whole body, or a failure."""
        self.now += timedelta(seconds=seconds)
        if isinstance(answer, ScrapeError):
            self._next = answer
        else:
            rows = [*self_rows(*TILES), *answer] if not isinstance(answer, bytes) else answer
            self._next = read_body(rows if isinstance(rows, bytes) else body(rows))
        return self.sidecar.tick(lambda: self.now, self.now.timestamp)

    @property
    def labels(self) -> dict[str, str]:
        """What NFD publishes at this instant, without the namespace."""
        if not self.path.exists():
            return {}
        found = nfd_format.parse(self.path.read_bytes(), self.now).labels
        return {name.removeprefix(f"{NS}/"): value for name, value in found.items()}

    @property
    def links(self) -> str | None:
        return self.labels.get("xe-links")

    def events(self, *levels: str) -> list[str]:
        return [
            entry["event"]
            for entry in self.logs.entries
            if not levels or entry["log_level"] in levels
        ]

    def metric(self, name: str) -> float:
        for line in generate_latest(self.telemetry.registry).decode().splitlines():
            if line.startswith(f"xelink_sidecar_{name} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")


@pytest.fixture
def scene(tmp_path: Path) -> Scenario:
    return Scenario(tmp_path)


ALL = "0.0-1.0_0.0-2.0_1.0-2.0"
LESS = "0.0-1.0_0.0-2.0"


def test_the_first_good_scrape_is_published_at_once(scene: Scenario) -> None:
    assert scene.tick(MESH).result.value == "links"
    assert scene.labels == {
        "xe-links": ALL,
        "xe-links.count": "3",
        "xe-links.gpus": "3",
        "xe-links.group": "3",
        "xe-links.state": "links",
        "xe-links.hash": scene.labels["xe-links.hash"],
    }
    assert scene.sidecar.not_ready() is None


def test_an_outage_keeps_the_labels_until_they_expire(scene: Scenario) -> None:
    scene.tick(MESH)
    content = scene.path.read_bytes()
    for _ in range(30):
        scene.tick(DOWN)
        assert scene.links == ALL
    scene.tick(DOWN)
    assert scene.links is None
    assert scene.path.read_bytes() == content


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(DOWN, id="refused"),
        pytest.param(b"", id="empty"),
        pytest.param(b"xpum_power_watts 1\n", id="no topology"),
        pytest.param(body(MESH), id="no self rows"),
        pytest.param(FOREIGN, id="XPU Manager 2"),
        pytest.param(b"\xff\x00" * 99, id="garbage"),
    ],
)
def test_what_proves_nothing_changes_nothing(scene: Scenario, answer: bytes | ScrapeError) -> None:
    scene.tick(MESH)
    content = scene.path.read_bytes()
    for _ in range(5):
        assert scene.tick(answer).result.value not in {"links", "none"}
    assert scene.path.read_bytes() == content
    assert "last scrape" in str(scene.sidecar.not_ready())


def test_no_links_at_the_source_are_published_only_when_confirmed(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick([])
    assert scene.links == ALL
    assert "waits for confirmation" in str(scene.sidecar.not_ready())
    scene.tick([])
    assert (scene.links, scene.labels["xe-links.state"]) == ("", "none")
    assert scene.sidecar.not_ready() is None


def test_a_lost_link_is_published_after_agreeing_scrapes_whatever_fails_between(
    scene: Scenario,
) -> None:
    scene.tick(MESH)
    scene.tick(CUT)
    assert scene.links == ALL
    assert scene.metric('pending_losses{kind="link"}') == 1
    scene.tick(DOWN)
    assert scene.links == ALL
    scene.tick(CUT)
    assert scene.links == LESS
    scene.tick(MESH)
    assert scene.links == ALL


def test_the_file_is_renewed_at_a_third_of_its_life_and_not_before(scene: Scenario) -> None:
    scene.tick(MESH)
    written = scene.path.stat().st_mtime_ns
    for _ in range(9):
        scene.tick(MESH)
    assert scene.path.stat().st_mtime_ns == written
    scene.tick(MESH)
    assert scene.path.stat().st_mtime_ns != written
    assert (
        scene.metric("expiry_timestamp_seconds") == (scene.now + timedelta(seconds=300)).timestamp()
    )
    assert scene.events("info").count("labels published") == 1


def test_scrapes_that_go_on_keep_the_labels_for_ever(scene: Scenario) -> None:
    for _ in range(200):
        scene.tick(MESH)
        assert scene.links == ALL


def test_a_clock_that_was_set_back_is_noticed(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick(MESH, seconds=-86400)
    assert read(scene.path.read_bytes(), NS, scene.now).expiry == scene.now + timedelta(seconds=300)


def test_a_clock_that_jumps_ahead_costs_at_most_one_tick(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick(MESH, seconds=86400)
    assert scene.links == ALL


def test_a_restart_rewrites_nothing_and_forgets_nothing(scene: Scenario) -> None:
    scene.tick(MESH)
    content, written = scene.path.read_bytes(), scene.path.stat().st_mtime_ns
    scene.restart()
    scene.tick(MESH)
    assert scene.path.stat().st_mtime_ns == written
    scene.restart()
    scene.tick(CUT)
    assert scene.path.read_bytes() == content
    assert scene.links == ALL


def test_after_its_expiry_nothing_stands_and_the_first_scrape_counts(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.now += timedelta(seconds=301)
    scene.restart()
    assert "existing feature file ignored" in scene.events("warning")
    scene.tick(CUT)
    assert scene.links == LESS


def test_an_outage_longer_than_the_life_forgets_what_was_believed(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick(DOWN, seconds=301)
    scene.tick(CUT)
    assert scene.links == LESS


def test_a_file_of_the_reference_counts_as_the_last_publication(scene: Scenario) -> None:
    scene.path.write_text(f"{NS}/xe-links={ALL}\n")
    scene.restart()
    scene.tick(CUT)
    assert scene.links == ALL
    scene.tick(CUT)
    assert scene.links == LESS


def test_a_file_of_the_reference_binds_no_longer_than_labels_live(scene: Scenario) -> None:
    scene.path.write_text(f"{NS}/xe-links={ALL}\n")
    scene.restart()
    scene.tick(DOWN, seconds=300)
    scene.tick(DOWN, seconds=1)
    scene.tick(CUT)
    assert scene.links == LESS


@pytest.mark.parametrize(
    "content", [b"", b"garbage\n", b"gpu.intel.com/xe-links=0.0-1\n", b"\xff" * 70000]
)
def test_a_file_that_says_nothing_is_replaced(scene: Scenario, content: bytes) -> None:
    scene.path.write_bytes(content)
    scene.restart()
    scene.tick(CUT)
    assert scene.links == LESS


@pytest.mark.parametrize("damage", ["remove", "truncate", "append"])
def test_a_file_that_others_touched_is_mended_at_the_next_tick(
    scene: Scenario, damage: str
) -> None:
    scene.tick(MESH)
    content = scene.path.read_bytes()
    if damage == "remove":
        scene.path.unlink()
    elif damage == "truncate":
        scene.path.write_bytes(content[:30])
    else:
        scene.path.write_bytes(content + b"gpu.intel.com/xe-links9=Z\n")
    scene.tick(MESH)
    assert scene.links == ALL


def test_ids_that_moved_are_a_new_truth_at_once_with_a_warning(scene: Scenario) -> None:
    scene.tick(MESH)
    moved = [
        row("0.0", "0.0", "0.0", 0),
        row("1.0", "1.0", "0.0", 0, bdf="0000:12:00.0"),
        row("0.0", "1.0"),
    ]
    scene.tick(body(moved))
    assert scene.links == "0.0-1.0"
    assert any("device ids moved" in event for event in scene.events("warning"))


def test_a_source_without_fabric_data_publishes_only_its_state(scene: Scenario) -> None:
    scene.tick(FOREIGN)
    assert scene.labels == {"xe-links.state": "no-fabric-data"}
    assert scene.sidecar.not_ready() is None
    for _ in range(50):
        scene.tick(FOREIGN)
        assert scene.labels == {"xe-links.state": "no-fabric-data"}
    scene.tick(MESH)
    assert scene.links == ALL


def test_a_source_that_loses_its_fabric_data_lets_the_labels_expire_first(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick(FOREIGN)
    assert scene.links == ALL
    scene.tick(FOREIGN, seconds=301)
    assert scene.labels == {"xe-links.state": "no-fabric-data"}


def test_without_summary_labels_a_source_without_fabric_data_publishes_nothing(
    tmp_path: Path,
) -> None:
    scene = Scenario(tmp_path, Policy(summary=False))
    scene.tick(FOREIGN)
    assert not scene.path.exists()
    scene.tick(MESH)
    assert scene.labels == {"xe-links": ALL}


def test_without_an_expiry_the_labels_stay(tmp_path: Path) -> None:
    scene = Scenario(tmp_path, Policy(life=timedelta(0)))
    scene.tick(MESH)
    written = scene.path.stat().st_mtime_ns
    scene.tick(MESH, seconds=10**7)
    scene.tick(DOWN, seconds=10**7)
    assert scene.links == ALL
    assert scene.path.stat().st_mtime_ns == written


def test_a_change_of_the_flags_is_published(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.policy = Policy(summary=False, life=timedelta(0))
    scene.restart()
    scene.tick(MESH)
    assert scene.labels == {"xe-links": ALL}
    assert b"expiry" not in scene.path.read_bytes()


def test_what_cannot_be_written_is_said_once_counted_and_tried_again(
    scene: Scenario, tmp_path: Path
) -> None:
    scene.path.mkdir()
    for _ in range(3):
        scene.tick(MESH)
    assert scene.events("error") == ["labels not published"]
    assert scene.metric('publications_total{outcome="failed"}') == 3
    assert "not published" in str(scene.sidecar.not_ready())
    scene.path.rmdir()
    scene.tick(MESH)
    assert scene.links == ALL
    assert scene.events("info")[-2:] == ["labels can be published again", "labels published"]
    assert [path.suffix for path in (tmp_path / ".stage").iterdir()] == [".lock"]


def test_what_was_never_written_is_believed_no_longer_than_labels_live(scene: Scenario) -> None:
    scene.path.mkdir()
    scene.tick(MESH)
    scene.tick(DOWN, seconds=300)
    assert scene.metric("links") == len(MESH) / 2
    scene.tick(DOWN, seconds=1)
    assert scene.metric("links") == 0
    scene.path.rmdir()
    scene.tick(CUT)
    assert scene.links == LESS


def test_an_error_of_the_file_has_the_flags_that_can_help(tmp_path: Path) -> None:
    scene = Scenario(tmp_path / "features.d")
    scene.tick(MESH)
    problem = str(scene.sidecar.not_ready())
    assert problem.endswith(
        "features.d: No such file or directory; is it mounted (-dst-file-path, -tmp-dir-prefix),"
        " and does NFD run on this node?"
    )


def test_a_stage_on_another_file_system_is_named_with_its_flags(tmp_path: Path) -> None:
    scene = Scenario(tmp_path)

    class Elsewhere(Publisher):
        def publish(self, content: bytes) -> None:
            raise PublishError(f"{len(content)} bytes: not moved", errno.EXDEV)

    scene.publisher.close()
    scene.publisher = Elsewhere(scene.path, tmp_path)
    scene.restart()
    scene.tick(MESH)
    assert str(scene.sidecar.not_ready()).endswith(
        "-tmp-dir-prefix must be on the same file system as -dst-file-path"
    )


def test_a_file_that_nfd_would_drop_is_not_written_and_the_flag_for_fewer_links_is_named(
    tmp_path: Path,
) -> None:
    namespace = f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 60}"
    scene = Scenario(tmp_path, Policy(namespace=namespace))
    tiles = [f"{device}.{tile}" for device in range(32) for tile in (0, 1)]
    mesh = [line for one, other in combinations(tiles, 2) for line in both(one, other)]
    scene.tick(body([*self_rows(*tiles), *mesh]))
    problem = str(scene.sidecar.not_ready())
    assert "NFD drops a file of more than 65536; a higher -lane-count leaves fewer" in problem
    assert not scene.path.exists()


class Uncertain(Publisher):
    """Puts the file in its place, and cannot say that it will last."""

    certain = False

    def publish(self, content: bytes) -> None:
        super().publish(content)
        if not self.certain:
            raise PublishError("Input/output error")


def test_what_may_not_last_is_written_again_until_it_does(scene: Scenario, tmp_path: Path) -> None:
    scene.publisher = target = Uncertain(scene.path, tmp_path)
    scene.restart()
    for _ in range(2):
        scene.tick(MESH)
        assert "not published" in str(scene.sidecar.not_ready())
    assert scene.metric('publications_total{outcome="failed"}') == 2
    target.certain = True
    scene.tick(MESH)
    assert scene.events("info")[-2:] == ["labels can be published again", "labels published"]
    assert scene.metric('publications_total{outcome="changed"}') == 1
    scene.tick(MESH)
    assert scene.metric('publications_total{outcome="changed"}') == 1


class Unreadable(Publisher):
    """A file whose file system answers with an error while `error` is set."""

    error: PublishError | None = None

    def read(self) -> bytes | None:
        if self.error:
            raise self.error
        return super().read()


@pytest.fixture
def unreadable(scene: Scenario, tmp_path: Path) -> Unreadable:
    """The publisher of a sidecar that starts again and cannot read what it had published."""
    scene.tick(MESH)
    scene.publisher.close()
    scene.publisher = target = Unreadable(scene.path, tmp_path)
    target.error = PublishError("not read: Input/output error")
    scene.restart()
    return target


def test_what_cannot_be_read_at_the_start_is_not_taken_for_nothing(
    scene: Scenario, unreadable: Unreadable
) -> None:
    for _ in range(3):
        scene.tick(CUT)
        assert scene.links == ALL
        assert "Input/output error" in str(scene.sidecar.not_ready())
    unreadable.error = None
    scene.tick(CUT)
    assert "a loss waits for confirmation" in str(scene.sidecar.not_ready())
    assert scene.links == ALL
    scene.tick(CUT)
    assert scene.links == LESS


def test_a_restart_without_a_descriptor_forgets_nothing(scene: Scenario) -> None:
    """With the real file: what cannot be opened now is there all the same."""
    scene.tick(MESH)
    scene.publisher.close()
    scene.publisher = Publisher(scene.path, scene.path.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        scene.restart()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in str(scene.logs.entries[-1]["reason"])
    scene.tick(CUT)
    assert scene.links == ALL
    assert "a loss waits for confirmation" in str(scene.sidecar.not_ready())


def test_what_can_never_be_read_is_replaced_in_the_end(
    scene: Scenario, unreadable: Unreadable
) -> None:
    scene.tick(MESH)
    scene.tick(CUT, seconds=301)
    assert scene.links == LESS
    assert unreadable.error


def test_a_file_system_that_hangs_for_long_is_not_taken_for_nothing(tmp_path: Path) -> None:
    scene = Scenario(tmp_path, Policy(life=timedelta()))
    scene.tick(MESH)
    scene.publisher.close()
    scene.publisher = target = Unreadable(scene.path, tmp_path)
    target.error = HangingError("its file system does not answer")
    scene.restart()
    scene.tick(CUT)
    scene.tick(CUT, seconds=3600)
    target.error = None
    scene.tick(CUT)
    assert scene.links == ALL
    assert "a loss waits for confirmation" in str(scene.sidecar.not_ready())


def test_at_the_end_what_cannot_be_read_is_not_told_as_nothing(
    scene: Scenario, unreadable: Unreadable
) -> None:
    assert unreadable.error
    scene.sidecar.leave(OnExit.REMOVE, scene.now)
    assert scene.logs.entries[-1]["labels"] == "not certain"


def test_what_is_written_may_change_while_somebody_waits_for_the_file(
    scene: Scenario, tmp_path: Path
) -> None:
    class Slow(Publisher):
        def read(self) -> bytes | None:
            if scene.sidecar.observation:
                scene.sidecar._file._written = None  # noqa: SLF001 - as the loop does when it stands by
            return super().read()

    scene.publisher.close()
    scene.publisher = Slow(scene.path, tmp_path)
    scene.restart()
    scene.tick(MESH)
    assert scene.sidecar.not_ready() is None


def test_failed_writes_do_not_prolong_what_is_believed(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.path.unlink()
    scene.path.mkdir()
    for _ in range(10):
        scene.tick(MESH, seconds=29)
    scene.tick(DOWN, seconds=11)
    assert scene.metric("links") == 0


def published(scene: Scenario) -> dict[str, object]:
    """What the log says of the last publication."""
    (*_, entry) = [e for e in scene.logs.entries if e["event"] == "labels published"]
    return {name: entry.get(name) for name in ("links", "gpus", "gained", "lost", "also")}


def test_a_publication_says_what_was_gained_and_lost(scene: Scenario) -> None:
    scene.tick(CUT)
    assert published(scene) == {"links": 2, "gpus": 3, "gained": None, "lost": None, "also": None}
    scene.tick([*both("0.0", "1.0"), *both("1.0", "2.0")])
    scene.tick([*both("0.0", "1.0"), *both("1.0", "2.0")])
    assert published(scene) == {
        "links": 2,
        "gpus": 3,
        "gained": "none",
        "lost": "0.0-2.0",
        "also": "nothing",
    }
    scene.tick(MESH)
    assert published(scene) == {
        "links": 3,
        "gpus": 3,
        "gained": "0.0-2.0",
        "lost": "none",
        "also": "nothing",
    }


def test_a_publication_says_what_else_changed(scene: Scenario) -> None:
    scene.tick(CUT)
    scene.tick([*both("0.0", "1.0", 16), *both("0.0", "2.0")])
    assert published(scene)["also"] == "lanes"
    scene.tick([*both("0.0", "1.0", 16), *both("0.0", "2.0"), *self_rows("3.0")])
    assert published(scene)["also"] == "tiles id map"


def test_of_many_links_a_few_are_named_and_the_rest_counted(scene: Scenario) -> None:
    tiles = [f"{device}.0" for device in range(6)]
    mesh = [line for one, other in combinations(tiles, 2) for line in both(one, other)]
    scene.tick(self_rows(*tiles))
    scene.tick([*self_rows(*tiles), *mesh])
    names = " ".join(f"{one}-{other}" for one, other in [*combinations(tiles, 2)][:8])
    assert published(scene)["gained"] == f"{names} and 7 more"


def test_a_restart_tells_until_when_the_labels_live(scene: Scenario) -> None:
    scene.tick(MESH)
    expiry = (scene.now + timedelta(seconds=300)).timestamp()
    scene.now += timedelta(seconds=30)
    scene.restart()
    assert scene.metric("expiry_timestamp_seconds") == expiry
    assert scene.metric("last_publication_timestamp_seconds") == 0


def test_a_failed_publication_is_none_in_the_metrics(scene: Scenario) -> None:
    scene.tick(MESH)
    told = {
        name: scene.metric(name)
        for name in ("expiry_timestamp_seconds", "last_publication_timestamp_seconds")
    }
    scene.path.unlink()
    scene.path.mkdir()
    scene.tick(MESH)
    assert {name: scene.metric(name) for name in told} == told


def test_a_gpu_that_is_gone_leaves_no_metric(scene: Scenario) -> None:
    def ports(*buses: int) -> list[str]:
        return [f'xpum_xelink_port_status{{pci_bdf="0000:{bus}:00.0"}} 0.0' for bus in buses]

    def series() -> set[str]:
        text = generate_latest(scene.telemetry.registry).decode()
        return set(re.findall(r'port_state\{pci_bdf="0000:(\d+):', text))

    scene.tick(body([*self_rows("0.0", "1.0"), *ports(10, 11)]))
    assert series() == {"10", "11"}
    for _ in range(2):
        scene.tick(body([*self_rows("0.0"), *ports(10)]))
    assert series() == {"10"}


def test_what_expired_waits_for_no_confirmation_in_the_metrics(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tick(CUT)
    assert scene.metric('pending_losses{kind="link"}') == 1
    scene.tick(DOWN, seconds=301)
    assert scene.metric('pending_losses{kind="link"}') == 0


def test_only_a_good_scrape_is_the_last_good_one(scene: Scenario) -> None:
    scene.tick(MESH)
    good = scene.now.timestamp()
    for answer in (DOWN, FOREIGN, b""):
        scene.tick(answer)
        assert scene.metric("last_good_scrape_timestamp_seconds") == good


def test_quiet_ticks_say_nothing(scene: Scenario) -> None:
    scene.tick(MESH)
    said = len(scene.events("info", "warning", "error"))
    for _ in range(50):
        scene.tick(MESH)
    scene.tick(ScrapeError(ErrorCode.NOT_CONNECTED, cause="another number 99"))
    for _ in range(20):
        scene.tick(ScrapeError(ErrorCode.NOT_CONNECTED, cause=f"another number {_}"))
    assert len(scene.events("info", "warning", "error")) == said + 1


def test_tls_files_that_break_and_recover_are_logged(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.tls_error = ScrapeError(ErrorCode.TLS_FILE, "ca.crt", cause="half written")
    scene.certificate_expiry = 12345.0
    scene.tick(MESH)
    scene.tick(MESH)
    scene.tls_error = None
    scene.tick(MESH)
    what = "the TLS files cannot be used: -cert ca.crt: half written"
    found = [entry for entry in scene.logs.entries if "source warning" in entry["event"]]
    assert [(entry["event"], entry.get("reason")) for entry in found] == [
        ("source warning", f"{what}; the last good ones are kept"),
        ("source warning resolved", None),
    ]
    assert scene.metric("certificate_expiry_timestamp_seconds") == 12345


def test_rows_that_are_not_understood_are_counted_and_said(scene: Scenario) -> None:
    scene.tick([*MESH, "xpum_topology_link{}"])
    assert scene.metric("rows_skipped_total") == 1
    assert scene.metric("rows_total") == len(TILES) + len(MESH) + 1
    scene.tick([*MESH, "xpum_topology_link{}", "xpum_xelink_port_status{} 0.0"])
    assert scene.metric("rows_skipped_total") == 3
    assert any("rows not understood" in event for event in scene.events("warning"))


def test_rows_that_are_not_understood_are_no_loss(scene: Scenario) -> None:
    scene.tick(MESH)
    unreadable = [line.replace("lane_count", "lanes") for line in MESH]
    for _ in range(5):
        assert scene.tick(unreadable).result.value == "unknown"
        assert scene.links == ALL
    for _ in range(5):
        scene.tick([*CUT, *unreadable[-2:]])
        assert scene.links == ALL
    for _ in range(2):
        scene.tick(CUT)
    assert scene.links == LESS


def test_a_cut_is_published_though_a_row_elsewhere_is_never_understood(scene: Scenario) -> None:
    broken = row("0.0", "1.0").replace("lane_count", "lanes")
    scene.tick(MESH)
    told = [row("1.0", "2.0", "3.0", 0), row("2.0", "1.0", "3.0", 0)]
    scene.tick([*CUT, *told, broken])
    assert scene.links == ALL
    scene.tick([*CUT, *told, broken])
    assert scene.links == LESS


def test_a_second_writer_is_told(scene: Scenario) -> None:
    scene.tick(MESH)
    for _ in range(3):
        scene.path.write_text(f"{NS}/xe-links=0.0-1.0\n")
        scene.tick(MESH)
    assert scene.links == ALL
    assert len([event for event in scene.events("warning") if "somebody else" in event]) == 1


def test_a_tick_that_fails_is_not_ready_until_one_goes_well(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.break_source()
    with pytest.raises(ZeroDivisionError):
        scene.tick(MESH)
    assert "the last tick failed" in str(scene.sidecar.not_ready())
    scene.mend_source()
    scene.tick(MESH)
    assert scene.sidecar.not_ready() is None


def test_a_file_that_vanished_is_not_ready(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.path.unlink()
    assert "not what was published" in str(scene.sidecar.not_ready())
    scene.tick(MESH)
    assert scene.sidecar.not_ready() is None


def test_rows_that_disagree_on_an_address_are_said(scene: Scenario) -> None:
    scene.tick([*MESH, row("0.0", "0.0", "0.0", bdf="0000:99:00.0")])
    assert any("rows disagree" in event for event in scene.events("warning"))
    assert scene.links == ALL


def test_metrics_show_what_is_believed(scene: Scenario) -> None:
    port = 'xpum_xelink_port_status{device_id="0",pci_bdf="0000:10:00.0"} 1.0'
    scene.tick([*both("0.0", "1.0", 16, 8), port])
    expected = {"links": 1, "lanes": 8, "tiles": 3, "gpus": 3}
    assert {name: scene.metric(name) for name in expected} == expected
    assert scene.metric('port_state{pci_bdf="0000:10:00.0",state="degraded"}') == 1
    assert scene.metric('port_state{pci_bdf="0000:10:00.0",state="healthy"}') == 0
    assert scene.metric('scrapes_total{reason="",result="links"}') == 1
    assert scene.metric("last_good_scrape_timestamp_seconds") == scene.now.timestamp()
    scene.tick(DOWN)
    assert scene.metric('scrapes_total{reason="refused",result="unknown"}') == 1


@pytest.mark.parametrize(
    ("on_exit", "now", "later"),
    [(OnExit.EXPIRE, ALL, None), (OnExit.REMOVE, None, None), (OnExit.KEEP, ALL, ALL)],
)
def test_what_becomes_of_the_labels_at_the_end(
    scene: Scenario, on_exit: OnExit, now: str | None, later: str | None
) -> None:
    scene.tick(MESH)
    raw = nfd_format.parse(scene.path.read_bytes(), scene.now).features
    scene.sidecar.leave(on_exit, scene.now)
    assert scene.links == now
    scene.now += timedelta(days=1)
    assert scene.links == later
    if on_exit is OnExit.KEEP:
        assert nfd_format.parse(scene.path.read_bytes(), scene.now).features == raw


def test_what_has_expired_is_not_kept_at_the_end(scene: Scenario) -> None:
    scene.tick(MESH)
    scene.now += timedelta(days=1)
    scene.sidecar.leave(OnExit.KEEP, scene.now)
    assert scene.links is None


def test_who_ends_before_the_first_scrape_leaves_the_labels_of_another_alone(
    scene: Scenario,
) -> None:
    other = Publisher(scene.path, scene.path.parent)
    assert other.other_writer() is None
    content = f"{NS}/xe-links=0.0-1.0\n".encode()
    other.publish(content)
    scene.sidecar.leave(OnExit.REMOVE, scene.now)
    assert scene.path.read_bytes() == content
    assert scene.logs.entries[-1]["labels"] == "those of another sidecar"
    other.close()


def test_the_id_map_travels_with_the_labels(scene: Scenario) -> None:
    scene.tick(MESH)
    raw = nfd_format.parse(scene.path.read_bytes(), scene.now).features
    assert [entry["pci"] for entry in json.loads(raw[f"{NS}/xe-links.id-map"])] == [
        "0000:10:00.0",
        "0000:11:00.0",
        "0000:12:00.0",
    ]
