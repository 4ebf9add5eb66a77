"""Work in a process that ends with it: what it imports costs nobody memory for years.

And no time where there are two cores: the daemon imports what it needs meanwhile.
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
"""For work that takes a fifth of a second, or some on a node that does a hundred other things."""

_GLANCE = 0.05  # between two looks for a signal
_LAST = 20.0
"""Seconds for work that is under way when a signal comes: it may say first that a file hangs."""


def run_in_child(
    work: Callable[[], T], seconds: float = SECONDS, stopping: Callable[[], bool] = is_stopping
) -> Callable[[], T]:
    """Begin `work` in a process of its own; return what waits for its result, to be called once.

    The result must be picklable, and `work` such that it may begin twice: where there is no such
    process to be had, or it ends without a result, `work` is done by who waits. So an exception is
    that of the work itself. Only for a process that has no threads yet.

    That process is killed when it takes longer than `seconds`, or much longer after `stopping`
    holds: then who waits raises `CannotStartError`. It dies with us, however we end.
    """
    try:
        reader, writer = os.pipe()
    except OSError:
        return work
    try:
        # Nothing is ever written here: its end is ours.
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
        _close(reader, our_life)  # or it would write on, and live on, when nobody is left to read
        _tell(writer, lifeline, work)
    _close(writer, lifeline)

    def result() -> T:
        try:
            content = _hear(reader, seconds, stopping)
        except CannotStartError:
            os.kill(child, signal.SIGKILL)
            _bury(child, patient=False)
            raise
        finally:
            _close(reader, our_life)
        _bury(child)
        with suppress(EOFError, pickle.UnpicklingError):
            done: T = pickle.loads(content)  # noqa: S301 - written by ourselves, over a pipe
            return done
        return work()

    return result


def _hear(reader: int, seconds: float, stopping: Callable[[], bool]) -> bytes:
    """Read to the end. Raises `CannotStartError` when that takes too long."""
    told: list[bytes] = []
    end, stopped = time.monotonic() + seconds, False
    while True:
        if not stopped and stopping():
            end, stopped = min(end, time.monotonic() + _LAST), True
        # Signals are held back until the daemon can hear them: so one looks whether any waits.
        if select.select([reader], (), (), _GLANCE)[0]:
            if not (chunk := os.read(reader, 1 << 16)):
                return b"".join(told)
            told.append(chunk)
        elif time.monotonic() >= end:
            raise CannotStartError(
                "stopped before the settings were read"
                if stopped
                else f"the settings were not read within {seconds:g} s"
            )


def _bury(child: int, *, patient: bool = True) -> None:
    """Take the end of a process. One that hangs in the kernel has none, even when it is killed."""
    with suppress(ChildProcessError):  # where whoever started us has signals of it ignored
        os.waitpid(child, 0 if patient else os.WNOHANG)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _tell(writer: int, lifeline: int, work: Callable[[], object]) -> NoReturn:
    try:
        _die_with(lifeline)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(work()))
    finally:
        os._exit(0)  # not a second time what the process has to do at its end


def _die_with(lifeline: int) -> None:
    """Have the kernel end this process when nobody holds the other end of a pipe any more."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends whom it meets
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], (), (), 0)[0]:  # it was let go of before the kernel was asked
        os._exit(0)
