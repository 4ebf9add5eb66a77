"""Work beside the event loop that nobody waits for at the end.

`asyncio.to_thread` uses threads that the interpreter joins before it ends: one that hangs, as a
read in the sysfs of a GPU that is being reset may, would hold up the end of the process.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class NoRoomError(Exception):
    """As many threads run as may, and perhaps they hang: this work was not begun."""


async def aside(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread and give its result; raises what it raises.

    Canceled, it leaves the thread to itself and forgets the result.
    """
    return await _begin(work)


class Asides:
    """Work beside the loop in at most `limit` threads at a time, those that were left included."""

    def __init__(self, limit: int) -> None:
        self._room = threading.Semaphore(limit)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` as `aside` does. Raises `NoRoomError` when too many threads run already."""
        if not self._room.acquire(blocking=False):
            raise NoRoomError

        def and_leave() -> T:
            try:
                return work()
            finally:
                self._room.release()

        try:
            done = _begin(and_leave)
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
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return done
