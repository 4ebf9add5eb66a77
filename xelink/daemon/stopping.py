"""Stopping a synchronous loop on a signal, at once, wherever it is."""

import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from xelink.daemon.signals import STOPPING, release_signals

# The timer fires again and again until the block is left, for two reasons. A signal handler's
# exception can be swallowed where Python runs no caller (a finalizer, a callback from C). And a
# signal that comes just before a system call blocks does not interrupt it: its handler would only
# run at the call's end, which may be far.
_REPEAT = 0.1
# After the signal handler has returned: while it runs, the timer raises nothing.
_SOON = 1e-3
_MANY = 4096

# Functions that enter and leave a block, or may interrupt one that does: an exception there would
# lose the way out, and the timer would fire in the midst of something else.
_EDGES = frozenset({"__enter__", "__exit__", "bounded", "_on_signal"})


class Stopped(BaseException):
    """SIGTERM or SIGINT came during a bounded block: leave it, clean up, and end."""


class Stop:
    """Set once, by a signal or by `set`; never cleared.

    A pipe and `select` instead of `threading.Event`: setting an event from a signal handler can
    need the lock that the interrupted `wait` holds, and hang forever. And a signal that comes just
    before `select` blocks does not interrupt it: so C writes a byte for each signal, at once, where
    the handler would only run at the call's end.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, repeat: float = _REPEAT
    ) -> None:
        """Set the clock for the time limit of bounded blocks.

        The timer of such a block fires again every `repeat` seconds.
        """
        self._monotonic = monotonic
        self._repeat = repeat
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)  # noqa: FBT003 - it has no name
        self._writer.setblocking(False)  # noqa: FBT003 - as above
        self._stopped = False
        self._bounded = False
        self._until = 0.0

    def install(self) -> None:
        """Handle SIGTERM, SIGINT and the timer of `bounded`; main thread only."""
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_timer)
        release_signals()

    def close(self) -> None:
        """Restore the default handlers of the signals, and close the pipe."""
        for number in (*STOPPING, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def set(self) -> None:
        """Request the end; safe in a signal handler and from any thread."""
        if not self._stopped:
            self._stopped = True
            with suppress(BlockingIOError):  # it is full, which is enough to end the wait
                self._writer.send(b"\0")

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._stopped

    def wait(self, seconds: float) -> bool:
        """Wait at most this long; return True at once if the end is requested."""
        end = time.monotonic() + seconds
        while not self._stopped:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._reader], [], [], left)[0]:
                break
            with suppress(BlockingIOError):
                self._reader.recv(_MANY)  # the timer writes, too
        return self._stopped

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """Run a block for at most `seconds`, whatever it waits for; main thread only.

        Raises `TimeoutError` inside the block when the time is up, and `Stopped` when the end is
        requested. Only for blocks that can be interrupted anywhere: a scrape, never a publication.
        """
        self._bounded = True
        self._until = self._monotonic() + seconds
        signal.setitimer(signal.ITIMER_REAL, min(max(_SOON, seconds), self._repeat), self._repeat)
        try:
            if self._stopped:
                raise Stopped
            yield
        finally:
            self._bounded = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.set()
        if self._bounded:
            signal.setitimer(signal.ITIMER_REAL, _SOON, self._repeat)

    def _on_timer(self, _number: int, frame: FrameType | None) -> None:
        if self._bounded and frame and frame.f_code.co_name not in _EDGES:
            if self._stopped:
                raise Stopped
            if self._monotonic() >= self._until:
                raise TimeoutError
