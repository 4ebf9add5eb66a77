"""One tick: scrape, judge, publish what changed; and what the probes say of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from sidecar.announcements import Announcements, expiry_text, pending
from sidecar.debounce import Belief, believe
from sidecar.telemetry import Telemetry
from xelink.daemon.http_server import Verdict
from xelink.nfd.writer import HangingError, OnExit, PublishError
from xelink.topology import nfd_format
from xelink.topology.publication import (
    DEFAULT_NAMESPACE,
    GROUP,
    AbsentError,
    Publication,
    UnusableError,
    UnwritableError,
    read,
    render,
)
from xelink.topology.text import printable
from xelink.xpu_manager.classification import (
    Outcome,
    Reason,
    Rules,
    Seen,
    Unknown,
    answered,
    classify,
)
from xelink.xpu_manager.exposition import Reading
from xelink.xpu_manager.hints import no_links
from xelink.xpu_manager.scrape import ScrapeError


class Source(Protocol):
    """Where readings come from."""

    @property
    def trust_problem(self) -> str | None:
        """Say why the files of the trust cannot be used."""

    @property
    def certificate_expiry(self) -> float | None:
        """Give the end of the server's certificate, in seconds since 1970."""

    def scrape(self) -> Reading:
        """Scrape once. Raises `ScrapeError`."""


class Target(Protocol):
    """Where publications go."""

    @property
    def verb(self) -> str:
        """Say what becomes of labels there: published, or only printed."""

    def other_writer(self) -> str | None:
        """Give who else writes there; None where it is ours. Raises `PublishError`."""

    def read(self) -> bytes | None:
        """Give what stands. Raises `PublishError` where that is not known."""

    def publish(self, content: bytes) -> None:
        """Replace what stands. Raises `PublishError`."""

    def withdraw(self) -> None:
        """Remove what stands. Raises `PublishError`."""


@dataclass(frozen=True)
class Policy:
    """How what is seen becomes what is published."""

    rules: Rules = field(default_factory=Rules)
    confirmations: int = 2
    namespace: str = DEFAULT_NAMESPACE
    summary: bool = True
    life: timedelta = timedelta(seconds=300)
    """How long the labels live unless they are renewed; zero: for ever."""


class Scrape(NamedTuple):
    """One scrape as it is remembered: when it ended, how long it took, what it said."""

    at: datetime
    seconds: float
    outcome: Outcome


_MOST_REMEMBERED = 20
_UNREAD = timedelta(minutes=5)  # until what stands and cannot be read is given up


class Sidecar:
    """The loop's state: what is believed, what stands, what was said last."""

    def __init__(
        self,
        source: Source,
        target: Target,
        policy: Policy,
        telemetry: Telemetry,
        log: FilteringBoundLogger,
    ) -> None:
        self._source = source
        self._target = target
        self._policy = policy
        self._telemetry = telemetry
        self._say = Announcements(log, target.verb)
        self._belief: Belief | None = None
        self._believed_until: datetime | None = None
        self._judged: tuple[Reading, Outcome] | None = None
        self._resumed = False
        self._unread_since: datetime | None = None
        self._publish_problem: str | None = None
        self._other: str | None = None
        self._fault: str | None = None
        self._written: tuple[Publication, bytes] | None = None
        self.outcome: Outcome | None = None
        self.scrapes: tuple[Scrape, ...] = ()
        """The last ones, newest first."""

    @property
    def belief(self) -> Belief | None:
        """What is believed now."""
        return self._belief

    @property
    def policy(self) -> Policy:
        """How what is seen becomes what is published."""
        return self._policy

    def standing(self) -> bytes | None:
        """Give the feature file as it is. Raises `PublishError` where that is not known."""
        return self._target.read()

    def resume(self, now: datetime) -> None:
        """Take what stands in the file as the last publication: a restart forgets nothing.

        Where it cannot be read, each tick tries again, and judges nothing before, for
        some minutes: then a new file takes its place.
        """
        try:
            content = self._target.read()
        except PublishError as error:
            self._fail(error, now)
            self._unread_since = self._unread_since or now
            if isinstance(error, HangingError) or now - self._unread_since < _UNREAD:
                return
            content = None
        self._resumed = True
        self._settle(None)
        if content is None:
            return
        try:
            standing = read(content, self._policy.namespace, now)
        except AbsentError:
            return
        except UnusableError as error:
            self._say.ignored(str(error))
            return
        if standing.topology is not None:
            # The reference's files never expire: what it said last must not bind us for ever.
            self._hold(Belief(standing.topology), standing.expiry or self._expiry(now))
        self._telemetry.stands(_timestamp(standing.expiry))
        self._say.resumed(standing)

    def tick(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> Outcome:
        """Scrape once, and publish when that changes something or the expiry is due."""
        try:
            outcome = self._tick(now, monotonic)
        except Exception:
            self._fault = "the last tick failed; see the log"
            raise
        self._fault = None
        return outcome

    def _tick(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> Outcome:
        started = monotonic()
        outcome = self._scrape()
        seconds, at = monotonic() - started, now()
        self.scrapes = (Scrape(at, seconds, outcome), *self.scrapes[: _MOST_REMEMBERED - 1])
        self._telemetry.scraped(outcome, seconds, at.timestamp())
        self._telemetry.certificate(self._source.certificate_expiry)
        self._say.trust(self._source.trust_problem)
        at = now()
        if self._believed_until and self._believed_until < at:
            self._hold(None, None)  # what has expired stands no longer
        said = self._say_outcome(outcome)
        if not self._resumed:
            self.resume(at)
        if self._resumed:
            self._judge(outcome, at, said=said)
        self.outcome = outcome
        return outcome

    def not_ready(self) -> str | None:
        """Say why what is published is not what was last seen; None when it is."""
        if self._fault or self.outcome is None:
            return self._fault or "no scrape yet"
        if isinstance(self.outcome, Unknown) and (
            self.outcome.reason is not Reason.NO_FABRIC_DATA or self._belief is not None
        ):
            return f"last scrape unknown, {self.outcome.reason.value}: {self.outcome.detail}"
        if self._publish_problem:
            return f"not published: {self._publish_problem}"
        if self._belief and self._belief.missing:
            return f"a loss waits for confirmation: {pending(self._belief)}"
        return self._not_as_written()

    def _not_as_written(self) -> str | None:
        written = self._written  # which the loop may change while we wait for the file
        if self._other or not written:
            return None
        try:
            same = self._target.read() == written[1]
        except PublishError as error:
            return f"not published: {printable(str(error))}"
        said = "the feature file is not what was published; mended at the next scrape"
        return None if same else said

    def ready(self) -> Verdict | str | None:
        """Say why we are not ready; and, when we are, who publishes for us, or why no link is.

        Who stands by is ready: in a rollout that overlaps, the old one ends when the new one is.
        """
        if problem := self.not_ready():
            return problem
        if self._other:
            return Verdict(fine=True, text=f"standing by: {self._other} publishes")
        if hint := self._hint(self.outcome):
            return Verdict(fine=True, text=f"no links: {hint}")
        return None

    def _hint(self, outcome: Outcome | None) -> str:
        """Return why no link passes; nothing where one does, or nothing is known."""
        if not isinstance(outcome, Seen) or outcome.topology.links:
            return ""
        return no_links(outcome, self._policy.rules)

    @property
    def published(self) -> bool:
        """Whether the last attempt to publish, if any, went well."""
        return self._publish_problem is None and self._other is None

    def leave(self, on_exit: OnExit, now: datetime) -> None:
        """Do with the feature file what was asked for the end."""
        try:
            if self._other or self._target.other_writer():
                self._say.stopped("those of another sidecar")
                return
            content = self._target.read()
        except PublishError as error:
            self._say.stopped("not certain", error)
            return
        if content is None or on_exit is OnExit.EXPIRE:
            expiry = nfd_format.parse(content or b"", now).expiry
            stay = f"stay until {expiry_text(expiry)}" if expiry else "stay for ever"
            self._say.stopped(stay if content else "none")
            return
        try:
            if on_exit is OnExit.REMOVE:
                self._target.withdraw()
                self._telemetry.published("withdrawn", now.timestamp(), 0)
                self._say.stopped("removed")
            else:
                self._keep(content, now)
        except (PublishError, UnusableError) as error:
            labels = "not certain"
            with suppress(PublishError):
                labels = "as they were" if self._target.read() == content else labels
            self._say.stopped(labels, error)

    def _keep(self, content: bytes, now: datetime) -> None:
        """Take the expiry away; but what has expired is not brought back to life."""
        if read(content, self._policy.namespace, now).expiry:
            self._target.publish(nfd_format.without_expiry(content))
        self._say.stopped("stay for ever")

    def _scrape(self) -> Outcome:
        try:
            reading = self._source.scrape()
        except ScrapeError as error:
            return Unknown(error.reason, error.detail)
        self._telemetry.read(reading)
        # The reader gives the very same reading for the same bytes: nothing to judge anew.
        if self._judged is None or self._judged[0] is not reading:
            self._judged = reading, answered(classify(reading, self._policy.rules))
        return self._judged[1]

    def _judge(self, outcome: Outcome, now: datetime, *, said: bool) -> None:
        if isinstance(outcome, Seen):
            before = self._belief
            belief = believe(before, outcome, self._policy.confirmations)
            self._hold(belief, self._believed_until)
            self._say.doubts(outcome, belief)
            self._publish(Publication(belief.topology), now, before)
        elif self._is_state_alone(outcome):
            self._publish(Publication(None), now, None, said=said)

    def _is_state_alone(self, outcome: Unknown) -> bool:
        """Tell whether what is published is only that there is no fabric data."""
        return (
            outcome.reason is Reason.NO_FABRIC_DATA
            and self._belief is None
            and self._policy.summary
        )

    def _hold(self, belief: Belief | None, until: datetime | None) -> None:
        self._believed_until = until
        if belief != self._belief:
            self._telemetry.believed(belief)
        self._belief = belief

    def _publish(
        self, wanted: Publication, now: datetime, before: Belief | None, *, said: bool = False
    ) -> None:
        """Publish where that changes something; `said` is that the change was told already."""
        try:
            self._stand_by(self._target.other_writer())
            if self._other:
                # What is believed lives as long as if it had been written: it may be, at any time.
                self._believed_until, self._written = self._expiry(now), None
                return
            content = self._standing()
        except PublishError as error:
            self._fail(error, now)
            return
        self._say.touched(by_others=self._written is not None and content != self._written[1])
        standing = nfd_format.parse(content, now).expiry if content is not None else None
        try:
            # After a failure it is not certain that what is there will last: it is written again.
            same = (
                content is not None
                and self.published
                and (
                    self._written == (wanted, content)  # the usual case: nothing to render
                    or content == self._render(wanted.until(standing))
                )
            )
            if same and not self._due(standing, now):
                self._believed_until = standing
                self._settle(None)
                return
            expiry = self._expiry(now)
            content = self._render(wanted.until(expiry))
            self._target.publish(content)
        except (PublishError, UnwritableError) as error:
            self._fail(error, now)
            return
        self._written = wanted, content
        self._believed_until = expiry
        self._settle(None)
        self._telemetry.published(
            "renewed" if same else "changed", now.timestamp(), _timestamp(expiry)
        )
        self._say.group(
            missing=self._policy.summary
            and wanted.topology is not None
            and f"/{GROUP}=".encode() not in content
        )
        self._say.published(wanted, before, expiry, renewed=same, said=said)

    def _stand_by(self, other: str | None) -> None:
        self._other = None if other is None else printable(other)
        self._telemetry.stands_by(other is not None)
        self._say.publisher(other)

    def _standing(self) -> bytes | None:
        """Give what stands; None, too, where it cannot be read: then it is written anew.

        Raises `HangingError`.
        """
        try:
            return self._target.read()
        except HangingError:
            raise
        except PublishError:
            return None

    def _fail(self, error: PublishError | UnwritableError, now: datetime) -> None:
        if self._belief:
            # What is believed is no better for it: it lives as long as if it had been written.
            self._believed_until = self._believed_until or self._expiry(now)
        outcome = "failed"
        if isinstance(error, HangingError):
            # It may still be written, and by nobody else.
            outcome, self._written = "hung", None
        self._telemetry.published(outcome, now.timestamp(), 0)
        self._settle(printable(str(error)))

    def _render(self, publication: Publication) -> bytes:
        return render(publication, self._policy.namespace, summary=self._policy.summary)

    def _expiry(self, now: datetime) -> datetime | None:
        return now.replace(microsecond=0) + self._policy.life if self._policy.life else None

    def _due(self, expiry: datetime | None, now: datetime) -> bool:
        """Tell whether a third of the life is over, or the clock was set back."""
        if not self._policy.life or expiry is None:
            return bool(self._policy.life) != (expiry is not None)
        left = expiry - now
        return left <= self._policy.life * 2 / 3 or left > self._policy.life

    def _settle(self, problem: str | None) -> None:
        self._publish_problem = problem
        self._say.publishing(problem)

    def _say_outcome(self, outcome: Outcome) -> bool:
        if isinstance(outcome, Seen):
            return self._say.seen(outcome, self._hint(outcome))
        return self._say.unknown(
            outcome,
            believed=self._belief is not None,
            until=self._believed_until,
            alone=self._is_state_alone(outcome),
        )


def _timestamp(expiry: datetime | None) -> float:
    return expiry.timestamp() if expiry else 0
