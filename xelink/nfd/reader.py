"""What the feature file says of this node's links, until it expires.

`look` reads the file once, `read` returns what it means at an instant, `follow` is the loop that
polls and reports each change once; `links` joins it to GPUs. A file counts whole or not at all, and
only until its expiry; whatever is wrong with it is a `FileState` with a reason, never an exception.
"""

import asyncio
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeAlias

from xelink.daemon.polling import first_of, until
from xelink.daemon.worker_threads import run_in_thread
from xelink.topology import nfd_format, publication
from xelink.topology.publication import Publication
from xelink.topology.text import printable

DEFAULT_PATH = Path("/etc/kubernetes/node-feature-discovery/features.d/xpum-sidecar-labels.txt")
POLL_SECONDS = 1.0
SETTLED = timedelta(milliseconds=300)
"""How long a file must be unchanged that nothing proves to be complete."""

TIMEOUT = 5.0
"""Seconds for one look at the file."""

_HANGS = "not read within {:g} s: its file system does not answer"
_REASON_LIMIT = 300  # characters: a reason may quote the file, which may be anybody's


class FileState(Enum):
    """What can be known of the node's links, and why not more."""

    IN_USE = "in use"
    INFERRED = "inferred"
    """Labels without an id map: ids are taken for places in PCI order."""
    AMBIGUOUS = "ambiguous"
    """Labels without an id map, and no single order that they could mean."""
    MISSING = "missing"
    EXPIRED = "expired"
    INCONSISTENT = "inconsistent"
    NO_FABRIC_DATA = "no-fabric-data"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the file: `content` is None, and `problem` is why, where it cannot be read.

    `signature` differs whenever the file may; `modified` is when it was last written.
    """

    signature: tuple[int, ...] = ()
    content: bytes | None = field(default=None, repr=False)
    modified: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the file means at one instant; `publication` is None unless it may be used.

    `published` is when the file was last written, which a mere renewal of its expiry is, too.
    """

    state: FileState
    reason: str = ""
    publication: Publication | None = None
    expiry: datetime | None = None
    published: datetime | None = None

    def outlived(self, now: datetime) -> bool:
        """Return whether only time has made this reading wrong: the file must be read again."""
        expired = self.expiry is not None and self.expiry < now
        return expired is not (self.state is FileState.EXPIRED)

    def settled(self, now: datetime) -> bool:
        """Return whether the file is complete for certain.

        Only a file with our raw features proves it. Anything else may be one that is being written
        in place, of which half can look valid: it has to be unchanged for a moment.
        """
        if self.published is None or (
            self.publication and self.publication.whole and self.publication.topology
        ):
            return True
        # Not only the past: after a step of the clock a file can be from the future.
        return abs(now - self.published) >= SETTLED


def look(path: Path, before: Look | None = None) -> Look:
    """Look at the file; the same object as `before` is returned where nothing has changed."""
    try:
        if before and before.signature == _signature(path.stat()):
            return before
        # Not blocking: a pipe in the file's place would hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = _look_into(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        found = Look(problem=error.strerror or str(error))
    return before if before and before == found else found


Looking: TypeAlias = Callable[[Path, Look | None], Look]


def _look_into(descriptor: int) -> Look:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return Look(_signature(status), problem="not a regular file")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        content = file.read(nfd_format.FILE_LIMIT + 1)
    return Look(_signature(status), content, _instant(status.st_mtime))


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _instant(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):  # a file system may report anything
        return None


def read(seen: Look, namespace: str, now: datetime) -> Reading:
    """Return what the file means at the instant `now` (with a time zone); never raises."""
    if seen.content is None:
        return Reading(FileState.MISSING, seen.problem, published=seen.modified)
    try:
        found = publication.read(seen.content, namespace, now)
    except publication.UnusableError as error:
        # NFD's own rules may know more about a file that cannot be used.
        file = nfd_format.parse(seen.content, now)
        reason = printable("; ".join((str(error), *file.problems)), _REASON_LIMIT)
        return Reading(_UNUSABLE[type(error)], reason, None, file.expiry, seen.modified)
    state, reason = FileState.IN_USE, ""
    if found.topology is None:
        state, reason = FileState.NO_FABRIC_DATA, "the source here has no data of Xe Links"
    elif not found.whole:
        reason = "labels only, without lanes and id map"
    return Reading(state, reason, found, found.expiry, seen.modified)


_UNUSABLE: Mapping[type[publication.UnusableError], FileState] = {
    publication.AbsentError: FileState.MISSING,
    publication.ExpiredFileError: FileState.EXPIRED,
    publication.InconsistentError: FileState.INCONSISTENT,
}


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def follow(  # noqa: PLR0913 - what the tests replace has names
    path: Path,
    namespace: str,
    report: Callable[[Reading], None],
    stop: asyncio.Event,
    *,
    now: Callable[[], datetime] = _utc_now,
    every: float = POLL_SECONDS,
    looking: Looking = look,
    time_limit: float = TIMEOUT,
) -> None:
    """Poll the file every so many seconds until `stop` is set, and report each new reading.

    The first reading is reported at once, then every change: of its content, of its expiry, and
    the expiry itself, which comes without any change of the file. What `report` raises ends the
    loop.

    Where the file system does not answer for `time_limit` seconds, the last content counts
    until its expiry.
    """
    seen: Look | None = None
    last: Reading | None = None
    unsettled = False

    def is_due() -> bool:
        outlived = last is not None and last.outlived(now())
        return unsettled or outlived or looking(path, seen) is not seen

    while not stop.is_set():
        # Beside the loop, which a file system that does not answer would hold: RPCs and signals.
        looks = asyncio.ensure_future(run_in_thread(partial(looking, path, seen)))
        wait = time_limit
        while not await first_of(asyncio.wait([looks]), stop.wait(), seconds=wait):
            if last is None or last.outlived(now()):
                unsettled = True  # whatever comes next is read
                last = Reading(FileState.MISSING, _HANGS.format(time_limit))
                report(last)
            wait = every
        if not looks.done():  # the end came
            looks.cancel()
            return
        found, instant = looks.result(), now()
        if last is None or unsettled or found is not seen or last.outlived(instant):
            reading = read(found, namespace, instant)
            unsettled = not reading.settled(instant)
            if not unsettled and reading != last:
                last = reading
                report(reading)
        seen = found
        await first_of(stop.wait(), until(is_due, lambda: every))
