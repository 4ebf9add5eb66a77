"""Everything that was decided, as Prometheus metrics on a registry of our own."""

from collections.abc import Iterable

from sidecar.debounce import Confirmed, LossKind
from xelink.daemon.metrics import Metrics
from xelink.topology.model import PortState, Topology
from xelink.topology.observation import (
    Observation,
    ObservedLinks,
    Result,
    SourceFacts,
    Unknown,
)

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Telemetry:
    """The sidecar's metrics; every series whose labels are known is there from the start."""

    def __init__(self, reasons: Iterable[str] = ()) -> None:
        """Make them; `reasons` are those for which the source can be unknown."""
        metrics = Metrics("xelink_sidecar")
        self.metrics = metrics
        self.registry = metrics.registry
        self.rows = metrics.rows
        """Name, labels and description of each metric."""
        self._scrapes = metrics.counter(
            "scrapes", "scrapes by result and, where it is unknown, by reason", "result", "reason"
        )
        for result in Result:
            for reason in reasons if result is Result.UNKNOWN else ("",):
                self._scrapes.labels(result.value, reason)
        self._duration = metrics.histogram(
            "scrape_duration_seconds", "time of a scrape, retries included", _BUCKETS
        )
        self._last_good = metrics.gauge(
            "last_good_scrape_timestamp_seconds", "when the source last reported a whole topology"
        )
        self._rows = metrics.counter("rows", "topology rows read")
        self._skipped = metrics.counter("rows_skipped", "rows that could not be understood")
        self._contradicting = metrics.gauge(
            "rows_contradicting",
            "directions between tiles of which rows differ, as before XPU Manager"
            " 1.2.16: a cut link may still be published",
        )
        self._filtered = metrics.gauge(
            "links_filtered",
            "Xe Links of the last scrape that are not published, by the flag that filters them",
            "rule",
        )
        for rule in ("lane-count", "allow-subdeviceless-links"):
            self._filtered.labels(rule)
        self._links = metrics.gauge("links", "links that are confirmed")
        self._lanes = metrics.gauge("lanes", "lanes of these links, weaker direction")
        self._tiles = metrics.gauge("tiles", "tiles that are confirmed")
        self._gpus = metrics.gauge("gpus", "GPUs in the id map")
        self._pending = metrics.gauge(
            "pending_losses", "losses that wait for confirmation, by kind", "kind"
        )
        for loss in LossKind:
            self._pending.labels(loss.value)
        self._publications = metrics.counter(
            "publications",
            "publications: changed, renewed, failed, withdrawn, or hung: the file system does not"
            " answer",
            "outcome",
        )
        for outcome in ("changed", "renewed", "failed", "hung", "withdrawn"):
            self._publications.labels(outcome)
        self._last_publication = metrics.gauge(
            "last_publication_timestamp_seconds", "when this process last wrote the feature file"
        )
        self._expiry = metrics.gauge(
            "expiry_timestamp_seconds", "when the labels expire; 0: never, or there are none"
        )
        self._standing_by = metrics.gauge(
            "standing_by", "1 while another sidecar publishes the feature file"
        )
        self._certificate = metrics.gauge(
            "certificate_expiry_timestamp_seconds",
            "when the source's certificate ends; 0: it showed none",
        )
        self._ports = metrics.gauge(
            "port_state", "1 for the state of a GPU's Xe Link ports, else 0", "pci_bdf", "state"
        )

    def observed(self, observation: Observation, seconds: float, now: float) -> None:
        """Count one observation: its result, its duration, its instant in seconds since 1970."""
        reason = observation.reason if isinstance(observation, Unknown) else ""
        self._scrapes.labels(observation.result.value, reason).inc()
        self._duration.observe(seconds)
        if isinstance(observation, ObservedLinks):
            self._last_good.set(now)
            self._contradicting.set(len(observation.contradicting))
            self._filtered.labels("lane-count").set(observation.narrow)
            self._filtered.labels("allow-subdeviceless-links").set(observation.one_tile)

    def source(self, facts: SourceFacts) -> None:
        """Count the rows of one observation, and show what is known of its source."""
        self._rows.inc(facts.rows)
        self._skipped.inc(facts.rows_skipped)
        self._certificate.set(facts.certificate_expiry or 0)

    def confirmed(self, now: Confirmed | None) -> None:
        """Show what is confirmed now."""
        topology = now.topology if now else Topology()
        self._links.set(len(topology.links))
        self._lanes.set(sum(link.width for link in topology.links))
        self._tiles.set(len(topology.tiles))
        self._gpus.set(len(topology.gpus))
        for kind in LossKind:
            self._pending.labels(kind.value).set(now.pending(kind) if now else 0)
        self._ports.clear()
        for gpu in topology.gpus:
            for state in PortState if gpu.ports else ():
                self._ports.labels(gpu.bdf, state.value).set(gpu.ports is state)

    def published(self, outcome: str, now: float, expiry: float) -> None:
        """Count a publication and show when it expires."""
        self._publications.labels(outcome).inc()
        if outcome not in {"failed", "hung"}:
            self._last_publication.set(now)
            self._expiry.set(expiry)

    def expires(self, expiry: float) -> None:
        """Show when the current feature file expires."""
        self._expiry.set(expiry)

    def stands_by(self, standing: bool) -> None:  # noqa: FBT001 - there is nothing else to say
        """Show whether another sidecar publishes."""
        self._standing_by.set(standing)
