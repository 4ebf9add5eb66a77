"""Hollow nodes: nodes of the API server whose kubelet says that every Pod runs and is ready.

The real controllers, scheduler and API server do the rest. No container runs here, so what Pods do
is told elsewhere; where they go, and when a rollout has ended, is told by these.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Self

from tests.e2e.api import Api, NotThereError, Object

NODES = "/api/v1/nodes"
_LOOK = 0.1
_HEARTBEAT = 5.0  # seconds; the controllers take a node for lost after 50


class Hollow:
    """Some nodes, by name with their labels, and what stands for their kubelets."""

    def __init__(self, api: Api, nodes: Mapping[str, Mapping[str, str]]) -> None:
        self._api = api
        self._nodes = nodes
        self._end = Event()
        self._kubelets = Thread(target=self._work)
        self._failed: Exception | None = None

    def __enter__(self) -> Self:
        """Make the nodes."""
        for name, labels in self._nodes.items():
            metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}
            self._api.create(NODES, {"metadata": metadata, "status": _status({})})
        self._kubelets.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take them away, and their Pods at once; raise what a kubelet died of."""
        self._end.set()
        self._kubelets.join()
        for name in self._nodes:
            self._api.delete(f"{NODES}/{name}")
        for pod in self._pods():
            self._api.delete(f"{_path(pod)}?gracePeriodSeconds=0")
        if self._failed:
            raise self._failed

    def offer(self, name: str, resources: Mapping[str, str]) -> None:
        """Let a node offer resources, as a device plugin would."""
        self._api.patch(f"{NODES}/{name}/status", {"status": _status(resources)})

    def label(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Label a node, as NFD would; None takes a label off."""
        self._api.patch(f"{NODES}/{name}", {"metadata": {"labels": labels}})

    def _work(self) -> None:
        try:
            beats = 0.0
            while not self._end.wait(_LOOK):
                beats += _LOOK
                if beats >= _HEARTBEAT:
                    beats = 0.0
                    self._beat()
                for pod in self._pods():
                    self._run(pod)
        except Exception as error:  # noqa: BLE001 - the story that waits for it shall tell it
            self._failed = error

    def _beat(self) -> None:
        for name in self._nodes:
            self._api.patch(f"{NODES}/{name}/status", {"status": {"conditions": [_ready()]}})

    def _pods(self) -> list[Object]:
        pods: list[Object] = self._api.get("/api/v1/pods")["items"]
        return [pod for pod in pods if pod["spec"].get("nodeName") in self._nodes]

    def _run(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            self._api.delete(f"{_path(pod)}?gracePeriodSeconds=0")
        elif pod["status"]["phase"] == "Pending":
            running = {"phase": "Running", "conditions": [_ready()]}
            try:
                self._api.patch(f"{_path(pod)}/status", {"status": running})
            except NotThereError:
                return  # deleted meanwhile


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _ready() -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    return {"type": "Ready", "status": "True", **times}


def _status(resources: Mapping[str, str]) -> Object:
    all_of_it = {"cpu": "8", "memory": "16Gi", "pods": "110", **resources}
    return {
        "capacity": all_of_it,
        "allocatable": all_of_it,
        "conditions": [_ready()],
        "nodeInfo": {"kubeletVersion": "v1.36.3"},
    }
