"""Work in a process that ends with it: what it imports costs nobody memory for years.

And no time where there are two cores: the daemon imports what it needs meanwhile.
"""

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Begin `work` in a process of its own; give what waits for its result, to be called once.

    The result must be picklable, and `work` such that it may begin twice: where there is no such
    process to be had, or it ends without a result, `work` is done by who waits. So an exception is
    that of the work itself. Only for a process that has no threads yet.
    """
    try:
        reader, writer = os.pipe()
    except OSError:
        return work
    try:
        child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return work
    if not child:
        os.close(reader)  # or it would write on when nobody is left to read
        _tell(writer, work)
    os.close(writer)

    def result() -> T:
        with os.fdopen(reader, "rb") as told:
            content = told.read()
        with suppress(ChildProcessError):  # where whoever started us has signals of it ignored
            os.waitpid(child, 0)
        with suppress(EOFError, pickle.UnpicklingError):
            done: T = pickle.loads(content)  # noqa: S301 - written by ourselves, over a pipe
            return done
        return work()

    return result


def _tell(writer: int, work: Callable[[], object]) -> NoReturn:
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(work()))
    finally:
        os._exit(0)  # not a second time what the process has to do at its end
