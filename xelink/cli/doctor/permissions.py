"""Permissions by mode bits alone, as for a process without capabilities.

The daemons have no capabilities, and NFD's worker is not root. `os.access` would answer for the
caller, and root may do everything.
"""

import os
import stat
from dataclasses import dataclass

READ, WRITE, ENTER = 4, 2, 1


@dataclass(frozen=True)
class User:
    """The user whose permission is checked."""

    uid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return f"uid {self.uid}"


NFD = User(65534, frozenset({65534}))
"""NFD's worker, as its own manifests run it."""


def caller() -> User:
    """Return the user who runs this."""
    return User(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def is_allowed(user: User, status: os.stat_result, wanted: int) -> bool:
    """Return whether a user has all the wanted mode bits: the first class that fits decides."""
    shift = 6 if user.uid == status.st_uid else 3 if status.st_gid in user.groups else 0
    return status.st_mode >> shift & wanted == wanted


def format_mode(status: os.stat_result) -> str:
    """Return mode and owners as `ls -ln` prints them."""
    return f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
