"""The `-listen` server in this process, with what it logs and counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from structlog.testing import LogCapture

from xelink.daemon.http_server import Site, serving
from xelink.daemon.metrics import Metrics


@dataclass
class Served:
    """A server that runs: where, what it has said, and its metrics."""

    address: str
    metrics: Metrics
    said: LogCapture = field(default_factory=LogCapture)

    @property
    def events(self) -> list[str]:
        """What was said."""
        return [str(entry["event"]) for entry in self.said.entries]

    def refused(self, reason: str) -> float:
        """Count refusals."""
        name = f"{self.metrics.rows[0][0].removesuffix('_build_info')}_listen_refused_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


@contextmanager
def listening_at(
    listen: str, site: Site | None = None, metrics: Metrics | None = None
) -> Iterator[Served]:
    """Serve while the block runs."""
    served = Served("", metrics or Metrics("xelink_test"))
    log = structlog.wrap_logger(None, processors=[served.said])
    with serving(listen, served.metrics, site or Site(), log) as address:
        assert address
        served.address = address
        yield served
