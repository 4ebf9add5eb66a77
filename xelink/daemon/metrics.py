"""A daemon's metrics: its registry, their prefix, and a list of them for the docs."""

from collections.abc import Sequence
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from xelink.daemon.version import VERSION


class Metrics:
    """Makes metrics whose names begin with `prefix`, and remembers them for the documentation."""

    def __init__(self, prefix: str) -> None:
        # Otherwise each counter has a second series with its creation time.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
        self.registry = CollectorRegistry()
        self.rows: list[tuple[str, tuple[str, ...], str]] = []
        """Name, labels and description of each metric."""
        self._prefix = prefix
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.gauge("build_info", "1, with the versions", "version", "python").labels(
            VERSION, python_version()
        ).set(1)
        self.refused = self.counter(
            "listen_refused",
            "connections at -listen that got no answer: too many at once, a slow client, an answer"
            " that came late, a large or a malformed request, a Host that is not ours",
            "reason",
        )
        """Rejected requests of the -listen server, by reason."""

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge."""
        return Gauge(self._recorded(name, text, labels), text, labels, registry=self.registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter; its name ends in `_total`."""
        full_name = self._recorded(f"{name}_total", text, labels)
        return Counter(full_name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Make a histogram."""
        full_name = self._recorded(name, text, labels)
        return Histogram(full_name, text, labels, registry=self.registry, buckets=buckets)

    def _recorded(self, name: str, text: str, labels: tuple[str, ...]) -> str:
        full = f"{self._prefix}_{name}"
        self.rows.append((full, labels, text))
        return full
