"""Files that somebody else may write: never more of one than a bound, and nothing that hangs.

A pipe, a device or a directory in a file's place is refused. A file system that does not answer
holds whoever reads there, and in the kernel no signal reaches it: so what must go on reads in a
thread that it can leave.
"""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from xelink.daemon.hanging_work import HungError, Work, begin

Path: TypeAlias = str | os.PathLike[str]
Read: TypeAlias = Callable[[Path, int], bytes]
"""Gives what is in a file of at most so many bytes. Raises `OSError`."""

_CHUNK = 1 << 16


class UnusableFileError(OSError):
    """What is there is no file that can be used: `strerror` says why, as of any `OSError`."""


def read_file(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes. Raises `OSError`, its `strerror` in one line."""
    content = read_beginning(path, most + 1)
    if len(content) > most:
        raise UnusableFileError(errno.EFBIG, f"more than {most} bytes")
    return content


def read_beginning(path: Path, most: int) -> bytes:
    """Read a regular file up to its end or `most` bytes. Raises `OSError` as `read_file` does."""
    # Not blocking: a pipe in the file's place would hold us until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise UnusableFileError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise UnusableFileError(errno.EINVAL, "not a regular file")
        return read_up_to(lambda size: os.read(descriptor, size), most)
    finally:
        os.close(descriptor)


def read_up_to(read: Callable[[int], bytes], most: int) -> bytes:
    """Read to the end, or up to `most` bytes; `read` gives at most as many as it is asked for."""
    chunks: list[bytes] = []
    while most > 0 and (chunk := read(min(most, _CHUNK))):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)


class PatientReader:
    """Reads files as `read_file` does, each for at most `seconds`.

    A read that hangs keeps its thread until it ends. Until then its file is not asked for again,
    so that one thread for each file is all that can ever hang.
    """

    def __init__(self, seconds: float, read: Read | None = None) -> None:
        self._seconds = seconds
        self._reads = read or read_file
        self._hanging: dict[str, Work[bytes]] = {}

    def __call__(self, path: Path, most: int) -> bytes:
        """Read a file. Raises `OSError`, and as one of them `HungError`."""
        name = os.fspath(path)
        hanging = self._hanging.pop(name, None)
        if hanging and not hanging.done():
            self._hanging[name] = hanging
            raise self._hung()
        read = Work(partial(self._reads, path, most))
        begin(read.do)
        # A signal's handler runs meanwhile, and may raise: then this read is left behind, too.
        self._hanging[name] = read
        if not read.wait(self._seconds):
            raise self._hung()
        del self._hanging[name]
        return read.result()

    def _hung(self) -> HungError:
        return HungError(
            errno.EIO, f"not read within {self._seconds:g} s: its file system does not answer"
        )
