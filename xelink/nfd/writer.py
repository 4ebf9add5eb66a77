"""The feature file appears whole or not at all, readable for NFD, as one event.

NFD looks at once only at the first event of a burst, and drops the rest. So the file is prepared
in a permanent hidden directory on the same mount, which NFD does not watch, and one rename shows
it. Directories are held by descriptors and links are never followed, so that nobody who can write
there leads the daemon, which may run as root, out of them.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from xelink.nfd.ownership import Ownership

STAGE = ".stage"
_MOST = 1 << 20  # bytes to read of what somebody else may have put in its place
_MODE = 0o644  # NFD's worker is another user than we are
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# What we leave behind when killed, and what Intel's XeLink sidecar does, with the name that Go
# gives a temporary directory of the prefix "xpumsidecar"
_STAGED = re.compile(r".+\.[0-9a-f]{16}", re.DOTALL)
_INTEL_LEFTOVER = re.compile(r"xpumsidecar[0-9]+")


class OnExit(Enum):
    """What becomes of the feature file when the sidecar is stopped."""

    EXPIRE = "expire"
    REMOVE = "remove"
    KEEP = "keep"


class PublishError(Exception):
    """It is not certain that the file was published: the next tick tries again.

    The file is whole all the same: the old one, or the new one.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        """Take the system's number of the error (`errno`), where it has one."""
        super().__init__(message)
        self.code = code


class HangingError(PublishError):
    """The file system does not answer: nothing is known of the file until it does.

    What was begun there is not taken back: it may still be done, before anything that comes later.
    """


class Publisher:
    """Writes, reads and removes one feature file."""

    verb = "published"

    def __init__(self, path: Path, stage_parent: Path) -> None:
        """Publish at `path`, preparing in `stage_parent`/.stage; both on one file system."""
        self._path = path
        self._stage = stage_parent / STAGE
        self._ownership = Ownership(self._stage, path.name)

    def other_writer(self) -> str | None:
        """Return the other sidecar that writes this file; None where it is ours, from now on."""
        return self._ownership.other()

    def close(self) -> None:
        """Let another sidecar write the file."""
        self._ownership.release()

    def read(self) -> bytes | None:
        """Return the current file; None where there is none, or none of ours.

        Raises `PublishError` where that is not known.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _NONE_OF_OURS:
                return None
            raise self._unread(error) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return None
            return os.read(descriptor, min(found.st_size, _MOST))
        except OSError as error:
            raise self._unread(error) from error
        finally:
            os.close(descriptor)

    def _unread(self, error: OSError) -> PublishError:
        return PublishError(f"{self._path}: not read: {error.strerror or error}")

    def publish(self, content: bytes) -> None:
        """Replace the current file with `content`, in one step. Raises `PublishError`."""
        with (
            self._explained(),
            _directory(self._path.parent) as target,
            _directory(self._stage, create=True) as stage,
        ):
            name = f"{self._path.name}.{secrets.token_hex(8)}"
            with _written(stage, name, content):
                os.rename(name, self._path.name, src_dir_fd=stage, dst_dir_fd=target)
            os.fsync(target)
        if self.read() != content:
            raise PublishError(f"{self._path}: what was read back is not what was written")

    def withdraw(self) -> None:
        """Remove the file, and the stage with it. Raises `PublishError`."""
        with self._explained(), _directory(self._path.parent) as target:
            with suppress(FileNotFoundError):
                os.unlink(self._path.name, dir_fd=target)
            os.fsync(target)
        self._ownership.remove()
        with suppress(OSError):
            self._stage.rmdir()

    def prepare(self) -> list[str]:
        """Make the stage, and remove what earlier runs left, ours and Intel's XeLink sidecar's.

        To be called well before the first publication: making the stage is itself an event, and
        NFD would drop the one that follows it. Return the names of what was removed.
        """
        removed: list[str] = []
        with suppress(OSError), _directory(self._stage, create=True) as stage:
            for name in sorted(os.listdir(stage)):  # noqa: PTH208 - a descriptor has no path
                if _STAGED.fullmatch(name) and _is_abandoned(stage, name):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=stage)
                        removed.append(f"{STAGE}/{name}")
        with suppress(OSError):
            for entry in sorted(os.scandir(self._stage.parent), key=lambda entry: entry.name):
                if _INTEL_LEFTOVER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        shutil.rmtree(entry.path)
                        removed.append(entry.name)
        return removed

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            directories = os.fspath(self._path.parent), os.fspath(self._stage)
            place = error.filename if error.filename in directories else self._path
            code = error.errno or 0
            hint = f"; {_HINTS[code]}" if code in _HINTS else ""
            raise PublishError(f"{place}: {error.strerror or error}{hint}", code) from error


# There is no file, a link or socket in its place, or one that we may not read: a new one takes it.
_NONE_OF_OURS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM),
}

_HINTS = {
    errno.EISDIR: "there is a directory where the file should be",
    errno.ENOTDIR: "remove the file or link where a directory should be",
    errno.EROFS: "mount it read-write",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.ENOSPC: "the file system is full",
}


@contextmanager
def _written(directory: int, name: str, content: bytes) -> Iterator[None]:
    """Hold a new, synced, readable file while the block moves it; leave none behind on failure.

    It is locked, so that another instance can distinguish it from leftovers.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, _MODE, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(descriptor, _MODE)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            yield
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise


def _is_abandoned(directory: int, name: str) -> bool:
    """Return whether nobody holds a staged file any more."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _directory(path: Path, *, create: bool = False) -> Iterator[int]:
    if create:
        with suppress(FileExistsError):
            os.mkdir(path, 0o755)  # noqa: PTH102 - its error names the path
    # The directory of the feature file may be a link that the administrator made; the stage,
    # which is ours, may not.
    descriptor = os.open(path, _DIRECTORY | (os.O_NOFOLLOW if path.name == STAGE else 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)
