"""The feature file: what it publishes, what it is to publish, and for how long."""

import errno
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from sidecar.announcements import Announcements, expiry_text
from sidecar.debounce import Confirmed
from xelink.nfd.writer import HangingError, OnExit, PublishError
from xelink.topology import nfd_format
from xelink.topology.publication import (
    DEFAULT_NAMESPACE,
    GROUP,
    AbsentError,
    Publication,
    TooLongError,
    UnusableError,
    UnwritableError,
    read,
    render,
)
from xelink.topology.rules import Rules
from xelink.topology.text import printable

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings
    from sidecar.telemetry import Telemetry

_UNREAD = timedelta(minutes=5)  # until a file that cannot be read is given up


@dataclass(frozen=True)
class Policy:
    """How what is observed becomes what is published."""

    rules: Rules = field(default_factory=Rules)
    confirmations: int = 2
    namespace: str = DEFAULT_NAMESPACE
    summary: bool = True
    life: timedelta = timedelta(seconds=300)
    """How long the labels live unless they are renewed; zero: for ever."""

    @classmethod
    def of(cls, settings: "SidecarSettings") -> "Policy":
        """Return the policy that the flags ask for."""
        return cls(
            Rules(settings.lane_count, settings.allow_subdeviceless_links),
            1 if settings.oneshot else settings.confirmations,
            settings.label_namespace,
            settings.summary_labels,
            timedelta(seconds=settings.life),
        )


class Destination(Protocol):
    """Where publications go."""

    @property
    def verb(self) -> str:
        """What becomes of labels there: published, or only printed."""

    def other_writer(self) -> str | None:
        """Return who else writes there; None where it is ours. Raises `PublishError`."""

    def read(self) -> bytes | None:
        """Return the current file. Raises `PublishError` where that is not known."""

    def publish(self, content: bytes) -> None:
        """Replace the current file. Raises `PublishError`."""

    def withdraw(self) -> None:
        """Remove the current file. Raises `PublishError`."""


class PublishedFile:
    """What was written last, and what keeps it from being written.

    `valid_until` is how long the confirmed topology counts: until the labels expire, or as long as
    they would have lived had they been written by us; None for ever. `problem` is why the last
    attempt failed, `other` who publishes in our place. `resumed` is whether the file that was there
    at the start is known, or was given up.
    """

    def __init__(
        self, target: Destination, policy: Policy, telemetry: "Telemetry", announce: Announcements
    ) -> None:
        self._target = target
        self._policy = policy
        self._telemetry = telemetry
        self._announce = announce
        self._written: tuple[Publication, bytes] | None = None
        self._unread_since: datetime | None = None
        self.valid_until: datetime | None = None
        self.problem: str | None = None
        self.other: str | None = None
        self.resumed = False

    @property
    def published(self) -> bool:
        """Whether the last attempt to publish, if any, went well."""
        return self.problem is None and self.other is None

    def content(self) -> bytes | None:
        """Return the file as it is. Raises `PublishError` where that is not known."""
        return self._target.read()

    def resume(self, now: datetime) -> Publication | None:
        """Return what the file publishes as the last publication, None where nothing can be used.

        Where it cannot be read, this is asked again, for some minutes: then a new file takes its
        place.
        """
        try:
            content = self._target.read()
        except PublishError as error:
            self._fail(error, now, held=False)
            self._unread_since = self._unread_since or now
            if isinstance(error, HangingError) or now - self._unread_since < _UNREAD:
                return None
            content = None
        self.resumed = True
        self._settle(None)
        if content is None:
            return None
        try:
            published = read(content, self._policy.namespace, now)
        except AbsentError:
            return None
        except UnusableError as error:
            self._announce.ignored(str(error))
            return None
        if published.topology is not None:
            # Files of Intel's XeLink sidecar never expire: its last one must not count for ever.
            self.valid_until = published.expiry or self._expiry(now)
        self._telemetry.expires(_timestamp(published.expiry))
        self._announce.resumed(published)
        return published

    def publish(
        self, wanted: Publication, now: datetime, before: Confirmed | None, *, logged: bool = False
    ) -> None:
        """Publish where that changes something; `logged` is whether the log has that already."""
        try:
            self._stand_by(self._target.other_writer())
            if self.other:
                # What is confirmed counts as if it had been written: it may be, at any time.
                self.valid_until, self._written = self._expiry(now), None
                return
            content = self._current()
        except PublishError as error:
            self._fail(error, now, held=wanted.topology is not None)
            return
        self._announce.touched(by_others=self._written is not None and content != self._written[1])
        current = nfd_format.parse(content, now).expiry if content is not None else None
        try:
            # After a failure it is not certain that what is there will last: it is written again.
            same = (
                content is not None
                and self.published
                and (
                    self._written == (wanted, content)  # the usual case: nothing to render
                    or content == self._render(wanted.until(current))
                )
            )
            if same and not self._due(current, now):
                self.valid_until = current
                self._settle(None)
                return
            expiry = self._expiry(now)
            content = self._render(wanted.until(expiry))
            self._target.publish(content)
        except (PublishError, UnwritableError) as error:
            self._fail(error, now, held=wanted.topology is not None)
            return
        self._written = wanted, content
        self.valid_until = expiry
        self._settle(None)
        self._telemetry.published(
            "renewed" if same else "changed", now.timestamp(), _timestamp(expiry)
        )
        self._announce.group(
            missing=self._policy.summary
            and wanted.topology is not None
            and f"/{GROUP}=".encode() not in content
        )
        self._announce.published(wanted, before, expiry, renewed=same, logged=logged)

    def not_as_written(self) -> str | None:
        """Return that the file is not what was written last; None where it is."""
        written = self._written  # which the loop may change while we wait for the file
        if self.other or not written:
            return None
        try:
            same = self._target.read() == written[1]
        except PublishError as error:
            return f"not published: {printable(str(error))}"
        text = "the feature file is not what was published; repaired at the next scrape"
        return None if same else text

    def leave(self, on_exit: OnExit, now: datetime) -> None:
        """Leave the file, remove it or keep it for ever, as `on_exit` says."""
        try:
            if self.other or self._target.other_writer():
                self._announce.stopped("those of another sidecar")
                return
            content = self._target.read()
        except PublishError as error:
            self._announce.stopped("not certain", _advised(error))
            return
        if content is None or on_exit is OnExit.EXPIRE:
            expiry = nfd_format.parse(content or b"", now).expiry
            stay = f"stay until {expiry_text(expiry)}" if expiry else "stay for ever"
            self._announce.stopped(stay if content else "none")
            return
        try:
            if on_exit is OnExit.REMOVE:
                self._target.withdraw()
                self._telemetry.published("withdrawn", now.timestamp(), 0)
                self._announce.stopped("removed")
            else:
                self._keep(content, now)
        except (PublishError, UnusableError) as error:
            labels = "not certain"
            with suppress(PublishError):
                labels = "as they were" if self._target.read() == content else labels
            self._announce.stopped(labels, _advised(error))

    def _stand_by(self, other: str | None) -> None:
        self.other = None if other is None else printable(other)
        self._telemetry.stands_by(other is not None)
        self._announce.publisher(other)

    def _current(self) -> bytes | None:
        """Return the current file; None, too, where it cannot be read: then it is written anew.

        Raises `HangingError`.
        """
        try:
            return self._target.read()
        except HangingError:
            raise
        except PublishError:
            return None

    def _fail(self, error: PublishError | UnwritableError, now: datetime, *, held: bool) -> None:
        if held:
            # What is confirmed is no better for it: it counts as long as if it had been written.
            self.valid_until = self.valid_until or self._expiry(now)
        outcome = "failed"
        if isinstance(error, HangingError):
            # It may still be written, and by nobody else.
            outcome, self._written = "hung", None
        self._telemetry.published(outcome, now.timestamp(), 0)
        self._settle(_advised(error))

    def _render(self, publication: Publication) -> bytes:
        return render(publication, self._policy.namespace, summary=self._policy.summary)

    def _expiry(self, now: datetime) -> datetime | None:
        return now.replace(microsecond=0) + self._policy.life if self._policy.life else None

    def _due(self, expiry: datetime | None, now: datetime) -> bool:
        """Return whether a third of the life is over, or the clock was set back."""
        if not self._policy.life or expiry is None:
            return bool(self._policy.life) != (expiry is not None)
        left = expiry - now
        return left <= self._policy.life * 2 / 3 or left > self._policy.life

    def _settle(self, problem: str | None) -> None:
        self.problem = problem
        self._announce.publishing(problem)

    def _keep(self, content: bytes, now: datetime) -> None:
        """Remove the expiry; what has expired already is not published again."""
        if read(content, self._policy.namespace, now).expiry:
            self._target.publish(nfd_format.without_expiry(content))
        self._announce.stopped("stay for ever")


def _advised(error: Exception) -> str:
    """Return an error in words, with what of our flags can help."""
    advice = ""
    if isinstance(error, TooLongError):
        advice = "; a higher -lane-count leaves fewer links"
    elif isinstance(error, PublishError) and error.code in _ADVICE:
        advice = f"; {_ADVICE[error.code]}"
    return f"{printable(str(error))}{advice}"


_ADVICE = {
    errno.ENOENT: "is it mounted (-dst-file-path, -tmp-dir-prefix), and does NFD run on this node?",
    errno.EXDEV: "-tmp-dir-prefix must be on the same file system as -dst-file-path",
}


def _timestamp(expiry: datetime | None) -> float:
    return expiry.timestamp() if expiry else 0
