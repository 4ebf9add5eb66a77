"""Threads for blocking work of an event loop, which do not delay the end of the process.

The interpreter joins the threads of `asyncio.to_thread` before it ends. A thread that hangs, for
example while it reads the sysfs of a GPU that is being reset, would keep the process alive.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class NoThreadError(Exception):
    """The limit of threads is reached, perhaps because they hang: the work was not started."""


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread and return its result; raises what it raises.

    If it is canceled, the thread goes on and its result is dropped.
    """
    return await _begin(work)


class WorkerThreads:
    """Runs work in at most `limit` threads at a time, abandoned ones included."""

    def __init__(self, limit: int) -> None:
        self._room = threading.Semaphore(limit)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` as `run_in_thread` does. Raises `NoThreadError` if too many threads run."""
        if not self._room.acquire(blocking=False):
            raise NoThreadError

        def and_release() -> T:
            try:
                return work()
            finally:
                self._room.release()

        try:
            done = _begin(and_release)
        except RuntimeError:  # no thread could be started
            self._room.release()
            raise
        return await done


def _begin(work: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result
        else:
            done.set_exception(error)

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return done
