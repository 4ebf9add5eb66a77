"""`kubectl patch` adds our sidecar to an XPU Manager that runs, and changes nothing else."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.deployment.rendering import OVERLAYS, Document, needs, pods, run, tool

pytestmark = needs("kubectl")

PATCH = OVERLAYS / "http" / "xpumanager.yaml"
FEATURES_D = "/etc/kubernetes/node-feature-discovery/features.d/"


def patched(daemon_set: Document, directory: Path) -> Document:
    kubectl = tool("kubectl")
    assert kubectl
    file = directory / "daemonset.yaml"
    file.write_text(yaml.safe_dump(daemon_set))
    shown = run(
        *(kubectl, "patch", "--local", "-f", str(file), "--patch-file", str(PATCH), "-o", "yaml")
    )
    found: Document = yaml.safe_load(shown)
    # What kubectl writes of an object's status and creation, it has of no object that exists.
    found.pop("status", None)
    for metadata in (found["metadata"], found["spec"]["template"]["metadata"]):
        if metadata.get("creationTimestamp", "") is None:
            del metadata["creationTimestamp"]
    return found


def spec(daemon_set: Document) -> Document:
    inner: Document = daemon_set["spec"]["template"]["spec"]
    return inner


def named(daemon_set: Document, field: str) -> dict[str, Document]:
    return {each["name"]: each for each in spec(daemon_set).get(field, ())}


def without_ours(daemon_set: Document) -> Document:
    """Give the DaemonSet without the sidecar and its volume; others' order is kept."""
    rest = deepcopy(daemon_set)
    for field, own in (("containers", "xelink-sidecar"), ("volumes", "features-d")):
        spec(rest)[field] = [each for each in spec(rest)[field] if each["name"] != own]
    return rest


@pytest.fixture
def running() -> Document:
    """Build somebody's XPU Manager, with whatever else an administrator has put into its Pod."""
    (daemon_set,) = (pod.workload for pod in pods("base"))
    daemon_set["metadata"]["annotations"] = {"example.com/owner": "gpu-team"}
    daemon_set["metadata"]["labels"]["example.com/stage"] = "production"
    daemon_set["spec"]["updateStrategy"] = {"type": "OnDelete"}
    daemon_set["spec"]["revisionHistoryLimit"] = 3
    template = daemon_set["spec"]["template"]
    template["metadata"]["annotations"] = {"prometheus.io/scrape": "true"}
    inner = template["spec"]
    inner["serviceAccountName"] = "xpumanager"
    inner["imagePullSecrets"] = [{"name": "docker-config-secret"}]
    inner["priorityClassName"] = "gpu-agents"
    inner["tolerations"] = [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    inner["securityContext"] = {"fsGroup": 44}
    inner["initContainers"] = [
        {"name": "wait", "image": "registry.example.com/wait:1", "command": ["/wait"]}
    ]
    xpumd, exporter = inner["containers"]
    xpumd["image"] = exporter["image"] = "registry.example.com/xpumanager:1.3.7"
    xpumd["resources"] = {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"memory": "256Mi", "gpu.intel.com/i915_monitoring": 1, "example.com/seat": 2},
    }
    exporter["env"].append({"name": "XPUM_METRICS", "value": "0-37"})
    inner["containers"].append(
        {
            "name": "shipper",
            "image": "registry.example.com/shipper:2",
            "args": ["--to=logs"],
            "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
            "volumeMounts": [{"name": "spool", "mountPath": "/spool"}],
        }
    )
    inner["volumes"] += [
        {"name": "spool", "hostPath": {"path": "/var/spool/shipper", "type": "Directory"}},
        {"name": "config", "configMap": {"name": "shipper"}},
    ]
    return daemon_set


def test_only_the_sidecar_and_its_volume_are_added(running: Document, tmp_path: Path) -> None:
    found = patched(running, tmp_path)
    assert without_ours(found) == running
    assert set(named(found, "containers")) - set(named(running, "containers")) == {"xelink-sidecar"}
    assert set(named(found, "volumes")) - set(named(running, "volumes")) == {"features-d"}


def test_the_patch_and_the_overlay_are_the_same(tmp_path: Path) -> None:
    (base,) = (pod.workload for pod in pods("base"))
    (http,) = (pod.workload for pod in pods("http"))
    found = patched(base, tmp_path)
    for field in ("containers", "volumes"):
        assert named(found, field) == named(http, field)
    assert without_ours(found) == base


def test_to_patch_twice_changes_nothing_more(running: Document, tmp_path: Path) -> None:
    once = patched(running, tmp_path)
    assert patched(once, tmp_path) == once


@pytest.fixture
def with_intels(running: Document) -> Document:
    """Add Intel's own sidecar, with arguments of its administrator's and XPU Manager on HTTPS."""
    spec(running)["containers"].append(
        {
            "name": "xelink-sidecar",
            "image": "intel/intel-xpumanager-sidecar:0.32.0",
            "imagePullPolicy": "Always",
            "args": ["-v=2", "--lane-count=8", "--cert=/cert/tls.crt"],
            "volumeMounts": [
                {"name": "features-d", "mountPath": FEATURES_D},
                {"name": "xpum-cert", "mountPath": "/cert"},
            ],
            "securityContext": {"runAsUser": 0, "readOnlyRootFilesystem": True},
        }
    )
    spec(running)["volumes"] += [
        {"name": "features-d", "hostPath": {"path": FEATURES_D}},
        {"name": "xpum-cert", "secret": {"secretName": "xpum-server-cert"}},
    ]
    return running


def test_intel_s_sidecar_is_replaced_and_its_arguments_and_mounts_stay(
    with_intels: Document, tmp_path: Path
) -> None:
    found = patched(with_intels, tmp_path)
    assert without_ours(found) == without_ours(with_intels)
    sidecar = named(found, "containers")["xelink-sidecar"]
    (fresh,) = (pod.workload for pod in pods("http"))
    ours = named(fresh, "containers")["xelink-sidecar"]
    args = ["-v=2", "--lane-count=8", "--cert=/cert/tls.crt"]
    mounts = [*ours["volumeMounts"], {"name": "xpum-cert", "mountPath": "/cert"}]
    assert sidecar == {**ours, "args": args, "volumeMounts": mounts}
    (volume,) = (each for each in spec(fresh)["volumes"] if each["name"] == "features-d")
    assert named(found, "volumes")["features-d"] == volume
