"""Watches sysfs, the feature file and GPU health, and publishes an observation on each change.

Sources run side by side; what one of them reports is combined with the latest of the others. A
source that fails keeps its last good report, is logged once, and is counted.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from xelink.daemon.logs import Changes
from xelink.daemon.polling import first_of, next_poll
from xelink.daemon.watch import Watch
from xelink.daemon.worker_threads import run_in_thread
from xelink.inventory import links, xpumd
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, ScanError, fingerprint, scan
from xelink.inventory.health import Health
from xelink.inventory.observation import NodeObservation
from xelink.inventory.units import Finder, Units
from xelink.nfd import reader
from xelink.nfd.reader import Reading
from xelink.topology.publication import DEFAULT_NAMESPACE

T = TypeVar("T")


class CdiNames(NamedTuple):
    """The cards that may be named as CDI devices, by DRM name, and what keeps others from it."""

    named: frozenset[str] = frozenset()
    error: str = ""


class WatcherTelemetry(Protocol):
    """What is counted of the sources."""

    def scanned(self, *, good: bool) -> None:
        """Count one scan."""

    def health_reported(self, health: Health) -> None:
        """Show the latest health report."""

    def health_changed(self, *, healthy: bool) -> None:
        """Count one change of a GPU's health."""


@dataclass(frozen=True)
class WatcherConfig:
    """What to watch, and how often. Without `endpoint`, XPU Manager 2.x reports no health."""

    roots: Roots
    label_file: Path = reader.DEFAULT_PATH
    namespace: str = DEFAULT_NAMESPACE
    allow_ids: AbstractSet[int] = frozenset()
    deny_ids: AbstractSet[int] = frozenset()
    endpoint: str = ""
    rule: xpumd.Rule = field(default_factory=xpumd.Rule)
    finders: Mapping[str, Finder] = field(default_factory=dict)
    scan_seconds: float = 5.0
    poll_seconds: float = 1.0
    """Between two polls for a change that makes a scan due at once."""


class _Scan(NamedTuple):
    inventory: Inventory
    cdi: CdiNames
    units: Units


def _no_cdi(_: Inventory) -> CdiNames:
    return CdiNames()


class Watcher:
    """Follows every source and publishes observations to `watch`, starting with its current one.

    `after_scan` is called in a thread with the result of each good scan and returns which GPUs have
    a CDI name. `last_scan` is when the scanning thread last went round, by the monotonic clock;
    `scanned`: whether a scan has ever succeeded.
    """

    def __init__(
        self,
        config: WatcherConfig,
        watch: Watch[NodeObservation],
        telemetry: WatcherTelemetry,
        log: FilteringBoundLogger,
        after_scan: Callable[[Inventory], CdiNames] | None = None,
    ) -> None:
        self._config = config
        self._watch = watch
        self._telemetry = telemetry
        self._log = log
        self._after_scan = after_scan or _no_cdi
        self._changes = Changes()
        self._reading: Reading | None = None
        self._latest = watch.current
        self._fingerprint: tuple[str, ...] | None = None
        self._due = 0.0
        self.last_scan = 0.0
        self.scanned = False

    async def run(self, stop: asyncio.Event) -> None:
        """Follow all sources until `stop` is set."""
        config = self._config
        self.last_scan = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_scans(stop))
            tasks.create_task(
                reader.follow(config.label_file, config.namespace, self._links_read, stop)
            )
            if config.endpoint:
                tasks.create_task(
                    xpumd.watch(config.endpoint, config.rule, self._health_reported, stop)
                )

    def _update(self, **changes: object) -> None:
        """Publish what has changed, as soon as both GPUs and links have been read.

        Links without GPUs would be a warning, GPUs without links would be preferred as if there
        were none. The file is given up after some seconds, so that it never holds up the GPUs.
        """
        self._latest = replace(self._latest, **changes)  # type: ignore[arg-type]  # its fields
        if not self.scanned or self._reading is None:
            return
        joined = links.join(self._reading, self._latest.inventory)
        self._latest = replace(self._latest, links=joined)
        self._watch.replace(self._latest)

    # The feature file and health

    def _links_read(self, reading: Reading) -> None:
        self._reading = reading
        self._update()

    def _health_reported(self, health: Health) -> None:
        before = self._latest.health
        self._telemetry.health_reported(health)
        if health == before:
            return
        if health.error != before.error:
            if health.error:
                self._log.warning("health is unknown", reason=health.error)
            else:
                self._log.info("health is known")
        for bdf in sorted(health.unhealthy.keys() ^ before.unhealthy.keys()):
            self._telemetry.health_changed(healthy=bdf not in health.unhealthy)
            if bdf in health.unhealthy:
                self._log.warning("GPU is unhealthy", gpu=bdf, reason=health.unhealthy[bdf])
            else:
                self._log.info("GPU is healthy again", gpu=bdf)
        self._update(health=health)

    # Scans

    async def _follow_scans(self, stop: asyncio.Event) -> None:
        def went_round() -> None:
            self.last_scan = time.monotonic()

        # By way of the loop, so that a loop that hangs is noticed as well.
        report = partial(asyncio.get_running_loop().call_soon_threadsafe, went_round)
        found: _Scan | None = None
        while not stop.is_set():
            found = await unless(stop, partial(self._next_scan, found, stop.is_set, report))
            if found:
                self.scanned = True
                self._update(
                    inventory=found.inventory,
                    cdi=found.cdi.named,
                    cdi_error=found.cdi.error,
                    units=found.units,
                )

    def _next_scan(
        self, known: _Scan | None, is_over: Callable[[], bool], report: Callable[[], object]
    ) -> _Scan | None:
        """Scan, when the fingerprint changed or it is due, until something else is found.

        None: the end came. All in one thread: to return to the loop for each poll, or for each scan
        that finds the same, would cost more than the poll. `report` is called after each scan.
        """
        while not is_over():
            if self._fingerprint is not None:
                now = time.monotonic()
                time.sleep(next_poll(now, self._config.poll_seconds) - now)
            current = fingerprint(self._config.roots)
            now = time.monotonic()
            if is_over() or (current == self._fingerprint and now < self._due):
                continue
            self._fingerprint, self._due = current, now + self._config.scan_seconds
            found = self._scan(known or _Scan(Inventory(), CdiNames(), {}))
            with suppress(RuntimeError):  # the loop is closed
                report()
            if found and found != known:
                return found
        return None

    def _scan(self, before: _Scan) -> _Scan | None:
        """Scan the node. None: it failed."""
        config = self._config
        try:
            found = scan(config.roots, config.allow_ids, config.deny_ids)
        except ScanError as error:
            self._telemetry.scanned(good=False)
            if self._changes.of("scan", str(error)):
                kept = "the last good one is kept" if self.scanned else "no GPU is advertised yet"
                self._log.error(f"scan failed: {kept}", reason=str(error))
            return None
        self._telemetry.scanned(good=True)
        if self._changes.of("scan", None):
            self._log.info("scans are good again")
        inventory = found.keep_known(before.inventory)
        return _Scan(inventory, self._after_scan(inventory), self._find_units(before.units))

    def _find_units(self, before: Units) -> Units:
        """Return the units of each family; those of `before` where they cannot be listed."""
        found = dict(before)
        for resource, find in self._config.finders.items():
            try:
                found[resource] = tuple(find(self._config.roots))
                problem = None
            except OSError as error:
                problem = str(error)
            if problem:
                self._telemetry.scanned(good=False)
            if self._changes.of(resource, problem):
                if problem:
                    self._log.error(
                        "units not found: the last ones are kept", resource=resource, reason=problem
                    )
                else:
                    self._log.info("units are found again", resource=resource)
        return found


async def unless(stop: asyncio.Event, work: Callable[[], T]) -> T | None:
    """Do work in a thread, as a device may be slow to answer; None when `stop` was set first."""
    task = asyncio.ensure_future(run_in_thread(work))
    await first_of(_wait_for(task), stop.wait())
    if task.done():
        return task.result()
    task.cancel()
    return None


async def _wait_for(task: asyncio.Future[T]) -> None:
    """Wait for a task without taking it along when this wait is canceled."""
    await asyncio.wait([task])
