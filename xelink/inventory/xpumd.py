"""The client of xpumd's device health, which stays connected for as long as the plugin runs.

gRPC `deviceinfo.DeviceInfo/WatchDeviceHealth`, plaintext, usually on a unix socket. An error of the
connection is reported as the `error` of the health, never raised.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn

from google.protobuf.message import DecodeError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from xelink.api import grpc
from xelink.api.deviceinfo_pb2 import DeviceHealthResponse, WatchDeviceHealthRequest
from xelink.inventory.health import (
    SILENCE_SECONDS,
    Health,
    HealthReport,
    HealthStatus,
    Message,
    Severity,
    age,
    evaluate,
    one_line,
)

DEFAULT_ENDPOINT = "/run/xpumd/intelxpuinfo.sock"

_METHOD = "/deviceinfo.DeviceInfo/WatchDeviceHealth"
_OPTIONS = (
    # Else all channels of the process share connections and their backoff of up to two minutes.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 1 << 20),
)
_MOST = 1 << 13  # devices, and checks of all of them: of a full node, some hundreds


class _LostError(Exception):
    """No message came: connect again."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a verdict changes: at which severity, and after how many messages in a row."""

    severity: Severity = Severity.CRITICAL
    confirmations: int = 2

    def __post_init__(self) -> None:
        if self.confirmations < 1:
            raise ValueError(f"{self.confirmations} messages cannot confirm anything")


@dataclass(frozen=True, slots=True)
class XpumdTimings:
    """Seconds: silence until health is unknown, first and longest pause, checks for silence."""

    silence: float = SILENCE_SECONDS
    first_pause: float = 0.5
    longest_pause: float = 30.0
    tick: float = 1.0


def target(endpoint: str) -> str:
    """Return gRPC's name of an endpoint: an absolute path is a unix socket."""
    return f"unix:{endpoint}" if endpoint.startswith("/") else endpoint


async def watch(
    endpoint: str,
    rule: Rule,
    report: Callable[[Health], None],
    stop: asyncio.Event,
    *,
    now: Callable[[], float] = time.monotonic,
    timings: XpumdTimings | None = None,
) -> None:
    """Follow the health of all GPUs until `stop` is set.

    `report` is called after every message, and when time or the connection changes anything: a
    caller acts on unequal values only. `endpoint` is the path of a unix socket or any name that
    gRPC knows. An exception of `report` ends the watch, in an `ExceptionGroup`.
    """
    watcher = _Watcher(target(endpoint), rule, report, now, timings or XpumdTimings())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(watcher.connect()), tasks.create_task(watcher.age())]
        await stop.wait()
        for task in running:
            task.cancel()


@dataclass(slots=True)
class _Watcher:
    target: str
    rule: Rule
    report: Callable[[Health], None]
    now: Callable[[], float]
    timings: XpumdTimings
    health: Health = field(default_factory=Health)

    async def connect(self) -> NoReturn:
        """Connect again and again, with growing pauses until a message comes."""
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(_LostError),
                wait=wait_random_exponential(
                    multiplier=self.timings.first_pause,
                    max=self.timings.longest_pause,
                    min=self.timings.first_pause,
                ),
                sleep=asyncio.sleep,
            )
            await retrying(self._follow)
            await asyncio.sleep(self.timings.first_pause)

    async def age(self) -> NoReturn:
        """Let reports expire, as no message announces that none comes."""
        while True:
            await asyncio.sleep(self.timings.tick)
            aged = age(self.health, self.now(), self.timings.silence)
            if aged != self.health:
                self._learn(aged)

    async def _follow(self) -> None:
        """Take messages until the stream is lost. Raises `_LostError` when it brought none."""
        before = self.health.messages
        try:
            async with grpc.aio.insecure_channel(self.target, options=_OPTIONS) as channel:
                await self._take(channel)
            reason = "xpumd ended the stream"
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except grpc.aio.BaseError as error:  # an error within gRPC, which ends this stream only
            reason = f"gRPC: {error}"
        except TimeoutError:
            reason = f"no news for {self.timings.silence:g} s"
        self._learn(replace(self.health, error=one_line(reason)))
        if self.health.messages == before:
            raise _LostError(reason)

    async def _take(self, channel: grpc.aio.Channel) -> None:
        # In bytes: of what it cannot parse itself, gRPC logs a traceback and returns None.
        method = channel.unary_stream(_METHOD, WatchDeviceHealthRequest.SerializeToString, bytes)
        stream = method(WatchDeviceHealthRequest())
        while True:
            # A silent stream may be hanging: connect anew.
            async with asyncio.timeout(self.timings.silence):
                answer = await stream.read()
            if not isinstance(answer, bytes):  # the end of the stream
                return
            self._learn(self._evaluate(answer))

    def _evaluate(self, answer: bytes) -> Health:
        try:
            message = read(answer, self.now())
        except DecodeError:
            return replace(self.health, bad_messages=self.health.bad_messages + 1)
        return evaluate(self.health, message, self.rule.severity, self.rule.confirmations)

    def _learn(self, health: Health) -> None:
        self.health = health
        self.report(health)


def read(answer: bytes, at: float) -> Message:
    """Return a message, parsed as it is. Raises `DecodeError`.

    That, too, for one that reports more devices than any node has: what takes two bytes in a
    message takes hundreds here.
    """
    devices = DeviceHealthResponse.FromString(answer).devices
    if len(devices) > _MOST or sum(len(device.health) for device in devices) > _MOST:
        raise DecodeError("more devices or checks than a node has")
    return Message(
        at,
        tuple(
            HealthReport(
                device.info.pci.bdf,
                tuple(
                    HealthStatus(status.name, status.severity, status.reason, status.message)
                    for status in device.health
                ),
            )
            for device in devices
        ),
    )
