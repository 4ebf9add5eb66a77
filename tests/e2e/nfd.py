"""Node Feature Discovery: its worker as unprivileged as in its DaemonSet, and its master."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.api import Object
from tests.e2e.cluster import NFD_NAMESPACE, NODE, Cluster, data, free_port
from tests.e2e.kubelet import NODE_PATH
from tests.e2e.programs import PATIENCE, Program
from xelink.nfd.writer import Publisher

FEATURES = Path("/etc/kubernetes/node-feature-discovery/features.d")
_NOBODY = 65534  # whom NFD's own image runs as


def ours(node: Object) -> dict[str, str]:
    """Give the labels of our namespace."""
    labels = node.get("metadata", {}).get("labels", {})
    return {name: value for name, value in labels.items() if name.startswith("gpu.intel.com/")}


@dataclass
class Nfd:
    """Both halves of it; the worker can be told how often to read."""

    cluster: Cluster
    worker: Program = field(init=False)
    master: Program = field(init=False)

    def start(self) -> "Nfd":
        """Install it with its own manifests, and start both."""
        FEATURES.mkdir(parents=True, exist_ok=True)
        # A sidecar that does not wait at its start would make the stage just before it publishes:
        # the worker would take that event, and not the next one.
        Publisher(FEATURES / "labels.txt", FEATURES).prepare()
        self.cluster.kubectl("create", "namespace", NFD_NAMESPACE)
        for part in ("nfd-crds", "rbac"):
            self.cluster.kubectl("apply", f"--kustomize={data('nfd', part)}")
        self.cluster.kubectl(
            "wait", "--for=condition=Established", "crd/nodefeatures.nfd.k8s-sigs.io"
        )
        env = {"NODE_NAME": NODE, "KUBERNETES_NAMESPACE": NFD_NAMESPACE}
        self.master = Program(
            self.cluster.logs,
            "nfd-master",
            [
                "nfd-master",
                f"-kubeconfig={self.cluster.kubeconfig('nfd-master')}",
                f"-port={free_port()}",
            ],
            env=env,
        ).start()
        self.worker = Program(self.cluster.logs, "nfd-worker", self._worker(), env=env)
        return self

    def read_every(self, seconds: int = 60) -> None:
        """Start the worker, or start it again: between events it reads so often."""
        self.worker.stop()
        options = {"core": {"sleepInterval": f"{seconds}s"}}
        self.worker.command = [*self._worker(), f"-options={json.dumps(options)}"]
        self.worker.start()
        self.worker.wait_for("starting")

    def labeled(self, expected: Mapping[str, str], patience: float = PATIENCE) -> float:
        """Wait until the node has exactly these labels of ours; give the instant."""
        return self.cluster.api.wait(
            NODE_PATH, lambda node: ours(node) == expected, f"labels {expected}", patience
        ).at

    def stop(self) -> None:
        """Stop both."""
        self.worker.stop()
        self.master.stop()

    def _worker(self) -> list[str]:
        kubeconfig = self.cluster.kubeconfig("nfd-worker")
        os.chown(kubeconfig, _NOBODY, _NOBODY)
        features = shlex.quote(str(FEATURES))
        read_only = (
            f"mount --bind {features} {features} && mount -o remount,bind,ro {features}"
            f' && exec setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups -- "$0" "$@"'
        )
        return [
            *("unshare", "--mount", "sh", "-ec", read_only),
            "nfd-worker",
            f"-kubeconfig={kubeconfig}",
            f"-port={free_port()}",
            "-feature-sources=local",
            "-label-sources=local",
            "-owner-refs=",
        ]
