"""The plugin as a process on a simulated node, beside a simulated kubelet."""

import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.processes import Running, address, get, running
from xelink.inventory import cdi
from xelink.simulators.kubelet.admission import AdmissionError
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode
from xelink.topology.publication import Publication, render

I915 = "gpu.intel.com/i915"
XE = "gpu.intel.com/xe"
MONITORING = "gpu.intel.com/monitoring"
# Cards 1 to 4 are on one socket, 5 to 8 on the other; the fallback is the first of them.
PAIRS = Blueprint(gpus=8, tiles=2, wiring="none").build()


class Scene:
    """A node, a kubelet and a feature file in one short directory."""

    def __init__(self, directory: Path, kubelet: Kubelet) -> None:
        self.directory = directory
        self.kubelet = kubelet
        self.node = NodeTree.eight_max_1550(directory / "n")
        self.gpus = [gpu for gpu in self.node.gpus if gpu.driver == "i915"]
        self.labels = directory / "labels.txt"

    def publish(self, node: SimulatedNode, life: float = 300) -> None:
        """Put a feature file in place as the sidecar does."""
        expiry = datetime.now(UTC) + timedelta(seconds=life)
        staged = self.directory / "staged"
        staged.write_bytes(render(Publication(node.topology, expiry), "gpu.intel.com"))
        staged.rename(self.labels)

    @contextmanager
    def plugin(self, *more: str) -> Iterator[Running]:
        arguments = [
            f"-prefix={self.directory / 'n'}",
            f"-plugin-dir={self.kubelet.directory}",
            f"-label-file={self.labels}",
            f"-cdi-dir={self.directory / 'cdi'}",
            "-listen=127.0.0.1:0",
            *more,
        ]
        with running("device_plugin", *arguments) as process:
            yield process

    def pod(self, size: int, resource: str = I915) -> set[str]:
        """Run a Pod, note what it got, and delete it."""
        pod = self.kubelet.run_pod("pod", resource, size)
        self.kubelet.delete_pod("pod")
        return {device.removesuffix("-0") for device in pod.ids}


@pytest.fixture
def scene() -> Iterator[Scene]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        directory = Path(name)
        with Kubelet(directory / "k") as kubelet:
            yield Scene(directory, kubelet)


def linked(*links: str) -> SimulatedNode:
    """Wire a node with just these links."""
    mesh = Blueprint(gpus=8, tiles=2).build()
    return mesh.cut(*(str(link) for link in mesh.links if str(link) not in links))


def test_preference_follows_the_labels_as_they_appear_change_and_expire(scene: Scene) -> None:
    with scene.plugin() as process:
        url = address(process)
        scene.kubelet.wait_for_capacity(I915, 8)
        process.wait_for("event=links state=missing")
        assert scene.pod(2) == {"card1", "card2"}

        scene.publish(linked("1.0-6.0", "1.1-6.1", "2.0-3.0"))
        process.wait_for('state="in use" pairs=2')
        assert scene.pod(2) == {"card2", "card7"}
        assert scene.pod(1) == {"card1"}
        code, text = get(f"{url}/readyz")
        assert (code, text) == (200, "links in use\n")

        scene.publish(linked("2.0-3.0"))
        process.wait_for('state="in use" pairs=1')
        assert scene.pod(2) == {"card3", "card4"}

        scene.publish(linked("1.0-6.0"), life=-1)
        process.wait_for("event=links state=expired")
        assert scene.pod(2) == {"card1", "card2"}
        assert get(f"{url}/readyz")[0] == 200
        metrics = get(f"{url}/metrics")[1]
        assert 'xelink_device_plugin_feature_file_state{state="expired"} 1.0' in metrics
        assert process.stop() == 0


def test_labels_expire_without_any_change_of_the_file_and_allocations_go_on(scene: Scene) -> None:
    with scene.plugin() as process:
        scene.kubelet.wait_for_capacity(I915, 8)
        process.wait_for("event=links state=missing")
        state, while_in_use = "", set[str]()
        for life in (3, 20, 100):  # on a machine that is too slow for the first, they live longer
            scene.publish(linked("1.0-6.0"), life=life)
            state = process.wait_for("event=links state=")
            while_in_use = scene.pod(2)
            if 'state="in use"' in state:
                process.wait_for("event=links state=expired")
                if while_in_use == {"card2", "card7"}:
                    break
        assert 'state="in use" pairs=1' in state
        assert while_in_use == {"card2", "card7"}
        assert scene.pod(2) == {"card1", "card2"}


def test_where_links_are_required_a_pod_gets_linked_gpus_or_none(scene: Scene) -> None:
    scene.publish(linked("1.0-6.0"))
    with scene.plugin("-require-links") as process:
        process.wait_for('state="in use" pairs=1')
        scene.kubelet.wait_for_capacity(I915, 8)
        assert scene.pod(2) == {"card2", "card7"}
        with pytest.raises(AdmissionError, match="1 of 3 pairs of these GPUs are linked"):
            scene.pod(3)
        assert scene.pod(1) == {"card1"}


@pytest.mark.parametrize("root", ["/", "/var/lib/tree"])
def test_the_runtime_is_sent_below_the_device_root(scene: Scene, root: str) -> None:
    dev = Path(root) / "dev"
    with scene.plugin(f"-device-root={root}", "-enable-monitoring"):
        scene.kubelet.wait_for_capacity(I915, 8)
        scene.kubelet.wait_for_capacity(MONITORING, 1)
        answer = scene.kubelet.run_pod("pod", I915, 1).response
        every = scene.kubelet.run_pod("monitor", MONITORING, 1).response
        spec = json.loads((scene.directory / "cdi" / cdi.FILE_NAME).read_text())
    edits = spec["devices"][0]["containerEdits"]
    pairs = {
        "device": [(one.container_path, one.host_path) for one in answer.devices],
        "mount": [(one.container_path, one.host_path) for one in answer.mounts],
        "monitoring": [(one.container_path, one.host_path) for one in every.devices],
        "CDI device": [(one["path"], one["hostPath"]) for one in edits["deviceNodes"]],
        "CDI mount": [(one["containerPath"], one["hostPath"]) for one in edits["mounts"]],
    }
    for what, found in pairs.items():
        assert found, what
        assert all(
            inside.startswith("/dev/") and host == str(dev / inside.removeprefix("/dev/"))
            for inside, host in found
        ), what


def test_a_container_gets_its_devices_and_is_told_how_they_are_linked(scene: Scene) -> None:
    scene.publish(linked("1.0-6.0", "1.1-6.1"))
    with scene.plugin() as process:
        process.wait_for('state="in use" pairs=1')
        scene.kubelet.wait_for_capacity(I915, 8)
        answer = scene.kubelet.run_pod("pod", I915, 2).response
        assert "linked=all preference=followed" in process.wait_for("event=allocated")
    assert {device.container_path for device in answer.devices} == {
        "/dev/dri/card2",
        "/dev/dri/renderD129",
        "/dev/dri/card7",
        "/dev/dri/renderD134",
    }
    assert answer.envs["XELINK_LINKED"] == "all"
    assert answer.envs["XELINK_GPUS"] == "0000:3a:00.0,0000:ca:00.0"
    assert [device.name for device in answer.cdi_devices] == [
        "intel.cdi.k8s.io/gpu=card2",
        "intel.cdi.k8s.io/gpu=card7",
    ]
    assert [path.suffix for path in (scene.directory / "cdi").iterdir()] == [".json"]


def test_kubelet_restarts_a_hundred_times_and_nothing_leaks(scene: Scene) -> None:
    scene.publish(linked("1.0-6.0"))
    with scene.plugin() as process:
        scene.kubelet.wait_for_capacity(I915, 8)

        def held() -> tuple[int, int, int]:
            root = Path(f"/proc/{process.process.pid}")
            status = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines())
            return (
                len(list((root / "fd").iterdir())),
                int(status["Threads"]),
                int(status["VmRSS"].split()[0]),
            )

        def restart(times: int) -> tuple[int, int, int]:
            for _ in range(times):
                scene.kubelet.restart()
                scene.kubelet.wait_for_capacity(I915, 8)
            return held()

        warm = restart(20)  # what caches and pools settle on is no leak
        descriptors, threads, memory = restart(80)
        assert descriptors <= warm[0] + 5
        assert threads <= warm[1] + 2
        assert memory <= warm[2] * 1.1
        assert scene.pod(2) == {"card2", "card7"}
        assert process.stop() == 0


def test_killed_and_restarted_it_serves_again_and_running_pods_keep_theirs(scene: Scene) -> None:
    with scene.plugin() as process:
        scene.kubelet.wait_for_capacity(I915, 8)
        kept = set(scene.kubelet.run_pod("long", I915, 2).ids)
        process.stop(signal.SIGKILL)
    scene.kubelet.wait_for_allocatable(I915, 0)
    with scene.plugin():
        scene.kubelet.wait_for_allocatable(I915, 8)
        assert set(scene.kubelet.pods["long"].ids) == kept
        assert not kept & set(scene.kubelet.run_pod("next", I915, 6).ids)


def test_two_instances_overlap_and_the_resource_never_drops_to_zero(scene: Scene) -> None:
    with scene.plugin("-socket-name=unique") as old:
        scene.kubelet.wait_for_allocatable(I915, 8)
        with scene.plugin("-socket-name=unique") as new:
            new.wait_for("event=registered")
            assert old.stop() == 0
            assert scene.pod(8)
            assert 0 not in scene.kubelet.history(I915)[1:]


def test_gpus_come_go_break_and_change_their_driver(scene: Scene) -> None:
    gone, other, *_ = scene.gpus
    with scene.plugin() as process:
        scene.kubelet.wait_for_capacity(I915, 8)
        scene.node.lose_node(other.bdf)
        scene.kubelet.wait_for_allocatable(I915, 7)
        scene.node.repair(other.bdf)
        scene.kubelet.wait_for_allocatable(I915, 8)
        scene.node.remove(gone.bdf)
        scene.kubelet.wait_for_allocatable(I915, 7)
        scene.node.add(gone)
        scene.kubelet.wait_for_allocatable(I915, 8)
        scene.node.rebind(gone.bdf, "xe")
        scene.kubelet.wait_for_allocatable(XE, 1)
        scene.kubelet.wait_for_allocatable(I915, 7)
        assert process.stop() == 0


def test_a_socket_that_answers_is_someone_else(scene: Scene) -> None:
    with scene.plugin() as process:
        scene.kubelet.wait_for_capacity(I915, 8)
        with scene.plugin() as second:
            assert second.wait() == 1
            assert "gpu.intel.com-i915.sock" in second.lines[-1]
        assert process.process.poll() is None
        assert scene.pod(2)


def test_without_gpus_it_waits_and_registers_nothing(scene: Scene) -> None:
    for gpu in scene.gpus:
        scene.node.remove(gpu.bdf)
    with scene.plugin() as process:
        process.wait_for("event=links")
        assert scene.kubelet.registrations == ()
        scene.node.add(scene.gpus[0])
        scene.kubelet.wait_for_capacity(I915, 1)
        assert process.stop() == 0
