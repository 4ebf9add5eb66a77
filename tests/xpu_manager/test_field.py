"""Bodies that went wrong in the field, each once: what is right for them.

Each behavior has a body of our own; where the folder with the bodies themselves is, they are read,
too.
"""

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest

from tests.data import DATA, needs_data
from tests.processes import address, get, running
from tests.sidecar.test_loop import MESH, Scenario
from tests.xpu_manager.bodies import body, both, judge, read_body, row, self_rows
from tests.xpu_manager.test_scrape import Answering, scraping
from xelink.topology.model import GPU_LIMIT, TILE_LIMIT
from xelink.topology.observation import Observation, ObservedLinks, Unknown
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import answered, classify
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.scrape import ScrapeTarget

FIELD = DATA / "field"
TILES = ("0.0", "0.1", "1.0", "1.1")
PAIR = [*both("0.0", "1.0"), *both("0.1", "1.1")]

LOGIN = b"<!doctype html><html><head><title>Sign in</title></head><body>login</body></html>"
MATRIX = b"""
         GPU 0/0  GPU 0/1  CPU Affinity
GPU 0/0  S        MDF      0-23,48-71
GPU 0/1  MDF      S        0-23,48-71
"""
EXPORTER = b"""# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{cpu="0",mode="idle"} 1.5e+06
"""
API = json.dumps(
    {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [{"metric": {"__name__": "xpum_topology_link"}}],
        },
    }
).encode()
TWO = b'hw_errors_total{service_instance="gpu_xpum_2"} 4.0\nhw_status{a="xpum_x"} 1.0\n'


def joined_rings(count: int) -> list[str]:
    """Link one-tile GPUs to rings of five, and each ring to all of every other."""
    gpus = range(5 * count)
    pairs = [(a, b) for a, b in combinations(gpus, 2) if a // 5 != b // 5 or (b - a) % 5 in {1, 4}]
    rows = [row(f"{a}.0", f"{b}.0") for a, b in pairs]
    return [*self_rows(*(f"{gpu}.0" for gpu in gpus)), *rows]


def sibling(count: int = 2) -> list[str]:
    name = "xpum_topology_link_errors_total"
    return [f'{name}{{device_id="{device}"}} 0.0' for device in range(count)]


def field(name: str) -> bytes:
    return (FIELD / name).read_bytes()


def said(content: bytes) -> Observation:
    return answered(classify(read_body(content), Rules()))


STRANGE = [
    pytest.param(LOGIN, "a web page", "<!doctype html>", id="web page"),
    pytest.param(MATRIX, "no metrics", "GPU 0/0  GPU 0/1", id="matrix"),
    pytest.param(EXPORTER, "metrics of another exporter", "# HELP node_cpu", id="exporter"),
    pytest.param(b"up 1\n", "metrics of another exporter", "up 1", id="one metric"),
    pytest.param(API, "an answer of Prometheus's query API", '{"status"', id="query API"),
    pytest.param(b'{"a": 1}', "JSON", '{"a": 1}', id="JSON"),
    pytest.param(
        EXPORTER.decode().encode("utf-16"), "UTF-16 text, as PowerShell", "# HELP", id="UTF-16"
    ),
    pytest.param(gzip.compress(EXPORTER), "data packed by gzip", "", id="gzip"),
    pytest.param(b"", "an empty answer", "", id="empty"),
    pytest.param(b" \n\n", "an empty answer", "", id="blank"),
    pytest.param(b"\x1b[2Jevil\nxpum", "no metrics", r"\x1b[2Jevil", id="control characters"),
    pytest.param(b"x" * 9999, "no metrics", "x" * 80 + "...", id="one long line"),
    pytest.param(b"a xpum_topology_link{} 1\n", "no metrics", "a xpum_", id="a mention"),
    pytest.param(b"\x00" * (3 << 20), "no metrics", r"\x00\x00", id="zeros without end"),
]


@pytest.mark.parametrize(("content", "what", "line"), STRANGE)
def test_what_is_no_body_of_xpu_manager_is_called_what_it_is(
    content: bytes, what: str, line: str
) -> None:
    outcome = said(content)
    assert isinstance(outcome, Unknown)
    assert outcome.reason is ScrapeReason.NOT_XPU_MANAGER
    assert outcome.detail.startswith(f"something else answers here: {what}")
    assert line in outcome.detail
    assert outcome.detail.isprintable()
    assert len(outcome.detail) < 500


@needs_data
@pytest.mark.parametrize(
    ("name", "what", "line"),
    [
        ("not_metrics_login.html", "a web page", "Sign in"),
        ("not_metrics_topology_matrix.txt", "no metrics", "GPU 0/0"),
        ("not_metrics_prometheus_api.json", "an answer of Prometheus's query API", "success"),
        ("another_exporter.prom", "metrics of another exporter", "node_cpu_seconds_total"),
        ("utf16le.prom", "UTF-16 text", "# HELP xpum_power_watts"),
    ],
)
def test_what_was_no_body_in_the_field_is_called_what_it_is(
    name: str, what: str, line: str
) -> None:
    test_what_is_no_body_of_xpu_manager_is_called_what_it_is(field(name), what, line)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"# HELP xpum_power_watts x\n", ScrapeReason.NO_ROWS, id="only comments"),
        pytest.param(b"xpum_power_watts 1\n", ScrapeReason.NO_ROWS, id="only others"),
        pytest.param(b"#nodata: due to unexpected failure", ScrapeReason.NO_ROWS, id="no data"),
        pytest.param(TWO, None, id="XPU Manager 2 that mentions xpum_"),
    ],
)
def test_what_is_a_body_of_xpu_manager_is_not_called_something_else(
    content: bytes, reason: ScrapeReason | None
) -> None:
    outcome = said(content)
    if reason is None:
        assert outcome.result.value == "no-fabric-data"
    else:
        assert isinstance(outcome, Unknown)
        assert outcome.reason is reason


@needs_data
def test_the_second_xpu_manager_of_the_field_has_no_fabric_data() -> None:
    test_what_is_a_body_of_xpu_manager_is_not_called_something_else(
        field("v2_with_xpum_in_a_label.prom"), None
    )


def _links_until_they_are_cut(scene: Scenario, linked: bytes, cut: bytes) -> None:
    outcome = scene.tick(linked)
    assert isinstance(outcome, ObservedLinks)
    assert outcome.unread == 0
    assert scene.labels["xe-links.count"] == "2"
    scene.tick(cut)
    assert scene.labels["xe-links.count"] == "2"
    outcome = scene.tick(cut)
    assert outcome.result.value == "none"
    assert (scene.links, scene.labels["xe-links.state"]) == ("", "none")
    assert scene.metric("rows_skipped_total") == 0


@pytest.mark.parametrize("at", ["before", "between", "after"])
def test_a_metric_whose_name_begins_alike_is_another_one(tmp_path: Path, at: str) -> None:
    def among(rows: list[str]) -> bytes:
        place = {"before": 0, "between": 2, "after": len(rows)}[at]
        return body([*rows[:place], *sibling(), *rows[place:]])

    linked = among([*self_rows(*TILES), *PAIR])
    _links_until_they_are_cut(Scenario(tmp_path), linked, among(self_rows(*TILES)))


def test_ports_are_read_of_the_whole_name_only() -> None:
    reading = read_body(b'xpum_xelink_port_status_x{pci_bdf="0000:10:00.0"} 2.0\n')
    assert (reading.ports, reading.unread_ports) == ({}, 0)


@needs_data
def test_the_sibling_of_the_field_keeps_no_cut_link(tmp_path: Path) -> None:
    linked, cut = field("sibling_family_linked.prom"), field("sibling_family_cut.prom")
    _links_until_they_are_cut(Scenario(tmp_path), linked, cut)


def test_a_malformed_row_is_counted_and_spoils_no_other() -> None:
    outcome = judge([*self_rows(*TILES), *PAIR, "xpum_topology_link{" + "}" * 60_000 + " x y z"])
    assert isinstance(outcome, ObservedLinks)
    assert (len(outcome.topology.links), outcome.unread) == (2, 1)


@needs_data
def test_the_row_of_braces_of_the_field_is_one_row_that_cannot_be_understood() -> None:
    reading = read_body(field("row_of_60000_braces.prom"))
    assert reading.unread == 1
    assert classify(reading, Rules()).result.value != "unknown"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        pytest.param(
            self_rows(*(f"{gpu}.0" for gpu in range(GPU_LIMIT + 1))),
            "65 GPUs are named: no node has more than 64",
            id="GPUs",
        ),
        pytest.param(
            self_rows(*(f"0.{tile}" for tile in range(TILE_LIMIT + 1))),
            "129 tiles are named: no node has more than 128",
            id="tiles",
        ),
        pytest.param(
            [*self_rows("0.0"), *(row("0.0", f"{gpu}.0") for gpu in range(1, 99))],
            "99 GPUs are named",
            id="GPUs that are only mentioned",
        ),
    ],
)
def test_more_than_any_node_has_is_a_reason_of_its_own(rows: list[str], what: str) -> None:
    outcome = judge(rows)
    assert isinstance(outcome, Unknown)
    assert outcome.reason is ScrapeReason.TOO_MANY_GPUS
    assert what in outcome.detail


def test_as_many_as_four_of_the_largest_nodes_have_are_judged() -> None:
    tiles = (f"{gpu}.{tile}" for gpu in range(GPU_LIMIT) for tile in (0, 1))
    assert judge(self_rows(*tiles)).result.value == "none"


def _stands_while_too_many_are_told(scene: Scenario, content: bytes) -> None:
    scene.tick(MESH)
    before = scene.path.read_bytes()
    outcome = scene.tick(content)
    assert isinstance(outcome, Unknown)
    assert outcome.reason is ScrapeReason.TOO_MANY_GPUS
    assert scene.path.read_bytes() == before
    assert "70 GPUs are named" in str(scene.sidecar.not_ready())
    assert scene.metric('scrapes_total{reason="too-many-gpus",result="unknown"}') == 1
    scene.tick(MESH)
    assert scene.sidecar.not_ready() is None


def test_what_stands_stays_while_more_gpus_are_told_than_there_are(tmp_path: Path) -> None:
    _stands_while_too_many_are_told(Scenario(tmp_path), body(joined_rings(14)))


@needs_data
def test_the_joined_rings_of_the_field_change_nothing_and_the_next_scrape_heals(
    tmp_path: Path,
) -> None:
    _stands_while_too_many_are_told(Scenario(tmp_path), field("joined_five_rings_70_gpus.prom"))


def test_a_graph_that_nobody_can_go_through_is_published_without_its_largest_group(
    tmp_path: Path,
) -> None:
    scene = Scenario(tmp_path)
    scene.tick(body(joined_rings(12)))
    assert scene.labels["xe-links.gpus"] == "60"
    assert "xe-links.group" not in scene.labels
    assert "xe-links.group is left out" in " ".join(scene.events("warning"))
    scene.tick(MESH)
    scene.tick(MESH)
    assert scene.labels["xe-links.group"] == "3"


@pytest.mark.parametrize(
    ("rings", "said"),
    [(12, "xe-links.group is left out"), (14, "70 GPUs are named")],
    ids=["60 GPUs", "70 GPUs"],
)
def test_a_daemon_lives_and_hears_signals_whatever_graph_it_is_told(
    tmp_path: Path, rings: int, said: str
) -> None:
    where = (f"-tmp-dir-prefix={tmp_path}", f"-dst-file-path={tmp_path / 'labels.txt'}")
    often = ("-startup-delay=0", "-interval=1", "-listen=127.0.0.1:0")
    with (
        Answering(_answer(body(joined_rings(rings)), "identity")) as server,
        running("sidecar", f"-xpum-port={server.port}", *where, *often) as process,
    ):
        url = address(process)
        process.wait_for(said)
        assert get(f"{url}/healthz") == (200, "ok\n")
        page = get(f"{url}/")[1]
        assert ("xe-links.group is left out" in page) is (rings == 12)
        assert process.stop() == 0


LIMIT = 128 << 10
"""KiB that the overlays allow the sidecar."""


def test_forged_gpus_and_their_pages_stay_within_the_memory_of_the_overlays(
    tmp_path: Path,
) -> None:
    ids = 'local_device_id="{0}",local_subdevice_id="0",remote_device_id="{0}"'
    line = f'xpum_topology_link{{{{lane_count="0",{ids},remote_subdevice_id="0"}}}} 0.0'
    content = body(line.format(gpu) for gpu in range(19_500))
    where = (f"-tmp-dir-prefix={tmp_path}", f"-dst-file-path={tmp_path / 'labels.txt'}")
    often = ("-startup-delay=0", "-interval=1", "-listen=127.0.0.1:0")
    with (
        Answering(_answer(content, "identity")) as server,
        running("sidecar", f"-xpum-port={server.port}", *where, *often) as process,
    ):
        url = address(process)
        process.wait_for("19500 GPUs are named: no node has more than 64")
        for _ in range(10):
            assert get(f"{url}/")[0] == 200
        told = Path(f"/proc/{process.process.pid}/status").read_text()
        most = next(line for line in told.splitlines() if line.startswith("VmHWM:"))
        assert int(most.split()[1]) < LIMIT
        assert process.stop() == 0


def test_rows_that_contradict_each_other_are_told_once_per_change(tmp_path: Path) -> None:
    scene = Scenario(tmp_path)
    stale = [*self_rows(*TILES), *PAIR, row("0.0", "1.0", value="3.0", lanes=0)]
    told = "rows contradict each other: a cut link may still be reported"
    for _ in range(3):
        outcome = scene.tick(body(stale))
        assert isinstance(outcome, ObservedLinks)
        assert len(outcome.contradicting) == 1
    entries = [entry for entry in scene.logs.entries if entry["event"].startswith(told)]
    assert [entry["directions"] for entry in entries] == ["0.0-1.0"]
    assert "before 1.2.16" in entries[0]["hint"]
    assert scene.metric("rows_contradicting") == 1
    scene.tick(body([*self_rows(*TILES), *PAIR, row("0.0", "1.0", lanes=8)]))
    assert scene.metric("rows_contradicting") == 1
    scene.tick(body([*self_rows(*TILES), *PAIR, *PAIR]))
    assert scene.metric("rows_contradicting") == 0
    assert "rows contradict each other no longer" in scene.events("info")


@needs_data
@pytest.mark.parametrize("path", sorted((DATA / "xpum").glob("[a-h]_*.prom")), ids=lambda p: p.name)
def test_no_real_body_contradicts_itself(path: Path) -> None:
    outcome = classify(read_body(path.read_bytes()), Rules())
    assert isinstance(outcome, ObservedLinks)
    assert not outcome.contradicting


def _answer(content: bytes, encoding: str) -> list[bytes]:
    headers = f"Content-Encoding: {encoding}\r\nContent-Length: {len(content)}"
    return [f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode(), content]


@pytest.mark.parametrize("encoding", ["identity", "Identity", " identity , identity"])
def test_an_answer_that_says_it_is_not_packed_is_read(encoding: str) -> None:
    content = body([*self_rows(*TILES), *PAIR])
    with (
        Answering(_answer(content, encoding)) as server,
        scraping(ScrapeTarget(server.port)) as scraper,
    ):
        assert len(scraper.scrape().rows) == 8


def test_xpu_manager_2_is_one_line_in_the_log(tmp_path: Path) -> None:
    scene = Scenario(tmp_path)
    for _ in range(3):
        scene.tick(TWO)
    assert scene.labels == {"xe-links.state": "no-fabric-data"}
    assert scene.events("info", "warning") == [
        "XPU Manager has no fabric data: this state alone is published"
    ]


def test_that_only_the_state_is_left_is_told_when_the_links_have_expired(tmp_path: Path) -> None:
    scene = Scenario(tmp_path)
    scene.tick(MESH)
    scene.tick(TWO)
    assert "the published labels stay" in scene.events("warning")[-1]
    scene.tick(TWO, seconds=301)
    assert scene.labels == {"xe-links.state": "no-fabric-data"}
    assert scene.events("info")[-1] == "labels published"


def test_whoever_answers_with_other_words_each_time_is_told_once(tmp_path: Path) -> None:
    scene = Scenario(tmp_path)
    for word in (b"one", b"two", b"three"):
        scene.tick(b"<html>" + word)
    assert len(scene.events("warning")) == 1
    assert "three" in str(scene.sidecar.not_ready())
