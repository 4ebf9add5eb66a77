"""A kubelet's connection to one plugin."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xelink.api import deviceplugin_pb2 as pb
from xelink.api import grpc
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.simulators.kubelet.admission import AdmissionError

_DIAL_SECONDS = 10.0
_RPC_SECONDS = 30.0
_GLANCE = 0.05
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class DialError(Exception):
    """The plugin that has registered does not answer: the registration fails."""


@dataclass(frozen=True)
class StreamHandlers:
    """Callbacks of a stream for each message and for its end; it reads while `reading` is set."""

    receive: Callable[["PluginClient", pb.ListAndWatchResponse], None]
    end: Callable[["PluginClient"], None]
    reading: threading.Event


class PluginClient:
    """The connection to one plugin: its options are known, a thread reads its stream."""

    def __init__(self, resource: str, path: Path, handlers: StreamHandlers) -> None:
        self.resource = resource
        self.path = path
        self._handlers = handlers
        self._channel = grpc.insecure_channel(f"unix:{path}", options=_OPTIONS)
        self._stub = DevicePluginStub(self._channel)
        self._closed = threading.Event()
        try:
            self.options = self._stub.GetDevicePluginOptions(
                pb.Empty(), timeout=_DIAL_SECONDS, wait_for_ready=True
            )
        except grpc.RpcError as error:
            self._channel.close()
            raise DialError(f"failed to dial device plugin: {error}") from None
        self._call = self._stub.ListAndWatch(pb.Empty())
        self._thread = threading.Thread(target=self._read, name=f"stream of {resource}")

    def listen(self) -> None:
        """Read the stream from now on."""
        self._thread.start()

    def close(self) -> None:
        """Close the connection, and wait until the thread has ended."""
        self._closed.set()
        self._call.cancel()  # type: ignore[no-untyped-call]  # as grpc-stubs has it
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._channel.close()

    def prefer(self, available: list[str], must: list[str], size: int) -> set[str]:
        """Ask for a preference, nothing where the plugin has none. Raises `AdmissionError`."""
        if not self.options.get_preferred_allocation_available:
            return set()
        request = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
        )
        try:
            response = self._stub.GetPreferredAllocation(
                pb.PreferredAllocationRequest(container_requests=[request]), timeout=_RPC_SECONDS
            )
        except grpc.RpcError as error:
            raise AdmissionError(f"GetPreferredAllocation failed: {error}") from None
        if not response.container_responses:
            return set()
        return set(response.container_responses[0].deviceIDs)

    def allocate(self, ids: list[str]) -> pb.ContainerAllocateResponse:
        """Allocate, and prepare the container where that is wanted. Raises `AdmissionError`."""
        request = pb.ContainerAllocateRequest(devices_ids=ids)
        try:
            response = self._stub.Allocate(
                pb.AllocateRequest(container_requests=[request]), timeout=_RPC_SECONDS
            )
            if self.options.pre_start_required:
                self._stub.PreStartContainer(
                    pb.PreStartContainerRequest(devices_ids=ids), timeout=_RPC_SECONDS
                )
        except grpc.RpcError as error:
            raise AdmissionError(f"Allocate failed: {error}") from None
        if len(response.container_responses) != 1:
            raise AdmissionError("Allocate must be answered for each container")
        return response.container_responses[0]

    def _read(self) -> None:
        try:
            for response in self._call:
                while not (self._handlers.reading.wait(_GLANCE) or self._closed.is_set()):
                    pass
                if self._closed.is_set():
                    break
                self._handlers.receive(self, response)
        except grpc.RpcError:
            pass  # the plugin is gone, or we closed the connection
        finally:
            self._call.cancel()  # type: ignore[no-untyped-call]  # as grpc-stubs has it
            self._handlers.end(self)
