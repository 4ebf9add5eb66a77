"""What is written down after an answer: beside the loop, in order, and in nobody's way."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeAlias

Work: TypeAlias = Callable[[], None]
Queue: TypeAlias = "SimpleQueue[Work | None]"

_ROOM = 256
# Until the answer is on its way, and kubelet's next request answered, which comes at once.
_LATER = 0.05
# Between two pieces of work the loop has the interpreter to itself.
_PAUSE = 0.0005


class Journal:
    """Does work in one daemon thread, in order, soon; `room` is how much of it may wait.

    Work handles its own faults. For one loop, where adding work costs next to nothing.
    """

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._fresh: list[Work] = []
        self._queue: Queue = SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, work: Work) -> bool:
        """Have work done soon; False when too much waits: then it never is."""
        if len(self._fresh) + self._queue.qsize() >= self._room:
            return False
        if not self._fresh:
            asyncio.get_running_loop().call_later(_LATER, self._hand_over)
        self._fresh.append(work)
        return True

    async def close(self, patience: float) -> None:
        """Wait until all work is done, but no longer than so many seconds, and end the thread."""
        self._hand_over()
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know
                loop.call_soon_threadsafe(done.set)

        self._queue.put(tell)
        self._queue.put(None)
        # What comes later is for another thread.
        self._thread, self._queue = None, SimpleQueue()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await done.wait()

    def _hand_over(self) -> None:
        fresh, self._fresh = self._fresh, []
        if fresh and self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._queue,), daemon=True)
            self._thread.start()
        for work in fresh:
            self._queue.put(work)


def _run(queue: Queue) -> None:
    while work := queue.get():
        work()
        time.sleep(_PAUSE)
