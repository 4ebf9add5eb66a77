"""The sidecar's ticks, for who measures them: one after the other, as the daemon makes them.

A module that imports nothing which the daemon does not: memory is measured with it, too.
"""

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sidecar.start import load

load()

from sidecar.loop import Sidecar  # noqa: E402 - as above
from sidecar.publishing import Policy  # noqa: E402 - as above
from sidecar.telemetry import Telemetry  # noqa: E402 - as above
from sidecar.xpu_manager_source import OPTIONS  # noqa: E402 - as above
from xelink.daemon.logs import logger_to_stderr  # noqa: E402 - after the daemon has blocked its imports
from xelink.daemon.setting_types import LogFormat  # noqa: E402 - as above
from xelink.daemon.stopping import Stop  # noqa: E402 - as above
from xelink.nfd.bounded_writer import BoundedPublisher  # noqa: E402 - as above
from xelink.nfd.writer import Publisher  # noqa: E402 - as above
from xelink.topology.rules import Rules  # noqa: E402 - as above
from xelink.xpu_manager.scrape import Scraper, ScrapeTarget  # noqa: E402 - as above
from xelink.xpu_manager.source import XpuManagerSource  # noqa: E402 - as above
from xelink.xpu_manager.tls import TlsFiles  # noqa: E402 - as above


def ticking(port: int, trust: Path | None, place: Path) -> Callable[[], object]:
    """Tick as the daemon does, each time over a new connection."""
    stop = Stop()
    stop.install()
    scraper = Scraper(
        ScrapeTarget(port, TlsFiles(trust) if trust else None),
        bounded=stop.bounded,
        sleep=time.sleep,
        monotonic=time.monotonic,
    )
    file = place / f"features-{port}.txt"
    publisher = BoundedPublisher(Publisher(file, place), file)
    log = logger_to_stderr(LogFormat.TEXT, debug=False)
    sidecar = Sidecar(
        XpuManagerSource(scraper, Rules(), OPTIONS), publisher, Policy(), Telemetry(), log
    )

    def work() -> None:
        scraper.hang_up()
        sidecar.tick(lambda: datetime.now(UTC), time.monotonic)

    return work


def held(port: int, place: Path, trust: Path | None, ticks: int) -> None:
    """Print what the process holds after so many ticks, each time a line comes: see `memory.py`."""
    work = ticking(port, trust, place)
    for _ in sys.stdin:
        for _ in range(ticks):
            work()
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = {
            name: int(value.split()[0])
            for name, _, value in (line.partition(":") for line in lines)
            if name in {"VmRSS", "RssFile"}
        }
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        print(*kilobytes.values(), descriptors, threading.active_count(), flush=True)


if __name__ == "__main__" and sys.argv[1:]:
    held(
        int(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]) if sys.argv[3] else None,
        int(sys.argv[4]),
    )
