"""Which of several sidecars writes one feature file: who was first, until its process ends.

The kernel lets go of the lock when its holder ends, however it ends: so the next one takes over,
and nobody has to clean up. Where there are no locks, or the file cannot be made, everybody writes.
"""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from socket import gethostname

# Not for writing: a file that is open for that would keep its file system from becoming read-only.
_FLAGS = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMING = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Whoever can open it can lock it, and keep us from writing.
_MODE = 0o600
_MOST = 200  # bytes of the name of its holder
_TRIES = 3


class Ownership:
    """The lock of one feature file: a file named `name`.lock."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = f"{name}.lock"
        self._held: int | None = None

    def other(self) -> str | None:
        """Take the lock; return the host and process that hold it already, None if it is ours."""
        if self._held is not None and self._is_current(self._held):
            return None
        self.release()
        for _ in range(_TRIES):
            try:
                descriptor = self._open(_FLAGS)
            except OSError:  # the writer reports what is wrong with this directory
                return None
            try:
                other = self._lock(descriptor)
            except OSError:  # not every file system has locks
                other = None
            if other is not None:
                os.close(descriptor)
                return other
            # It may have been removed in between: then another one locks the one that is there.
            if self._is_current(descriptor):
                self._held = descriptor
                return None
            os.close(descriptor)
        return None

    def remove(self) -> None:
        """Remove the file, if it is ours."""
        if self._held is not None and self._is_current(self._held):
            with suppress(OSError):
                (self._directory / self._name).unlink()

    def release(self) -> None:
        """Let another one write."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def _lock(self, descriptor: int) -> str | None:
        """Lock a file and write down who did; return who has done so before. Raises `OSError`."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError):
                holder = os.pread(descriptor, _MOST, 0).decode("ascii", "replace").strip()
                return holder or "unknown"
            return "unknown"
        with suppress(OSError):
            writer = self._open(_NAMING)
            try:
                if os.path.samestat(os.fstat(writer), os.fstat(descriptor)):
                    os.ftruncate(writer, 0)
                    os.pwrite(writer, f"{gethostname()} process {os.getpid()}\n".encode(), 0)
            finally:
                os.close(writer)
        return None

    def _open(self, flags: int) -> int:
        """Open the file, below the directory itself: no link leads elsewhere. Raises `OSError`."""
        directory = os.open(
            self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            return os.open(self._name, flags, _MODE, dir_fd=directory)
        finally:
            os.close(directory)

    def _is_current(self, descriptor: int) -> bool:
        """Return whether this file is the one at the path."""
        try:
            there = os.stat(self._directory / self._name, follow_symlinks=False)  # noqa: PTH116 - each tick
            return os.path.samestat(there, os.fstat(descriptor))
        except OSError:
            return False
