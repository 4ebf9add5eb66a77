"""docs/install.md on a cluster of GPU nodes and others: rollout, upgrade, changed flags."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path

import pytest
import yaml

from tests.deployment.guide import GUIDE, block, commands, shown
from tests.e2e.api import Object
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import Tell
from tests.e2e.hollow import Hollow
from tests.e2e.programs import PATIENCE, run, until

ROOT = Path(__file__).parents[2]
MONITORING = "gpu.intel.com/i915_monitoring"
_GPU = {"intel.feature.node.kubernetes.io/gpu": "true"}
GPU_NODES = ("gpu-1", "gpu-2")
NODES = {
    **{
        name: {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", **_GPU}
        for name in GPU_NODES
    },
    "plain": {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
    "arm": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux", **_GPU},
}
DAEMON_SET = "/apis/apps/v1/namespaces/monitoring/daemonsets/intel-xpumanager"
APPLY = "kubectl apply -k overlays/http"
CONFIG_MAPS = "/api/v1/namespaces/monitoring/configmaps"
SET_ENV = "kubectl -n monitoring set env "
PODS = "/api/v1/namespaces/monitoring/pods"
LINES = {each.line for each in commands()}
TIMEOUT = f"--timeout={PATIENCE:.0f}s"


class Administrator:
    """Types the commands of the guide in a copy of what the overlays need."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        shutil.copytree(ROOT / "overlays", directory / "overlays")
        (directory / "site").mkdir()

    def type(self, line: str) -> str:
        """Run a command of a shell; it must not fail."""
        done = self.attempt(line)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def attempt(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a shell that may fail."""
        return subprocess.run(
            ["bash", "-c", line],  # noqa: S607 - as the reader types it
            cwd=self.directory,
            env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig("admin"))},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def applied(self, *parts: str, overlay: str = "http") -> None:
        """Apply a kustomization of one's own, as the guide shows it with these parts."""
        own = block("yaml", "registry.example.com").replace("/http\n", f"/{overlay}\n")
        (self.directory / "site/kustomization.yaml").write_text(own + "".join(parts))
        self.type("kubectl apply -k site")

    def rolled_out(self) -> str:
        """Wait for the rollout, as the guide does."""
        line = "kubectl -n monitoring rollout status daemonset intel-xpumanager"
        assert line in LINES
        return self.type(f"{line} {TIMEOUT}")

    def pods(self) -> list[Object]:
        """Give XPU Manager's Pods that are not about to go."""
        pods: list[Object] = self.cluster.api.get(PODS)["items"]
        return [
            pod
            for pod in pods
            if pod["metadata"]["labels"].get("app") == "intel-xpumanager"
            and "deletionTimestamp" not in pod["metadata"]
        ]


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Iterator[Hollow]:
    """Two GPU nodes, an amd64 node without, and an arm64 node."""
    with Hollow(cluster.api, NODES) as hollow:
        yield hollow


@pytest.fixture
def administrator(
    cluster: Cluster, nodes: Hollow, monitoring: str, tmp_path: Path
) -> Iterator[Administrator]:
    """Somebody with an empty namespace, and GPU nodes that offer XPU Manager's resource."""
    for name in GPU_NODES:
        nodes.offer(name, {MONITORING: "1"})
    yield Administrator(cluster, tmp_path)
    named = ["daemonset/intel-xpumanager", "networkpolicy/intel-xpumanager"]
    cluster.kubectl(f"--namespace={monitoring}", "delete", "--ignore-not-found", *named)
    cluster.kubectl(f"--namespace={monitoring}", "delete", "configmaps", "--all")
    cluster.kubectl(f"--namespace={monitoring}", "wait", "--for=delete", "--all", "pods", TIMEOUT)


def where(pods: list[Object]) -> list[str]:
    """Name the nodes of Pods."""
    return sorted(pod["spec"].get("nodeName", "nowhere") for pod in pods)


def test_a_rollout_ends_on_a_cluster_of_gpu_nodes_and_others(
    administrator: Administrator, tell: Tell
) -> None:
    administrator.type(APPLY)
    told = administrator.rolled_out()
    assert "successfully rolled out" in told
    assert where(administrator.pods()) == [*GPU_NODES]
    status = administrator.cluster.api.get(DAEMON_SET)["status"]
    assert status["desiredNumberScheduled"] == status["numberAvailable"] == len(GPU_NODES)
    tell(f"{told.splitlines()[-1]}; nodes: {' '.join(where(administrator.pods()))}")


def test_xpu_manager_is_pending_until_its_resource_is_offered(
    administrator: Administrator, nodes: Hollow, tell: Tell
) -> None:
    for name in GPU_NODES:
        nodes.offer(name, {MONITORING: "0"})
    administrator.type(APPLY)

    def refused(pods: Object) -> list[str]:
        return [
            condition["message"]
            for pod in pods["items"]
            for condition in pod.get("status", {}).get("conditions", [])
            if condition.get("reason") == "Unschedulable"
        ]

    api = administrator.cluster.api
    messages = until(lambda: refused(api.get(PODS)), "the scheduler says why")
    assert f"Insufficient {MONITORING}" in messages[0]
    tell(messages[0])
    for name in GPU_NODES:
        nodes.offer(name, {MONITORING: "1"})
    administrator.rolled_out()
    assert where(administrator.pods()) == [*GPU_NODES]


def image(pod: Object, name: str = "xelink-sidecar") -> str:
    """Give the image of a Pod's container."""
    found: str = container(pod, name)["image"]
    return found


def container(pod: Object, name: str) -> Object:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == name)
    container: Object = found
    return container


@pytest.mark.parametrize("way", ["a kustomization of one's own", "set image"])
def test_an_upgrade_reaches_every_node_and_can_be_rolled_back(
    administrator: Administrator, way: str
) -> None:
    administrator.type(APPLY)
    administrator.rolled_out()
    if way == "set image":
        administrator.type(shown("kubectl -n monitoring set image ").line)
    else:
        administrator.applied()
    administrator.rolled_out()
    assert [image(pod) for pod in administrator.pods()] == ["registry.example.com/xelink:0.1.0"] * 2
    assert where(administrator.pods()) == [*GPU_NODES]
    undo = "kubectl -n monitoring rollout undo daemonset intel-xpumanager"
    assert undo in LINES
    administrator.type(undo)
    administrator.rolled_out()
    assert [image(pod) for pod in administrator.pods()] == ["xelink:0.1.0"] * 2


def in_force(administrator: Administrator, name: str, module: str) -> list[dict[str, str]]:
    """Give, for each Pod, what its container's program says of its settings and their sources."""
    found = []
    for pod in administrator.pods():
        manifest = container(pod, name)
        env = {each["name"]: each["value"] for each in manifest.get("env", ()) if "value" in each}
        env |= mounted(administrator, pod, manifest, env)
        said = subprocess.run(
            [sys.executable, "-m", module, *manifest.get("args", ()), "-print-config"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout
        found.append(dict(re.findall(r"^([a-z-]+): *(.*?) *$", said, re.MULTILINE)))
    return found


def mounted(
    administrator: Administrator, pod: Object, manifest: Object, env: Mapping[str, str]
) -> dict[str, str]:
    """Write what the container sees of a ConfigMap; give the variables that name it."""
    volumes = {each["name"]: each for each in pod["spec"]["volumes"] if "configMap" in each}
    moved: dict[str, str] = {}
    for mount in manifest["volumeMounts"]:
        if mount["name"] not in volumes:
            continue
        name = volumes[mount["name"]]["configMap"]["name"]
        files = administrator.cluster.api.get(f"{CONFIG_MAPS}/{name}")["data"]
        for key, text in files.items():
            seen = administrator.directory / key
            seen.write_text(text)
            path = f"{mount['mountPath']}/{key}"
            moved |= {each: str(seen) for each, value in env.items() if value == path}
    return moved


def as_an_argument(administrator: Administrator) -> None:
    administrator.applied(block("yaml", "args: [-lane-count=8"))


def as_a_file(administrator: Administrator) -> None:
    administrator.applied(block("yaml", "configMapGenerator"))


def in_a_cluster(administrator: Administrator) -> None:
    administrator.type(APPLY)
    administrator.type(shown(SET_ENV, "LANE_COUNT=8").line)
    administrator.type(APPLY)  # "A later `kubectl apply` keeps it"


@pytest.mark.parametrize(
    ("change", "source"),
    [(as_an_argument, "flag"), (as_a_file, "file"), (in_a_cluster, "environment")],
)
def test_a_changed_flag_is_in_force_on_every_node_after_its_rollout(
    administrator: Administrator, change: Callable[[Administrator], None], source: str, tell: Tell
) -> None:
    administrator.type(APPLY)
    administrator.rolled_out()
    change(administrator)
    administrator.rolled_out()
    told = [each["lane-count"] for each in in_force(administrator, "xelink-sidecar", "sidecar")]
    assert len(told) == len(GPU_NODES)
    assert all(each.startswith("8 ") and source in each for each in told), told
    tell(f"lane-count: {' '.join(told[0].split()[:3])}")
    if source == "environment":
        administrator.type(shown(SET_ENV, "LANE_COUNT-").line)
        administrator.rolled_out()
        after = in_force(administrator, "xelink-sidecar", "sidecar")
        assert all(re.match(r"4 +# default", each["lane-count"]) for each in after)


def test_a_changed_variable_of_the_plugin_leaves_what_the_overlay_needs(
    administrator: Administrator,
) -> None:
    administrator.applied(block("yaml", "SHARED_DEV_NUM"), overlay="companion")
    administrator.rolled_out()
    told = in_force(administrator, "xelink-device-plugin", "device_plugin")
    assert [each["shared-dev-num"].split()[0] for each in told] == ["2", "2"]
    names = {
        each["name"] for each in container(administrator.pods()[0], "xelink-device-plugin")["env"]
    }
    assert {"NODE_NAME", "POD_NAME"} <= names


# The README's view of the cluster, and its Pod


README = (ROOT / "README.md").read_text()
_LINKS = {"gpu-1": ("links", "8", "8"), "gpu-2": ("links", "4", "2"), "plain": ("", "", "")}


@pytest.fixture
def labeled(nodes: Hollow) -> None:
    """The GPU nodes as our sidecars would label them, one of them with pairs alone."""
    for name, values in _LINKS.items():
        labels = dict(zip(("state", "gpus", "group"), values, strict=True))
        nodes.label(
            name, {f"gpu.intel.com/xe-links.{key}": value or None for key, value in labels.items()}
        )
        nodes.offer(name, {"gpu.intel.com/i915": values[1] or "0"})


@pytest.mark.usefixtures("labeled")
def test_kubectl_shows_the_cluster_as_the_readme_does(administrator: Administrator) -> None:
    block = re.search(r"^\$ (kubectl get nodes -L .*)\n((?:.+\n)*?)```", README, re.MULTILINE)
    assert block
    line = block[1].replace("get nodes", f"get nodes {' '.join(_LINKS)}")
    told = administrator.type(line)
    assert ages_masked(told) == ages_masked(block[2]), told


def ages_masked(table: str) -> list[list[str]]:
    """Give the words of a table, without how old the nodes are."""
    return [re.sub(r" \d+[dhms]\S* ", " AGE ", row).split() for row in table.splitlines()]


@pytest.mark.usefixtures("labeled")
def test_the_pod_of_the_readme_goes_to_a_node_with_such_a_group(
    administrator: Administrator,
) -> None:
    pod = re.search(
        r"^```yaml\n(apiVersion: v1\nkind: Pod\n.*?)^```", README, re.DOTALL | re.MULTILINE
    )
    assert pod
    (administrator.directory / "pod.yaml").write_text(pod[1])
    administrator.type("kubectl apply -f pod.yaml")
    api = administrator.cluster.api
    path = "/api/v1/namespaces/default/pods/four-gpus"
    try:
        seen = api.wait(path, lambda found: found["spec"].get("nodeName"), "it is scheduled")
        assert seen.object["spec"]["nodeName"] == "gpu-1"
    finally:
        api.delete(f"{path}?gracePeriodSeconds=0")


# Server-side apply


# Older manifests of XPU Manager leave the version out, which the API server then adds.
_FIELDS = {
    "v1": {"apiVersion": "v1", "fieldPath": "spec.nodeName"},
    "no version": {"fieldPath": "spec.nodeName"},
}


def running(directory: Path, field: Mapping[str, str]) -> Path:
    """Write an XPU Manager as its own manifest has it: a number as a number, defaults left out."""
    rendered = yaml.safe_load_all(run("kubectl", "kustomize", str(ROOT / "overlays/base")))
    (daemon_set,) = (each for each in rendered if each["kind"] == "DaemonSet")
    del daemon_set["spec"]["updateStrategy"]
    spec = daemon_set["spec"]["template"]["spec"]
    for ours in ("priorityClassName", "tolerations", "securityContext"):
        del spec[ours]
    del spec["automountServiceAccountToken"]
    spec["nodeSelector"] = {"kubernetes.io/arch": "amd64"}
    spec["imagePullSecrets"] = [{"name": "docker-config-secret"}]
    spec["restartPolicy"] = "Always"
    xpumd, exporter = spec["containers"]
    xpumd["image"] = exporter["image"] = "intel/xpumanager"
    xpumd["resources"] = {"limits": {MONITORING: 1}}
    xpumd["securityContext"]["privileged"] = False
    exporter["command"][1:5] = ["--bind", "0.0.0.0:29999"]
    exporter["env"] = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": field}},
        *(each for each in exporter["env"] if "value" in each),
    ]
    for probe in ("startupProbe", "livenessProbe"):
        exporter[probe]["httpGet"].pop("scheme", None)
    file = directory / "xpumanager.json"
    file.write_text(json.dumps(daemon_set))
    return file


def server_side(administrator: Administrator, overlay: str) -> None:
    """Apply an overlay on the server's side; a conflict is an error."""
    told = administrator.type(f"kubectl apply --server-side -k overlays/{overlay}")
    assert "daemonset.apps/intel-xpumanager serverside-applied" in told


@pytest.mark.parametrize("overlay", ["base", "http", "companion"])
@pytest.mark.parametrize("field", _FIELDS.values(), ids=_FIELDS)
def test_server_side_apply_over_a_client_side_applied_xpu_manager_has_no_conflict(
    administrator: Administrator, overlay: str, field: Mapping[str, str]
) -> None:
    administrator.type(f"kubectl apply -f {running(administrator.directory, field)}")
    server_side(administrator, overlay)
    server_side(administrator, overlay)
    administrator.rolled_out()
    assert where(administrator.pods()) == [*GPU_NODES]


@pytest.mark.usefixtures("definitions")
def test_https_comes_by_server_side_apply_after_the_overlay_without_it(
    administrator: Administrator,
) -> None:
    administrator.type(f"kubectl apply -f {running(administrator.directory, _FIELDS['v1'])}")
    # The scheme of a probe, which nobody has named, is XPU Manager's until it is ours.
    done = administrator.attempt("kubectl apply --server-side -k overlays/cert-manager")
    assert set(re.findall(r"\.(\w+)$", done.stderr, re.MULTILINE)) == {"scheme"}
    for overlay in ("http", "cert-manager"):
        server_side(administrator, overlay)
    administrator.rolled_out()
    for pod in administrator.pods():
        probe = container(pod, "python-exporter")["startupProbe"]
        assert probe["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("overlay", ["http", "cert-manager"])
def test_server_side_apply_over_our_own_client_side_applied_overlay_has_no_conflict(
    administrator: Administrator, overlay: str
) -> None:
    administrator.type(APPLY)
    server_side(administrator, overlay)


# Removal


def removal(title: str) -> list[str]:
    """Give the commands of the guide for what was installed."""
    section = GUIDE.partition(f"### You {title}\n")[2].partition("\n### ")[0]
    block = re.search(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block
    return re.findall(r"^\$ (.*)$", block[1], re.MULTILINE)


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize(
    "overlay", re.findall(r"^### You installed `overlays/([a-z-]+)`$", GUIDE, re.MULTILINE)
)
def test_the_commands_for_an_overlay_leave_nothing_of_it(
    administrator: Administrator, overlay: str
) -> None:
    administrator.type(f"kubectl apply -k overlays/{overlay}")
    for secret in ("xpum-ca", "xpum-server-cert") if "cert-manager" in overlay else ():
        administrator.type(f"kubectl -n monitoring create secret generic {secret}")
    for line in removal(f"installed `overlays/{overlay}`"):
        administrator.type(line)
    left = "kubectl get --ignore-not-found -o name"
    assert not administrator.type(f"{left} -k overlays/{overlay}")
    found = administrator.type(
        f"{left} -n monitoring secrets,configmaps,daemonsets,networkpolicies"
    )
    assert found in {"", "configmap/kube-root-ca.crt\n"}


@pytest.mark.usefixtures("definitions")
def test_what_was_patched_in_is_taken_out_and_xpu_manager_is_as_before(
    administrator: Administrator,
) -> None:
    administrator.type("kubectl apply -k overlays/base")
    before = ordered(administrator.cluster.api.get(DAEMON_SET))
    patch = "kubectl -n monitoring patch daemonset intel-xpumanager --patch-file"
    administrator.type(f"{patch} overlays/http/xpumanager.yaml")
    for line in (
        "kubectl -n monitoring apply -f overlays/cert-manager/certificates.yaml",
        f"{patch} overlays/cert-manager/https.yaml",
    ):
        assert line in LINES
        administrator.type(line)
    assert ordered(administrator.cluster.api.get(DAEMON_SET)) != before
    for title in ("patched HTTPS in", "patched the sidecar in"):
        for line in removal(title):
            administrator.type(line)
    assert ordered(administrator.cluster.api.get(DAEMON_SET)) == before
    assert not administrator.type("kubectl -n monitoring get certificates,issuers -o name")


def ordered(daemon_set: Object) -> Object:
    """Give the Pod that a DaemonSet makes; a strategic merge keeps no order."""
    spec: Object = daemon_set["spec"]["template"]["spec"]
    by_name = itemgetter("name")
    return {**spec, **{key: sorted(spec[key], key=by_name) for key in ("containers", "volumes")}}
