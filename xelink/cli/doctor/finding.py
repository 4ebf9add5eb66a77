"""What a check of the doctor found: how it stands, why, and what to do about it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """How one thing stands, from best to worst; what cannot be seen from here is skipped."""

    SKIP = "skip"
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `todo` is what to do, and empty where there is nothing to do.

    `see` are the checks that tell why this one cannot say anything.
    """

    status: Status
    reason: str
    todo: str = ""
    see: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {self.todo}" if self.todo else self.reason


def ok(reason: str) -> Finding:
    """Say that it is as it should be."""
    return Finding(Status.OK, reason)


def skip(reason: str, *see: str) -> Finding:
    """Say why nothing can be said, and which checks tell more: what is not here is no fault."""
    return Finding(Status.SKIP, f"{reason}, see {' and '.join(see)}" if see else reason, see=see)


def warn(reason: str, todo: str) -> Finding:
    """Say what works, but should be looked at."""
    return Finding(Status.WARN, reason, todo)


def fail(reason: str, todo: str) -> Finding:
    """Say what does not work."""
    return Finding(Status.FAIL, reason, todo)


def hung(reason: str) -> Finding:
    """Say what does not answer."""
    return fail(reason, "mend its file system or unmount it: who uses it hangs, too")


def span(seconds: float) -> str:
    """Say how long a time is, in its largest whole unit."""
    left = max(0, int(seconds))
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if left >= 2 * unit:
            return f"{left // unit} {name}"
    return f"{left} s"


def some(names: Sequence[str], most: int = 4) -> str:
    """Name the first of many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
