"""Where frames go: generic netlink of the kernel, or a simulator's unix socket."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from xelink.iaf.wire import FRAME_LIMIT, MalformedFrameError

_NETLINK_GENERIC = 16
_KERNEL = 0  # the port of the kernel


class LostReplyError(Exception):
    """The kernel had no room for a reply, which is lost: ask again."""


class Channel(Protocol):
    """Sends a frame and receives frames; a context that ends with it."""

    def send(self, frame: bytes, seconds: float) -> None:
        """Send a frame within so many seconds. Raises `OSError`, `TimeoutError` among them."""

    def receive(self, seconds: float) -> bytes | None:
        """Return the next frame; None for one that is not of the kernel and does not count.

        Raises `OSError`, `TimeoutError` among them, `LostReplyError` and `MalformedFrameError`.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class _SocketChannel:
    def __init__(self, opened: socket.socket, *, netlink: bool) -> None:
        self._socket = opened
        self._netlink = netlink

    def send(self, frame: bytes, seconds: float) -> None:
        self._socket.settimeout(_positive(seconds))
        self._socket.send(frame)

    def receive(self, seconds: float) -> bytes | None:
        self._socket.settimeout(_positive(seconds))
        try:
            frame, _, flags, sender = self._socket.recvmsg(FRAME_LIMIT)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise LostReplyError from error
            raise
        if flags & socket.MSG_TRUNC:
            raise MalformedFrameError(f"longer than {FRAME_LIMIT} bytes", frame)
        if self._netlink and sender[0] != _KERNEL:
            return None
        if not frame:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def kernel() -> Channel:
    """Open generic netlink. Raises `OSError`."""
    opened = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
    )
    try:
        opened.bind((0, 0))
    except OSError:
        opened.close()
        raise
    return _SocketChannel(opened, netlink=True)


def simulator(path: Path) -> Callable[[], Channel]:
    """Return what opens a simulator's socket instead; each datagram is one frame."""

    def connect() -> Channel:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            opened.settimeout(1.0)
            opened.connect(str(path))
        except OSError:
            opened.close()
            raise
        return _SocketChannel(opened, netlink=False)

    return connect


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise TimeoutError("the time is up")
    return seconds
