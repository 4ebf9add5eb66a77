"""Everything that was decided, as Prometheus metrics on a registry of our own."""

import platform
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from sidecar.classification import Outcome, Seen
from sidecar.debounce import Belief, Kind
from sidecar.exposition import Reading
from topology.model import PortState, Topology

_PREFIX = "xelink_sidecar"


class Telemetry:
    """The sidecar's metrics; every series is there from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._scrapes = Counter(
            f"{_PREFIX}_scrapes",
            "Scrapes by class (links, no-links, unknown) and, where unknown, by reason",
            ["class", "reason"],
            registry=self.registry,
        )
        self._duration = Histogram(
            f"{_PREFIX}_scrape_duration_seconds",
            "Time of a scrape, retries included",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._last_good = self._gauge("last_good_scrape_timestamp_seconds", "Last usable scrape")
        self._rows = self._counter("rows", "xpum_topology_link rows read")
        self._skipped = self._counter("rows_skipped", "Rows that could not be understood")
        self._links = self._gauge("links", "Links that are believed and published")
        self._lanes = self._gauge("lanes", "Lanes of these links, weaker direction")
        self._tiles = self._gauge("tiles", "Tiles that are believed")
        self._gpus = self._gauge("gpus", "GPUs in the id map")
        self._pending = self._gauge("pending_losses", "Losses that wait for confirmation", ["kind"])
        for kind in Kind:
            self._pending.labels(kind.value)
        self._publications = Counter(
            f"{_PREFIX}_publications",
            "Publications by outcome: changed, renewed, failed, withdrawn",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("changed", "renewed", "failed", "withdrawn"):
            self._publications.labels(outcome)
        self._last_publication = self._gauge(
            "last_publication_timestamp_seconds", "Last time that the feature file was written"
        )
        self._expiry = self._gauge(
            "expiry_timestamp_seconds", "When the published labels expire; 0: never, or none"
        )
        self._certificate = self._gauge(
            "certificate_expiry_timestamp_seconds", "When XPU Manager's certificate ends; 0: none"
        )
        self._ports = self._gauge(
            "port_state", "1 for the state of each GPU's Xe Link ports", ["pci_bdf", "state"]
        )
        self._gauge("build_info", "1, with the versions", ["version", "python"]).labels(
            version("xelink"), platform.python_version()
        ).set(1)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, registry=self.registry)

    def scraped(self, outcome: Outcome, seconds: float, now: float) -> None:
        """Count one scrape: its class, its duration, its instant in seconds since 1970."""
        reason = "" if isinstance(outcome, Seen) else outcome.reason.value
        self._scrapes.labels(outcome.kind, reason).inc()
        self._duration.observe(seconds)
        if isinstance(outcome, Seen):
            self._last_good.set(now)

    def read(self, reading: Reading) -> None:
        """Count the rows of one exposition."""
        self._rows.inc(reading.total)
        self._skipped.inc(reading.skipped)

    def believed(self, belief: Belief | None) -> None:
        """Show what is believed now."""
        topology = belief.topology if belief else Topology()
        self._links.set(len(topology.links))
        self._lanes.set(sum(link.width for link in topology.links))
        self._tiles.set(len(topology.tiles))
        self._gpus.set(len(topology.gpus))
        for kind in Kind:
            self._pending.labels(kind.value).set(belief.pending(kind) if belief else 0)
        self._ports.clear()
        for gpu in topology.gpus:
            for state in PortState if gpu.ports else ():
                self._ports.labels(gpu.bdf, state.value).set(gpu.ports is state)

    def published(self, outcome: str, now: float, expiry: float) -> None:
        """Count a publication and show when it expires."""
        self._publications.labels(outcome).inc()
        if outcome != "failed":
            self._last_publication.set(now)
            self._expiry.set(expiry)

    def stands(self, expiry: float) -> None:
        """Show when what stands expires."""
        self._expiry.set(expiry)

    def certificate(self, expiry: float | None) -> None:
        """Show when the server's certificate ends."""
        self._certificate.set(expiry or 0)
