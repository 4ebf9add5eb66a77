"""The node: containerd, and kubelet with the plugin directory that it insists on."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e import image
from tests.e2e.api import Object
from tests.e2e.cluster import NODE, Cluster, free_port
from tests.e2e.programs import Program, run, until

PLUGIN_DIRECTORY = Path("/var/lib/kubelet/device-plugins")
CONTAINERD = "/run/containerd/containerd.sock"
ADDRESS = "192.0.2.1"  # of the network namespace, from tools/e2e-run.sh
STATUS_PERIOD = 2.0  # seconds; kubelet's own default is 10
RESOURCE = "gpu.intel.com/i915"
NODE_PATH = f"/api/v1/nodes/{NODE}"
PODS = "/api/v1/namespaces/default/pods"

# With two sockets, as the simulated GPUs have them; the machine may have one.
_NUMA_NODES = 2
_SYSFS_NODES = Path("/sys/devices/system/node")


@dataclass
class Runtime:
    """containerd with its images, and a bridge that gives Pods a network of their own."""

    work: Path
    logs: Path
    program: Program = field(init=False)

    def start(self) -> "Runtime":
        """Start containerd, and import the image of the tests."""
        networks = self.work / "cni"
        networks.mkdir()
        (networks / "10-e2e.conflist").write_text(json.dumps(_NETWORK))
        configuration = self.work / "containerd.toml"
        configuration.write_text(_CONTAINERD.format(work=self.work, box=image.BOX, cni=networks))
        self.program = Program(
            self.logs, "containerd", ["containerd", f"--config={configuration}"]
        ).start()
        self.program.wait_for("containerd successfully booted")
        self.load(image.box(self.work / "box.tar"))
        return self

    def load(self, archive: Path) -> None:
        """Import an image that was saved as docker-archive or oci-archive."""
        self.ctr("images", "import", str(archive))

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client where kubelet's containers are."""
        return run("ctr", f"--address={CONTAINERD}", "--namespace=k8s.io", *arguments)

    def stop(self) -> None:
        """Stop containerd; what runs in containers ends with the namespace of processes."""
        self.program.stop()


@dataclass
class Kubelet:
    """kubelet, which can be restarted, and be given another topology policy."""

    cluster: Cluster
    runtime: Runtime
    program: Program = field(init=False)

    def start(self) -> "Kubelet":
        """Start it; the node is registered and ready when this returns."""
        work = self.cluster.work
        self.configure()
        self.program = Program(
            self.cluster.logs,
            "kubelet",
            [
                "kubelet",
                f"--config={work / 'kubelet.yaml'}",
                f"--kubeconfig={self.cluster.kubeconfig('kubelet')}",
                f"--root-dir={work / 'kubelet'}",
                f"--cert-dir={work / 'kubelet-certificates'}",
                f"--hostname-override={NODE}",
                f"--node-ip={ADDRESS}",
            ],
        ).start()
        self.cluster.api.wait(NODE_PATH, _is_ready, "the node is ready")
        return self

    def configure(self, *, topology_policy: str = "none") -> None:
        """Write its configuration, which it reads when it starts."""
        (self.cluster.work / "kubelet.yaml").write_text(
            _KUBELET.format(
                runtime=CONTAINERD,
                address=ADDRESS,
                port=free_port(),
                period=STATUS_PERIOD,
                policy=topology_policy,
            )
        )

    def await_allocatable(self, number: int, resource: str = RESOURCE) -> float:
        """Wait until the node has so many allocatable devices; give the instant."""

        def offered(node: Object) -> bool:
            return int(node["status"].get("allocatable", {}).get(resource, 0)) == number

        return self.cluster.api.wait(NODE_PATH, offered, f"{number} of {resource}").at

    def restart(self) -> None:
        """Stop it and start it again; Pods go on running meanwhile."""
        self.program.stop()
        self.program.start()

    def stop(self) -> None:
        """Stop it for good."""
        self.program.stop()


def _is_ready(node: Object) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def two_numa_nodes(work: Path) -> None:
    """Show kubelet a machine of two NUMA nodes, in our namespace of mounts alone."""
    cpus = sorted(_SYSFS_NODES.glob("node*/cpu[0-9]*"), key=lambda cpu: int(cpu.name[3:]))
    fake = work / "numa"
    for number in range(_NUMA_NODES):
        node = fake / f"node{number}"
        node.mkdir(parents=True)
        real = _SYSFS_NODES / "node0"
        meminfo = (real / "meminfo").read_text()
        (node / "meminfo").write_text(
            re.sub(r"^Node 0", f"Node {number}", meminfo, flags=re.MULTILINE)
        )
        (node / "distance").write_text("10 21\n" if number == 0 else "21 10\n")
        own = cpus[number::_NUMA_NODES]
        (node / "cpulist").write_text(",".join(cpu.name[3:] for cpu in own) + "\n")
        for cpu in own:
            (node / cpu.name).symlink_to(Path("/sys/devices/system/cpu") / cpu.name)
    (fake / "online").write_text("0-1\n")
    (fake / "possible").write_text("0-1\n")
    run("mount", "--bind", str(fake), str(_SYSFS_NODES))


def one_numa_node() -> None:
    """Show the machine as it is again."""
    run("umount", str(_SYSFS_NODES))


def sockets() -> set[str]:
    """Name every socket in kubelet's directory but its own."""
    return {path.name for path in PLUGIN_DIRECTORY.glob("*.sock")} - {"kubelet.sock"}


def no_sockets() -> None:
    """Wait until no plugin has left a socket."""
    until(lambda: not sockets(), "kubelet's directory has no socket of a plugin")


_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "e2e",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "e2e0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/e2e-networks",
                "ranges": [[{"subnet": "198.51.100.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}

# restrict_oom_score_adj: without it runc may not lower a score where we may not either.
_CONTAINERD = """\
version = 2
root = "{work}/containerd"
state = "/run/containerd"
[plugins."io.containerd.internal.v1.opt"]
  path = "{work}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{box}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""

_KUBELET = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
port: {port}
healthzPort: 0
readOnlyPort: 0
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
containerRuntimeEndpoint: unix://{runtime}
registerNode: true
nodeStatusUpdateFrequency: {period}s
topologyManagerPolicy: {policy}
evictionHard: {{}}
imageGCHighThresholdPercent: 100
podLogsDir: /var/log/pods
shutdownGracePeriod: 0s
"""
