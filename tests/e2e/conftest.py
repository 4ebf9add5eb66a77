"""The bench: real programs around a simulated node with GPUs, once for all stories.

Nothing is collected here unless `make e2e` runs it: it enters namespaces first (tools/e2e-run.sh).
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e import summary
from tests.e2e.cluster import Cluster
from tests.e2e.gpus import Companions, Gpus
from tests.e2e.kubelet import Kubelet, Runtime
from tests.e2e.nfd import Nfd
from tests.e2e.pods import Pods

CRDS = Path(__file__).parents[2] / ".cache" / "tools" / "crds"
IN_NAMESPACE = "XELINK_E2E" in os.environ
collect_ignore_glob = [] if IN_NAMESPACE else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: a story with the real programs (make e2e)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_NAMESPACE:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker("e2e")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be missing, a story that is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("E2E_REQUIRED"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and E2E_REQUIRED is set: {summary.why_skipped(report)}"
    return report


class Tell:
    """Takes what a story has measured, for the summary."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def __call__(self, fact: str) -> None:
        self._item.user_properties.append((summary.FACT, fact))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Give a fact to the summary."""
    return Tell(request.node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table of stories and the versions, which tools/e2e-run.sh prints in the end."""
    if not IN_NAMESPACE:
        return
    reports = (
        report
        for outcome in ("passed", "failed", "skipped", "error")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport)
    )
    for name, lines in (("tests", summary.table(reports)), ("versions", summary.versions())):
        (_work() / name).write_text("".join(f"{line}\n" for line in lines))


def _work() -> Path:
    return Path(os.environ["E2E_WORK"])


@pytest.fixture(scope="session")
def work() -> Path:
    """A directory on a real disk, gone after the run."""
    return _work()


@pytest.fixture(scope="session")
def logs(work: Path) -> Path:
    """What the programs say; kept when a story fails."""
    path = work / "logs"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def cluster(work: Path, logs: Path) -> Iterator[Cluster]:
    """A control plane."""
    cluster = Cluster(work, logs)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def monitoring(cluster: Cluster) -> str:
    """The namespace of XPU Manager, as the guide makes it."""
    cluster.kubectl("create", "namespace", "monitoring")
    return "monitoring"


@pytest.fixture(scope="session")
def definitions(cluster: Cluster) -> None:
    """The custom resources of cert-manager and of the Prometheus operator."""
    files = sorted(CRDS.glob("*.yaml"))
    if not files:
        pytest.skip("definitions of custom resources are missing: make deployment-tools")
    cluster.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
    cluster.kubectl("wait", "--for=condition=Established", "--all", "crd")


@pytest.fixture(scope="session")
def runtime(work: Path, logs: Path) -> Iterator[Runtime]:
    """A container runtime."""
    runtime = Runtime(work, logs)
    try:
        yield runtime.start()
    finally:
        runtime.stop()


@pytest.fixture(scope="session")
def kubelet(cluster: Cluster, runtime: Runtime) -> Iterator[Kubelet]:
    """A kubelet, whose node is ready."""
    kubelet = Kubelet(cluster, runtime)
    try:
        yield kubelet.start()
    finally:
        kubelet.stop()


@pytest.fixture(scope="session")
def gpus(work: Path) -> Iterator[Gpus]:
    """The node's GPUs, with an XPU Manager over HTTP."""
    gpus = Gpus(work / "gpus")
    try:
        yield gpus.start()
    finally:
        gpus.stop()


@pytest.fixture(scope="session")
def nfd(kubelet: Kubelet) -> Iterator[Nfd]:
    """NFD, on a node that kubelet has registered."""
    nfd = Nfd(kubelet.cluster)
    try:
        yield nfd.start()
    finally:
        nfd.stop()


@pytest.fixture(scope="module")
def companions(kubelet: Kubelet, gpus: Gpus, logs: Path) -> Iterator[Companions]:
    """A sidecar and a plugin, whose eight GPUs the node offers."""
    gpus.xpum.node = gpus.xpum.first_node
    gpus.xpum.recover()
    companions = Companions(gpus, logs)
    try:
        companions.start()
        kubelet.await_allocatable(8)
        yield companions
    finally:
        companions.stop()


@pytest.fixture
def pods(kubelet: Kubelet) -> Iterator[Pods]:
    """Pods, all gone after the story."""
    pods = Pods(kubelet.cluster.api)
    yield pods
    pods.delete_all()
