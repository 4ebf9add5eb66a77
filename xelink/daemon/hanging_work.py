"""Work that may hang, done in threads that can be left.

A file system that does not answer holds whoever asks it for anything, and in the kernel no signal
reaches it. Whoever must go on has the work done beside, waits for so long, and leaves it.
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
    """The work was not done in time: whoever needs it goes on without."""


class Work(Generic[T]):
    """One piece of work, for another thread to do."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: Exception | None = None
        # A lock, as waiting for one is interrupted by signals and leaves nothing half done.
        self._busy = threading.Lock()
        self._busy.acquire()

    def do(self) -> None:
        """Do it, whatever it raises."""
        try:
            self._done.append(self._work())
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits is told
            self._error = error
        self._busy.release()

    def done(self) -> bool:
        """Tell whether it has ended."""
        return not self._busy.locked()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; False when the time was up before."""
        return self._busy.acquire(timeout=max(0.0, seconds))

    def result(self) -> T:
        """Give what came of it, once it has ended; raises what it raised."""
        if self._error:
            raise self._error
        return self._done[0]


def begin(target: Callable[[], object]) -> None:
    """Run `target` in a thread that nobody waits for at the end.

    Raises `OSError` where no thread is to be had.
    """
    try:
        threading.Thread(target=target, daemon=True, name="file").start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"not begun: {error}") from error


class Lane:
    """Does work one piece at a time, in the order in which it comes, each for at most `seconds`.

    All of it in one thread, which ends with the lane: to start one takes longer than most work.
    While work hangs, no other is begun: so what comes late is never in the way of what came after.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()
        self._left: Work[object] | None = None
        self._jobs: SimpleQueue[Work[Any] | None] | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Do this work. Raises what it raises, and `OSError`, as one of them `HungError`."""
        if not self._turn.acquire(timeout=self._seconds):
            raise self._hung()
        end = time.monotonic() + self._seconds
        try:
            if self._left and not self._left.done():
                raise self._hung()
            begun = Work(work)
            self._hand_on(begun)
            # Kept meanwhile: whoever waits may be interrupted, and then this is left behind, too.
            self._left = begun  # type: ignore[assignment]  # of its result nothing is asked here
            if not begun.wait(end - time.monotonic()):
                raise self._hung()
            self._left = None
            return begun.result()
        finally:
            self._turn.release()

    def _hand_on(self, work: Work[Any]) -> None:
        if self._jobs is None:
            jobs: SimpleQueue[Work[Any] | None] = SimpleQueue()
            begin(partial(_do_all, jobs))
            self._jobs = jobs
            weakref.finalize(self, jobs.put, None)
        self._jobs.put(work)

    def _hung(self) -> HungError:
        return HungError(
            errno.EIO, f"not done within {self._seconds:g} s: its file system does not answer"
        )


def _do_all(jobs: "SimpleQueue[Work[Any] | None]") -> None:
    while work := jobs.get():
        work.do()
        del work  # its result is for who waits, and not kept until the next one
