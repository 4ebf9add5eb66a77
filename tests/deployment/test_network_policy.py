"""Who may reach the Pods: each overlay that listens beyond loopback has a NetworkPolicy."""

import re
from pathlib import Path

import pytest
import yaml

from tests.deployment.guide import GUIDE, Shell, needs_kubectl
from tests.deployment.rendering import (
    OVERLAYS,
    Document,
    Pod,
    is_ours,
    kustomizations,
    needs_kustomize,
    pods,
    render,
    words,
)
from xelink.daemon.setting_types import split_address

QUIET = "standalone"
"""The overlay that listens on loopback only, where a policy would have nothing to protect."""

each_that_listens = pytest.mark.parametrize(
    "overlay", [name for name in kustomizations("Kustomization") if name != QUIET]
)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def policies(overlay: str) -> list[Document]:
    return [each for each in render(overlay) if each["kind"] == "NetworkPolicy"]


def hosts(pod: Pod) -> set[str]:
    """Give every host that a container of a Pod is told to listen on."""
    told = [word for container in pod.containers for word in words(container)]
    told += [
        str(each.get("value"))
        for container in filter(is_ours, pod.containers)
        for each in container.get("env", ())
    ]
    addresses = (re.fullmatch(r"(?:-listen=)?(\S*:2999[0-9])", word) for word in told)
    return {split_address(match[1])[0] for match in addresses if match}


@needs_kustomize
@each_that_listens
def test_each_overlay_that_listens_beyond_loopback_has_a_policy_for_its_pods(overlay: str) -> None:
    (pod,), found = pods(overlay), policies(overlay)
    assert hosts(pod) - LOOPBACK
    (policy,) = found
    name = pod.workload["metadata"]["name"]
    assert policy["metadata"]["name"] == name
    assert policy["metadata"]["namespace"] == pod.workload["metadata"]["namespace"]
    (key, value), *others = policy["spec"]["podSelector"]["matchLabels"].items()
    assert pod.workload["spec"]["template"]["metadata"]["labels"][key] == value
    assert not others


@needs_kustomize
def test_an_overlay_that_listens_on_loopback_only_has_no_policy() -> None:
    (pod,) = pods(QUIET)
    assert not hosts(pod) - LOOPBACK
    assert policies(QUIET) == []


@needs_kustomize
@each_that_listens
def test_a_policy_lets_in_pods_of_its_own_namespace_and_nobody_else(overlay: str) -> None:
    (policy,) = policies(overlay)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]


@needs_kustomize
def test_two_overlays_in_one_namespace_have_policies_of_different_names() -> None:
    named: dict[str, set[str]] = {}
    for overlay in kustomizations("Kustomization").keys() - {QUIET}:
        (policy,) = policies(overlay)
        named.setdefault(policy["metadata"]["name"], set()).add(overlay)
    assert named["xelink-device-plugin"] == {"plugin-only"}
    assert named["xelink-demo"] == {"demo"}
    assert set(named) == {"xelink-device-plugin", "xelink-demo", "intel-xpumanager"}


def site(directory: Path, part: str) -> list[Document]:
    """Render two overlays with a part of the guide's kustomization."""
    (directory / "overlays").symlink_to(OVERLAYS)
    (directory / "site").mkdir()
    content = {
        "resources": ["../overlays/http", "../overlays/plugin-only"],
        **yaml.safe_load(part),
    }
    (directory / "site/kustomization.yaml").write_text(yaml.safe_dump(content))
    done = Shell(directory).run("kubectl kustomize --load-restrictor LoadRestrictionsNone site")
    return [each for each in yaml.safe_load_all(done) if each["kind"] == "NetworkPolicy"]


def shown(word: str) -> str:
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    (found,) = (each for each in blocks if word in each)
    return str(found)


@needs_kubectl
def test_the_policies_are_taken_out_as_the_guide_says(tmp_path: Path) -> None:
    assert site(tmp_path, shown("$patch: delete")) == []


@needs_kubectl
def test_another_namespace_is_let_in_as_the_guide_says(tmp_path: Path) -> None:
    found = site(tmp_path, shown("namespaceSelector"))
    assert len(found) == 2
    for policy in found:
        own, other = policy["spec"]["ingress"][0]["from"]
        assert own == {"podSelector": {}}
        (label,) = other["namespaceSelector"]["matchLabels"]
        assert label == "kubernetes.io/metadata.name"


@pytest.mark.parametrize("page", ["install.md", "security.md"])
def test_the_pages_say_whom_a_policy_does_not_bind(page: str) -> None:
    text = " ".join((OVERLAYS.parent / "docs" / page).read_text().split())
    assert "NetworkPolicy" in text
    assert "most networks apply none to Pods on the host network" in text
