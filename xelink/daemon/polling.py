"""Waiting for whichever comes first."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

_SHORT = 0.25  # seconds


async def first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> bool:
    """Wait until one of them is done; False when the time was up before. The others are canceled.

    Raises what the first one raises.
    """
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], pause: Callable[[], float]) -> None:
    """Wait until a condition holds, at which one looks again and again, in another thread.

    `pause` tells the seconds between two looks, or up to the first. Raises what `condition` raises.
    """
    loop = asyncio.get_running_loop()
    holds = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if holds.done():
            return
        if error:
            holds.set_exception(error)
        else:
            holds.set_result(None)

    def tell(error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(settle, error)

    wait = _Wait(beat(time.monotonic(), pause()), condition, pause, tell)
    try:
        _LOOKOUT.add(wait)
        await holds
    finally:
        _LOOKOUT.drop(wait)


def beat(now: float, pause: float) -> float:
    """Return the next multiple of a pause, so that looks of the same or half the pause coincide.

    A short pause, as that up to a certain instant, is taken as it is.
    """
    return now + pause if pause < _SHORT else (now // pause + 1) * pause


def looking_for() -> float:
    """Tell for how many seconds a look has been under way that may hang; 0 when there is none."""
    return time.monotonic() - since if (since := _LOOKOUT.since) else 0.0


@dataclass(eq=False)
class _Wait:
    """What somebody waits for, and when one looks next, by the monotonic clock."""

    due: float
    condition: Callable[[], bool]
    pause: Callable[[], float]
    tell: Callable[[BaseException | None], None]
    over: bool = False

    def __lt__(self, other: "_Wait") -> bool:
        return self.due < other.due

    def look(self) -> bool:
        """Look once; False when there is nothing more to wait for."""
        if self.over:
            return False
        try:
            if not self.condition():
                self.due = beat(time.monotonic(), self.pause())
                return True
        except BaseException as error:  # noqa: BLE001 - whatever it is, who waits is told
            self.tell(error)
        else:
            self.tell(None)
        return False


class _Lookout:
    """One thread that looks for all who wait, for as long as anybody does.

    To wake a thread takes a third of what it takes to wake the event loop, and looks are made every
    second for as long as the node is up.
    """

    def __init__(self) -> None:
        self._waits: list[_Wait] = []  # a heap
        self._lock = threading.Lock()
        # Rings when it is released. A `Condition` would take longer than most looks.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._awake = False
        self.since = 0.0
        """When the look that is under way began, by the monotonic clock."""

    def add(self, wait: _Wait) -> None:
        """Look for one more."""
        with self._lock:
            heappush(self._waits, wait)
            if not self._awake:
                threading.Thread(target=self._run, name="lookout", daemon=True).start()
                self._awake = True
            elif self._waits[0] is wait:
                self._ring()

    def drop(self, wait: _Wait) -> None:
        """Look no more, from the next look on, for one who does not wait any longer."""
        with self._lock:
            wait.over = True
            if wait in self._waits:
                self._waits.remove(wait)
                heapify(self._waits)
            if not self._waits and self._awake:
                self._ring()

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _run(self) -> None:
        while (left := self._turn()) is not None:
            if left > 0:
                self._bell.acquire(timeout=min(left, threading.TIMEOUT_MAX))

    def _turn(self) -> float | None:
        """Look if it is time; return the seconds until the next look, None when nobody waits."""
        with self._lock:
            if not self._waits:
                self._awake = False
                return None
            left = self._waits[0].due - time.monotonic()
            if left > 0:
                return left
            wait = heappop(self._waits)
        self.since = time.monotonic()
        again = wait.look()
        self.since = 0.0
        if again:
            with self._lock:
                if not wait.over:
                    heappush(self._waits, wait)
        return 0.0


_LOOKOUT = _Lookout()
