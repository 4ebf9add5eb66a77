"""The demo as its DaemonSet says it: every container as a process, up to a Pod with linked GPUs.

What a cluster would do is done here: hostPath volumes are directories below a temporary one, the
network is this machine's with other ports, and capabilities are dropped where we have any.
"""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_plugin.settings import PluginSettings
from sidecar.settings import SidecarSettings
from tests.deployment.rendering import OVERLAYS, Pod, needs_kustomize, pods, render
from tests.patience import PATIENCE
from tests.processes import Running, address, get
from xelink.daemon.flags import DaemonSettings, load
from xelink.simulators.kubelet.admission import AdmittedPod as Admitted
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NULL_DEVICE
from xelink.simulators.xpu_manager import Blueprint

pytestmark = needs_kustomize

I915 = "gpu.intel.com/i915"
SETTINGS: Mapping[str, type[DaemonSettings]] = {
    "xelink-sidecar": SidecarSettings,
    "xelink-device-plugin": PluginSettings,
}
MESH = Blueprint(gpus=8, tiles=2).build().topology.links
KUBELET = "kubelet"
ACTORS = (KUBELET, "xpumanager", "xelink-sidecar", "xelink-device-plugin")


def the(kind: str) -> dict[str, Any]:
    (found,) = [each for each in render("demo") if each["kind"] == kind]
    return found


def demo() -> Pod:
    (pod,) = pods("demo")
    return pod


def settings(name: str) -> DaemonSettings:
    return load(SETTINGS[name], demo().container(name)["args"]).settings


def sample() -> dict[str, Any]:
    pod: dict[str, Any] = yaml.safe_load((OVERLAYS / "demo/pod.yaml").read_text())
    return pod


class Node:
    """A host below a temporary directory, with the demo's Pod as processes, and a kubelet."""

    def __init__(self, host: Path, stack: ExitStack) -> None:
        self.host = host
        self.running: dict[str, Running] = {}
        self._stack = stack
        self.xpum_port = _free_port()
        self.volumes = {name: each["hostPath"]["path"] for name, each in demo().volumes.items()}
        for path in self.volumes.values():
            self.at(path).mkdir(parents=True)
        self.kubelet = Kubelet(self.at(self.volumes["kubeletsockets"]))
        self.features = self.at("/etc/kubernetes/node-feature-discovery/features.d/xelink-demo.txt")

    def at(self, path: str | Path) -> Path:
        """Give what stands for a path of the host."""
        return self.host / str(path).strip("/")

    def start(self, name: str) -> None:
        if name == KUBELET:
            self._stack.enter_context(self.kubelet)
            return
        container = demo().container(name)
        module, *arguments = _module(container)
        if not can_make_devices():
            arguments = [word for word in arguments if word != "--device-nodes"]
        self.running[name] = self._stack.enter_context(
            Running(
                module,
                *(self._placed(container, word) for word in arguments),
                *self._moved(container),
                before=_confined(container),
            )
        )

    def _placed(self, container: dict[str, Any], argument: str) -> str:
        """Give an argument of a simulator its path here."""
        for mount in container.get("volumeMounts", ()):
            # One replacement is enough as long as containers have volumes where the host has them.
            assert mount["mountPath"] == self.volumes[mount["name"]]
            argument = argument.replace(f"={mount['mountPath']}", f"={self.at(mount['mountPath'])}")
        return argument

    def _moved(self, container: dict[str, Any]) -> Iterator[str]:
        """Give later, winning flags for what cannot be here as it is in the container."""
        name = container["name"]
        if name == "xpumanager":
            yield f"--port={self.xpum_port}"
        if name not in SETTINGS:
            return
        yield "-listen=127.0.0.1:0"
        mounted = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        for field, value in settings(name).model_dump().items():
            if isinstance(value, Path) and any(value.is_relative_to(place) for place in mounted):
                yield f"-{field.replace('_', '-')}={self.at(value)}"
        if name == "xelink-sidecar":
            yield f"-xpum-port={self.xpum_port}"

    def cut(self, *links: str) -> None:
        """Cut links at the simulated XPU Manager, as `kubectl port-forward` and curl would."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.xpum_port}/control/cut",
            data=json.dumps({"links": links}).encode(),
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310 - our own address
            assert answer.status == 200


def _module(container: dict[str, Any]) -> tuple[str, ...]:
    """Give the module that a command runs, and all of its arguments."""
    command = [*container["command"], *container["args"]]
    if command[:2] == ["python", "-m"]:
        return tuple(command[2:])
    (script,) = entry_points(group="console_scripts", name=command[0])
    return script.module, *command[1:]


def _confined(container: dict[str, Any]) -> tuple[str, ...]:
    """Drop the capabilities that the container drops, where we may and setpriv is there.

    Where it is not, one test below says so.
    """
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    kept = "".join(f",+{name.lower()}" for name in capabilities.get("add", ()))
    words = ("setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all{kept}")
    return words if _runs(*words, "true") else ()


@cache
def _runs(*command: str) -> bool:
    return (
        bool(shutil.which(command[0]))
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@cache
def can_make_devices() -> bool:
    """Tell whether we may make device nodes: as root, and in no user namespace."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            os.mknod(f"{directory}/null", stat.S_IFCHR | 0o666, os.makedev(*NULL_DEVICE))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def node() -> Iterator[Node]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name, ExitStack() as stack:
        node = Node(Path(name), stack)
        node.start("node")
        assert node.running["node"].wait() == 0, node.running["node"].lines
        yield node


def started(node: Node, order: tuple[str, ...]) -> None:
    for name in order:
        node.start(name)
    node.kubelet.wait_for_capacity(I915, 8)
    node.running["xelink-device-plugin"].wait_for('state="in use" pairs=28')


def two_gpus(node: Node) -> Admitted:
    limits = sample()["spec"]["containers"][0]["resources"]["limits"]
    pod = node.kubelet.run_pod("two-gpus", I915, limits[I915])
    node.kubelet.delete_pod("two-gpus")
    return pod


@pytest.mark.parametrize("order", [ACTORS, ACTORS[::-1]], ids=["in order", "backwards"])
def test_a_pod_gets_linked_gpus_in_whatever_order_things_start(
    node: Node, order: tuple[str, ...]
) -> None:
    started(node, order)
    pod = two_gpus(node)
    assert set(pod.ids) == {"card1-0", "card2-0"}
    assert pod.env["XELINK_LINKED"] == "all"
    assert pod.env["XELINK_LINKS"].endswith("=8")

    node.cut(*(str(link) for link in MESH if link.a.device == 0))
    node.running["xelink-sidecar"].wait_for("lost=")
    node.running["xelink-device-plugin"].wait_for('state="in use" pairs=21')
    assert set(two_gpus(node).ids) == {"card2-0", "card3-0"}


def test_the_sample_pod_prints_what_it_was_given_and_opens_its_devices(
    node: Node, tmp_path: Path
) -> None:
    if not can_make_devices():
        pytest.skip("device nodes take root and CAP_MKNOD")
    started(node, ACTORS)
    pod = two_gpus(node)
    for device in pod.response.devices:  # as the container runtime does
        there = Path(device.host_path).stat()
        assert stat.S_ISCHR(there.st_mode)
        here = tmp_path / device.container_path.strip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(here, there.st_mode, there.st_rdev)
    (container,) = sample()["spec"]["containers"]
    assert container["command"] == ["python", "-c"]
    (program,) = container["args"]
    printed = subprocess.run(
        [sys.executable, "-c", program.replace("/dev/dri", str(tmp_path / "dev/dri"))],
        env=pod.env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.replace(str(tmp_path), "")
    assert printed == (
        "XELINK_GPUS=0000:29:00.0,0000:3a:00.0\n"
        "XELINK_LINKS=0000:29:00.0-0000:3a:00.0=8\n"
        "XELINK_LINKED=all\n"
        "/dev/dri/card1 opens\n"
        "/dev/dri/card2 opens\n"
        "/dev/dri/renderD128 opens\n"
        "/dev/dri/renderD129 opens\n"
    )


def test_the_sample_pod_prints_once_and_gives_its_gpus_back() -> None:
    assert sample()["spec"]["restartPolicy"] == "Never"


def test_the_containers_run_with_no_privilege_but_their_own(node: Node) -> None:
    """Else the other tests here say less than they seem to."""
    container = demo().container("xelink-sidecar")
    if not (_confined(container) and can_make_devices()):
        pytest.skip("to drop capabilities, and to keep CAP_MKNOD, takes root and setpriv")
    started(node, ACTORS)
    for name, process in node.running.items():
        if name == "node":
            continue
        lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t") for line in lines)
        assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd")} == {0}, name
        assert status["NoNewPrivs"] == "1", name
    made = [path for path in node.host.rglob("card*") if path.is_char_device()]
    assert len(made) >= 8, "by the one that has CAP_MKNOD"


def test_probes_are_answered_and_what_is_deleted_leaves_no_label_and_no_socket(node: Node) -> None:
    for name in ACTORS:
        node.start(name)
    sidecar, plugin = (node.running[name] for name in SETTINGS)
    urls = {name: address(node.running[name]) for name in SETTINGS}
    sidecar.wait_for("labels published")
    plugin.wait_for("event=registered")
    node.kubelet.wait_for_capacity(I915, 8)
    for name, url in urls.items():
        for probe in ("livenessProbe", "readinessProbe"):
            assert get(url + demo().container(name)[probe]["httpGet"]["path"])[0] == 200
    assert node.features.is_file()
    for name in ACTORS[1:]:
        assert node.running[name].stop(signal.SIGTERM) == 0
    left = {
        str(path.relative_to(node.host))
        for path in node.host.rglob("*")
        if not path.is_dir() and path != node.kubelet.socket
    }
    assert left
    assert {Path(path).parts[:3] for path in left} == {("var", "lib", "xelink-demo")}


def test_no_real_sidecar_or_plugin_is_disturbed() -> None:
    sidecar, plugin = settings("xelink-sidecar"), settings("xelink-device-plugin")
    assert isinstance(sidecar, SidecarSettings)
    assert isinstance(plugin, PluginSettings)
    assert sidecar.dst_file_path == plugin.label_file
    assert sidecar.dst_file_path != SidecarSettings.model_fields["dst_file_path"].default
    assert not plugin.cdi
    # On the same socket as a real one, it does not start.
    assert plugin.socket_name is PluginSettings.model_fields["socket_name"].default
    assert not demo().on_host_network
    (term,) = demo().spec["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "intel.feature.node.kubernetes.io/gpu", "operator": "DoesNotExist"}
    ]


def test_all_of_it_is_in_a_namespace_of_its_own_and_the_sample_pod_too() -> None:
    name = the("Namespace")["metadata"]["name"]
    assert name == "xelink-demo"
    assert {
        each["metadata"]["namespace"]
        for each in (*render("demo"), sample())
        if each["kind"] != "Namespace"
    } == {name}


def test_kubelet_probes_the_address_on_which_the_daemons_listen() -> None:
    for name in SETTINGS:
        container = demo().container(name)
        (port,) = container["ports"]
        assert load(SETTINGS[name], container["args"]).settings.model_dump()["listen"] == (
            f":{port['containerPort']}"
        )
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == port["name"]
            assert "host" not in container[probe]["httpGet"]


def test_only_the_container_that_makes_device_nodes_has_a_capability() -> None:
    assert {
        container["name"]: container["securityContext"]["capabilities"].get("add", [])
        for container in demo().containers
    } == {
        "node": ["MKNOD"],
        "xpumanager": [],
        "xelink-sidecar": [],
        "xelink-device-plugin": [],
    }
