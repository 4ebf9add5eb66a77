"""The xpumd of XPU Manager 2.x, as far as its device health goes.

    async with Xpumd(path, ["0000:29:00.0"]) as xpumd:
        xpumd.report("0000:29:00.0", "memory", CRITICAL, message="uncorrectable errors")

serves `deviceinfo.DeviceInfo/WatchDeviceHealth` on a unix socket: a full snapshot at once, then one
every few seconds and at each `push`. It can also fall silent, hang up, send what is no message, and
go away and come back.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from xelink.api import grpc
from xelink.api.deviceinfo_pb2 import (
    OK,
    DeviceHealth,
    DeviceHealthResponse,
    DeviceInformation,
    HealthStatus,
    PciInfo,
    WatchDeviceHealthRequest,
)
from xelink.simulators.bounds import BOUNDS, MOST_CALLS

__all__ = ["Xpumd"]

SERVICE = "deviceinfo.DeviceInfo"
METHOD = "WatchDeviceHealth"
CHECKS = ("core-temperature", "memory", "power", "fabric")
EVERY = 5.0
"""Seconds between two messages, as the real one has it."""

_SOCKET_PATH_LIMIT = 107  # bytes: what a unix socket address can hold


class Xpumd:
    """An xpumd with these GPUs, all well at first; in one event loop, changed at any time.

    `every` None sends nothing by itself after the first message. Raises `ValueError` for a path
    that no unix socket can have.
    """

    def __init__(
        self, path: Path, gpus: Iterable[str] = (), *, every: float | None = EVERY
    ) -> None:
        if len(bytes(path)) > _SOCKET_PATH_LIMIT:
            raise ValueError(f"more than {_SOCKET_PATH_LIMIT} bytes, too long for a socket: {path}")
        self._path = path
        self._every = every
        self._gpus: dict[str, dict[str, HealthStatus]] = {}
        self._queues: set[asyncio.Queue[bytes | grpc.StatusCode]] = set()
        self._watched = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.silent = False
        """Whether nothing is sent, though the stream stays."""
        self.connections = 0
        """How many watchers have come since it was made."""
        for bdf in gpus:
            self.add(bdf)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._queues)

    def add(self, bdf: str, *checks: str) -> None:
        """Add a GPU under an address in any form; `checks` are what is monitored, all OK."""
        self._gpus[bdf] = {
            check: HealthStatus(name=check, severity=OK) for check in checks or CHECKS
        }

    def remove(self, bdf: str) -> None:
        """Remove a GPU: no further message mentions it."""
        del self._gpus[bdf]

    def report(
        self, bdf: str, check: str, severity: int, reason: str = "", message: str = ""
    ) -> None:
        """Set the severity of one check of a GPU, to any number, from the next message on."""
        status = HealthStatus(name=check, reason=reason, message=message)
        status.severity = severity  # type: ignore[assignment]  # also numbers that have no name
        self._gpus[bdf][check] = status

    def recover(self, bdf: str) -> None:
        """Make all checks of a GPU OK, from the next message on."""
        self.add(bdf, *self._gpus[bdf])

    def push(self, times: int = 1) -> None:
        """Send the snapshot to every watcher now, so many times."""
        for _ in range(times):
            self.send(self.snapshot().SerializeToString())

    def send(self, content: bytes) -> None:
        """Send these bytes as a message to every watcher, whatever they are."""
        self._put(content)

    def hang_up(self, code: grpc.StatusCode = grpc.StatusCode.OK) -> None:
        """End every stream with a status; who connects again is served."""
        self._put(code)

    def snapshot(self) -> DeviceHealthResponse:
        """Return the message that reports every GPU as it is now."""
        return DeviceHealthResponse(
            devices=[
                DeviceHealth(
                    info=DeviceInformation(
                        uuid=f"00000000-0000-0000-0000-{index:012x}",
                        model="Intel(R) Data Center GPU Max 1550",
                        pci=PciInfo(bdf=bdf, device_id="0x0bd5", vendor_id="0x8086"),
                    ),
                    health=checks.values(),
                )
                for index, (bdf, checks) in enumerate(self._gpus.items())
            ]
        )

    async def watched(self) -> None:
        """Wait until somebody watches."""
        await self._watched.wait()

    async def start(self) -> None:
        """Serve; after a `stop` again, on the same socket."""
        server = grpc.aio.server(options=BOUNDS, maximum_concurrent_rpcs=MOST_CALLS)
        # By name and in bytes: so that what is no message can be sent as well.
        handler = grpc.unary_stream_rpc_method_handler(
            self._stream, WatchDeviceHealthRequest.FromString, bytes
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        server.add_insecure_port(f"unix:{self._path}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Go away at once, with every stream; the socket is gone, too."""
        if self._server:
            await self._server.stop(grace=None)
            self._server = None

    def _put(self, entry: bytes | grpc.StatusCode) -> None:
        for queue in self._queues:
            queue.put_nowait(entry)

    async def _stream(
        self,
        _request: WatchDeviceHealthRequest,
        context: "grpc.aio.ServicerContext[WatchDeviceHealthRequest, bytes]",
    ) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | grpc.StatusCode] = asyncio.Queue()
        self._queues.add(queue)
        self.connections += 1
        self._watched.set()
        try:
            queue.put_nowait(self.snapshot().SerializeToString())
            while True:
                entry = await self._next(queue)
                if isinstance(entry, bytes):
                    if not self.silent:
                        yield entry
                elif entry is grpc.StatusCode.OK:
                    return
                else:
                    await context.abort(entry, "as simulated")
        finally:
            self._queues.discard(queue)
            if not self._queues:
                self._watched.clear()

    async def _next(
        self, queue: "asyncio.Queue[bytes | grpc.StatusCode]"
    ) -> bytes | grpc.StatusCode:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._every):
                return await queue.get()
        return self.snapshot().SerializeToString()
