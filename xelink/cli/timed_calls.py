"""Calls about files on mounts that may not answer: each ends in time, and errors name the mount."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xelink.daemon.hanging_work import HungError, SerialWorker

T = TypeVar("T")

SECONDS = 5.0
"""For one call."""

# id parent device root point options *fields "-" type source options ; blanks are octal in it
_MOUNT = re.compile(r"\S+ \S+ \S+ \S+ (?P<point>\S+) .*? - (?P<type>\S+) (?P<source>\S*)")
_OCTAL = re.compile(r"\\([0-7]{3})")


class TimedCalls:
    """Makes calls by name, such as `features_dir`; a name that hung is not called again."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._workers: dict[str, SerialWorker] = {}

    def __call__(self, name: str, path: Path, call: Callable[[], T]) -> T:
        """Make a call about `path`. Raises what `call` raises, and `HungError` with the mount."""
        try:
            return self._workers.setdefault(name, SerialWorker(self._seconds))(call)
        except HungError as error:
            raise HungError(
                errno.EIO,
                f"{path} does not answer within {self._seconds:g} s, on the mount {_mount(path)}",
            ) from error


def _mount(path: Path) -> str:
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return "that holds it"
    return mount_of(path, table)


def mount_of(path: Path, table: str) -> str:
    """Return the mount that holds an absolute path, as `/proc/self/mountinfo` has it.

    By the text of the path alone: asking the file system would hang, too.
    """
    best, mount = -1, "that holds it"
    for line in table.splitlines():
        if not (match := _MOUNT.match(line)):
            continue
        point, kind, source = (_OCTAL.sub(_character, match[part]) for part in _PARTS)
        depth = len(Path(point).parts)
        # Of several mounts on one point the last one hides the others.
        if depth >= best and path.is_relative_to(point):
            best, mount = depth, f"{point} ({kind} of {source})"
    return mount


_PARTS = ("point", "type", "source")


def _character(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))
