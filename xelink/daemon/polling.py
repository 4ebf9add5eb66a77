"""Waiting for the first of several events, and polling conditions in one thread."""

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
    """Wait until one of them is done; return False if the time is up first. Cancel the others.

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
    """Wait until a condition holds, polling it in another thread.

    `pause` returns the seconds to the next poll. Raises what `condition` raises.
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

    def notify(error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, error)

    wait = _Wait(next_poll(time.monotonic(), pause()), condition, pause, notify)
    try:
        _POLLER.add(wait)
        await holds
    finally:
        _POLLER.drop(wait)


def next_poll(now: float, pause: float) -> float:
    """Return the next multiple of a pause, so that polls with the same or half the pause coincide.

    A short pause, such as that until a certain instant, is not rounded.
    """
    return now + pause if pause < _SHORT else (now // pause + 1) * pause


def poll_duration() -> float:
    """Return for how many seconds the current poll, which may hang, has been running; or 0."""
    return time.monotonic() - since if (since := _POLLER.since) else 0.0


@dataclass(eq=False)
class _Wait:
    """A condition that somebody waits for, and its next poll, by the monotonic clock."""

    due: float
    condition: Callable[[], bool]
    pause: Callable[[], float]
    notify: Callable[[BaseException | None], None]
    over: bool = False

    def __lt__(self, other: "_Wait") -> bool:
        return self.due < other.due

    def poll(self) -> bool:
        """Poll once; return False if there is nothing more to wait for."""
        if self.over:
            return False
        try:
            if not self.condition():
                self.due = next_poll(time.monotonic(), self.pause())
                return True
        except BaseException as error:  # noqa: BLE001 - the waiting task gets it
            self.notify(error)
        else:
            self.notify(None)
        return False


class _Poller:
    """One thread that polls for all waiting tasks, as long as there are any.

    Waking a thread costs a third of waking the event loop, and polls happen every second for as
    long as the node is up.
    """

    def __init__(self) -> None:
        self._waits: list[_Wait] = []  # a heap
        self._lock = threading.Lock()
        # Releasing it wakes the thread. A `Condition` would take longer than most polls.
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        self._awake = False
        self.since = 0.0
        """When the current poll began, by the monotonic clock."""

    def add(self, wait: _Wait) -> None:
        """Poll for one more."""
        with self._lock:
            heappush(self._waits, wait)
            if not self._awake:
                threading.Thread(target=self._run, name="poller", daemon=True).start()
                self._awake = True
            elif self._waits[0] is wait:
                self._wake()

    def drop(self, wait: _Wait) -> None:
        """Poll no more, from the next turn on, for a task that stopped waiting."""
        with self._lock:
            wait.over = True
            if wait in self._waits:
                self._waits.remove(wait)
                heapify(self._waits)
            if not self._waits and self._awake:
                self._wake()

    def _wake(self) -> None:
        if self._wakeup.locked():
            self._wakeup.release()

    def _run(self) -> None:
        while (left := self._turn()) is not None:
            if left > 0:
                self._wakeup.acquire(timeout=min(left, threading.TIMEOUT_MAX))

    def _turn(self) -> float | None:
        """Poll if it is time; return the seconds until the next poll, None if nothing waits."""
        with self._lock:
            if not self._waits:
                self._awake = False
                return None
            left = self._waits[0].due - time.monotonic()
            if left > 0:
                return left
            wait = heappop(self._waits)
        self.since = time.monotonic()
        again = wait.poll()
        self.since = 0.0
        if again:
            with self._lock:
                if not wait.over:
                    heappush(self._waits, wait)
        return 0.0


_POLLER = _Poller()
