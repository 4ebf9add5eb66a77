"""What the containers may do: nothing that they do not need."""

import tomllib
from typing import Any

import pytest

from tests.deployment.rendering import (
    ROOT,
    Document,
    Pod,
    each_overlay,
    is_ours,
    needs_kustomize,
    pods,
)

pytestmark = needs_kustomize

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# What a container may have in spite of the rule, each with its reason in the manifest.
CAPABILITIES = {"node": ["MKNOD"], "xpumd": ["SYS_ADMIN"]}
# The most that was resident, in MiB: with 16 GPUs, in the demo with its 8.
MEASURED = {"xelink-sidecar": 33, "xelink-device-plugin": 60, "node": 15, "xpumanager": 26}
MOST_CPU = 50  # thousandths of a CPU; the busiest takes a fifth of that
ROOTS = {"xelink-sidecar", "xelink-device-plugin", "node"}  # directories that are root's


def ours(overlay: str) -> list[tuple[Pod, Document]]:
    return [(pod, each) for pod in pods(overlay) for each in pod.containers if is_ours(each)]


@each_overlay
def test_each_image_is_pinned(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers:
            image = container["image"]
            name, _, digest = image.partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            assert digest.startswith("sha256:") or tag not in {"", "latest", "devel"}, image
            assert container["imagePullPolicy"] == "IfNotPresent"


@each_overlay
def test_our_image_is_of_this_version(overlay: str) -> None:
    assert all(container["image"] == f"xelink:{VERSION}" for _, container in ours(overlay))


@each_overlay
def test_our_containers_are_locked_in(overlay: str) -> None:
    for _, container in ours(overlay):
        security: dict[str, Any] = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not security.get("privileged")


@each_overlay
def test_each_container_has_a_root_that_is_read_only_and_no_capability_too_much(
    overlay: str,
) -> None:
    """XPU Manager's, too: its exporter is what the network reaches."""
    for pod in pods(overlay):
        for container in pod.containers:
            security: dict[str, Any] = container["securityContext"]
            added = CAPABILITIES.get(container["name"], [])
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            assert security["capabilities"].get("add", []) == added


@each_overlay
def test_a_secret_is_mounted_with_what_is_needed_of_it_and_a_key_is_its_user_s_alone(
    overlay: str,
) -> None:
    for pod in pods(overlay):
        for secret in (each["secret"] for each in pod.volumes.values() if "secret" in each):
            assert secret["items"], "without them all of it is mounted"
            for item in secret["items"]:
                mode = item.get("mode", secret.get("defaultMode", 0o644))
                assert mode & 0o222 == 0
                assert item["key"] != "tls.key" or mode & 0o077 == 0


@each_overlay
def test_no_container_may_call_whatever_the_kernel_has(overlay: str) -> None:
    for pod in pods(overlay):
        of_pod = pod.spec.get("securityContext", {}).get("seccompProfile")
        for container in pod.containers:
            if container["securityContext"].get("privileged"):
                continue  # no profile binds it, whatever is written
            own = container["securityContext"].get("seccompProfile", of_pod)
            assert own == {"type": "RuntimeDefault"}


@each_overlay
def test_only_who_writes_where_root_does_is_root(overlay: str) -> None:
    for pod, container in ours(overlay):
        security = container["securityContext"]
        assert "runAsUser" in security
        if container["name"] in ROOTS:
            assert security["runAsUser"] == security["runAsGroup"] == 0
            paths = [
                pod.volumes[mount["name"]].get("hostPath")
                for mount in container["volumeMounts"]
                if not mount.get("readOnly")
            ]
            assert any(paths), "root, and nothing of root's to write to"
        else:
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0


@each_overlay
def test_selinux_lets_into_the_directory_of_kubelet_whom_it_should(overlay: str) -> None:
    for _, container in ours(overlay):
        mounts = {mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts", ())}
        told = container["securityContext"].get("seLinuxOptions")
        reaches = "/var/lib/kubelet/device-plugins" in mounts
        assert told == ({"type": "container_device_plugin_t"} if reaches else None)


@each_overlay
def test_our_containers_say_what_they_use(overlay: str) -> None:
    for _, container in ours(overlay):
        resources = container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}, "a CPU limit makes a daemon late"
        asked, most = (
            int(resources[kind]["memory"].removesuffix("Mi")) for kind in ("requests", "limits")
        )
        measured = MEASURED[container["name"]]
        assert asked >= 1.2 * measured, "kubelet evicts who uses more first"
        assert asked <= 2.5 * measured, "the scheduler keeps it from all others"
        assert most >= 2 * measured, "the kernel kills who needs more"
        assert most <= 5 * measured, "a leak is to hurt nobody else"
        assert 10 <= int(resources["requests"]["cpu"].removesuffix("m")) <= MOST_CPU


@each_overlay
def test_no_pod_gets_a_token_of_the_api_server(overlay: str) -> None:
    for pod in pods(overlay):
        assert pod.spec["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod.spec


@each_overlay
def test_a_pod_shares_no_more_with_the_host_than_the_network(overlay: str) -> None:
    for pod in pods(overlay):
        assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & set(pod.spec)


@each_overlay
def test_privilege_is_xpumd_s_and_only_where_no_device_plugin_can_serve_it(overlay: str) -> None:
    for pod in pods(overlay):
        names = {container["name"] for container in pod.containers}
        for container in pod.containers:
            security = container["securityContext"]
            companion = container["name"] == "xpumd" and "xelink-device-plugin" in names
            assert bool(security.get("privileged")) is companion
            # The API server refuses a privileged container that says otherwise.
            assert security["allowPrivilegeEscalation"] is companion


@each_overlay
@pytest.mark.parametrize("path", ["/", "/dev", "/etc", "/proc", "/run", "/sys", "/var"])
def test_no_wide_directory_of_the_host_is_mounted(overlay: str, path: str) -> None:
    for pod in pods(overlay):
        paths = [volume.get("hostPath", {}).get("path") for volume in pod.volumes.values()]
        assert path not in [each and (each.rstrip("/") or "/") for each in paths]


@each_overlay
def test_what_is_mounted_to_be_read_cannot_be_written(overlay: str) -> None:
    writable = {
        "xelink-sidecar": {"features-d"},
        "xelink-device-plugin": {"kubeletsockets", "cdipath"},
    }
    for _, container in ours(overlay):
        found = {
            mount["name"]
            for mount in container.get("volumeMounts", ())
            if not mount.get("readOnly")
        }
        assert found <= writable.get(container["name"], found)
    nodes = [
        mount
        for pod in pods(overlay)
        for container in pod.containers
        for mount in container.get("volumeMounts", ())
        if mount["mountPath"] == "/dev/dri"
    ]
    assert all(mount.get("readOnly") for mount in nodes)


@each_overlay
def test_node_agents_are_not_pushed_off_their_node(overlay: str) -> None:
    for pod in pods(overlay):
        if overlay == "demo":
            assert "priorityClassName" not in pod.spec
        else:
            assert pod.spec["priorityClassName"] == "system-node-critical"
            assert pod.spec["tolerations"] == [{"operator": "Exists"}]
