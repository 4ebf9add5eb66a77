"""Waiting for what a plugin in this process does, without looking again and again.

Whatever it logs or counts is a happening; those that wait for a condition look then, and only then.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import pytest
from structlog.testing import LogCapture
from structlog.typing import EventDict

from device_plugin.telemetry import NodeTelemetry, ServingTelemetry
from tests.patience import PATIENCE

_waiting: set[Callable[[], object]] = set()


def happened() -> None:
    """Let all that wait look again; from any thread."""
    for wake in tuple(_waiting):
        with suppress(RuntimeError):  # its loop has ended
            wake()


async def until(true: Callable[[], object]) -> None:
    """Wait until a condition holds that comes with a happening."""
    news = asyncio.Event()
    wake = partial(asyncio.get_running_loop().call_soon_threadsafe, news.set)
    _waiting.add(wake)
    try:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await news.wait()
                news.clear()
    finally:
        _waiting.discard(wake)


def hang_until(true: Callable[[], object]) -> None:
    """Wait as `until` does, and hold up the loop meanwhile."""
    news = threading.Event()
    _waiting.add(news.set)
    try:
        while not true():
            assert news.wait(PATIENCE)
            news.clear()
    finally:
        _waiting.discard(news.set)


async def never(true: Callable[[], object], seconds: float) -> None:
    """Wait some time for a condition that must not come."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await until(true)
    assert not true()


class HeardLogs(LogCapture):
    """Keeps what is logged."""

    def __call__(self, logger: object, method_name: str, event_dict: EventDict) -> NoReturn:
        try:
            super().__call__(logger, method_name, event_dict)
        finally:
            happened()


class HeardTelemetry(ServingTelemetry):
    """The metrics of kubelet's side."""

    def streaming(self, resource: str, streams: int) -> None:
        super().streaming(resource, streams)
        happened()

    def attempted(self, resource: str, *, accepted: bool) -> None:
        super().attempted(resource, accepted=accepted)
        happened()

    def registered(self, resource: str, *, known: bool) -> None:
        super().registered(resource, known=known)
        happened()


class HeardNodeTelemetry(NodeTelemetry):
    """The metrics of the plugin's eyes."""

    def scanned(self, *, good: bool) -> None:
        super().scanned(good=good)
        happened()
