"""Our daemons as processes among simulators, and what a fault may cost them."""

import re
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.patience import PATIENCE
from tests.processes import Running, address, get
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode, Simulator
from xelink.topology.publication import Publication, read

NS = "gpu.intel.com"
FILE = "xpum-sidecar-labels.txt"
INTERVAL = 1
TIMEOUT = 2
"""Seconds, where a scrape has to time out; elsewhere none does, however busy a machine is."""
MEMORY = 48 << 20
"""Bytes that a daemon's peak may lie above what it took after its first publication."""


_SCRAPES = re.compile(r'xelink_sidecar_scrapes_total\{reason="([^"]*)",result="([^"]*)"\}')
_GLANCE = 0.1


class Footprint(NamedTuple):
    """What a process holds: bytes of memory now and at most, descriptors, threads."""

    memory: int
    peak: int
    descriptors: int
    threads: int


def footprint(pid: int) -> Footprint:
    """Look at a process."""
    root = Path(f"/proc/{pid}")
    lines = (root / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Footprint(
        int(status["VmRSS"].split()[0]) << 10,
        int(status["VmHWM"].split()[0]) << 10,
        len([*(root / "fd").iterdir()]),
        int(status["Threads"]),
    )


@cache
def truth(lanes: int) -> SimulatedNode:
    """Give the node of these tests; more lanes are a gain, which is published at once."""
    return Blueprint(gpus=3, tiles=2, lanes=lanes).build()


@dataclass
class Sidecar:
    """A sidecar that runs, the XPU Manager that it scrapes, and the file that it publishes."""

    process: Running
    file: Path
    url: str
    first: Footprint
    lanes: int

    @property
    def pid(self) -> int:
        return self.process.process.pid

    def content(self) -> bytes:
        """Read the feature file, which must be readable for everybody."""
        assert stat.S_IMODE(self.file.stat().st_mode) == 0o644
        return self.file.read_bytes()

    def publication(self, now: datetime | None = None) -> Publication:
        return read(self.content(), NS, now or datetime.now(UTC))

    def metrics(self) -> Mapping[str, float]:
        """Give every sample of the daemon's own metrics by its series."""
        code, text = get(f"{self.url}/metrics")
        assert code == 200
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in (s.rpartition(" ") for s in lines)}

    def scrapes(self) -> Counter[str]:
        """Count the scrapes by reason where they were unknown, else by result."""
        found = ((_SCRAPES.fullmatch(series), n) for series, n in self.metrics().items())
        return Counter({match[1] or match[2]: int(n) for match, n in found if match})

    def wait_for_scrapes(self, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
        """Wait until there were more scrapes that are enough; give those."""
        before, until = self.scrapes(), time.monotonic() + PATIENCE
        while not enough(more := self.scrapes() - before):
            assert time.monotonic() < until, f"only {more}"
            threading.Event().wait(_GLANCE)
        return more

    def refuses(self, reason: str, detail: str = "") -> None:
        """Wait for the reason that is logged, and for no other."""
        line = self.process.wait_for(": the published labels stay")
        assert f"={reason} " in line, line
        assert detail in line, line
        assert self.scrapes()[reason] >= 1

    def expects(self, xpum: Simulator) -> None:
        """Wait until the next lanes are published, which a scrape that is good does at once."""
        self.lanes += 1
        xpum.node = truth(self.lanes)
        self.process.wait_for("labels published")
        self.is_true()

    def heals(self, xpum: Simulator) -> None:
        """Expect the next lanes from the next good scrape."""
        asked, timeouts = xpum.requests, self.scrapes()["timeout"]
        self.expects(xpum)
        # One may be under way, one tried again after what was let go of; then comes the next.
        assert xpum.requests <= asked + 3 + self.scrapes()["timeout"] - timeouts

    def is_true(self) -> None:
        """Hold what is published against the truth: every link, lane and id, whole."""
        said = self.publication()
        assert said.whole
        assert said.topology == truth(self.lanes).topology

    def is_bounded(self) -> None:
        """Hold what the daemon takes against what it took at first."""
        now = footprint(self.pid)
        assert now.peak <= self.first.peak + MEMORY, (self.first, now)
        assert now.descriptors <= self.first.descriptors + 8, (self.first, now)
        assert now.threads <= self.first.threads + 4, (self.first, now)


def arguments(port: int, features_d: Path, timeout: float = PATIENCE) -> tuple[str, ...]:
    """Give the flags of a sidecar that scrapes every second."""
    return (
        f"-xpum-port={port}",
        f"-dst-file-path={features_d / FILE}",
        f"-tmp-dir-prefix={features_d}",
        "-startup-delay=0",
        f"-interval={INTERVAL}",
        f"-timeout={timeout}",
        "-expiry=3600",  # so long that nothing is renewed meanwhile: the bytes stay the same
        "-listen=127.0.0.1:0",
    )


@contextmanager
def sidecar(
    port: int,
    features_d: Path,
    *more: str,
    env: Mapping[str, str] | None = None,
    before: tuple[str, ...] = (),
    timeout: float = PATIENCE,
) -> Iterator[Sidecar]:
    """Run a sidecar that scrapes every second, and wait until it has published `truth(4)`."""
    env = {"COVERAGE_PROCESS_CONFIG": "", **(env or {})}  # measured without what coverage takes
    flags = (*arguments(port, features_d, timeout), *more)
    with Running("sidecar", *flags, env=env, before=before) as process:
        url = address(process)
        process.wait_for("labels published")
        get(f"{url}/metrics")  # a first answer takes memory and a thread of its own
        first = footprint(process.process.pid)
        yield Sidecar(process, features_d / FILE, url, first, 4)
        assert process.process.poll() == -signal.SIGKILL or process.stop() == 0
        assert not [line for line in process.lines if "Traceback" in line]
