"""The sidecar as an administrator runs it: a process with flags, signals and exit codes."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.patience import NEVER, PATIENCE
from tests.processes import address, children, get, mapped, running
from xelink.daemon.version import VERSION
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology import nfd_format
from xelink.topology.publication import read

NS = "gpu.intel.com"
NODE = Blueprint(gpus=3, tiles=2).build()
LINKS = "0.0-1.0_0.0-2.0_0.1-1.1_0.1-2.1_1.0-2.0_1.1-2.1"


@pytest.fixture
def xpum() -> Iterator[Simulator]:
    with Simulator(NODE) as simulator:
        yield simulator


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "xpum-sidecar-labels.txt"


def arguments(xpum: Simulator, labels: Path, *more: str) -> list[str]:
    return [
        f"-xpum-port={xpum.port}",
        "-tmp-dir-prefix",
        str(labels.parent),
        "--dst-file-path",
        str(labels),
        "-startup-delay=0",
        "-interval=1",
        "-listen=127.0.0.1:0",
        *more,
    ]


def published(labels: Path) -> dict[str, str]:
    found = nfd_format.parse(labels.read_bytes(), datetime.now(UTC)).labels
    return {name.removeprefix(f"{NS}/"): value for name, value in found.items()}


def test_labels_appear_whole_readable_and_stay_when_it_is_stopped(
    xpum: Simulator, labels: Path
) -> None:
    with running("sidecar", *arguments(xpum, labels), http_proxy="http://127.0.0.1:9") as process:
        process.wait_for("labels published")
        assert published(labels)["xe-links"] == LINKS
        assert stat.S_IMODE(labels.stat().st_mode) == 0o644
        assert process.stop() == 0
    assert published(labels)["xe-links"] == LINKS


@pytest.mark.parametrize(
    ("on_exit", "stays", "expires"),
    [("expire", True, True), ("remove", False, False), ("keep", True, False)],
)
def test_what_is_asked_for_the_end_is_done(
    xpum: Simulator,
    labels: Path,
    on_exit: str,
    stays: bool,  # noqa: FBT001 - a column
    expires: bool,  # noqa: FBT001 - a column
) -> None:
    with running("sidecar", *arguments(xpum, labels, f"-on-exit={on_exit}")) as process:
        process.wait_for("labels published")
        assert process.stop(signal.SIGINT) == 0
    assert labels.exists() is stays
    if stays:
        assert (read(labels.read_bytes(), NS, datetime.now(UTC)).expiry is not None) is expires


@pytest.mark.parametrize("where", ["startup delay", "interval", "hanging scrape", "retry"])
def test_a_signal_ends_it_wherever_it_is(xpum: Simulator, labels: Path, where: str) -> None:
    delay = NEVER if where == "startup delay" else 0
    more = [f"-startup-delay={delay:g}", f"-interval={NEVER:g}", f"-timeout={NEVER:g}"]
    if where == "hanging scrape":
        xpum.misbehave("hang")
    if where == "retry":
        xpum.misbehave("refuse")
    with running("sidecar", *arguments(xpum, labels, *more)) as process:
        process.wait_for("event=started")
        if where == "interval":
            process.wait_for("labels published")
        if where == "hanging scrape":
            xpum.wait_for_request(1)
        assert process.stop() == 0
        assert "event=stopped" in process.lines[-1]


@pytest.mark.parametrize(
    ("prepare", "code"),
    [("links", 0), ("no links", 3), ("unknown", 4), ("unwritable", 5)],
)
def test_oneshot_tells_the_class_by_its_exit_code(
    xpum: Simulator, labels: Path, prepare: str, code: int
) -> None:
    if prepare == "no links":
        xpum.node = Blueprint(gpus=2, wiring="none").build()
    elif prepare == "unknown":
        xpum.misbehave("daemon-down")
    elif prepare == "unwritable":
        labels.mkdir()
    with running("sidecar", *arguments(xpum, labels, "-oneshot")) as process:
        assert process.wait() == code
    if code == 0:
        assert published(labels)["xe-links"] == LINKS


def test_oneshot_that_is_stopped_says_nothing_of_links_and_leaves_them(
    xpum: Simulator, labels: Path
) -> None:
    labels.write_text(f"{NS}/xe-links=0.0-1.0\n")
    xpum.misbehave("hang")
    with running("sidecar", *arguments(xpum, labels, "-oneshot", "-on-exit=remove")) as process:
        xpum.wait_for_request(1)
        assert process.stop() == 4
        assert any("-on-exit has no effect" in line for line in process.lines)
    assert labels.exists()


def test_a_signal_that_comes_while_it_starts_is_not_lost(xpum: Simulator, labels: Path) -> None:
    code = (
        "import os, signal, sys; from sidecar.__main__ import main;"
        "from xelink.daemon.signals import hold_signals; hold_signals();"
        "os.kill(os.getpid(), signal.SIGTERM); sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments(xpum, labels)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == 0
    assert "event=stopped" in process.stderr


def test_what_reads_its_settings_has_ended_when_it_starts(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels)) as process:
        process.wait_for("event=started")
        assert mapped(process, "pydantic") == set()
        assert children(process) == []


def test_a_log_that_nobody_reads_ends_nothing(xpum: Simulator, labels: Path) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", *arguments(xpum, labels)], stderr=writer
    )
    os.close(writer)
    os.close(reader)
    try:
        xpum.wait_for_answer(xpum.answers + 3)
        assert process.poll() is None
        assert published(labels)["xe-links"] == LINKS
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_dry_run_that_nobody_reads_ends_quietly(xpum: Simulator, labels: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments(xpum, labels, "-dry-run")],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    assert process.returncode == 0
    assert "Traceback" not in process.stderr


def test_a_dry_run_sees_what_really_stands(xpum: Simulator, labels: Path) -> None:
    labels.write_text(f"{NS}/xe-links=0.0-1.0\n")
    xpum.node = replace(NODE, generation=2)
    with running("sidecar", *arguments(xpum, labels, "-dry-run", "-oneshot")) as process:
        assert process.wait() == 4
        assert process.output == ""


def test_flags_that_mean_nothing_for_one_tick_are_told(xpum: Simulator, labels: Path) -> None:
    more = ("-oneshot", "-confirmations=3", "-on-exit=keep", "-timeout=20")
    with running("sidecar", *arguments(xpum, labels, *more)) as process:
        assert process.wait() == 0
        idle = re.findall(r"(-\S+) has no effect with -oneshot", "\n".join(process.lines))
    assert idle == ["-confirmations", "-interval", "-listen", "-on-exit", "-startup-delay"]


def test_oneshot_publishes_a_loss_at_once(xpum: Simulator, labels: Path) -> None:
    for node, links in [(NODE, LINKS), (NODE.cut("0.0-1.0"), LINKS.removeprefix("0.0-1.0_"))]:
        xpum.node = node
        with running("sidecar", *arguments(xpum, labels, "-oneshot")) as process:
            assert process.wait() == 0
        assert published(labels)["xe-links"] == links


def test_dry_run_prints_the_file_and_writes_nothing(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels, "-dry-run", "-oneshot")) as process:
        assert process.wait() == 0
        printed = process.output
        assert 'event="labels printed"' in "".join(process.lines)
        assert "published" not in "".join(process.lines)
    assert list(labels.parent.iterdir()) == []
    assert f"{NS}/xe-links={LINKS}\n" in printed


@pytest.mark.parametrize("on_exit", ["remove", "keep"])
def test_a_dry_run_does_nothing_at_its_end(xpum: Simulator, labels: Path, on_exit: str) -> None:
    labels.write_text(f"{NS}/xe-links=0.0-1.0\n")
    more = ("-dry-run", f"-on-exit={on_exit}")
    with running("sidecar", *arguments(xpum, labels, *more)) as process:
        process.wait_for("-on-exit has no effect with -dry-run")
        process.wait_for("labels printed")
        assert process.stop() == 0
        assert "labels=removed" not in process.lines[-1]
        assert process.output.count("+expiry-time=") == 1
    assert labels.read_text() == f"{NS}/xe-links=0.0-1.0\n"


def test_a_dry_run_that_is_stopped_does_not_say_that_labels_stay(
    xpum: Simulator, labels: Path
) -> None:
    with running("sidecar", *arguments(xpum, labels, "-dry-run")) as process:
        process.wait_for("labels printed")
        assert process.stop() == 0
        assert 'event=stopped labels="as they were"' in process.lines[-1]


def test_flags_environment_and_file_reach_the_labels(xpum: Simulator, labels: Path) -> None:
    config = labels.parent / "config.yaml"
    config.write_text("label-namespace: from.file\nsummary-labels: false\n")
    more = ["-config-file", str(config), "-oneshot"]
    env = {"XELINK_SIDECAR_LANE_COUNT": "5", "XELINK_SIDECAR_LABEL_NAMESPACE": "from.environment"}
    with running("sidecar", *arguments(xpum, labels, *more), **env) as process:
        assert process.wait() == 3
    assert nfd_format.parse(labels.read_bytes(), datetime.now(UTC)).labels == {
        "from.environment/xe-links": ""
    }


@pytest.mark.parametrize(
    ("flags", "name", "told"),
    [
        (["-timeout=0.2"], "hang", "no whole answer within 0.2 s"),
        (["-max-body=1000"], "chunked", "the body is longer than 1000 bytes; see -max-body"),
    ],
    ids=["-timeout", "-max-body"],
)
def test_the_bounds_of_a_scrape_are_those_of_the_flags(
    xpum: Simulator, labels: Path, flags: list[str], name: str, told: str
) -> None:
    xpum.misbehave(name)
    with running("sidecar", *arguments(xpum, labels, "-oneshot", *flags)) as process:
        assert process.wait() == 4
    assert told in process.lines[-1]


@pytest.mark.parametrize(("flags", "code"), [([], 3), (["-allow-subdeviceless-links"], 0)])
def test_links_of_one_tile_gpus_are_published_where_the_flag_is_given(
    xpum: Simulator, labels: Path, flags: list[str], code: int
) -> None:
    xpum.node = Blueprint(gpus=2, tiles=1).build()
    with running("sidecar", *arguments(xpum, labels, "-oneshot", *flags)) as process:
        assert process.wait() == code
    assert published(labels)["xe-links"] == ("" if code else "0.0-1.0")


@pytest.mark.parametrize(
    ("flags", "life"),
    [([], 300), (["-interval=1000"], 6000), (["-expiry=4000"], 4000), (["-expiry=0"], None)],
    ids=["short intervals", "long ones", "-expiry", "for ever"],
)
def test_labels_live_as_long_as_the_flags_say(
    xpum: Simulator, labels: Path, flags: list[str], life: int | None
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with running("sidecar", *arguments(xpum, labels, "-oneshot", *flags)) as process:
        assert process.wait() == 0
    after = datetime.now(UTC)
    expiry = read(labels.read_bytes(), NS, after).expiry
    if life is None:
        assert expiry is None
    else:
        assert expiry
        assert before <= expiry - timedelta(seconds=life) <= after


def test_with_one_confirmation_a_loss_does_not_wait(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels, "-confirmations=1")) as process:
        process.wait_for("labels published")
        xpum.node = NODE.cut("0.0-1.0")
        process.wait_for("labels published")
        assert process.stop() == 0
        assert not [line for line in process.lines if "waits for confirmation" in line]
    assert published(labels)["xe-links"] == LINKS.removeprefix("0.0-1.0_")


@pytest.mark.parametrize(("flags", "levels"), [([], set()), (["-v=4"], {"level=debug"})])
def test_a_renewal_is_a_debug_line_and_shown_when_asked_for(
    xpum: Simulator, labels: Path, flags: list[str], levels: set[str]
) -> None:
    def lines(life: int) -> list[str]:
        more = ("-oneshot", f"-expiry={life}", *flags)
        with running("sidecar", *arguments(xpum, labels, *more)) as process:
            assert process.wait() == 0
            return process.lines

    assert [line for line in lines(3600) if "labels published" in line]
    renewing = lines(7200)  # it finds but half of that left
    assert not [line for line in renewing if "labels published" in line]
    assert {"level=debug"} & set(" ".join(renewing).split()) == levels
    assert read(labels.read_bytes(), NS, datetime.now(UTC)).expiry


def test_xpu_manager_is_told_who_asks(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels, "-oneshot")) as process:
        assert process.wait() == 0
    assert xpum.seen[0].headers["user-agent"] == f"xelink-sidecar/{VERSION}"


def test_probes_and_metrics_tell_what_happens(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels)) as process:
        url = address(process)
        process.wait_for("labels published")
        xpum.wait_for_answer(xpum.answers + 1)
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (200, "ok\n")
        metrics = get(f"{url}/metrics")[1]
        assert "xelink_sidecar_links 6.0" in metrics
        assert "_created" not in metrics  # each counter once, not again with the time of its birth
        assert "0.0-1.0_0.0-2.0" in re.sub("<[^>]*>", "", get(f"{url}/")[1])  # may wrap at "_"
        assert len(json.loads(get(f"{url}/status.json")[1])["topology"]["links"]) == 6
        xpum.misbehave("daemon-down")
        process.wait_for("no usable answer")
        xpum.wait_for_answer(xpum.answers + 1)
        code, text = get(f"{url}/readyz")
        assert (code, text) == (
            503,
            "last scrape unknown, http-status: 500 #nodata: due to unexpected failure\n",
        )
        assert get(f"{url}/healthz")[0] == 200


def test_an_address_that_is_taken_is_one_line(xpum: Simulator, labels: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"-listen=127.0.0.1:{taken.getsockname()[1]}"
        with running("sidecar", *arguments(xpum, labels, listen)) as process:
            assert process.wait() == 1
            assert len(process.lines) == 1
            assert "cannot listen on" in process.lines[0]


def test_logs_are_json_when_asked_for(xpum: Simulator, labels: Path) -> None:
    flags = arguments(xpum, labels, "-log-format=json", "-oneshot")
    before = datetime.now(UTC)
    with running("sidecar", *flags, TZ="Asia/Tokyo") as process:
        assert process.wait() == 0
        entries = [json.loads(line) for line in process.lines]
    for entry in entries:  # wherever the node is
        assert entry["timestamp"].endswith("Z")
        assert before <= datetime.fromisoformat(entry["timestamp"]) <= datetime.now(UTC)
    assert [entry["event"] for entry in entries if entry["level"] == "info"] == [
        "started",
        "scrape result changed",
        "labels published",
    ]
    assert entries[-1]["links"] == 6


def test_a_wrong_call_is_one_line_and_exit_code_2() -> None:
    with running("sidecar", "-interval=never") as process:
        assert process.wait() == 2
        (line,) = process.lines
    assert line == "xelink-sidecar: -interval: 'never' should be a whole number; see -h"


def test_a_rollout_changes_nothing(xpum: Simulator, labels: Path) -> None:
    with running("sidecar", *arguments(xpum, labels)) as process:
        process.wait_for("labels published")
        written = labels.stat().st_mtime_ns, labels.read_bytes()
        process.stop()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with running("sidecar", *arguments(xpum, labels)) as process:
            process.wait_for("resuming from the existing feature file")
            xpum.wait_for_answer(xpum.answers + 2)
            process.stop(number)
        assert (labels.stat().st_mtime_ns, labels.read_bytes()) == written


def test_what_the_reference_left_is_removed(xpum: Simulator, labels: Path) -> None:
    leftover = labels.parent / "xpumsidecar1234567890"
    leftover.mkdir()
    (leftover / "labels.txt").touch()
    with running("sidecar", *arguments(xpum, labels, "-oneshot")) as process:
        assert process.wait() == 0
    assert not leftover.exists()
