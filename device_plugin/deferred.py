"""Runs log and metrics work after the RPC has returned, in order, in one background thread."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeAlias

_Work: TypeAlias = Callable[[], None]
_Queue: TypeAlias = "SimpleQueue[_Work | None]"

_ROOM = 256
# Until the answer is on its way, and kubelet's next request answered, which comes at once.
_LATER = 0.05
# Between two pieces of work the loop has the interpreter to itself.
_PAUSE = 0.0005


class DeferredWork:
    """A bounded queue of work and the daemon thread that does it; `room` is how much may wait.

    Work handles its own errors. For one event loop, where adding work costs next to nothing.
    """

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._fresh: list[_Work] = []
        self._queue: _Queue = SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, work: _Work) -> bool:
        """Queue work; return False, and drop it, when too much waits."""
        if len(self._fresh) + self._queue.qsize() >= self._room:
            return False
        if not self._fresh:
            asyncio.get_running_loop().call_later(_LATER, self._hand_over)
        self._fresh.append(work)
        return True

    async def close(self, grace: float) -> None:
        """Wait until all work is done, but no longer than `grace` seconds, and end the thread."""
        self._hand_over()
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def finish() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.set)

        self._queue.put(finish)
        self._queue.put(None)
        # What comes later is for another thread.
        self._thread, self._queue = None, SimpleQueue()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await done.wait()

    def _hand_over(self) -> None:
        fresh, self._fresh = self._fresh, []
        if fresh and self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._queue,), daemon=True)
            self._thread.start()
        for work in fresh:
            self._queue.put(work)


def _run(queue: _Queue) -> None:
    while work := queue.get():
        work()
        time.sleep(_PAUSE)
