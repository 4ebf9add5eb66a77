"""kubelet's side of the device plugin API: registration, device accounting, admission of Pods.

In a test, a demo, or anywhere in Python::

    with Kubelet(directory) as kubelet:      # serves directory/kubelet.sock
        kubelet.wait_for_capacity("gpu.intel.com/i915", 8)
        pod = kubelet.run_pod("train", "gpu.intel.com/i915", 4)
        pod.ids, pod.response                # what it got
        kubelet.restart()                    # forgets every plugin, keeps its Pods
        kubelet.faults.refuse("no")          # until faults.clear()

Everything blocks and may be called from any thread; from asyncio, through `asyncio.to_thread`.
How it calls a plugin is what the real one does:
https://github.com/kubernetes/kubernetes/tree/master/pkg/kubelet/cm/devicemanager
"""

import random
import re
import stat
import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from xelink.api import deviceplugin_pb2 as pb
from xelink.api import grpc
from xelink.api.deviceplugin_pb2_grpc import (
    RegistrationServicer,
    add_RegistrationServicer_to_server,
)
from xelink.simulators.bounds import BOUNDS, MOST_CALLS
from xelink.simulators.kubelet.admission import (
    AdmissionError,
    AdmittedPod,
    ContainerRequest,
    Devices,
    choose,
)
from xelink.simulators.kubelet.faults import KubeletFaults
from xelink.simulators.kubelet.plugin_client import DialError, PluginClient, StreamHandlers
from xelink.simulators.kubelet.state import KubeletState, Registered

VERSION = "v1beta1"
SOCKET = "kubelet.sock"

_WORKERS = 8
_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", re.ASCII)


if TYPE_CHECKING:
    from xelink.api.deviceplugin_pb2_grpc import _ServicerContext as _Context


class Kubelet(KubeletState, RegistrationServicer):
    """A kubelet on a directory of sockets.

    `keyed_by_name` makes it identify an instance of a plugin by its resource alone, as 1.36 does:
    when an old instance leaves, the new one is disconnected
    (https://github.com/kubernetes/kubernetes/pull/135437). `seed` decides every order that means
    nothing to the real one.
    """

    def __init__(self, directory: Path, *, keyed_by_name: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.directory = directory
        self.socket = directory / SOCKET
        self.faults = KubeletFaults()
        self._keyed_by_name = keyed_by_name
        self._random = random.Random(seed)  # noqa: S311 - no secret, a shuffle
        self._admission = threading.Lock()
        self._server: grpc.Server | None = None
        self._workers: ThreadPoolExecutor | None = None

    # Life

    def start(self) -> Self:
        """Delete every socket in the directory, as a starting kubelet does, and listen."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.wipe_sockets()
        self._listen()
        return self

    def stop(self) -> None:
        """Stop listening and end every stream; the socket file is left, as after a kill.

        In this order: the real one ends both with its process, and never answers a registration
        that the end of a stream has brought about.
        """
        self._close()
        with self._changed:
            clients = [client for clients in self._clients.values() for client in clients]
            self._clients.clear()
            for resource in [*self._devices]:
                self._devices[resource] = Devices()
                self._note(resource)
        for client in clients:
            client.close()

    def restart(self, downtime: float = 0.0) -> None:
        """Stop and, so many seconds later, start; a real one takes 2.5 s.

        Capacities are 0 until plugins register again, Pods are left alone.
        """
        self.stop()
        threading.Event().wait(downtime)
        self.start()

    def listen_anew(self) -> None:
        """Replace `kubelet.sock`, and go on with every plugin."""
        self._close()
        self._listen()

    def _listen(self) -> None:
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="kubelet")
        self._server = grpc.server(
            self._workers, options=BOUNDS, maximum_concurrent_rpcs=MOST_CALLS
        )
        add_RegistrationServicer_to_server(self, self._server)
        # Moved into place: gRPC would remove the path that it has bound, and a kubelet that was
        # killed leaves its socket.
        born = self.socket.with_name(f".kubelet-{self._random.randrange(1 << 32):x}")
        self._server.add_insecure_port(f"unix:{born}")
        self._server.start()
        born.replace(self.socket)

    def _close(self) -> None:
        server, self._server = self._server, None
        workers, self._workers = self._workers, None
        if server and workers:
            self.faults.clear()
            server.stop(None).wait()
            workers.shutdown()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # Misbehavior

    def wipe_sockets(self) -> None:
        """Delete every socket in the directory but our own; connections live on."""
        for path in self.directory.iterdir():
            with suppress(FileNotFoundError):  # gone, or moved, meanwhile
                if path != self.socket and stat.S_ISSOCK(path.lstat().st_mode):
                    path.unlink()

    def lose_streams(self) -> None:
        """Close the connection to every plugin, and accept registrations as before."""
        with self._changed:
            clients = [client for clients in self._clients.values() for client in clients]
        for client in clients:
            client.close()

    # Pods

    def run_pod(
        self,
        name: str,
        resource: str,
        devices: int,
        *,
        init: int = 0,
        numa: Iterable[int] | None = None,
    ) -> AdmittedPod:
        """Admit a Pod with one container that asks for so many devices.

        `init` gives it an init container before, whose devices the container takes over. `numa` are
        the NUMA nodes that a topology manager wants it on, None when there is none. Raises
        `AdmissionError`, and `ValueError` when there is a Pod of that name.
        """
        affinity = None if numa is None else frozenset(numa)
        with self._admission:
            if name in self.pods:
                raise ValueError(f"there is a Pod {name} already")
            if init:
                first = self._admit(name, ContainerRequest(init, numa=affinity), resource)
                pod = self._admit(name, ContainerRequest(devices, first.held, affinity), resource)
            else:
                pod = self._admit(name, ContainerRequest(devices, numa=affinity), resource)
            with self._changed:
                self._pods[name] = pod
            return pod

    def delete_pod(self, name: str) -> None:
        """End a Pod; its devices are free again. Raises `KeyError` when there is none."""
        with self._changed:
            del self._pods[name]

    def _admit(self, name: str, request: ContainerRequest, resource: str) -> AdmittedPod:
        with self._changed:
            devices = self._of(resource)
            held = (pod.held for pod in self._pods.values() if pod.resource == resource)
            in_use = frozenset().union(*held)
            client = next(iter(self._clients.get(resource, ())[::-1]), None)
        if client is None:
            raise AdmissionError(f"no plugin is registered for {resource}")

        def prefer(available: AbstractSet[str], must: AbstractSet[str], size: int) -> set[str]:
            return client.prefer(self._shuffled(available), self._shuffled(must), size)

        ids = choose(devices, in_use, request, prefer, self._shuffled)
        devices.require_topology(ids)
        response = client.allocate(ids)
        return AdmittedPod(name, resource, tuple(ids), response, request.reusable.union(ids))

    # Registration

    def Register(self, request: pb.RegisterRequest, context: "_Context") -> pb.Empty:  # noqa: N802 - as in the API
        """Connect to the plugin, and accept its registration where that succeeds."""
        problem = self.faults.refusal() or self._problem(request)
        with self._changed:
            self._registered.append(
                Registered(
                    request.resource_name, request.endpoint, request.options, accepted=not problem
                )
            )
            self._changed.notify_all()
        if problem:
            context.abort(grpc.StatusCode.UNKNOWN, problem)
        if not self.faults.ignores:
            try:
                self._connect(request)
            except DialError as error:
                context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return pb.Empty()

    def _problem(self, request: pb.RegisterRequest) -> str | None:
        if self._server is None:
            return "kubelet is going"
        if request.version != VERSION:
            return f"requested API version {request.version!r} is not supported by kubelet"
        if not _RESOURCE.fullmatch(request.resource_name):
            return f"the resource name {request.resource_name!r} is invalid"
        path = self.directory / request.endpoint
        with self._changed:
            connected = self._clients.get(request.resource_name, ())
            if not self._keyed_by_name and any(client.path == path for client in connected):
                return f"device plugin already connected: {request.resource_name}"
        return None

    def _connect(self, request: pb.RegisterRequest) -> None:
        path = self.directory / request.endpoint
        handlers = StreamHandlers(self._receive, self._end, self.faults.reading)
        client = PluginClient(request.resource_name, path, handlers)
        with self._changed:
            self._clients.setdefault(client.resource, []).append(client)
            self._changed.notify_all()
        client.listen()

    def _receive(self, client: PluginClient, response: pb.ListAndWatchResponse) -> None:
        with self._changed:
            if self._clients.get(client.resource, [])[-1:] == [client]:
                self._devices[client.resource] = Devices(tuple(response.devices), connected=True)
                self._note(client.resource)

    def _end(self, client: PluginClient) -> None:
        """Forget a plugin whose stream has ended."""
        with self._changed:
            clients = self._clients.get(client.resource, [])
            latest = bool(clients) and clients[-1] is client
            bystander = clients[-1] if self._keyed_by_name and clients and not latest else None
            self._clients[client.resource] = [
                one for one in clients if one not in (client, bystander)
            ]
            if latest or bystander:
                devices = self._of(client.resource)
                self._devices[client.resource] = replace(devices, connected=False)
            self._note(client.resource)
        client.close()
        if bystander:
            bystander.close()

    def _shuffled(self, ids: Iterable[str]) -> list[str]:
        found = sorted(ids)
        self._random.shuffle(found)
        return found
