"""`xelink doctor` on a simulated node with real daemons: all is well, and each fault is named."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from device_plugin.settings import PluginSettings
from sidecar.settings import SidecarSettings
from tests.cli.commands import Said, Xelink, topology
from tests.cli.commands import labels as labels_of
from tests.daemon.listener import listening_at
from tests.nfd.test_writer_mounts import LIBC, NOBODY, as_root, being, mount
from tests.patience import PATIENCE
from tests.processes import Running, address, running
from tests.xpu_manager.test_tls_servers import CA, trustme_pair
from xelink.cli.doctor import command as doctor
from xelink.cli.doctor import finding
from xelink.cli.doctor.finding import CheckStatus
from xelink.daemon.http_server import ProbeResult, Site
from xelink.daemon.metrics import Metrics
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node import blueprint
from xelink.simulators.xpu_manager import Blueprint, Serving, SimulatedNode, Simulator, render
from xelink.topology import labels, publication
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication

I915 = "gpu.intel.com/i915"
GPUS = 4
NODE = Blueprint(gpus=GPUS, cards="shuffled").build()
DAY = timedelta(days=1)
FILE = "xpum-sidecar-labels.txt"
ROOT = Path(__file__).parents[2]
READ_ONLY = 1 | 32  # MS_RDONLY | MS_REMOUNT
DETACH = 2


class Scene:
    """A whole node: XPU Manager, sidecar, features.d, sysfs, device plugin and kubelet."""

    def __init__(self, root: Path, cleanup: ExitStack) -> None:
        self.root = root
        served, ca = trustme_pair(end=90 * DAY)
        self.cert = self.write("ca.crt", ca)
        self.xpum = cleanup.enter_context(simulator(self.write("served.pem", served)))
        blueprint.TreeBlueprint(gpus=GPUS, cards="shuffled").build(root)
        self.features = directory(root / "etc/kubernetes/node-feature-discovery/features.d")
        self.sockets = root / "var/lib/kubelet/device-plugins"
        self.kubelet = cleanup.enter_context(Kubelet(self.sockets))
        self.sidecar = self._sidecar(cleanup)
        self.plugin = self._plugin(cleanup)

    def _sidecar(self, cleanup: ExitStack) -> str:
        process = cleanup.enter_context(
            running(
                "sidecar",
                f"-xpum-port={self.xpum.port}",
                f"-cert={self.cert}",
                f"-tmp-dir-prefix={self.features}",
                f"-dst-file-path={self.features / FILE}",
                "-startup-delay=0",
                "-interval=3600",  # once: what XPU Manager does later is the doctor's alone
                "-listen=127.0.0.1:0",
            )
        )
        url = address(process)
        process.wait_for("labels published")
        return url

    def _plugin(self, cleanup: ExitStack) -> str:
        process: Running = cleanup.enter_context(
            running(
                "device_plugin",
                f"-prefix={self.root}",
                f"-plugin-dir={self.sockets}",
                f"-label-file={self.features / FILE}",
                f"-cdi-dir={self.root / 'cdi'}",
                "-listen=127.0.0.1:0",
            )
        )
        url = address(process)
        process.wait_for('state="in use"')
        self.kubelet.wait_for_capacity(I915, GPUS)
        return url

    @property
    def arguments(self) -> list[str]:
        return [
            f"--prefix={self.root}",
            f"--xpum-port={self.xpum.port}",
            f"--cert={self.cert}",
            f"--sidecar={self.sidecar}",
            f"--plugin={self.plugin}",
        ]

    def write(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.write_bytes(content)
        return path

    def new(self) -> Path:
        """Make a directory that every user can look into."""
        return directory(Path(tempfile.mkdtemp(dir=self.root)))

    def published(self, content: bytes, mode: int = 0o644) -> Path:
        """Put a feature file into a features.d of its own."""
        path = self.new() / FILE
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def linked_sockets(self) -> Path:
        """Make a directory with the sockets that are served."""
        path = self.new()
        for name in ("kubelet.sock", "gpu.intel.com-i915.sock"):
            (path / name).hardlink_to(self.sockets / name)
        return path


def directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    return path


def simulator(pem: Path) -> Simulator:
    return Simulator(NODE, Serving(cert=pem, key=pem))


def rendered(node: SimulatedNode = NODE, life: timedelta | None = DAY) -> bytes:
    until = datetime.now(UTC) + life if life else None
    return publication.render(Publication(topology(node), until), DEFAULT_NAMESPACE)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as root, ExitStack() as cleanup:
        yield Scene(Path(root), cleanup)


@dataclass(frozen=True)
class Fault:
    """How to bring it about, and which lines must name it with which words; all others are fine."""

    inject: Callable[[Scene], AbstractContextManager[list[str]]]
    named: Mapping[str, tuple[str, str]]


FAULTS: dict[str, Fault] = {}
Injection = Callable[[Scene], Iterator[list[str]]]


def fault(check: str, status: str, words: str, **more: str) -> Callable[[Injection], Injection]:
    """Add a row to the table: the function yields the options that lead to the fault."""

    def add(inject: Injection) -> Injection:
        named = {check: (status, words), **{name: ("warn", text) for name, text in more.items()}}
        FAULTS[inject.__name__.replace("_", " ")] = Fault(contextmanager(inject), named)
        return inject

    return add


def misbehaving(scene: Scene, name: str) -> Iterator[list[str]]:
    scene.xpum.misbehave(name)
    yield []
    scene.xpum.recover()


@fault("xpum", "fail", r"nothing listens at .* \(refused\): start XPU Manager")
def xpum_refuses(scene: Scene) -> Iterator[list[str]]:
    yield from misbehaving(scene, "refuse")


@fault("xpum", "fail", r"answers 500 #nodata.* \(http-status\): give it some minutes")
def xpum_has_no_data(scene: Scene) -> Iterator[list[str]]:
    yield from misbehaving(scene, "daemon-down")


@fault("xpum", "fail", r"answers 200 without topology rows \(no-topology-rows\): restart")
def xpum_has_no_topology(scene: Scene) -> Iterator[list[str]]:
    with of_node(scene, replace(NODE, topology_fails=True)) as options:
        yield options


@fault(
    "xpum",
    "fail",
    r"something else answers at http.*: an empty answer, no metrics \(not-xpu-manager\): give XPU"
    r" Manager's port with --xpum-port, or stop what answers on this one",
)
def something_else_answers(scene: Scene) -> Iterator[list[str]]:
    yield from misbehaving(scene, "empty")


@fault("xpum", "fail", r"no whole answer within 1 s \(timeout\): give it a minute")
def xpum_hangs(scene: Scene) -> Iterator[list[str]]:
    for options in misbehaving(scene, "hang"):
        yield [*options, "--timeout=1"]


@fault("xpum", "fail", r"\(unauthorized\): give the right --username and --password-file")
def xpum_wants_a_password(scene: Scene) -> Iterator[list[str]]:
    yield from misbehaving(scene, "unauthorized")


@fault("xpum", "warn", r"2\.x at .*: no Xe Link topology in its metrics: run 1\.2 or 1\.3")
def xpum_is_of_another_generation(scene: Scene) -> Iterator[list[str]]:
    with of_node(scene, replace(NODE, generation=2)) as options:
        yield options


@fault("hostNetwork", "fail", r"XPU Manager sees 4 GPUs and no Xe Link: .* hostNetwork: true")
def no_host_network(scene: Scene) -> Iterator[list[str]]:
    with of_node(scene, replace(NODE, host_network=False)) as options:
        yield options


@contextmanager
def of_node(scene: Scene, node: SimulatedNode) -> Iterator[list[str]]:
    before, scene.xpum.node = scene.xpum.node, node
    yield []
    scene.xpum.node = before


@fault("tls", "fail", r"the file of --cert does not contain its CA: give --cert the CA")
def wrong_ca(scene: Scene) -> Iterator[list[str]]:
    yield [f"--cert={scene.write('other.crt', trustme.CA().cert_pem.bytes())}"]


@fault("tls", "fail", r"--cert /.*/nothing\.crt: No such file or directory: give --cert the CA")
def no_ca(scene: Scene) -> Iterator[list[str]]:
    yield [f"--cert={scene.root / 'nothing.crt'}"]


@fault("tls", "warn", r"ends in 4\d h: renew it")
def certificate_near_its_end(scene: Scene) -> Iterator[list[str]]:
    yield from served_with(scene, *trustme_pair(end=2 * DAY))


@fault("tls", "fail", r"certificate has expired: renew it")
def certificate_past_its_end(scene: Scene) -> Iterator[list[str]]:
    yield from served_with(scene, *trustme_pair(begin=-2 * DAY, end=-DAY))


@fault("tls", "fail", r": issue a certificate with subjectAltName=IP:127\.0\.0\.1")
def certificate_without_san(scene: Scene) -> Iterator[list[str]]:
    yield from served_with(scene, CA.issue(), CA.pem)


def served_with(scene: Scene, pem: bytes, ca: bytes) -> Iterator[list[str]]:
    trusted = scene.write("its-ca.crt", ca)
    with simulator(scene.write("its.pem", pem)) as xpum:
        yield [f"--xpum-port={xpum.port}", f"--cert={trusted}"]


@fault("tls", "fail", r"speaks no HTTPS on this port \(--cert\): let XPU Manager serve HTTPS")
def xpum_speaks_plain_http(_: Scene) -> Iterator[list[str]]:
    with Simulator(NODE) as xpum:
        yield [f"--xpum-port={xpum.port}", "--timeout=1"]


@fault("features.d", "fail", r"cannot write to .*features\.d \(dr-xr-xr-x")
def features_d_not_writable(scene: Scene) -> Iterator[list[str]]:
    scene.features.chmod(0o555)
    yield []
    scene.features.chmod(0o755)


@fault("features.d", "fail", r"uid 65532 cannot write to .*: chown it .* --uid")
def sidecar_of_another_user(_: Scene) -> Iterator[list[str]]:
    yield ["--uid=65532"]


@fault("features.d", "fail", r"cannot write to .*/\.stage \(d-w-------")
def stage_of_another_mode(scene: Scene) -> Iterator[list[str]]:
    stage = scene.features / ".stage"
    mode = stage.stat().st_mode
    stage.chmod(0o200)
    yield []
    stage.chmod(mode)


@fault("features.d", "fail", "no such file or directory: install NFD")
def no_features_d(scene: Scene) -> Iterator[list[str]]:
    yield [f"--features-dir={scene.root / 'nowhere'}"]


@fault("readable", "fail", r"NFD \(uid 65534\) cannot read .*\.txt \(-rw------- .*\): chmod 0644")
def file_of_mode_0600(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(), mode=0o600))


@fault("readable", "fail", r"cannot read .*features\.d \(drwxr-x--- .*\): chmod 0755")
def features_d_closed_to_nfd(scene: Scene) -> Iterator[list[str]]:
    scene.features.chmod(0o750)
    yield []
    scene.features.chmod(0o755)


@fault("readable", "warn", r"etc/kubernetes is closed to NFD .*: chmod o\+x .*, unless NFD mounts")
def way_closed_to_nfd(scene: Scene) -> Iterator[list[str]]:
    (scene.root / "etc/kubernetes").chmod(0o700)
    yield []
    (scene.root / "etc/kubernetes").chmod(0o755)


@fault("readable", "fail", "is no regular file, NFD ignores it: remove it")
def file_is_a_link(scene: Scene) -> Iterator[list[str]]:
    path = scene.new() / FILE
    path.symlink_to(scene.features / FILE)
    yield in_features(path)


@fault("fresh", "fail", r"there is no .*\.txt: start xelink-sidecar")
def no_file(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.new() / FILE)


@fault("fresh", "fail", r"expired 6\d s ago, the labels are gone: start xelink-sidecar")
def expired_file(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(life=timedelta(seconds=-60.5))))


@fault("fresh", "warn", r"a renewal was missed: see why: xpum, sidecar")
def file_near_its_end(scene: Scene) -> Iterator[list[str]]:
    path = scene.published(rendered())
    written = datetime.now(UTC).timestamp() - 3 * DAY.total_seconds()
    os.utime(path, (written, written))
    yield in_features(path)


@fault("fresh", "warn", "it never expires and outlives the sidecar: run xelink-sidecar with")
def file_without_expiry(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(life=None)))


@fault("writers", "fail", "another program wrote the feature file", fresh="as Intel's")
def file_of_the_reference_beside_our_sidecar(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(reference()))


@fault("writers", "fail", r"gpu\.intel\.com/xe-links is in old\.txt, too: NFD merges both: stop")
def two_writers(scene: Scene) -> Iterator[list[str]]:
    path = scene.published(rendered())
    (path.parent / "old.txt").write_bytes(reference())
    (path.parent / "foreign.txt").write_text("vendor.example.com/feature=1\n")
    yield in_features(path)


@fault("consistent", "fail", r"chunks are missing: only \[2\].*: restart xelink-sidecar")
def file_without_a_chunk(scene: Scene) -> Iterator[list[str]]:
    lines = rendered().splitlines(keepends=True)
    kept = b"".join(line for line in lines if b"/xe-links=" not in line)
    yield in_features(scene.published(kept))


@fault("consistent", "fail", r"xe-links\.hash is '0', but the links make it '\w{16}'")
def file_with_another_hash(scene: Scene) -> Iterator[list[str]]:
    content = re.sub(rb"(xe-links\.hash)=\w+", rb"\1=0", rendered())
    yield in_features(scene.published(content))


@fault("consistent", "fail", r"no label node\.example\.com/xe-links .*: give .* --namespace")
def file_of_another_namespace(_: Scene) -> Iterator[list[str]]:
    yield ["--namespace=node.example.com"]


@fault("nfd-rules", "fail", r"over 65536 bytes: NFD drops the whole file: remove")
def file_over_64_kib(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered() + b"# padding\n" * 6554))


@fault("nfd-rules", "fail", r"NFD rejects 1 of its lines: label value 'a b' is not at most 63")
def line_that_nfd_refuses(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered() + b"vendor.example.com/feature=a b\n"))


@fault("nfd-rules", "fail", r"NFD rejects 1 of its lines: bad directive: # \+expiry-time=soon")
def directive_that_nfd_refuses(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered() + b"# +expiry-time=soon\n"))


@fault("nfd-rules", "fail", r"NFD ignores \.hidden, because it begins with a dot: rename it")
def file_with_a_dot(scene: Scene) -> Iterator[list[str]]:
    path = scene.published(rendered()).rename(scene.new() / ".hidden")
    yield [f"--features-dir={path.parent}", f"--feature-file={path}"]


def in_features(path: Path) -> list[str]:
    return [f"--features-dir={path.parent}"]


def reference() -> bytes:
    found = labels.encode(topology(NODE).links, DEFAULT_NAMESPACE)
    return "".join(f"{name}={value}\n" for name, value in found.items()).encode()


@fault("sidecar", "fail", r"xelink-sidecar [\d.]+ is not ready: no scrape yet: fix that")
def sidecar_not_ready(_: Scene) -> Iterator[list[str]]:
    yield from probed("--sidecar", "xelink_sidecar", "no scrape yet")


@fault("plugin", "fail", r"is not ready: not registered with kubelet: gpu\.intel\.com/i915")
def plugin_not_ready(_: Scene) -> Iterator[list[str]]:
    said = "not registered with kubelet: gpu.intel.com/i915"
    yield from probed("--plugin", "xelink_device_plugin", said)


@fault("plugin", "warn", r"is ready: every GPU is unhealthy: it is hot; links in use: fix that")
def plugin_has_nothing_to_give(_: Scene) -> Iterator[list[str]]:
    said = ProbeResult(ok=True, text="every GPU is unhealthy: it is hot; links in use")
    yield from probed("--plugin", "xelink_device_plugin", said)


@fault("plugin", "fail", "another program than xelink-device-plugin answers at")
def plugin_is_another_program(scene: Scene) -> Iterator[list[str]]:
    yield [f"--plugin={scene.sidecar}"]


@fault("sidecar", "fail", "connection refused: start xelink-sidecar")
def no_sidecar_where_it_was_said_to_be(_: Scene) -> Iterator[list[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield [f"--sidecar=http://127.0.0.1:{port}"]


@fault("sidecar", "fail", r"no answer within 5 s: restart xelink-sidecar")
def sidecar_silent(_: Scene) -> Iterator[list[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield [f"--sidecar=http://127.0.0.1:{server.getsockname()[1]}"]


def probed(option: str, prefix: str, said: str | ProbeResult) -> Iterator[list[str]]:
    site = Site({"/readyz": lambda: said})
    with listening_at("127.0.0.1:0", site, Metrics(prefix)) as served:
        yield [f"{option}=http://{served.address}"]


@fault("kubelet", "fail", r"there is no kubelet\.sock in .*: start kubelet")
def kubelet_sock_missing(scene: Scene) -> Iterator[list[str]]:
    yield [f"--plugin-dir={scene.new()}"]


@fault("kubelet", "fail", r"nothing listens on .*kubelet\.sock: start kubelet")
def kubelet_sock_stale(scene: Scene) -> Iterator[list[str]]:
    path = scene.new()
    stale(path / "kubelet.sock")
    yield [f"--plugin-dir={path}"]


@fault("kubelet", "fail", r"there is no .*/nowhere: give kubelet's directory")
def no_directory_of_kubelet(scene: Scene) -> Iterator[list[str]]:
    yield [f"--plugin-dir={scene.root / 'nowhere'}"]


@fault("sockets", "fail", r"nothing listens on gpu\.intel\.com-xe\.sock: start the device plugin")
def plugin_socket_stale(scene: Scene) -> Iterator[list[str]]:
    path = scene.linked_sockets()
    stale(path / "gpu.intel.com-xe.sock")
    yield [f"--plugin-dir={path}"]


@fault("sockets", "warn", r"a killed plugin left gpu\.intel\.com-i915-0badcafe\.sock: remove")
def plugin_socket_left_over(scene: Scene) -> Iterator[list[str]]:
    path = scene.linked_sockets()
    stale(path / "gpu.intel.com-i915-0badcafe.sock")
    yield [f"--plugin-dir={path}"]


@fault("sockets", "warn", r"several plugins serve one resource, .*-0badcafe\.sock, .*: stop all")
def two_plugins(scene: Scene) -> Iterator[list[str]]:
    path = scene.linked_sockets()
    served = path / "gpu.intel.com-i915.sock"
    (path / "gpu.intel.com-i915-0badcafe.sock").hardlink_to(served)
    yield [f"--plugin-dir={path}"]


@fault("sockets", "fail", r"no device plugin answers on gpu\.intel\.com-xe\.sock \(DEADLINE_")
def plugin_socket_silent(scene: Scene) -> Iterator[list[str]]:
    path = scene.linked_sockets()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "gpu.intel.com-xe.sock"))
        server.listen()
        yield [f"--plugin-dir={path}"]


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@fault("id-map", "fail", r"does not match sysfs: GPU0 0000:29:00\.0 is card4, not card2, GPU1 ")
def cards_of_another_order(scene: Scene) -> Iterator[list[str]]:
    yield on_hardware(scene, blueprint.TreeBlueprint(gpus=GPUS, cards="reversed"))


@fault("id-map", "fail", r"GPU3 0000:5c:00\.0 is not on the bus: restart XPU Manager's Pod")
def gpu_lost(scene: Scene) -> Iterator[list[str]]:
    tree = scene.new()
    blueprint.TreeBlueprint(gpus=GPUS, cards="shuffled").build(tree).remove("0000:5c:00.0")
    yield in_tree(scene, tree)


@fault("id-map", "warn", r"the id map of the feature file lacks card0 0000:00:02\.0: restart")
def gpu_that_xpum_does_not_count(scene: Scene) -> Iterator[list[str]]:
    yield on_hardware(scene, blueprint.TreeBlueprint(gpus=GPUS, cards="shuffled", igpu=True))


def on_hardware(scene: Scene, node: blueprint.TreeBlueprint) -> list[str]:
    tree = scene.new()
    node.build(tree)
    return in_tree(scene, tree)


def in_tree(scene: Scene, tree: Path) -> list[str]:
    return [
        f"--prefix={tree}",
        f"--features-dir={scene.features}",
        f"--plugin-dir={scene.sockets}",
        *(["--only=" + ",".join(name for name in doctor.CHECKS if name != "readable")]),
    ]


@fault("links", "warn", r"has links 0\.0-1\.0 degraded; ports GPU0 card2 failed, GPU1")
def degraded_link(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(wide().degrade(4, 4, "0.0-1.0"))))


@fault("links", "warn", r"2\.1-3\.1 one-sided")
def one_sided_link(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(wide().one_direction("2.1-3.1"))))


@fault("links", "warn", r"fewer links than usual: GPU0 to GPU1; ports .*: see all with")
def link_gone(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(wide().cut("0.0-1.0"))))


@fault(
    "links",
    "warn",
    r"no published link where others have some \(or fewer lanes than -lane-count\): GPU0 to GPU1;"
    r" ports .*: see all with",
)
def pair_gone(scene: Scene) -> Iterator[list[str]]:
    yield in_features(scene.published(rendered(wide().cut("0.0-1.0", "0.1-1.1"))))


def wide() -> SimulatedNode:
    return Blueprint(gpus=GPUS, cards="shuffled", lanes=8).build()


def called(xelink: Xelink, scene: Scene, *more: str) -> tuple[Said, dict[str, dict[str, str]]]:
    said = xelink("doctor", *scene.arguments, "--output=json", *more)
    facts = json.loads(said.out)
    return said, {check["check"]: check for check in facts["checks"]}


def test_on_a_healthy_node_all_is_ok(xelink: Xelink, scene: Scene) -> None:
    said, found = called(xelink, scene)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(
        doctor.CHECKS, "ok"
    ), found
    assert said.code == 0
    assert said.err == ""
    assert found["xpum"]["reason"].startswith("1.3.x at https://127.0.0.1:")
    assert found["xpum"]["reason"].endswith(": 4 GPUs, 12 Xe Links")
    assert found["sockets"]["reason"].endswith("sock, 1 of 1 with a preference")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_its_line_and_in_no_other(
    xelink: Xelink, scene: Scene, name: str
) -> None:
    with FAULTS[name].inject(scene) as options:
        said, found = called(xelink, scene, *options)
    bad = {check: one for check, one in found.items() if one["status"] in {"warn", "fail"}}
    assert bad.keys() == FAULTS[name].named.keys(), bad
    for check, (status, words) in FAULTS[name].named.items():
        assert bad[check]["status"] == status
        assert re.search(words, f"{bad[check]['reason']}: {bad[check]['todo']}"), bad
        assert bad[check]["todo"]
    worst = {one["status"] for one in bad.values()}
    assert said.code == (1 if "fail" in worst else 3)


@pytest.mark.parametrize("over", [False, True], ids=["published", "expired"])
def test_links_are_those_that_are_published_now_else_those_of_xpu_manager(
    xelink: Xelink, scene: Scene, *, over: bool
) -> None:
    life = timedelta(seconds=-60 if over else 60)
    worn = scene.published(rendered(wide().degrade(4, 4, "0.0-1.0"), life=life))
    _, found = called(xelink, scene, *in_features(worn), "--only=links")
    source = "XPU Manager's answer" if over else "the feature file"
    assert found["links"]["reason"].startswith(f"{source} has ")
    assert found["links"]["status"] == ("ok" if over else "warn")


@pytest.mark.parametrize("output", ["text", "json"])
def test_no_control_character_of_others_reaches_the_terminal(
    xelink: Xelink, scene: Scene, output: str
) -> None:
    said = "\x1b[2J\x1b]0;owned\x07 no scrape\r\x9b31m yet"
    with contextmanager(probed)("--sidecar", "xelink_sidecar", said) as options:
        told = xelink("doctor", *scene.arguments, *options, "--only=sidecar", f"--output={output}")
    assert told.code == 1
    lines = told.out.splitlines()
    assert "no scrape" in told.out
    assert all(line.isprintable() for line in lines), lines
    if output == "json":
        (check,) = json.loads(told.out)["checks"]
        assert check["reason"].isprintable()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    mount(tmp_path)
    yield tmp_path
    LIBC.umount2(os.fsencode(tmp_path), DETACH)


@as_root
def test_a_read_only_mount_is_named(xelink: Xelink, scene: Scene, small: Path) -> None:
    mount(small, READ_ONLY)
    said, found = called(xelink, scene, f"--features-dir={small}", "--only=features.d", "--uid=0")
    assert said.code == 1
    assert found["features.d"]["reason"] == f"{small} is mounted read-only"


def _fill_with_one(path: Path) -> None:
    (path / "large").write_bytes(bytes(65536))


def _touch_many(path: Path) -> None:
    for number in range(65536):
        (path / str(number)).touch()


def _fill_with_many(path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        _touch_many(path)


@as_root
@pytest.mark.parametrize("fill", [_fill_with_one, _fill_with_many], ids=["blocks", "inodes"])
def test_a_full_file_system_is_named(
    xelink: Xelink, scene: Scene, small: Path, fill: Callable[[Path], None]
) -> None:
    fill(small)
    said, found = called(xelink, scene, f"--features-dir={small}", "--only=features.d", "--uid=0")
    assert said.code == 1
    assert found["features.d"]["reason"] == f"the file system of {small} is full"


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_who_may_not_look_is_told_so(xelink: Xelink, scene: Scene, mode: int) -> None:
    """As nobody, to whom first kubelet's directory and then its sockets are closed."""
    scene.root.chmod(0o755)
    scene.sockets.chmod(mode)
    only = "--only=features.d,fresh,kubelet,sockets"
    with being(NOBODY):
        said, found = called(xelink, scene, only, "--uid=0")
        _, as_caller = called(xelink, scene, only)
    scene.sockets.chmod(0o755)
    assert said.code == 0
    assert [one["status"] for one in found.values()] == ["ok", "ok", "skip", "skip"]
    assert found["kubelet"]["reason"].endswith("as root")
    assert as_caller["features.d"]["todo"].endswith("or name that user with --uid")


def test_the_line_of_a_fault_ends_with_what_to_do(xelink: Xelink, scene: Scene) -> None:
    with FAULTS["no host network"].inject(scene):
        said = xelink("doctor", *scene.arguments)
    assert said.code == 1
    assert (
        "fail  hostNetwork  XPU Manager sees 4 GPUs and no Xe Link: give its Pod hostNetwork: true"
        in said.out.splitlines()
    )
    assert len(said.out.splitlines()) == len(doctor.CHECKS)


def test_the_reference_file_is_known_by_its_labels_without_expiry(
    xelink: Xelink, scene: Scene
) -> None:
    only = "--only=fresh,consistent,nfd-rules"
    _, found = called(xelink, scene, *in_features(scene.published(reference())), only)
    assert [one["status"] for one in found.values()] == ["warn", "ok", "ok"]
    assert found["fresh"]["todo"] == "run xelink-sidecar instead"


def test_nothing_is_written_and_nothing_registered(xelink: Xelink, scene: Scene) -> None:
    def everything() -> list[tuple[str, int, int]]:
        every = (path for path in scene.root.rglob("*"))
        return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_ino) for path in every)

    before, registered = everything(), len(scene.kubelet.registrations)
    called(xelink, scene)
    assert everything() == before
    assert len(scene.kubelet.registrations) == registered


def test_the_page_shows_what_it_prints(xelink: Xelink, scene: Scene) -> None:
    command, *shown = _page_block("# xelink doctor --cert")
    worn = rendered(wide().degrade(4, 4, "0.0-1.0"))
    with of_node(scene, replace(NODE, host_network=False)):
        path = scene.published(worn)
        said = xelink("doctor", *scene.arguments, *in_features(path))
    printed = said.out
    for here, there in (
        (str(path.parent), "/etc/kubernetes/node-feature-discovery/features.d"),
        (str(scene.cert), command.partition("--cert ")[2]),
        (str(scene.root), ""),
        (f":{scene.xpum.port}", ":29999"),
        (f"uid {os.geteuid()} can write", "uid 0 can write"),
    ):
        printed = printed.replace(here, there)
    assert [*map(_timeless, printed.splitlines())] == [*map(_timeless, shown)]


def _page_block(command: str) -> list[str]:
    page = (ROOT / "docs" / "cli.md").read_text()
    (block,) = re.findall(
        rf"^```console\n({re.escape(command)}.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    lines: list[str] = block.splitlines()
    return lines


def _timeless(line: str) -> str:
    return re.sub(r"\b\d+ (s|min|h|days)\b", "a while", line)


def test_signals_are_heard_afterwards_as_before(xelink: Xelink) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert xelink("doctor", "--only=tls").code == 3
    assert {number: signal.getsignal(number) for number in before} == before


def test_ctrl_c_ends_it_while_it_waits(scene: Scene) -> None:
    asked = scene.xpum.requests
    scene.xpum.misbehave("hang")
    with running("xelink", "doctor", *scene.arguments) as process:
        scene.xpum.wait_for_request(asked + 1)
        assert process.stop(signal.SIGINT) == 130
        assert process.output == ""
        assert process.lines == []
    scene.xpum.recover()


def test_on_a_machine_without_any_of_it_there_are_lines_and_no_accident(
    xelink: Xelink, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = xelink("doctor", f"--prefix={tmp_path}", f"--xpum-port={port}", "--output=json")
    found = {one["check"]: one["status"] for one in json.loads(said.out)["checks"]}
    bad = {name for name, status in found.items() if status == "fail"}
    assert bad - {"sidecar", "plugin"} == {"xpum", "features.d"}
    assert said.code == 1


@pytest.mark.parametrize(
    ("content_type", "version"),
    [("text/plain", "1.3.x"), ("text/html; charset=utf-8", "1.2.x"), ("x/y", "unknown version")],
)
def test_of_the_version_no_more_is_said_than_is_known(
    xelink: Xelink, scene: Scene, content_type: str, version: str
) -> None:
    body = render(NODE).decode()
    scene.xpum.misbehave("status", code=200, body=body, kind=content_type)
    _, found = called(xelink, scene, "--only=xpum")
    scene.xpum.recover()
    assert found["xpum"]["reason"].startswith(f"{version} at ")


def test_gpus_that_have_no_fabric_need_no_host_network(xelink: Xelink, scene: Scene) -> None:
    flex = Blueprint(gpus=GPUS, model="flex-170", tiles=1).build()
    tree = on_hardware(scene, blueprint.TreeBlueprint(gpus=GPUS, model="flex-170", tiles=1))
    with of_node(scene, flex) as options:
        _, found = called(xelink, scene, *options, *tree, "--only=hostNetwork")
    assert found["hostNetwork"]["status"] == "ok"
    assert "0 of 4 GPUs are of the Max series" in found["hostNetwork"]["reason"]


def test_gpus_that_sysfs_does_not_tell_of_are_a_doubt(xelink: Xelink, scene: Scene) -> None:
    with of_node(scene, replace(NODE, host_network=False)) as options:
        empty = f"--prefix={scene.new()}"
        said, found = called(xelink, scene, *options, empty, "--only=hostNetwork")
    assert said.code == 3
    assert found["hostNetwork"]["todo"].startswith("if these GPUs are of the Max series")


@pytest.mark.parametrize(
    ("injected", "check", "told_by"),
    [
        ("wrong ca", "xpum", "tls"),
        ("xpum refuses", "hostNetwork", "xpum"),
        ("no host network", "id-map", ""),
    ],
)
def test_a_check_that_is_asked_alone_and_skipped_brings_those_that_tell_why(
    xelink: Xelink, scene: Scene, injected: str, check: str, told_by: str
) -> None:
    fault = FAULTS[injected]
    with fault.inject(scene) as options:
        said, found = called(xelink, scene, *options, f"--only={check}")
    assert [*found] == [check, *filter(None, [told_by])]
    if told_by:
        assert found[check]["reason"].endswith(f", see {told_by}")
        assert found[told_by]["status"] == fault.named[told_by][0] == "fail"
    assert said.code == bool(told_by)


@pytest.mark.parametrize("check", doctor.CHECKS)
def test_no_check_that_is_asked_alone_points_at_one_that_is_not_told(
    xelink: Xelink, tmp_path: Path, check: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = [f"--only={check}", f"--prefix={tmp_path}", f"--xpum-port={port}", "--output=json"]
    said = xelink("doctor", *options)
    found = {one["check"]: one["reason"] for one in json.loads(said.out)["checks"]}
    for reason in found.values():
        named = reason.rpartition(", see ")[2].split(" and ") if ", see " in reason else []
        assert found.keys() >= {*named}


PATHS = ("--prefix", "--features-dir", "--feature-file", "--plugin-dir", "--cert")


@pytest.mark.parametrize("check", doctor.CHECKS)
@pytest.mark.parametrize("option", PATHS)
def test_a_path_that_was_named_and_is_not_there_fails_whatever_is_asked(
    xelink: Xelink, tmp_path: Path, option: str, check: str
) -> None:
    absent = tmp_path / "absent"
    there = [] if option == "--prefix" else [f"--prefix={tmp_path}"]
    said = xelink("doctor", f"--only={check}", f"{option}={absent}", "--xpum-port=1", *there)
    assert said.code == 1
    told = said.out or said.err  # a finding of the check that looks there, else one line
    assert str(absent) in told
    assert said.out.startswith("fail ") or said.err.startswith(f"xelink doctor: {option} {absent}:")


@as_root
@pytest.mark.parametrize("check", doctor.CHECKS)
@pytest.mark.parametrize("option", PATHS)
def test_a_path_that_was_named_and_is_closed_fails_whatever_is_asked(
    xelink: Xelink, scene: Scene, option: str, check: str
) -> None:
    """As nobody: a directory that cannot be looked into, or a file that cannot be read."""
    scene.root.chmod(0o755)
    closed = scene.new() / "closed"
    if option in {"--feature-file", "--cert"}:
        closed.write_bytes(rendered())
    else:
        closed.mkdir()
    closed.chmod(0)
    there = [] if option == "--prefix" else [f"--prefix={scene.new()}"]
    with being(NOBODY):
        said = xelink("doctor", f"--only={check}", f"{option}={closed}", "--xpum-port=1", *there)
    closed.chmod(0o700)
    assert said.code == 1
    assert str(closed) in (said.out or said.err)


@as_root
@pytest.mark.parametrize("output", ["text", "json"])
def test_where_all_that_was_asked_is_skipped_nothing_is_said_to_be_fine(
    xelink: Xelink, scene: Scene, output: str
) -> None:
    scene.root.chmod(0o755)
    file = scene.published(rendered(), mode=0)
    only = ["--only=fresh,consistent", f"--output={output}"]
    with being(NOBODY):
        looked_for = xelink("doctor", f"--features-dir={file.parent}", *only)
        named = xelink("doctor", f"--feature-file={file}", *only)
    assert (looked_for.code, named.code) == (3, 1)
    if output == "json":
        told = [json.loads(said.out)["status"] for said in (looked_for, named)]
        assert told == ["skip", "fail"]
    else:
        assert named.out.startswith(f"fail  fresh       {file}: permission denied: run as root")


@pytest.mark.parametrize("option", ["--client-cert", "--client-key", "--password-file"])
def test_a_file_for_xpu_manager_that_is_not_there_fails_too(
    xelink: Xelink, tmp_path: Path, option: str
) -> None:
    there = tmp_path / "there"
    there.touch()
    files = {"--cert": there, "--client-cert": there, "--client-key": there}
    files |= {"--password-file": there, option: tmp_path / "absent"}
    options = [f"{name}={path}" for name, path in files.items()]
    said = xelink("doctor", "--only=fresh", "--username=x", f"--prefix={tmp_path}", *options)
    assert said.code == 1
    assert said.out == ""
    assert said.err == f"xelink doctor: {option} {tmp_path}/absent: No such file or directory\n"


def test_a_path_that_was_named_and_leads_through_a_file_fails(
    xelink: Xelink, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "ca.crt"
    said = xelink("doctor", "--only=fresh", f"--prefix={tmp_path}", f"--cert={path}")
    assert (said.code, said.out) == (1, "")
    assert said.err == f"xelink doctor: --cert {path}: Not a directory\n"


def test_what_was_not_asked_for_does_not_make_up_for_what_was_skipped() -> None:
    """Such as `--only=id-map`: the checks that it points to may be well, and it knows nothing."""
    found = {"id-map": finding.skip("there is no id map", "xpum"), "xpum": finding.ok("it answers")}
    assert doctor._worst(found, ["id-map"]) is CheckStatus.SKIP  # noqa: SLF001 - what the exit code says
    assert doctor._worst(found, ["id-map", "xpum"]) is CheckStatus.OK  # noqa: SLF001 - as above


@pytest.mark.parametrize("option", ["--sidecar", "--plugin"])
def test_a_daemon_that_was_named_and_is_not_there_fails(xelink: Xelink, option: str) -> None:
    check = option.removeprefix("--")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    said = xelink("doctor", f"--only={check}", f"{option}={url}")
    assert said.code == 1
    assert said.out.startswith(f"fail  {check}  {url}: connection refused: start xelink-")


def test_there_are_more_than_fifteen_faults_and_one_of_every_check() -> None:
    assert len(FAULTS) >= 15
    assert {check for one in FAULTS.values() for check in one.named} == set(doctor.CHECKS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only=links,lynx"], "there is no check 'lynx'; there are: xpum tls"),
        (["--only=,"], "there is no check ','"),
        (["--sidecar=127.0.0.1:29998"], "should be http://HOST:PORT"),
        (["--plugin=http://[::1"], "should be http://HOST:PORT"),
        (["--xpum-port=0"], "is not a number from 1 to 65535"),
        (["--namespace=kubernetes.io"], "--namespace: this namespace belongs to Kubernetes"),
        (["--client-cert=x"], "--client-cert needs --cert"),
        (["--username=x"], "--username and --password-file need each other"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line_and_2(xelink: Xelink, options: list[str], words: str) -> None:
    said = xelink("doctor", *options)
    assert said.code == 2
    assert words in said.err
    assert said.out == ""


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_colors_are_for_terminals_only_and_no_color_ends_them(
    tmp_path: Path, no_color: str, *, colored: bool
) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color}
        subprocess.run(
            [sys.executable, "-m", "xelink", "doctor", f"--prefix={tmp_path}", "--only=features.d"],
            stdout=follower,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
        os.close(follower)
        shown = terminal.read(4096)
    assert shown.startswith(b"\x1b[31mfail" if colored else b"fail")


@contextmanager
def not_given(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let nobody listen where the sidecar is looked for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "SIDECAR", url)
        yield url


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        pytest.param(
            lambda: rendered(life=timedelta(minutes=4, seconds=30)),
            "warn",
            "its feature file, which lives for 4 min, was not renewed: was it killed?",
            id="killed",
        ),
        pytest.param(
            lambda: rendered(life=timedelta(minutes=15)),
            "skip",
            "its feature file was written in time: its -listen is another or empty, or it was"
            " -oneshot",
            id="renewed in time",
        ),
        pytest.param(
            lambda: rendered(life=None),
            "skip",
            "and its feature file never expires: its -listen is another",
            id="never to be renewed",
        ),
        pytest.param(lambda: rendered(life=-DAY), "skip", "no xelink-sidecar here", id="long ago"),
        pytest.param(reference, "skip", "no xelink-sidecar here", id="not its file"),
    ],
)
def test_a_killed_sidecar_is_known_by_its_file_that_lives_and_is_not_renewed(
    xelink: Xelink,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[], bytes],
    status: str,
    words: str,
) -> None:
    arguments = [one for one in scene.arguments if not one.startswith("--sidecar=")]
    file = scene.published(content())
    written = datetime.now(UTC).timestamp() - 600  # two thirds of a quarter of an hour, and of less
    os.utime(file, (written, written))
    options = in_features(file)
    with not_given(monkeypatch):
        said = xelink("doctor", *arguments, *options, "--only=sidecar", "--output=json")
    (found,) = json.loads(said.out)["checks"]
    assert found["status"] == status
    assert words in found["reason"]
    assert bool(found["todo"]) == (status == "warn")


def with_node(
    xelink: Xelink,
    scene: Scene,
    change: Callable[[dict[str, str]], object],
) -> tuple[Said, dict[str, str]]:
    """Compare the file with a node that took its labels, and was changed since."""
    on_node = labels_of(topology(NODE)) | {"other": "x"}
    change(on_node)
    given = xelink.nodes(gpu1=on_node)
    options = in_features(scene.published(rendered()))
    said, found = called(xelink, scene, *options, "--only=nfd-rules", f"--node-json={given}")
    return said, found["nfd-rules"]


def test_what_nfd_takes_is_only_said_where_it_was_seen(xelink: Xelink, scene: Scene) -> None:
    options = in_features(scene.published(rendered()))
    _, found = called(xelink, scene, *options, "--only=nfd-rules")
    assert found["nfd-rules"]["reason"] == (
        "NFD would take 7 labels and 2 raw features; --node-json shows whether it did"
    )
    _, one = with_node(xelink, scene, lambda _: None)
    assert one["reason"] == "NFD takes 7 labels: node gpu1 has them all"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda on: on.clear(),
            r"of 7 labels on node gpu1, 7 are missing \(gpu.*, .* and 5 more\)",
        ),
        (
            lambda on: on.pop(f"{DEFAULT_NAMESPACE}/xe-links.count"),
            rf"1 are missing \({DEFAULT_NAMESPACE}/xe-links\.count\)",
        ),
        (
            lambda on: on.update({f"{DEFAULT_NAMESPACE}/xe-links.count": "1"}),
            rf"on node gpu1, 1 differ \({DEFAULT_NAMESPACE}/xe-links\.count\)",
        ),
        (
            lambda on: on.update({f"{DEFAULT_NAMESPACE}/xe-links9": "Z1"}),
            rf"on node gpu1, 1 are no longer in the file \({DEFAULT_NAMESPACE}/xe-links9\)",
        ),
    ],
    ids=["none was taken", "one is missing", "one differs", "one is left over"],
)
def test_labels_that_are_not_on_the_node_as_in_the_file_are_named(
    xelink: Xelink, scene: Scene, change: Callable[[dict[str, str]], object], words: str
) -> None:
    said, found = with_node(xelink, scene, change)
    assert (said.code, found["status"]) == (1, "fail")
    assert re.search(words, found["reason"])
    assert found["todo"].startswith("ask kubectl again in a minute; ")


@pytest.mark.parametrize("name", ["xe-links-of-mine", "xe-linksx", "xe-links2x"])
def test_labels_of_others_that_begin_as_ours_are_not_ours(
    xelink: Xelink, scene: Scene, name: str
) -> None:
    _, found = with_node(xelink, scene, lambda on: on.update({f"{DEFAULT_NAMESPACE}/{name}": "1"}))
    assert found["status"] == "ok"


def test_of_several_nodes_one_is_chosen(xelink: Xelink, scene: Scene) -> None:
    options = [*in_features(scene.published(rendered())), "--only=nfd-rules"]
    given = f"--node-json={xelink.nodes(gpu1=labels_of(topology(NODE)), gpu2={})}"
    said = xelink("doctor", *scene.arguments, *options, given)
    assert said.code == 2
    assert said.err == "xelink doctor: --node-json has several nodes: choose this one with --node\n"
    assert xelink("doctor", *scene.arguments, *options, given, "--node=gpu1").code == 0
    assert xelink("doctor", *scene.arguments, *options, given, "--node=gpu2").code == 1
    assert xelink("doctor", *scene.arguments, *options, given, "--node=gpu3").code == 1
    assert xelink("doctor", *scene.arguments, *options, "--node=gpu1").code == 2


def test_what_is_not_given_is_where_the_daemons_have_it(
    xelink: Xelink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    words = xelink("doctor", "-h").out.replace(" ", "")
    sidecar = {name: field.default for name, field in SidecarSettings.model_fields.items()}
    plugin = {name: field.default for name, field in PluginSettings.model_fields.items()}
    assert sidecar["dst_file_path"] == plugin["label_file"]
    for given in (
        f"http://{sidecar['listen']})",
        f"http://{plugin['listen']})",
        f"default{sidecar['dst_file_path'].parent},",
        f"default{sidecar['dst_file_path'].name}in",
        f"default{plugin['plugin_dir']},",
        f"(default{sidecar['xpum_port']})",
        f"(default{sidecar['label_namespace']})",
        f"(default{sidecar['timeout']:g})",
    ):
        assert given in words
