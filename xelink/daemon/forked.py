"""Runs a function in a forked child, so that the daemon never pays for what it imports.

With two cores it costs no time either: the daemon imports its own modules meanwhile.
"""

import fcntl
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

from xelink.daemon.command import CannotStartError
from xelink.daemon.signals import is_stopping

T = TypeVar("T")

SECONDS = 60.0
"""Work takes a fifth of a second, or some seconds on a busy node."""

_POLL_INTERVAL = 0.05  # for pending signals
_STOP_TIMEOUT = 20.0
"""Seconds for running work after a signal: it may first report a file that hangs."""


def run_in_child(
    work: Callable[[], T], seconds: float = SECONDS, stopping: Callable[[], bool] = is_stopping
) -> Callable[[], T]:
    """Start `work` in a child process; return a function that waits for its result, to call once.

    The result must be picklable. `work` may run twice: if no child can be created, or the child
    ends without a result, the returned function runs `work` itself. An exception is therefore that
    of the work. Only for a process that has no threads yet.

    The child is killed if it takes longer than `seconds`, or much longer after `stopping` returns
    True; the returned function then raises `CannotStartError`. The child never outlives its parent.
    """
    try:
        reader, writer = os.pipe()
    except OSError:
        return work
    try:
        # Nothing is ever written here: it only ends together with us.
        lifeline, our_life = os.pipe()
    except OSError:
        _close(reader, writer)
        return work
    try:
        child = os.fork()
    except OSError:
        _close(reader, writer, lifeline, our_life)
        return work
    if not child:
        # Otherwise the child could write, and live, after its parent has ended.
        _close(reader, our_life)
        _send(writer, lifeline, work)
    _close(writer, lifeline)

    def result() -> T:
        try:
            content = _receive(reader, seconds, stopping)
        except CannotStartError:
            os.kill(child, signal.SIGKILL)
            _reap(child, wait=False)
            raise
        finally:
            _close(reader, our_life)
        _reap(child)
        with suppress(EOFError, pickle.UnpicklingError):
            done: T = pickle.loads(content)  # noqa: S301 - from our own child, through a pipe
            return done
        return work()

    return result


def _receive(reader: int, seconds: float, stopping: Callable[[], bool]) -> bytes:
    """Read to the end. Raises `CannotStartError` when that takes too long."""
    chunks: list[bytes] = []
    end, stopped = time.monotonic() + seconds, False
    while True:
        if not stopped and stopping():
            end, stopped = min(end, time.monotonic() + _STOP_TIMEOUT), True
        # Signals are blocked until the daemon can handle them, so pending ones are polled.
        if select.select([reader], (), (), _POLL_INTERVAL)[0]:
            if not (chunk := os.read(reader, 1 << 16)):
                return b"".join(chunks)
            chunks.append(chunk)
        elif time.monotonic() >= end:
            raise CannotStartError(
                "stopped before the settings were read"
                if stopped
                else f"the settings were not read within {seconds:g} s"
            )


def _reap(child: int, *, wait: bool = True) -> None:
    """Reap a child. One that hangs in the kernel does not end, even if it is killed."""
    with suppress(ChildProcessError):  # if SIGCHLD is ignored, as inherited from our parent
        os.waitpid(child, 0 if wait else os.WNOHANG)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _send(writer: int, lifeline: int, work: Callable[[], object]) -> NoReturn:
    try:
        _die_with(lifeline)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(work()))
    finally:
        os._exit(0)  # skip exit handlers, which are the parent's


def _die_with(lifeline: int) -> None:
    """Let the kernel end this process when the other end of a pipe is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], (), (), 0)[0]:  # it was closed before
        os._exit(0)
