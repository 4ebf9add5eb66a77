"""XPU Manager as a source: each observation is one scrape, read and classified.

No HTTP here: the scraper, which brings it, is an argument.
"""

from typing import Protocol

from xelink.topology.observation import Observation, SourceFacts, Unknown
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import answered, classify
from xelink.xpu_manager.errors import ScrapeError
from xelink.xpu_manager.exposition import Exposition
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.wording import Options, words


class Scraping(Protocol):
    """What a scraper does; `scrape.Scraper` is the one over HTTP."""

    @property
    def url(self) -> str:
        """Where the metrics come from."""

    @property
    def tls_error(self) -> ScrapeError | None:
        """Why the TLS files, as they are now, cannot be used."""

    @property
    def certificate_expiry(self) -> float | None:
        """When the server's certificate ends, in seconds since 1970."""

    def scrape(self) -> Exposition:
        """Scrape once; the same bytes give the very same reading. Raises `ScrapeError`."""


class XpuManagerSource:
    """Observes by scraping XPU Manager; a `Source`."""

    name = "XPU Manager"
    reasons = tuple(map(str, ScrapeReason))

    def __init__(self, scraper: Scraping, rules: Rules, options: Options) -> None:
        """Take how to scrape, which links pass, and what the program calls its settings."""
        self._scraper = scraper
        self._rules = rules
        self._options = options
        self._rows = self._rows_skipped = 0
        self._classified: tuple[Exposition, Observation] | None = None

    @property
    def address(self) -> str:
        """Where the metrics come from."""
        return self._scraper.url

    @property
    def facts(self) -> SourceFacts:
        """What is known of it after the last scrape."""
        error, warning = self._scraper.tls_error, None
        if error:
            what = words(error, self._options)
            warning = f"the TLS files cannot be used: {what}; the last good ones are kept"
        expiry = self._scraper.certificate_expiry
        return SourceFacts(self._rows, self._rows_skipped, warning, expiry)

    def observe(self) -> Observation:
        """Scrape once and return what that proves."""
        self._rows = self._rows_skipped = 0
        try:
            reading = self._scraper.scrape()
        except ScrapeError as error:
            return Unknown(error.reason, str(words(error, self._options)))
        self._rows = reading.total
        self._rows_skipped = reading.unread + reading.unread_ports
        if self._classified is None or self._classified[0] is not reading:
            self._classified = reading, answered(classify(reading, self._rules))
        return self._classified[1]
