"""One tick: scrape, judge, publish what changed; and what the probes say of it."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from sidecar.announcements import Announcements, pending
from sidecar.debounce import Belief, believe
from sidecar.policy import Policy
from sidecar.publishing import FeatureFile, Target
from sidecar.telemetry import Telemetry
from xelink.daemon.http_server import Verdict
from xelink.nfd.writer import OnExit
from xelink.topology.publication import Publication
from xelink.xpu_manager.classification import (
    Outcome,
    Reason,
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


class Scrape(NamedTuple):
    """One scrape as it is remembered: when it ended, how long it took, what it said."""

    at: datetime
    seconds: float
    outcome: Outcome


_MOST_REMEMBERED = 20


class Sidecar:
    """The loop's state: what is believed, what was seen last, and the feature file."""

    def __init__(
        self,
        source: Source,
        target: Target,
        policy: Policy,
        telemetry: Telemetry,
        log: FilteringBoundLogger,
    ) -> None:
        self._source = source
        self._policy = policy
        self._telemetry = telemetry
        self._say = Announcements(log, target.verb)
        self._file = FeatureFile(target, policy, telemetry, self._say)
        self._belief: Belief | None = None
        self._judged: tuple[Reading, Outcome] | None = None
        self._fault: str | None = None
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
        return self._file.content()

    def resume(self, now: datetime) -> None:
        """Believe what stands in the file: a restart forgets nothing.

        Until that is known, each tick tries again and judges nothing.
        """
        standing = self._file.resume(now)
        if standing and standing.topology is not None:
            self._hold(Belief(standing.topology))

    def leave(self, on_exit: OnExit, now: datetime) -> None:
        """Do with the feature file what was asked for the end."""
        self._file.leave(on_exit, now)

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
        if self._file.valid_until and self._file.valid_until < at:
            self._file.valid_until = None
            self._hold(None)  # what has expired stands no longer
        said = self._say_outcome(outcome)
        if not self._file.resumed:
            self.resume(at)
        if self._file.resumed:
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
        if self._file.problem:
            return f"not published: {self._file.problem}"
        if self._belief and self._belief.missing:
            return f"a loss waits for confirmation: {pending(self._belief)}"
        return self._file.not_as_written()

    def ready(self) -> Verdict | str | None:
        """Say why we are not ready; and, when we are, who publishes for us, or why no link is.

        Who stands by is ready: in a rollout that overlaps, the old one ends when the new one is.
        """
        if problem := self.not_ready():
            return problem
        if self._file.other:
            return Verdict(fine=True, text=f"standing by: {self._file.other} publishes")
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
        return self._file.published

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
            self._hold(belief)
            self._say.doubts(outcome, belief)
            self._file.publish(Publication(belief.topology), now, before)
        elif self._is_state_alone(outcome):
            self._file.publish(Publication(None), now, None, said=said)

    def _is_state_alone(self, outcome: Unknown) -> bool:
        """Tell whether what is published is only that there is no fabric data."""
        return (
            outcome.reason is Reason.NO_FABRIC_DATA
            and self._belief is None
            and self._policy.summary
        )

    def _hold(self, belief: Belief | None) -> None:
        if belief != self._belief:
            self._telemetry.believed(belief)
        self._belief = belief

    def _say_outcome(self, outcome: Outcome) -> bool:
        if isinstance(outcome, Seen):
            return self._say.seen(outcome, self._hint(outcome))
        return self._say.unknown(
            outcome,
            believed=self._belief is not None,
            until=self._file.valid_until,
            alone=self._is_state_alone(outcome),
        )
