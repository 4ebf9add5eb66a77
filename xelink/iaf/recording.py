"""Channels that keep what passes through them, or give again what was kept."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from xelink.iaf.channel import Channel
from xelink.iaf.dump import Exchanged
from xelink.iaf.wire import MalformedFrameError

_SEQUENCE = slice(8, 12)
"""Where the sequence number of a frame is."""


class Recorder:
    """A channel that keeps what passes through another one, in `frames`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.frames: list[Exchanged] = []

    def send(self, frame: bytes, seconds: float) -> None:
        """Send a frame."""
        self.frames.append(Exchanged(frame, None))
        self._channel.send(frame, seconds)

    def receive(self, seconds: float) -> bytes | None:
        """Receive a frame; of one that is too long its beginning is kept."""
        try:
            frame = self._channel.receive(seconds)
        except MalformedFrameError as error:
            self.frames[-1] = self.frames[-1]._replace(reply=error.frame)
            raise
        if frame is not None:
            self.frames[-1] = self.frames[-1]._replace(reply=frame)
        return frame

    def __enter__(self) -> Self:
        self._channel.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.__exit__(kind, error, trace)


class Replay:
    """A channel on which each request gets the reply that it got when it was recorded.

    The same request may have been sent more than once: its replies come in their order, the last
    one again and again.
    """

    def __init__(self, frames: Iterable[Exchanged]) -> None:
        self._replies: dict[bytes, list[bytes | None]] = {}
        for request, reply in frames:
            self._replies.setdefault(_without_sequence(request), []).append(reply)
        self._next: bytes | None = None

    def send(self, frame: bytes, _seconds: float) -> None:
        """Take a request."""
        replies = self._replies.get(_without_sequence(frame), [None])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply is not None:
            reply = reply[: _SEQUENCE.start] + frame[_SEQUENCE] + reply[_SEQUENCE.stop :]
        self._next = reply

    def receive(self, _seconds: float) -> bytes:
        """Return its reply. Raises `TimeoutError` where none was recorded."""
        if self._next is None:
            raise TimeoutError("no reply to this was recorded")
        return self._next

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _without_sequence(frame: bytes) -> bytes:
    return frame[: _SEQUENCE.start] + frame[_SEQUENCE.stop :]
