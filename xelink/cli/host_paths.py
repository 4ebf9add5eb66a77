"""Paths of a host whose `/` is seen at a prefix: links lead where they lead on that host."""

import errno
import os
from pathlib import Path

_MOST_LINKS = 40  # as Linux follows
_ROOT = Path("/")


def below(prefix: Path, path: Path) -> Path:
    """Return where an absolute path of the host is seen, links resolved below the prefix alone.

    `/var/lib/kubelet` may be a link to `/data/kubelet`: that is the host's, not ours. What is not
    there, or may not be looked at, stays as it is spelled. Raises `OSError` where links never end.
    """
    if prefix == _ROOT:
        return path  # the kernel does the same
    left = [*reversed(path.parts[1:])]
    found: list[str] = []
    links = 0
    while left:
        name = left.pop()
        if name == "..":
            found = found[:-1]
            continue
        try:
            target = os.readlink(prefix.joinpath(*found, name))  # noqa: PTH115 - "" and "." stay apart
        except OSError:  # no link
            found.append(name)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        if target.startswith("/"):
            found = []
        left += [part for part in reversed(target.split("/")) if part not in {"", "."}]
    return prefix.joinpath(*found)
