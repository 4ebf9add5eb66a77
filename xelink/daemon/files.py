"""Reading files that others write, with a limit of size and time.

A pipe, a device or a directory is rejected. A file system that does not answer blocks a reader in
the kernel, where no signal reaches it. Code that must go on therefore reads in a thread that it can
abandon.
"""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from xelink.daemon.hanging_work import HungError, Job, start_thread

Path: TypeAlias = str | os.PathLike[str]
Read: TypeAlias = Callable[[Path, int], bytes]
"""Returns the content of a file of at most so many bytes. Raises `OSError`."""

_CHUNK = 1 << 16


class UnusableFileError(OSError):
    """The path is no usable file; `strerror` has the reason."""


def read_file(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes. Raises `OSError`, its `strerror` in one line."""
    content = read_beginning(path, most + 1)
    if len(content) > most:
        raise UnusableFileError(errno.EFBIG, f"more than {most} bytes")
    return content


def read_beginning(path: Path, most: int) -> bytes:
    """Read a regular file up to its end or `most` bytes. Raises `OSError` as `read_file` does."""
    # Not blocking: opening a pipe would block until somebody writes to it.
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
    """Read to the end, or up to `most` bytes; `read` returns at most as many bytes as requested."""
    chunks: list[bytes] = []
    while most > 0 and (chunk := read(min(most, _CHUNK))):
        chunks.append(chunk)
        most -= len(chunk)
    return b"".join(chunks)


class TimedReader:
    """Reads files as `read_file` does, each for at most `seconds`.

    A read that hangs keeps its thread until it ends. Until then the same file is not read again, so
    at most one thread for each file can hang.
    """

    def __init__(self, seconds: float, read: Read | None = None) -> None:
        self._seconds = seconds
        self._reads = read or read_file
        self._hanging: dict[str, Job[bytes]] = {}

    def __call__(self, path: Path, most: int) -> bytes:
        """Read a file. Raises `OSError`, and as one of them `HungError`."""
        name = os.fspath(path)
        hanging = self._hanging.pop(name, None)
        if hanging and not hanging.done():
            self._hanging[name] = hanging
            raise self._hung()
        read = Job(partial(self._reads, path, most))
        start_thread(read.do)
        # A signal handler may raise while this waits: then this read is abandoned, too.
        self._hanging[name] = read
        if not read.wait(self._seconds):
            raise self._hung()
        del self._hanging[name]
        return read.result()

    def _hung(self) -> HungError:
        return HungError(
            errno.EIO, f"not read within {self._seconds:g} s: its file system does not answer"
        )
