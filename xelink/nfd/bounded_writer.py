"""The feature file on a file system that may not answer: whoever asks waits for so long only."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from xelink.daemon.hanging_work import HungError, SerialWorker
from xelink.nfd.writer import HangingError, Publisher, PublishError

T = TypeVar("T")

SECONDS = 5.0
"""For one publication, or one look at the file."""


class BoundedPublisher:
    """Writes, reads and removes one feature file as `Publisher` does, never for long.

    One thing at a time, whichever thread asks: two never write, and what hangs is done, if ever,
    before anything else is begun. The lock of the file is ours until the process ends, and with it
    what hangs.
    """

    verb = "published"

    def __init__(self, publisher: Publisher, path: Path, seconds: float = SECONDS) -> None:
        """Ask `publisher` for everything; `path` is what errors name."""
        self._publisher = publisher
        self._path = path
        self._lane = SerialWorker(seconds)

    def other_writer(self) -> str | None:
        """Return the other sidecar that writes this file. Raises `PublishError`."""
        return self._do(self._publisher.other_writer)

    def read(self) -> bytes | None:
        """Return the current file; None where there is none. Raises `PublishError`."""
        return self._do(self._publisher.read)

    def publish(self, content: bytes) -> None:
        """Replace the current file with `content`. Raises `PublishError`."""
        self._do(lambda: self._publisher.publish(content))

    def withdraw(self) -> None:
        """Remove the file. Raises `PublishError`."""
        self._do(self._publisher.withdraw)

    def prepare(self) -> list[str]:
        """Make the stage, and remove what was left in it. Raises `PublishError`."""
        return self._do(self._publisher.prepare)

    def close(self) -> None:
        """Let another sidecar write the file: at once, or where that hangs, with our end."""
        with suppress(PublishError):
            self._do(self._publisher.close)

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return self._lane(work)
        except HungError as error:
            raise HangingError(f"{self._path}: {error.strerror}") from error
        except OSError as error:
            raise PublishError(f"{self._path}: {error.strerror or error}") from error
