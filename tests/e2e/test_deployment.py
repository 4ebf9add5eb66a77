"""What the deployment guide says, with a real API server: overlays, the demo, the patch."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.api import Object
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import Tell
from tests.e2e.kubelet import NODE_PATH, RESOURCE, Kubelet, sockets
from tests.e2e.nfd import FEATURES, Nfd, ours
from tests.e2e.programs import until

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent for path in (ROOT / "overlays").glob("*/kustomization.yaml"))
XPUMANAGER = "daemonset/intel-xpumanager"
SIDECAR = ROOT / "overlays" / "http" / "xpumanager.yaml"
DEMO = ROOT / "overlays" / "demo"
_IDLE = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
DEMO_NODE = Path("/var/lib/xelink-demo")


@pytest.mark.usefixtures("monitoring", "definitions")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_api_server_accepts_every_overlay(cluster: Cluster, overlay: Path, tell: Tell) -> None:
    rendered = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(overlay))))
    # A dry run makes no namespace for the objects that follow in it.
    own = [each for each in rendered if each["kind"] == "Namespace"]
    for namespace in own:
        cluster.kubectl("create", "--filename=-", stdin=json.dumps(namespace))
    try:
        told = cluster.kubectl("apply", "--dry-run=server", f"--kustomize={overlay}")
    finally:
        for namespace in own:
            cluster.kubectl("delete", "namespace", namespace["metadata"]["name"])
    lines = told.splitlines()
    assert len(lines) == len(rendered)
    assert all(line.endswith("(server dry run)") for line in lines), told
    tell(" ".join(line.split()[0] for line in lines))


@pytest.fixture(scope="module")
def image(kubelet: Kubelet) -> None:
    """The image of this tree, imported into containerd as `kind load` would."""
    archive = Path(os.environ["E2E_IMAGE"])
    if not archive.exists():
        pytest.skip("there is no image: install buildah and debootstrap, or give E2E_IMAGE=ARCHIVE")
    kubelet.runtime.load(archive)


def labeled(nfd: Nfd, count: str | None) -> None:
    """Wait until the node has so many links, None for no label of ours at all."""

    def seen(node: Object) -> bool:
        mine = ours(node)
        return not mine if count is None else mine.get("gpu.intel.com/xe-links.count") == count

    nfd.cluster.api.wait(NODE_PATH, seen, f"labels of {count} links")


def leftovers() -> list[str]:
    """Name what stands in the host's directories that ours were given."""
    return sorted(
        [path.name for path in FEATURES.iterdir() if path.name != ".stage"] + [*sockets()]
    )


@pytest.mark.usefixtures("image")
def test_the_demo_runs_and_leaves_no_trace(
    cluster: Cluster, kubelet: Kubelet, nfd: Nfd, tell: Tell
) -> None:
    nfd.read_every(2)
    labeled(nfd, None)
    before = leftovers()
    namespaced = ("--namespace=xelink-demo",)
    cluster.kubectl("apply", f"--kustomize={DEMO}")
    try:
        cluster.kubectl(*namespaced, "rollout", "status", "daemonset/xelink-demo", "--timeout=170s")
        labeled(nfd, "56")
        kubelet.await_allocatable(8)
        nodes = cluster.kubectl(
            "get",
            "nodes",
            "--no-headers",
            r"-o=custom-columns=GPUS:.status.allocatable.gpu\.intel\.com/i915",
        )
        assert nodes.strip() == "8"
        pod = json.loads(cluster.kubectl(*namespaced, "get", "pods", "-o=json"))["items"][0]
        containers = pod["spec"]["initContainers"] + pod["spec"]["containers"]
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers)
        cluster.kubectl("apply", f"--filename={DEMO / 'pod.yaml'}")
        cluster.kubectl(
            *namespaced,
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod/two-gpus",
            "--timeout=170s",
        )
        told = cluster.kubectl(*namespaced, "logs", "two-gpus")
        assert "XELINK_LINKED=all" in told
        assert len(re.findall(r"/dev/dri/\w+ opens", told)) == 4
        tell(" ".join(told.split()))
        assert root_is_read_only(cluster)
    finally:
        cluster.kubectl("delete", f"--kustomize={DEMO}", "--timeout=170s")
    labeled(nfd, None)
    until(lambda: leftovers() == before, lambda: f"no trace, but {leftovers()}")
    assert "xelink" not in cluster.kubectl("get", "namespaces,daemonsets,pods", "-A", "-o=name")
    node = cluster.api.get(NODE_PATH)
    tell(
        f"left: {DEMO_NODE}, and {RESOURCE}: {node['status']['allocatable'].get(RESOURCE)}"
        " until kubelet restarts"
    )


def root_is_read_only(cluster: Cluster) -> bool:
    """Ask the simulator's container itself."""
    told = cluster.kubectl(
        "--namespace=xelink-demo",
        *("exec", "daemonset/xelink-demo", "--container=xpumanager", "--"),
        *("python", "-c", "import os; print(os.statvfs('/').f_flag & os.ST_RDONLY)"),
    )
    return told.strip() == "1"


@pytest.fixture
def xpumanager(cluster: Cluster, image: None, monitoring: str) -> Iterator[str]:
    """XPU Manager's DaemonSet as it runs before ours comes: the simulator in the place of it."""
    assert image is None
    daemonset = yaml.safe_load((ROOT / "overlays" / "base" / "xpumanager.yaml").read_text())
    spec: dict[str, Any] = daemonset["spec"]["template"]["spec"]
    for container in spec["containers"]:
        container["image"], container["imagePullPolicy"] = "xelink:0.1.0", "Never"
        container.pop("workingDir", None)
        simulates = container["name"] == "python-exporter"
        container["command"] = (
            ["python", "-m", "xelink.simulators.xpu_manager", "--bind=0.0.0.0"]
            if simulates
            else ["python", "-c", _IDLE]
        )
        container.pop("resources", None)  # no plugin offers i915_monitoring here
        if simulates:
            container["startupProbe"]["periodSeconds"] = 1  # it is there at once
    cluster.kubectl(
        f"--namespace={monitoring}", "apply", "--filename=-", stdin=json.dumps(daemonset)
    )
    rolled_out(cluster)
    yield monitoring
    cluster.kubectl(f"--namespace={monitoring}", "delete", XPUMANAGER, "--timeout=170s")


def rolled_out(cluster: Cluster) -> None:
    cluster.kubectl("--namespace=monitoring", "rollout", "status", XPUMANAGER, "--timeout=170s")


def containers(cluster: Cluster) -> list[str]:
    """Name the containers of XPU Manager's Pod that runs."""
    told = cluster.kubectl(
        "--namespace=monitoring",
        "get",
        "pods",
        "-lapp=intel-xpumanager",
        "-o=jsonpath={.items[*].spec.containers[*].name}",
    )
    return told.split()


def test_the_patch_is_applied_to_a_running_xpu_manager_and_rolled_back(
    cluster: Cluster, nfd: Nfd, xpumanager: str, tell: Tell
) -> None:
    nfd.read_every(2)
    before = containers(cluster)
    cluster.kubectl(f"--namespace={xpumanager}", "patch", XPUMANAGER, f"--patch-file={SIDECAR}")
    rolled_out(cluster)
    assert sorted(containers(cluster)) == sorted(["xelink-sidecar", *before])
    labeled(nfd, "56")
    cluster.kubectl(f"--namespace={xpumanager}", "rollout", "undo", XPUMANAGER)
    rolled_out(cluster)
    assert containers(cluster) == before
    file = FEATURES / "xpum-sidecar-labels.txt"
    assert file.exists()
    assert ours(cluster.api.get(NODE_PATH))["gpu.intel.com/xe-links.count"] == "56"
    tell("rolled back, the labels stay until they expire")
    # As the guide says, for those who cannot wait.
    file.unlink()
    labeled(nfd, None)


STANDALONE = "daemonset/xelink"


@pytest.fixture
def standalone(cluster: Cluster, image: None, monitoring: str) -> Iterator[str]:
    """overlays/standalone as it is, beside a simulated driver on a simulated node."""
    assert image is None
    rendered = cluster.kubectl("kustomize", str(ROOT / "overlays" / "standalone"))
    (daemonset,) = yaml.safe_load_all(rendered)
    demo = yaml.safe_load((DEMO / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    (volume,) = (each for each in demo["volumes"] if each["name"] == "node")
    (driver,) = (each for each in demo["containers"] if each["name"] == "xpumanager")
    mount = {"name": "node", "mountPath": str(DEMO_NODE)}
    spec: dict[str, Any] = daemonset["spec"]["template"]["spec"]
    del spec["nodeSelector"]
    spec["volumes"].append(volume)
    for container in spec["containers"]:
        container["volumeMounts"].append(mount)
        prefix = "SIDECAR" if "sidecar" in container["name"] else "DEVICE_PLUGIN"
        given: dict[str, object] = {f"XELINK_{prefix}_PREFIX": DEMO_NODE}
        if prefix == "SIDECAR":
            given["XELINK_SIDECAR_DRIVER_SOCKET"] = DEMO_NODE / "iaf.sock"
            given |= {"XELINK_SIDECAR_INTERVAL": 2, "XELINK_SIDECAR_STARTUP_DELAY": 0}
        else:
            given["XELINK_DEVICE_PLUGIN_DEVICE_ROOT"] = DEMO_NODE
            given["XELINK_DEVICE_PLUGIN_CDI"] = "false"  # no spec stays behind
        container["env"] += [{"name": name, "value": str(value)} for name, value in given.items()]
    simulated = {
        **driver,
        "name": "driver",
        "command": ["python", "-m", "xelink.simulators.iaf"],
        "args": [f"--socket={DEMO_NODE / 'iaf.sock'}"],
        "ports": [],
        "securityContext": {**driver["securityContext"], "runAsNonRoot": False, "runAsUser": 0},
        "volumeMounts": [mount],
    }
    spec["initContainers"] = demo["initContainers"]
    spec["containers"].append(simulated)
    for container in (*spec["initContainers"], *spec["containers"]):
        container["imagePullPolicy"] = "Never"
    name = f"--namespace={monitoring}"
    cluster.kubectl(name, "apply", "--filename=-", stdin=json.dumps(daemonset))
    yield monitoring
    cluster.kubectl(name, "delete", STANDALONE, "--timeout=170s")
    (FEATURES / "xpum-sidecar-labels.txt").unlink(missing_ok=True)


def test_without_xpu_manager_the_driver_s_links_become_labels_and_linked_gpus(
    cluster: Cluster, kubelet: Kubelet, nfd: Nfd, standalone: str, tell: Tell
) -> None:
    nfd.read_every(2)
    name = f"--namespace={standalone}"
    cluster.kubectl(name, "rollout", "status", STANDALONE, "--timeout=170s")
    labeled(nfd, "56")
    kubelet.await_allocatable(8)
    pod = yaml.safe_load((DEMO / "pod.yaml").read_text())
    pod["metadata"]["namespace"] = standalone
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(pod))
    try:
        succeeded = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl(name, "wait", succeeded, "pod/two-gpus", "--timeout=170s")
        told = cluster.kubectl(name, "logs", "two-gpus")
        assert "XELINK_LINKED=all" in told
        tell(" ".join(told.split()))
    finally:
        cluster.kubectl(name, "delete", "pod", "two-gpus", "--timeout=170s")
