"""One tick: observe, debounce, publish what changed; and what the probes report of it."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from structlog.typing import FilteringBoundLogger

from sidecar.announcements import Announcements, pending
from sidecar.debounce import Confirmed, debounce
from sidecar.publishing import Destination, Policy, PublishedFile
from xelink.daemon.http_server import ProbeResult
from xelink.nfd.writer import OnExit
from xelink.topology.observation import (
    NoFabricData,
    Observation,
    ObservedLinks,
    Source,
    Unknown,
)
from xelink.topology.publication import Publication
from xelink.topology.rules import sidecar_flag, why_no_links

if TYPE_CHECKING:
    from sidecar.telemetry import Telemetry


class Scrape(NamedTuple):
    """One observation as it is remembered: when it ended, how long it took, what it was."""

    at: datetime
    seconds: float
    observation: Observation


_MOST_REMEMBERED = 20


class Sidecar:
    """The loop's state: what is confirmed, the last observations, and the feature file."""

    def __init__(
        self,
        source: Source,
        target: Destination,
        policy: Policy,
        telemetry: "Telemetry",
        log: FilteringBoundLogger,
    ) -> None:
        self._source = source
        self._policy = policy
        self._telemetry = telemetry
        self._announce = Announcements(log, source, target.verb)
        self._file = PublishedFile(target, policy, telemetry, self._announce)
        self._confirmed: Confirmed | None = None
        self._error: str | None = None
        self.observation: Observation | None = None
        self.scrapes: tuple[Scrape, ...] = ()
        """The last ones, newest first."""

    @property
    def confirmed(self) -> Confirmed | None:
        """What is confirmed now."""
        return self._confirmed

    @property
    def policy(self) -> Policy:
        """How what is observed becomes what is published."""
        return self._policy

    def current_file(self) -> bytes | None:
        """Return the feature file as it is. Raises `PublishError` where that is not known."""
        return self._file.content()

    def resume(self, now: datetime) -> None:
        """Take what the file publishes as confirmed: a restart forgets nothing.

        Until the file is known, each tick tries again and confirms nothing.
        """
        published = self._file.resume(now)
        if published and published.topology is not None:
            self._hold(Confirmed(published.topology))

    def leave(self, on_exit: OnExit, now: datetime) -> None:
        """Leave the feature file, remove it or keep it for ever, as `on_exit` says."""
        self._file.leave(on_exit, now)

    def tick(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> Observation:
        """Observe once, and publish when that changes something or the expiry is due."""
        try:
            observation = self._tick(now, monotonic)
        except Exception:
            self._error = "the last tick failed; see the log"
            raise
        self._error = None
        return observation

    def _tick(self, now: Callable[[], datetime], monotonic: Callable[[], float]) -> Observation:
        started = monotonic()
        observation = self._source.observe()
        seconds, at, facts = monotonic() - started, now(), self._source.facts
        self.scrapes = (Scrape(at, seconds, observation), *self.scrapes[: _MOST_REMEMBERED - 1])
        self._telemetry.observed(observation, seconds, at.timestamp())
        self._telemetry.source(facts)
        self._announce.source_warning(facts.warning)
        at = now()
        if self._file.valid_until and self._file.valid_until < at:
            self._file.valid_until = None
            self._hold(None)  # what has expired is published no longer
        logged = self._log_observation(observation)
        if not self._file.resumed:
            self.resume(at)
        if self._file.resumed:
            self._evaluate(observation, at, logged=logged)
        self.observation = observation
        return observation

    def not_ready(self) -> str | None:
        """Return why what is published is not what was last observed; None when it is."""
        if self._error or self.observation is None:
            return self._error or "no scrape yet"
        match self.observation:
            case Unknown() as unknown:
                return f"last scrape unknown, {unknown.reason}: {unknown.detail}"
            case NoFabricData() as nothing if self._confirmed is not None:
                return f"last scrape {nothing.result.value}: {nothing.detail}"
        if self._file.problem:
            return f"not published: {self._file.problem}"
        if self._confirmed and self._confirmed.missing:
            return f"a loss waits for confirmation: {pending(self._confirmed)}"
        return self._file.not_as_written()

    def ready(self) -> ProbeResult | str | None:
        """Return why we are not ready; when we are, who else publishes, or why there are no links.

        A sidecar that stands by is ready: in a rollout, the old one ends when the new one is.
        """
        if problem := self.not_ready():
            return problem
        if self._file.other:
            return ProbeResult(ok=True, text=f"standing by: {self._file.other} publishes")
        if hint := self._hint(self.observation):
            return ProbeResult(ok=True, text=f"no links: {hint}")
        return None

    def _hint(self, observation: Observation | None) -> str:
        """Return why no link passes; nothing where one does, or nothing is known."""
        if not isinstance(observation, ObservedLinks) or observation.topology.links:
            return ""
        return why_no_links(observation, self._policy.rules, sidecar_flag)

    @property
    def published(self) -> bool:
        """Whether the last attempt to publish, if any, went well."""
        return self._file.published

    def _evaluate(self, observation: Observation, now: datetime, *, logged: bool) -> None:
        if isinstance(observation, ObservedLinks):
            before = self._confirmed
            confirmed = debounce(before, observation, self._policy.confirmations)
            self._hold(confirmed)
            self._announce.warnings(observation, confirmed)
            self._file.publish(Publication(confirmed.topology), now, before)
        elif self._is_state_alone(observation):
            self._file.publish(Publication(None), now, None, logged=logged)

    def _is_state_alone(self, observation: NoFabricData | Unknown) -> bool:
        """Return whether what is published is only that there is no fabric data."""
        return (
            isinstance(observation, NoFabricData)
            and self._confirmed is None
            and self._policy.summary
        )

    def _hold(self, confirmed: Confirmed | None) -> None:
        if confirmed != self._confirmed:
            self._telemetry.confirmed(confirmed)
        self._confirmed = confirmed

    def _log_observation(self, observation: Observation) -> bool:
        if isinstance(observation, ObservedLinks):
            return self._announce.observed(observation, self._hint(observation))
        return self._announce.no_links_known(
            observation,
            published=self._confirmed is not None,
            until=self._file.valid_until,
            alone=self._is_state_alone(observation),
        )
