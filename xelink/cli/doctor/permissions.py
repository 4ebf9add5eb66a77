"""What a user may do with a file, by its mode bits alone: as for a process without capabilities.

The daemons run without any, NFD's worker is not root: `os.access` would answer for whoever asks,
and root may do all.
"""

import os
import stat
from dataclasses import dataclass

READ, WRITE, ENTER = 4, 2, 1


@dataclass(frozen=True)
class User:
    """Whose permission is asked for."""

    uid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return f"uid {self.uid}"


NFD = User(65534, frozenset({65534}))
"""NFD's worker, as its own manifests run it."""


def caller() -> User:
    """Give who runs this."""
    return User(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def may(user: User, told: os.stat_result, wanted: int) -> bool:
    """Tell whether a user has all the wanted bits of a mode: the first class that fits decides."""
    shift = 6 if user.uid == told.st_uid else 3 if told.st_gid in user.groups else 0
    return told.st_mode >> shift & wanted == wanted


def spelled(told: os.stat_result) -> str:
    """Spell mode and owners as `ls -ln` does."""
    return f"{stat.filemode(told.st_mode)} {told.st_uid}:{told.st_gid}"
