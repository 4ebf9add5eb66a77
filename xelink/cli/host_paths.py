"""Paths of a host whose `/` is at a prefix: symbolic links are resolved as on that host."""

import errno
import os
from pathlib import Path

_MOST_LINKS = 40  # as Linux follows
_ROOT = Path("/")


def below(prefix: Path, path: Path) -> Path:
    """Return the place of an absolute path of the host, with links resolved below the prefix.

    `/var/lib/kubelet` may be a link to `/data/kubelet`, which is the host's, not ours. A part that
    is missing or not readable stays unchanged. Raises `OSError` for a loop of links.
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
