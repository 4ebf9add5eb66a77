"""Looks at files that may be on a mount that does not answer: each ends, and names the mount."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xelink.daemon.hanging_work import HungError, Lane

T = TypeVar("T")

SECONDS = 5.0
"""For one look."""

# id parent device root point options *fields "-" type source options ; blanks are octal in it
_MOUNT = re.compile(r"\S+ \S+ \S+ \S+ (?P<point>\S+) .*? - (?P<type>\S+) (?P<source>\S*)")
_OCTAL = re.compile(r"\\([0-7]{3})")


class Looks:
    """Looks at things by name, such as `features_dir`: what hung once is not asked for again."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lanes: dict[str, Lane] = {}

    def __call__(self, name: str, path: Path, look: Callable[[], T]) -> T:
        """Look at `path`. Raises what `look` raises, and `HungError` that names the mount."""
        try:
            return self._lanes.setdefault(name, Lane(self._seconds))(look)
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

    By its spelling alone: to ask the file system is to hang with it.
    """
    best, told = -1, "that holds it"
    for line in table.splitlines():
        if not (match := _MOUNT.match(line)):
            continue
        point, kind, source = (_OCTAL.sub(_character, match[part]) for part in _PARTS)
        depth = len(Path(point).parts)
        # Of several on one point the last one covers the others.
        if depth >= best and path.is_relative_to(point):
            best, told = depth, f"{point} ({kind} of {source})"
    return told


_PARTS = ("point", "type", "source")


def _character(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))
