"""The result of a check: status, reason, and what to do. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class CheckStatus(Enum):
    """The status of a check, from best to worst; `SKIP` if it cannot be checked from here."""

    SKIP = "skip"
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. `todo` is what to do; empty if there is nothing to do.

    `see` are the checks that explain why this one was skipped.
    """

    status: CheckStatus
    reason: str
    todo: str = ""
    see: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {self.todo}" if self.todo else self.reason


def ok(reason: str) -> Finding:
    """Return that nothing is wrong."""
    return Finding(CheckStatus.OK, reason)


def skip(reason: str, *see: str) -> Finding:
    """Return why this cannot be checked, and which checks explain it."""
    return Finding(
        CheckStatus.SKIP, f"{reason}, see {' and '.join(see)}" if see else reason, see=see
    )


def warn(reason: str, todo: str) -> Finding:
    """Return what works, but needs attention."""
    return Finding(CheckStatus.WARN, reason, todo)


def fail(reason: str, todo: str) -> Finding:
    """Return what does not work."""
    return Finding(CheckStatus.FAIL, reason, todo)


def hung(reason: str) -> Finding:
    """Return what does not answer."""
    return fail(reason, "fix its file system or unmount it: programs that use it hang, too")


def span(seconds: float) -> str:
    """Return a duration in its largest whole unit."""
    left = max(0, int(seconds))
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if left >= 2 * unit:
            return f"{left // unit} {name}"
    return f"{left} s"


def some(names: Sequence[str], most: int = 4) -> str:
    """Return the first names of many, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
