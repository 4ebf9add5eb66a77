"""Pods that ask for GPUs, and tell in their log what they were given."""

import re
from dataclasses import dataclass
from typing import Any

from tests.e2e import image
from tests.e2e.api import Api, Object, Seen
from tests.e2e.cluster import NODE
from tests.e2e.kubelet import PODS, RESOURCE
from tests.e2e.programs import until

# What a container says of itself: its environment, what of /dev/dri it can open, its mounts.
_REPORT = r"""
env | while read -r line; do echo "env $line"; done
for node in /dev/dri/card* /dev/dri/renderD* /dev/dri/by-path/*; do
  [ -c "$node" ] || continue
  if true <"$node" && echo x >"$node"; then echo "opened $node"; else echo "refused $node"; fi
done
while read -r _ path _; do echo "mount $path"; done </proc/mounts
echo complete
trap exit TERM
sleep 1000000 & wait
"""


@dataclass(frozen=True)
class Report:
    """What a container was given."""

    environment: dict[str, str]
    opened: frozenset[str]
    refused: frozenset[str]
    mounts: frozenset[str]

    @property
    def gpus(self) -> frozenset[str]:
        """The PCI addresses that it was told."""
        return frozenset(filter(None, self.environment["XELINK_GPUS"].split(",")))

    @property
    def cards(self) -> frozenset[str]:
        """The cards that it can open."""
        return self._opened(r"card\d+")

    @property
    def renders(self) -> frozenset[str]:
        """The render nodes that it can open."""
        return self._opened(r"renderD\d+")

    def _opened(self, kind: str) -> frozenset[str]:
        found = (re.fullmatch(rf"/dev/dri/({kind})", path) for path in self.opened)
        return frozenset(match[1] for match in found if match)


class Pods:
    """Makes Pods in the default namespace, and takes them away again."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._made: list[str] = []

    def create(
        self, name: str, gpus: int, resource: str = RESOURCE, *, scheduled: bool = True
    ) -> None:
        """Create a Pod that asks for so many GPUs; not `scheduled`, it is put on the node."""
        pod = manifest(name, gpus, resource)
        if not scheduled:
            pod["spec"]["nodeName"] = NODE
        self._api.create(PODS, pod)
        self._made.append(name)

    def run(self, name: str, gpus: int, resource: str = RESOURCE) -> Report:
        """Create a Pod, and wait until it runs and has told what it was given."""
        self.create(name, gpus, resource)
        self.running(name)
        return self.report(name)

    def let_in(self, name: str, gpus: int) -> None:
        """See a Pod let in by kubelet, and take it away; one that is refused is an error."""
        self._api.create(PODS, manifest(name, gpus, script="true"))
        self._made.append(name)

        def begun(pod: Object) -> bool:
            assert _phase(pod) != "Failed", why(pod)
            return _phase(pod) in {"Running", "Succeeded"}

        self._api.wait(f"{PODS}/{name}", begun, f"{name} begins")
        self._api.delete(f"{PODS}/{name}")

    def running(self, name: str) -> Seen:
        """Wait until a Pod runs; one that failed is an error, with kubelet's reason."""

        def settled(pod: Object) -> bool:
            assert _phase(pod) != "Failed", why(pod)
            return _phase(pod) == "Running"

        return self._api.wait(f"{PODS}/{name}", settled, f"{name} runs")

    def failed(self, name: str) -> str:
        """Wait until kubelet has refused a Pod; give why."""
        seen = self._api.wait(
            f"{PODS}/{name}", lambda pod: _phase(pod) == "Failed", f"{name} is refused"
        )
        return why(seen.object)

    def pending(self, name: str) -> str:
        """Wait until the scheduler has found no node for a Pod; give why."""
        seen = self._api.wait(f"{PODS}/{name}", _unschedulable, f"{name} finds no node")
        return str(_unschedulable(seen.object))

    def get(self, name: str) -> Object:
        """Give a Pod as it is now."""
        return self._api.get(f"{PODS}/{name}")

    def report(self, name: str) -> Report:
        """Give what a running Pod has told; its log may come a moment after it runs."""

        def told() -> list[str] | None:
            lines = self._api.text(f"{PODS}/{name}/log").splitlines()
            return lines if "complete" in lines else None

        said: dict[str, list[str]] = {}
        for line in until(told, f"{name} tells what it was given"):
            kind, _, value = line.partition(" ")
            said.setdefault(kind, []).append(value)
        environment = dict(line.partition("=")[::2] for line in said.get("env", []))
        return Report(
            environment,
            frozenset(said.get("opened", [])),
            frozenset(said.get("refused", [])),
            frozenset(said.get("mount", [])),
        )

    def delete(self, *names: str) -> None:
        """Delete Pods, and wait until kubelet has ended them."""
        for name in names:
            self._api.delete(f"{PODS}/{name}")
        for name in names:
            self._api.wait(f"{PODS}/{name}", lambda pod: not pod, f"{name} is gone")
            self._made.remove(name)

    def delete_all(self) -> None:
        """Delete what is left of what was made here."""
        self.delete(*self._made)


def why(pod: Object) -> str:
    """Give kubelet's reason and message for a Pod that failed."""
    status = pod["status"]
    return f"{status.get('reason', '')}: {status.get('message', '')}"


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _unschedulable(pod: Object) -> str | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition["message"])
    return None


def manifest(
    name: str, gpus: int, resource: str = RESOURCE, *, script: str = _REPORT
) -> dict[str, Any]:
    """Give a Pod of one container that runs a script, and asks for so many GPUs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": image.BOX,
                    "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", script],
                    "resources": {"limits": {resource: str(gpus)} if gpus else {}},
                }
            ],
        },
    }
