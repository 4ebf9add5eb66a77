"""Unix sockets in kubelet's directory: whose they are, and how ours appears and goes."""

import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from xelink.daemon.command import CannotStartError
from xelink.daemon.descriptors import is_shortage

DIRECTORY = Path("/var/lib/kubelet/device-plugins")
KUBELET = "kubelet.sock"

_LONGEST_PATH = 107  # bytes: sun_path is 108 with its final NUL
_CONNECT_SECONDS = 1.0
_BIRTH_SECONDS = 1.0  # between bind and listen a socket of another instance looks stale


class SocketName(Enum):
    """How our sockets are named: `unique` lets two instances overlap in a rolling update."""

    DEFAULT = "default"
    UNIQUE = "unique"


_SUFFIX = "[0-9a-f]{8}"
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.sock", re.ASCII)


class SocketError(CannotStartError):
    """The socket cannot be ours: nothing can be served until that is fixed."""


class SocketTakenError(SocketError):
    """Another process serves there: two plugins of one resource would fight for kubelet."""


class UncertainError(SocketError):
    """Who serves there is unknown, for lack of descriptors: what was known is kept."""


class SocketWipedError(SocketError):
    """It was deleted while it was made, as by a starting kubelet: the next attempt may succeed."""


class Identity(NamedTuple):
    """What distinguishes a socket from another one of the same path.

    The time of its creation, too, as file systems reuse the inode of a removed file at once.
    """

    device: int
    inode: int
    created: int


class Held(NamedTuple):
    """A socket that is held open: a connection to `path` reaches this one or fails."""

    identity: Identity
    path: Path


def socket_name(resource: str, suffix: str = "") -> str:
    """Name the socket of a resource: `gpu.intel.com/i915` has `gpu.intel.com-i915.sock`."""
    return f"{re.sub('[^A-Za-z0-9._-]', '-', resource)}{'-' * bool(suffix)}{suffix}.sock"


def unique_suffix() -> str:
    """Make a suffix that no other instance has, so that two can overlap in a rolling update."""
    return secrets.token_hex(4)


def identity(path: Path) -> Identity | None:
    """Return the identity of the socket at a path, None when there is none."""
    try:
        return _identity(path.lstat())
    except OSError:
        return None


@contextmanager
def holding(path: Path) -> Iterator[Held | None]:
    """Hold the socket at a path open, None when there is none.

    Between a check of a path and a connection to it another socket may take its place; the one that
    is held is certain to be the one connected to. Raises `UncertainError` as `is_answered` does.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if is_shortage(error):
            raise UncertainError(f"cannot open {path}: {error.strerror}") from error
        yield None
        return
    try:
        known = _identity(os.fstat(descriptor))
        yield known and Held(known, Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> Identity | None:
    if not stat.S_ISSOCK(status.st_mode):
        return None
    # The modification, not the change: no chmod makes another socket of it.
    return Identity(status.st_dev, status.st_ino, status.st_mtime_ns)


def is_answered(path: Path) -> bool:
    """Return whether a process listens on a socket; a stale one refuses.

    Raises `UncertainError` where there is no descriptor to check with.
    """
    try:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise UncertainError(f"cannot check who serves {path}: {error.strerror}") from error
    with client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # too busy to accept is busy, not stale
            return True
    return True


def require_directory(directory: Path) -> None:
    """Raise `SocketError` where there is no directory to serve in."""
    try:
        found = directory.is_dir()
    except OSError as error:
        raise SocketError(f"cannot read {directory.parent}: {error.strerror}") from None
    if not found:
        raise SocketError(f"there is no directory {directory}: kubelet's must be mounted here")


def require_free(path: Path) -> None:
    """Raise `SocketError` when we could not serve on a path, or must not."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise SocketError(f"{path} is too long for a socket: at most {_LONGEST_PATH} bytes")
    try:
        mode = _mode(path)
    except OSError as error:
        raise SocketError(f"cannot read {path.parent}: {error.strerror}") from None
    require_directory(path.parent)
    if mode is not None and not stat.S_ISSOCK(mode):
        raise SocketError(f"{path} is no socket: remove it")
    if mode is not None and is_answered(path):
        raise SocketTakenError(
            f"{path} is served by another process: stop it (-socket-name unique is for an upgrade,"
            " beside our predecessor; from another plugin it would take the resource)"
        )


def why_unbindable(path: Path) -> str | None:
    """Return why no socket can be made at a path where none is; None when one can."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
            own.bind(str(path))
            path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def temporary_path(path: Path) -> Path:
    """Return a path beside `path`, and no longer, where a socket can be bound before it is moved.

    gRPC removes the path that it has bound when its server stops, whosever socket is there by
    then. A socket that was moved away is removed by us alone, and appears when it is ready.
    """
    return path.with_name(f".{secrets.token_hex(6)}.sock")


def remove_stale(directory: Path, resource: str) -> tuple[str, ...]:
    """Remove sockets of killed instances, by names that only ours have.

    Unique names of this resource and temporary ones. A socket that a process answers on is kept, as
    is one made within the last second, or of unknown state. Returns the names.
    """
    unique = re.compile(re.escape(socket_name(resource, "?")).replace(r"\?", _SUFFIX), re.ASCII)
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return ()
    ours = (name for name in names if unique.fullmatch(name) or _TEMPORARY.fullmatch(name))
    return tuple(name for name in ours if _remove_stale(directory / name))


def _remove_stale(path: Path) -> bool:
    current = identity(path)
    grown = current is not None and time.time() - current.created / 1e9 > _BIRTH_SECONDS
    try:
        return grown and not is_answered(path) and remove_own(path, current)
    except UncertainError:
        return False


def _mode(path: Path) -> int | None:
    """Return the mode of what is at a path, None for nothing. Raises `OSError`."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_own(path: Path, own: Identity | None) -> bool:
    """Remove the socket at a path if it is still our own; return whether that was done."""
    if own is None or identity(path) != own:
        return False
    with suppress(OSError):
        path.unlink()
        return True
    return False
