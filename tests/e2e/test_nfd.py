"""NFD, the first reader: what the sidecar publishes is what the node's labels say."""

import math
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import trustme

from tests.e2e.api import NotYetError, Object
from tests.e2e.cluster import NFD_NAMESPACE, NODE
from tests.e2e.conftest import Tell
from tests.e2e.gpus import FILE, Gpus, published, sidecar
from tests.e2e.kubelet import NODE_PATH
from tests.e2e.nfd import FEATURES, Nfd, ours
from tests.e2e.programs import PATIENCE, Program
from xelink.nfd.writer import STAGE, Publisher
from xelink.simulators.xpu_manager import Blueprint, Serving, Simulator

LINKS = "gpu.intel.com/xe-links"
COUNT = f"{LINKS}.count"
NODE_FEATURE = f"/apis/nfd.k8s-sigs.io/v1alpha1/namespaces/{NFD_NAMESPACE}/nodefeatures/{NODE}"
TIMES = 20
# Seconds. NFD's worker drops what comes within one tick of a second after an event that it has
# taken: after two ticks it is certain to take the next one.
PACE = 2.2
NEVER = 24 * 3600  # seconds between two reads by NFD's worker: it hears of events alone


def unchanged_while(nfd: Nfd, act: Callable[[], None], seconds: float = 3.0) -> None:
    """Act, and see for so long that no event of the node tells of other labels."""
    api = nfd.cluster.api
    before = api.get(NODE_PATH)
    with api.watching(NODE_PATH, before, seconds) as events:
        act()
        for seen in events:
            assert ours(seen.object) == ours(before)
    assert ours(api.get(NODE_PATH)) == ours(before)


@pytest.fixture(autouse=True)
def no_labels_before(nfd: Nfd) -> Iterator[None]:
    """Begin and end each story without a feature file and without labels."""
    FILE.unlink(missing_ok=True)
    nfd.read_every(60)
    nfd.labeled({})
    yield
    FILE.unlink(missing_ok=True)


@pytest.fixture
def writer(logs: Path, gpus: Gpus) -> Iterator[Program]:
    """A sidecar that has published the whole node."""
    gpus.xpum.node = gpus.xpum.first_node
    gpus.xpum.recover()
    program = sidecar(logs, gpus.xpum.port).start()
    try:
        program.wait_for("labels published")
        yield program
    finally:
        program.stop()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_the_sidecar_publishes_is_on_the_node(
    nfd: Nfd, logs: Path, tmp_path: Path, scheme: str, tell: Tell
) -> None:
    # As on a fresh node: there is no stage yet. The worker does not read by itself.
    shutil.rmtree(FEATURES / STAGE)
    nfd.read_every(NEVER)
    flags, serving = [], Serving()
    if scheme == "https":
        ca = trustme.CA()
        certificate, chain, key = ca.issue_cert("127.0.0.1"), tmp_path / "crt", tmp_path / "key"
        certificate.cert_chain_pems[0].write_to_path(chain)
        certificate.private_key_pem.write_to_path(key)
        ca.cert_pem.write_to_path(tmp_path / "ca")
        flags, serving = [f"-cert={tmp_path / 'ca'}"], Serving(cert=chain, key=key)
    with Simulator(Blueprint().build(), serving) as xpum:
        program = sidecar(logs, xpum.port, *flags, startup_delay=math.ceil(PACE)).start()
        try:
            program.wait_for("labels published")
            labels = published()
            assert labels[COUNT] == "56"
            nfd.labeled(labels)
        finally:
            program.stop()
    said = nfd.cluster.kubectl(
        "get",
        "node",
        "-o",
        r'jsonpath={range .items[*]}{.metadata.name}{"\t"}'
        r'{.metadata.labels.gpu\.intel\.com/xe-links}{"\n"}{end}',
    )
    assert said == f"{NODE}\t{labels[LINKS]}\n"
    tell(f"{len(labels)} labels; kubectl: {said.strip()[:60]}...")


def test_a_cut_link_changes_the_label(nfd: Nfd, gpus: Gpus, writer: Program, tell: Tell) -> None:
    nfd.labeled(published())
    cut = time.monotonic()
    gpus.xpum.node = gpus.xpum.node.cut("0.0-1.0")
    writer.wait_for("lost=0.0-1.0")
    labels = published()
    assert labels[COUNT] == "55"
    tell(f"on the node {nfd.labeled(labels) - cut:.1f} s after the cut, two scrapes a second apart")


@pytest.mark.parametrize("outage", ["daemon-down", "reset", "empty", "comments-only"])
def test_an_outage_changes_nothing(nfd: Nfd, gpus: Gpus, writer: Program, outage: str) -> None:
    nfd.labeled(published())

    def fail() -> None:
        gpus.xpum.misbehave(outage)
        writer.wait_for("no usable answer")

    unchanged_while(nfd, fail)


def test_a_rollout_of_the_sidecar_changes_nothing(
    nfd: Nfd, gpus: Gpus, writer: Program, logs: Path
) -> None:
    nfd.labeled(published())
    successor = sidecar(logs, gpus.xpum.port, name="sidecar-successor")

    def roll_out() -> None:
        assert writer.stop() == 0
        successor.start().wait_for("event=started")
        writer.start().wait_for("event=started")
        assert successor.stop(signal.SIGKILL) == -signal.SIGKILL

    try:
        unchanged_while(nfd, roll_out, seconds=5)
    finally:
        successor.stop()


def test_expiry_removes_the_labels(nfd: Nfd, gpus: Gpus, logs: Path, tell: Tell) -> None:
    life, period = 10, 2
    nfd.read_every(period)
    program = sidecar(logs, gpus.xpum.port, f"-expiry={life}").start()
    try:
        program.wait_for("labels published")
        nfd.labeled(published())
        # Renewed, they outlive their first expiry.
        unchanged_while(nfd, lambda: None, seconds=life + period)
        assert ours(nfd.cluster.api.get(NODE_PATH))
    finally:
        program.stop(signal.SIGKILL)
    killed = time.monotonic()
    gone = nfd.labeled({})
    assert FILE.exists()
    assert published() == {}
    tell(f"gone {gone - killed:.1f} s after SIGKILL; -expiry={life}, NFD reads every {period} s")


def plain_rename(path: Path, content: bytes) -> None:
    """Publish as most programs do: a dot file beside it, synced and renamed."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.rename(path)


def test_nfd_sees_each_of_our_publications_without_waiting_for_its_next_read(
    nfd: Nfd, tell: Tell
) -> None:
    nfd.read_every(NEVER)
    nfd.cluster.api.wait(NODE_FEATURE, bool, "the worker has told of the node")
    publisher = Publisher(FILE, FEATURES)
    publisher.prepare()
    Event().wait(PACE)
    took = [latency(nfd, publisher.publish, f"ours-{n}", PATIENCE) for n in range(TIMES)]
    missed = [number for number, seconds in enumerate(took) if seconds is None]
    tell(f"publisher: {TIMES - len(missed)} of {TIMES} seen at once{spread(took)}")
    assert not missed
    # For comparison. How many of these are seen hangs on who is faster, NFD or the writer.
    took = [latency(nfd, partial(plain_rename, FILE), f"plain-{n}", PACE) for n in range(TIMES)]
    tell(f"plain rename: {TIMES - took.count(None)} of {TIMES} seen at once{spread(took)}")


def latency(
    nfd: Nfd, publish: Callable[[bytes], None], value: str, patience: float
) -> float | None:
    """Publish one value; give the seconds until the node has it, None if the worker missed it.

    The worker passes on what it sees at once; the master collects changes once a second.
    """
    api = nfd.cluster.api

    def noticed(feature: Object) -> bool:
        labels: dict[str, str] = feature["spec"]["labels"]
        return labels.get("gpu.intel.com/e2e") == value

    def labeled(node: Object) -> bool:
        return ours(node).get("gpu.intel.com/e2e") == value

    published_at = time.monotonic()
    publish(f"gpu.intel.com/e2e={value}\n".encode())
    try:
        api.wait(NODE_FEATURE, noticed, f"the worker sees {value}", patience)
    except NotYetError:
        return None
    arrived = api.wait(NODE_PATH, labeled, f"the node has {value}").at
    # Whether it was seen or not: what the worker has taken is long past when the next one comes.
    Event().wait(PACE)
    return arrived - published_at


def spread(took: list[float | None]) -> str:
    """Tell the least, the middle and the most, in milliseconds, of those that were seen."""
    times = [seconds for seconds in took if seconds is not None]
    if not times:
        return ""
    least, middle, most = min(times), statistics.median(times), max(times)
    return (
        f"; on the node after {least * 1000:.0f} to {most * 1000:.0f} ms,"
        f" {middle * 1000:.0f} ms in the middle"
    )


def test_the_bench_holds_what_it_says(nfd: Nfd) -> None:
    """NFD's worker cannot write to features.d, as in its DaemonSet."""
    process = nfd.worker.process
    assert process
    mounts = Path(f"/proc/{process.pid}/mounts").read_text()
    assert any(
        line.split()[1] == str(FEATURES) and line.split()[3].startswith("ro")
        for line in mounts.splitlines()
    )
    assert Path(f"/proc/{process.pid}").stat().st_uid == 65534
