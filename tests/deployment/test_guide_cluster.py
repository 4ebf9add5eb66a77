"""docs/install.md and the README: what kubectl shows, waits for, and labels."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.deployment import api
from tests.deployment.chain import published
from tests.deployment.guide import (
    Shell,
    administrator,
    commands,
    daemon_set,
    needs_kubectl,
    patched,
    shown,
)
from tests.deployment.pipeline import I915, pipeline
from tests.deployment.rendering import OVERLAYS, ROOT, Document, needs_kustomize, render

pytestmark = [needs_kubectl, needs_kustomize]


def node(name: str, labels: Mapping[str, str], allocatable: Mapping[str, str]) -> Document:
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": dict(labels)},
        "status": {"allocatable": dict(allocatable)},
    }


def observed(gpus: int, name: str) -> Document:
    """Give the node that a cluster would show while our daemons run on it."""
    with pipeline(gpus) as (running, kubelet, _):
        running.sidecar.wait_for("labels published")
        count = str(kubelet.allocatable(I915))
        return node(name, published(running.labels), {I915: count})


@pytest.fixture(scope="module")
def node_1() -> Document:
    return observed(2, "node-1")


def shows_nodes_of_kind(line: str) -> bool:
    return "xe-links\\.count,GPUS" in line


def test_the_answers_of_kubectl_are_those_shown(tmp_path: Path, node_1: Document) -> None:
    labels = {**node_1["metadata"]["labels"], "intel.feature.node.kubernetes.io/gpu": "true"}
    gpu_node = {**node_1, "metadata": {"name": "node-1", "labels": labels}}
    intels = {
        "kind": "DaemonSet",
        "apiVersion": "apps/v1",
        "metadata": {
            "name": "intel-gpu-plugin",
            "namespace": "default",
            "labels": {"app": "intel-gpu-plugin"},
        },
    }
    (tmp_path / "without").mkdir()
    bare = node("node-1", {}, {})
    with (
        api.serving([gpu_node, daemon_set("http"), intels]) as url,
        api.serving([bare]) as after,
    ):
        user = administrator(tmp_path, url)
        gone = shown("kubectl get nodes -l gpu.intel.com/xe-links.state ")
        asked = [
            each
            for each in commands()
            if re.match(r"kubectl( -n monitoring)? get (nodes|daemonsets?) ", each.line)
            and not shows_nodes_of_kind(each.line)
        ]
        assert len(asked) == 6
        for each in asked:
            expected = "node/node-1\n" if each == gone else each.output
            assert user.run(each.line) == expected
        assert administrator(tmp_path / "without", after).run(gone.line) == gone.output == ""


def test_the_end_of_the_demo_is_as_shown(tmp_path: Path) -> None:
    (asked,) = (each for each in commands() if shows_nodes_of_kind(each.line))
    with api.serving([observed(8, "kind-control-plane")]) as url:
        assert administrator(tmp_path, url).run(asked.line) == asked.output


def test_the_labels_of_the_readme_are_those_of_two_gpus(tmp_path: Path, node_1: Document) -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^\$ (kubectl label --list .*)\n((?:.+\n)*?)```", readme, re.MULTILINE)
    assert block
    with api.serving([node_1]) as url:
        assert administrator(tmp_path, url).run(block[1]) == block[2]


# What waits


def settled(kind: str, name: str, namespace: str, *, done: bool) -> Document:
    """Give an object whose controller has done its work, or not yet."""
    available = int(done)
    statuses: dict[str, tuple[str, Document]] = {
        "DaemonSet": (
            "apps/v1",
            {
                "desiredNumberScheduled": 1,
                "updatedNumberScheduled": 1,
                "numberAvailable": available,
            },
        ),
        "Deployment": (
            "apps/v1",
            {"replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
        ),
        "Pod": ("v1", {"phase": "Succeeded" if done else "Running"}),
        "Certificate": (
            "cert-manager.io/v1",
            {"conditions": [{"type": "Ready", "status": str(done)}]},
        ),
    }
    version, status = statuses[kind]
    return {
        "kind": kind,
        "apiVersion": version,
        "metadata": {"name": name, "namespace": namespace, "generation": 1, "resourceVersion": "1"},
        "spec": {"replicas": 1, "updateStrategy": {"type": "RollingUpdate"}},
        "status": {"observedGeneration": 1, **status},
    }


def everything(*, done: bool) -> list[Document]:
    named = [
        (each["kind"], each["metadata"]["name"], each["metadata"]["namespace"])
        for overlay in ("cert-manager", "plugin-only", "standalone", "demo")
        for each in render(overlay)
        if each["kind"] in {"DaemonSet", "Certificate"}
    ]
    pod = yaml.safe_load((OVERLAYS / "demo/pod.yaml").read_text())["metadata"]
    webhook = ("Deployment", "cert-manager-webhook", "cert-manager")
    named += [("Pod", pod["name"], pod["namespace"]), webhook]
    return [settled(*each, done=done) for each in named]


WAITS = sorted(
    {each for each in commands() if re.match(r"kubectl -n \S+ (rollout status|wait) ", each.line)}
)


@pytest.mark.parametrize(("line", "output"), WAITS)
def test_what_waits_ends_when_all_is_ready_and_not_before(
    line: str, output: str, tmp_path: Path
) -> None:
    with api.serving(everything(done=True)) as url:
        said = administrator(tmp_path, url).run(line)
        assert not output or said == output
    with api.serving(everything(done=False)) as url:
        assert administrator(tmp_path, url).attempt(f"{line} --timeout=1s").returncode != 0


# Labels


def labels_after(user: Shell, line: str, before: Document) -> dict[str, str]:
    labels: dict[str, str] = patched(user, line, before)["metadata"].get("labels", {})
    return labels


@pytest.mark.parametrize(
    ("kind", "name", "end"),
    [("Namespace", "monitoring", "=privileged"), ("Node", "node-1", "=true")],
)
def test_a_label_is_set_and_taken_off_again(kind: str, name: str, end: str, tmp_path: Path) -> None:
    user = Shell(tmp_path)
    bare = {"kind": kind, "apiVersion": "v1", "metadata": {"name": name}}
    line = f"kubectl label {kind.lower()} {name} "
    labels = labels_after(user, shown(line, end).line, bare)
    assert len(labels) == 1
    labeled = {**bare, "metadata": {"name": name, "labels": labels}}
    assert labels_after(user, shown(line, "-").line, labeled) == {}


def test_labels_that_nfd_left_are_taken_off_and_no_others(tmp_path: Path, node_1: Document) -> None:
    others = {"kubernetes.io/arch": "amd64", "gpu.intel.com/family": "Max"}
    labels = {**others, **node_1["metadata"]["labels"], "gpu.intel.com/xe-links2": "Z_2.0-3.0"}
    before = node("node-1", labels, {})
    with api.serving([before]) as url:
        user = administrator(tmp_path, url)
        line = shown("kubectl get node node-1 -o go-template").line
        assert labels_after(user, line, before) == others


def test_a_resource_is_taken_off_the_node_and_nothing_else(tmp_path: Path) -> None:
    status = {kind: {"cpu": "8", I915: "0"} for kind in ("capacity", "allocatable")}
    before = {**node("node-1", {}, {}), "status": status}
    line = shown("kubectl patch node ").line
    # Without a server there is no part of an object by itself.
    after = patched(Shell(tmp_path), line.replace(" --subresource=status", ""), before)["status"]
    assert {kind: after[kind] for kind in status} == {kind: {"cpu": "8"} for kind in status}
