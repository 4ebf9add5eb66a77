"""What the overlays are composed of, and what XPU Manager's administrators find where it was."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployment.rendering import (
    OVERLAYS,
    Document,
    each_overlay,
    is_ours,
    kustomizations,
    needs_kustomize,
    pods,
    render,
)

MOST_LINES = 12
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "NodeFeatureRule"}
ALL = kustomizations("Kustomization") | kustomizations("Component")
XPUM = [
    name
    for name in kustomizations("Kustomization")
    if name not in {"demo", "plugin-only", "standalone"}
]

each_of_xpum = pytest.mark.parametrize("overlay", XPUM)


def entries(content: Document) -> Iterator[str]:
    """Give every path of a kustomization."""
    for field in ("resources", "components", "bases", "crds", "configurations", "generators"):
        yield from content.get(field, ())
    for entry in (*content.get("patches", ()), *content.get("replacements", ())):
        if "path" in entry:
            yield entry["path"]


def xpum(overlay: str) -> Document:
    (found,) = (pod.workload for pod in pods(overlay) if "xpumd" in str(pod.spec))
    return found


def spec(overlay: str) -> Document:
    found: Document = xpum(overlay)["spec"]["template"]["spec"]
    return found


def container(overlay: str, name: str) -> Document:
    containers: list[Document] = spec(overlay)["containers"]
    (found,) = (each for each in containers if each["name"] == name)
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_kustomization_is_ten_lines_of_composition(name: str) -> None:
    text = (OVERLAYS / name / "kustomization.yaml").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    allowed = MOST_LINES + 7 * len(ALL[name].get("configMapGenerator", ()))
    assert len(lines) <= allowed


@pytest.mark.parametrize("name", ALL)
def test_everything_that_is_composed_is_in_this_tree(name: str) -> None:
    content = ALL[name]
    assert not {"helmCharts", "helmChartInflationGenerator", "openapi"} & set(content)
    for entry in entries(content):
        assert (OVERLAYS / name / entry).resolve().is_relative_to(OVERLAYS)
        assert (OVERLAYS / name / entry).exists(), entry


def test_each_component_is_used() -> None:
    used = {
        str((OVERLAYS / name / entry).resolve().relative_to(OVERLAYS))
        for name, content in ALL.items()
        for entry in content.get("components", ())
    }
    assert set(kustomizations("Component")) == used


def test_each_file_is_used() -> None:
    used = {OVERLAYS / name / entry for name, content in ALL.items() for entry in entries(content)}
    manifests = {
        path
        for name in ALL
        for path in (OVERLAYS / name).glob("*.yaml")
        if path.name != "kustomization.yaml"
    }
    # Those that are applied by hand: to try the demo, and to go back from HTTPS.
    by_hand = {OVERLAYS / "demo" / "pod.yaml", OVERLAYS / "cert-manager" / "no-https.yaml"}
    assert manifests - used <= by_hand
    guide = (OVERLAYS.parent / "docs" / "install.md").read_text()
    assert all(f" {path.relative_to(OVERLAYS.parent)}\n" in guide for path in by_hand)


@needs_kustomize
@each_overlay
def test_an_overlay_renders_into_one_namespace(overlay: str) -> None:
    objects = [each for each in render(overlay) if each["kind"] not in CLUSTER_WIDE]
    wanted = "xelink-demo" if overlay == "demo" else "monitoring"
    assert objects
    assert {each["metadata"].get("namespace") for each in objects} == {wanted}


@needs_kustomize
@each_overlay
def test_to_delete_an_overlay_deletes_nobody_else_s_objects(overlay: str) -> None:
    shared = [each["metadata"]["name"] for each in render(overlay) if each["kind"] in CLUSTER_WIDE]
    assert shared == (["xelink-demo"] if overlay == "demo" else [])


@needs_kustomize
@each_overlay
def test_an_object_is_rendered_once(overlay: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in render(overlay)]
    assert len(names) == len(set(names))


@needs_kustomize
@each_of_xpum
def test_xpu_manager_is_where_its_administrators_look(overlay: str) -> None:
    daemon_set = xpum(overlay)
    assert daemon_set["kind"] == "DaemonSet"
    assert daemon_set["metadata"]["name"] == "intel-xpumanager"
    assert daemon_set["metadata"]["labels"]["app"] == "intel-xpumanager"
    assert daemon_set["spec"]["selector"] == {"matchLabels": {"app": "intel-xpumanager"}}
    assert spec(overlay)["hostNetwork"] is True
    assert spec(overlay)["nodeSelector"]["kubernetes.io/arch"] == "amd64"
    volumes = {volume["name"]: volume for volume in spec(overlay)["volumes"]}
    assert volumes["kubeletpodres"]["hostPath"]["path"] == "/var/lib/kubelet/pod-resources"
    assert volumes["sockdir"]["emptyDir"] == {"medium": "Memory"}
    assert volumes["devdri"]["hostPath"]["path"] == "/dev/dri"


@needs_kustomize
@each_of_xpum
def test_xpumd_runs_as_xpu_manager_s_own_manifest_runs_it(overlay: str) -> None:
    xpumd = container(overlay, "xpumd")
    assert xpumd["command"] == ["/usr/bin/xpumd"]
    assert "args" not in xpumd
    security = xpumd["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["runAsUser"] == 0
    mounts = {mount["name"]: mount["mountPath"] for mount in xpumd["volumeMounts"]}
    assert mounts["sockdir"] == "/tmp"  # noqa: S108 - the container's own, in memory
    assert mounts["kubeletpodres"] == "/var/lib/kubelet/pod-resources"


@needs_kustomize
@each_of_xpum
def test_the_exporter_runs_as_xpu_manager_s_own_manifest_runs_it(overlay: str) -> None:
    exporter = container(overlay, "python-exporter")
    command = [word for word in exporter["command"] if not re.match("--(cert|key)file=", word)]
    assert command == [
        *("gunicorn", "--bind", "127.0.0.1:29999", "--bind", "[$(POD_IP)]:29999"),
        *("--worker-connections", "64"),
        *("--worker-class", "gthread", "--workers", "1", "--threads", "4"),
        "xpum_rest_main:main()",
    ]
    assert exporter["image"] == container(overlay, "xpumd")["image"]
    assert exporter["workingDir"] == "/usr/lib/xpum/rest"
    env = {each["name"]: each for each in exporter["env"]}
    for name, path in (("NODE_NAME", "spec.nodeName"), ("POD_IP", "status.podIP")):
        assert env[name]["valueFrom"]["fieldRef"]["fieldPath"] == path
    assert env["XPUM_EXPORTER_NO_AUTH"]["value"] == env["XPUM_EXPORTER_ONLY"]["value"] == "1"
    mounts = {mount["name"]: mount for mount in exporter["volumeMounts"]}
    assert mounts["sockdir"] == {"name": "sockdir", "mountPath": "/tmp"}  # noqa: S108 - as above
    assert mounts["devdri"] == {"name": "devdri", "mountPath": "/dev/dri", "readOnly": True}
    assert_patient(exporter["startupProbe"], "/metrics", 10, 10)
    assert_patient(exporter["livenessProbe"], "/healtz", 10, 3, delay=60)


def assert_patient(
    probe: dict[str, Any], path: str, period: int, failures: int, delay: int = 0
) -> None:
    assert probe["httpGet"]["path"] == path
    assert probe["httpGet"]["port"] == "metrics"
    assert probe["periodSeconds"] == period
    assert probe.get("failureThreshold", 3) == failures
    assert probe.get("initialDelaySeconds", 0) == delay


@needs_kustomize
@pytest.mark.parametrize("overlay", [name for name in XPUM if name != "base"])
def test_the_sidecar_has_the_names_of_the_one_that_it_takes_the_place_of(overlay: str) -> None:
    sidecar = container(overlay, "xelink-sidecar")
    features_d = "/etc/kubernetes/node-feature-discovery/features.d/"
    assert {"name": "features-d", "mountPath": features_d} in sidecar["volumeMounts"]
    (volume,) = (each for each in spec(overlay)["volumes"] if each["name"] == "features-d")
    assert volume["hostPath"] == {"path": features_d, "type": "DirectoryOrCreate"}


@needs_kustomize
def test_the_base_is_xpu_manager_alone_and_http_adds_one_container_and_one_volume() -> None:
    base, http = spec("base"), spec("http")
    assert [each["name"] for each in base["containers"]] == ["xpumd", "python-exporter"]
    for field in ("containers", "volumes"):
        own = [each for each in http[field] if each not in base[field]]
        assert [each for each in http[field] if each in base[field]] == base[field]
        assert [each["name"] for each in own] == [
            {"containers": "xelink-sidecar", "volumes": "features-d"}[field]
        ]


@needs_kustomize
@each_of_xpum
def test_xpumd_waits_for_no_resource_that_its_own_pod_offers(overlay: str) -> None:
    asked = [
        resource
        for each in spec(overlay)["containers"]
        for kind in each.get("resources", {}).values()
        for resource in kind
        if resource.startswith("gpu.intel.com/")
    ]
    companion = "xelink-device-plugin" in {each["name"] for each in spec(overlay)["containers"]}
    assert asked == ([] if companion else ["gpu.intel.com/i915_monitoring"])


@needs_kustomize
@pytest.mark.parametrize("overlay", [*XPUM, "plugin-only", "standalone"])
def test_a_pod_is_made_for_nodes_with_intel_gpus_only(overlay: str) -> None:
    # A Pod that no node can take would keep a rollout from ever ending.
    (pod,) = pods(overlay)
    assert pod.spec["nodeSelector"]["intel.feature.node.kubernetes.io/gpu"] == "true"


@needs_kustomize
def test_a_node_without_xpu_manager_has_both_daemons_in_a_pod_without_any_privilege() -> None:
    (pod,) = pods("standalone")
    assert pod.spec["hostNetwork"] is True  # the driver answers nowhere else
    assert {each["name"] for each in pod.containers} == {"xelink-sidecar", "xelink-device-plugin"}
    for each in pod.containers:
        context = each["securityContext"]
        assert "privileged" not in context
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
    (sidecar,) = (each for each in pod.containers if each["name"] == "xelink-sidecar")
    assert {"name": "XELINK_SIDECAR_SOURCE", "value": "driver"} in sidecar["env"]
    assert [each["mountPath"] for each in sidecar["volumeMounts"]] == [
        "/etc/kubernetes/node-feature-discovery/features.d/"
    ]


@needs_kustomize
@pytest.mark.parametrize("overlay", [*XPUM, "plugin-only", "standalone"])
def test_the_arguments_of_our_daemons_are_the_user_s(overlay: str) -> None:
    # A list is replaced as a whole: what an overlay needs would be gone with the first flag.
    (pod,) = pods(overlay)
    assert not [each["name"] for each in pod.containers if is_ours(each) and each.get("args")]


@needs_kustomize
@each_overlay
def test_values_are_written_as_the_api_server_keeps_them(overlay: str) -> None:
    # Server-side apply compares the text: 1 and "1" are a conflict (tests/e2e/test_rollout.py).
    for pod in pods(overlay):
        for each in pod.containers:
            fields = [
                env["valueFrom"]["fieldRef"] for env in each.get("env", ()) if "valueFrom" in env
            ]
            assert all(field["apiVersion"] == "v1" for field in fields)
            amounts = [
                amount for kind in each.get("resources", {}).values() for amount in kind.values()
            ]
            assert all(isinstance(amount, str) for amount in amounts), amounts
