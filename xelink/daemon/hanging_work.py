"""Work that may hang, in threads that can be abandoned.

A file system that does not answer blocks its callers in the kernel, where no signal reaches them.
Code that must go on lets a thread do the work, waits for a limited time, and abandons it.
"""

import errno
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class HungError(OSError):
    """The work was not done in time: the caller goes on without its result."""


class Job(Generic[T]):
    """One piece of work for another thread."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: Exception | None = None
        # Waiting for a lock is interrupted by signals and leaves no inconsistent state.
        self._busy = threading.Lock()
        self._busy.acquire()

    def do(self) -> None:
        """Do the work, and keep its result or error."""
        try:
            self._done.append(self._work())
        except Exception as error:  # noqa: BLE001 - who waits gets it
            self._error = error
        self._busy.release()

    def done(self) -> bool:
        """Return whether it has ended."""
        return not self._busy.locked()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; return False if the time is up first."""
        return self._busy.acquire(timeout=max(0.0, seconds))

    def result(self) -> T:
        """Return the result of work that has ended; raises what it raised."""
        if self._error:
            raise self._error
        return self._done[0]


def start_thread(target: Callable[[], object]) -> None:
    """Run `target` in a daemon thread. Raises `OSError` if no thread can be started."""
    try:
        threading.Thread(target=target, daemon=True, name="file").start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"not started: {error}") from error


class SerialWorker:
    """Does one piece of work at a time, in order, each for at most `seconds`.

    One thread does all of it and ends with this object, because starting a thread takes longer than
    most work. While a piece hangs no other is started, so a late one never overwrites a newer one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()
        self._abandoned: Job[object] | None = None
        self._jobs: SimpleQueue[Job[Any] | None] | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Do this work. Raises what it raises, and `OSError`, as one of them `HungError`."""
        if not self._turn.acquire(timeout=self._seconds):
            raise self._hung()
        end = time.monotonic() + self._seconds
        try:
            if self._abandoned and not self._abandoned.done():
                raise self._hung()
            begun = Job(work)
            self._hand_on(begun)
            # Kept while waiting: if the wait is interrupted, this piece is abandoned, too.
            self._abandoned = begun  # type: ignore[assignment]  # its result is not used here
            if not begun.wait(end - time.monotonic()):
                raise self._hung()
            self._abandoned = None
            return begun.result()
        finally:
            self._turn.release()

    def _hand_on(self, work: Job[Any]) -> None:
        if self._jobs is None:
            jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
            start_thread(partial(_do_all, jobs))
            self._jobs = jobs
            weakref.finalize(self, jobs.put, None)
        self._jobs.put(work)

    def _hung(self) -> HungError:
        return HungError(
            errno.EIO, f"not done within {self._seconds:g} s: its file system does not answer"
        )


def _do_all(jobs: "SimpleQueue[Job[Any] | None]") -> None:
    while work := jobs.get():
        work.do()
        del work  # keep no result until the next piece
