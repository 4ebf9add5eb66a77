"""The client of xpumd's device health: it stays connected for as long as the plugin runs.

gRPC `deviceinfo.DeviceInfo/WatchDeviceHealth`, plaintext, as a rule on a unix socket. Whatever
becomes of the connection is a `trouble` of the health that is told, never an exception.
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
    PATIENCE,
    Health,
    Message,
    Report,
    Severity,
    Status,
    age,
    judge,
    told,
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
    """There is no news: connect again."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a verdict changes: at which severity, and after how many messages in a row."""

    severity: Severity = Severity.CRITICAL
    confirmations: int = 2

    def __post_init__(self) -> None:
        if self.confirmations < 1:
            raise ValueError(f"{self.confirmations} messages cannot confirm anything")


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: without news until health is unknown; first and longest pause; look at the clock."""

    patience: float = PATIENCE
    first_pause: float = 0.5
    longest_pause: float = 30.0
    tick: float = 1.0


def target(endpoint: str) -> str:
    """Give gRPC's name of an endpoint: an absolute path is a unix socket."""
    return f"unix:{endpoint}" if endpoint.startswith("/") else endpoint


async def watch(
    endpoint: str,
    rule: Rule,
    tell: Callable[[Health], None],
    stop: asyncio.Event,
    *,
    now: Callable[[], float] = time.monotonic,
    pace: Pace | None = None,
) -> None:
    """Follow the health of all GPUs until `stop` is set.

    Every message is told, and every change that time or the connection brings: equal values say
    the same, so that a caller acts on unequal ones only. `endpoint` is the path of a unix socket
    or any name that gRPC knows. What `tell` raises ends the watch, in an `ExceptionGroup`.
    """
    watcher = _Watcher(target(endpoint), rule, tell, now, pace or Pace())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(watcher.connect()), tasks.create_task(watcher.age())]
        await stop.wait()
        for task in running:
            task.cancel()


@dataclass(slots=True)
class _Watcher:
    target: str
    rule: Rule
    tell: Callable[[Health], None]
    now: Callable[[], float]
    pace: Pace
    health: Health = field(default_factory=Health)

    async def connect(self) -> NoReturn:
        """Connect for ever: at a growing distance until there is news, then from the beginning."""
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(_LostError),
                wait=wait_random_exponential(
                    multiplier=self.pace.first_pause,
                    max=self.pace.longest_pause,
                    min=self.pace.first_pause,
                ),
                sleep=asyncio.sleep,
            )
            await retrying(self._follow)
            await asyncio.sleep(self.pace.first_pause)

    async def age(self) -> NoReturn:
        """Look at the clock, as no message tells that there is none."""
        while True:
            await asyncio.sleep(self.pace.tick)
            aged = age(self.health, self.now(), self.pace.patience)
            if aged != self.health:
                self._learn(aged)

    async def _follow(self) -> None:
        """Take messages until the stream is lost. Raises `_LostError` when it brought none."""
        before = self.health.messages
        try:
            async with grpc.aio.insecure_channel(self.target, options=_OPTIONS) as channel:
                await self._take(channel)
            trouble = "xpumd ended the stream"
        except grpc.aio.AioRpcError as error:
            trouble = f"{error.code().name}: {error.details()}"
        except grpc.aio.BaseError as error:  # a fault within gRPC, which ends this stream only
            trouble = f"gRPC: {error}"
        except TimeoutError:
            trouble = f"no news for {self.pace.patience:g} s"
        self._learn(replace(self.health, trouble=told(trouble)))
        if self.health.messages == before:
            raise _LostError(trouble)

    async def _take(self, channel: grpc.aio.Channel) -> None:
        # In bytes: of what it cannot parse itself, gRPC logs a traceback and gives None.
        method = channel.unary_stream(_METHOD, WatchDeviceHealthRequest.SerializeToString, bytes)
        stream = method(WatchDeviceHealthRequest())
        while True:
            # A stream that stays silent may hang for ever: a new one may not.
            async with asyncio.timeout(self.pace.patience):
                answer = await stream.read()
            if not isinstance(answer, bytes):  # the end of the stream
                return
            self._learn(self._judge(answer))

    def _judge(self, answer: bytes) -> Health:
        try:
            message = read(answer, self.now())
        except DecodeError:
            return replace(self.health, bad_messages=self.health.bad_messages + 1)
        return judge(self.health, message, self.rule.severity, self.rule.confirmations)

    def _learn(self, health: Health) -> None:
        self.health = health
        self.tell(health)


def read(answer: bytes, at: float) -> Message:
    """Take a message out of protobuf, as it is. Raises `DecodeError`.

    That, too, for one that tells of more than any node has: what takes two bytes in a message
    takes hundreds here.
    """
    devices = DeviceHealthResponse.FromString(answer).devices
    if len(devices) > _MOST or sum(len(device.health) for device in devices) > _MOST:
        raise DecodeError("more devices or checks than a node has")
    return Message(
        at,
        tuple(
            Report(
                device.info.pci.bdf,
                tuple(
                    Status(status.name, status.severity, status.reason, status.message)
                    for status in device.health
                ),
            )
            for device in devices
        ),
    )
