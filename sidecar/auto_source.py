"""The driver where it answers, else XPU Manager: one source made of two, never mixed.

Which one it is, is decided at the first observation of links, or of none, and anew when the chosen
one has proven nothing for half the life of labels, so that they do not expire before.
"""

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from xelink.topology.observation import NoFabricData, Observation, Source, SourceFacts, Unknown


class AutoSource:
    """A `Source` that is one of two; `life` is that of labels, in seconds of `monotonic`."""

    def __init__(
        self,
        driver: Source,
        xpu_manager: Source,
        log: FilteringBoundLogger,
        *,
        life: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._driver = driver
        self._xpu_manager = xpu_manager
        self._log = log
        # Labels were renewed up to a third of their life before the last good observation.
        self._silence = life / 2
        self._monotonic = monotonic
        self._chosen: Source | None = None
        self._last_good = 0.0
        self.reasons = tuple(dict.fromkeys((*driver.reasons, *xpu_manager.reasons)))

    @property
    def name(self) -> str:
        """The name of the chosen source, or of both."""
        if self._chosen:
            return self._chosen.name
        return f"{self._driver.name} or {self._xpu_manager.name}"

    @property
    def address(self) -> str:
        """Where the chosen source is read, or both."""
        if self._chosen:
            return self._chosen.address
        return f"{self._driver.address} or {self._xpu_manager.address}"

    @property
    def facts(self) -> SourceFacts:
        """What is known of the chosen source."""
        return self._chosen.facts if self._chosen else SourceFacts()

    def observe(self) -> Observation:
        """Observe by the chosen source; where there is none, by both in turn."""
        if self._chosen is None:
            return self._decide()
        observation = self._chosen.observe()
        now = self._monotonic()
        if not isinstance(observation, Unknown):
            self._last_good = now
        elif now - self._last_good >= self._silence:
            silent = round(now - self._last_good)
            self._log.warning("source given up", source=self._chosen.name, silent_seconds=silent)
            self._chosen = None
            return self._decide()
        return observation

    def _decide(self) -> Observation:
        by_driver = self._driver.observe()
        if not isinstance(by_driver, Unknown):
            return self._choose(self._driver, by_driver)
        other = self._xpu_manager.observe()
        if isinstance(other, Unknown):
            detail = f"{other.detail}; {self._driver.name}: {by_driver.detail}"
            return Unknown(other.reason, detail, quotes=other.quotes or by_driver.quotes)
        # XPU Manager 2.x works and has no links: a driver that starts later shall still be found.
        if isinstance(other, NoFabricData):
            return NoFabricData(f"{other.detail}; {self._driver.name}: {by_driver.detail}")
        return self._choose(self._xpu_manager, other)

    def _choose(self, source: Source, observation: Observation) -> Observation:
        self._chosen, self._last_good = source, self._monotonic()
        self._log.info("source chosen", source=source.name, address=source.address)
        return observation
