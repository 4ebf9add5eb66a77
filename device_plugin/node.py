"""The plugin's eyes: scans, feature file and health, each followed for ever, into snapshots.

Sources run side by side; whatever one of them sees is assembled with the latest of the others. A
source that fails keeps its last good word, says so once, and is counted.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from structlog.typing import FilteringBoundLogger

from device_plugin.assembly import Assembler, Seen
from device_plugin.snapshot import Snapshot
from device_plugin.telemetry import NodeTelemetry
from xelink.daemon.logs import Changes
from xelink.daemon.polling import beat, first_of
from xelink.daemon.watch import Watch
from xelink.daemon.worker_threads import aside
from xelink.inventory import cdi, health, links, xpumd
from xelink.inventory.by_path import ByPath
from xelink.inventory.cdi import Standing
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, ScanError, Sight, fingerprint, scan
from xelink.nfd import reader as labels
from xelink.nfd.reader import Reading
from xelink.topology.publication import DEFAULT_NAMESPACE

T = TypeVar("T")


class Found(NamedTuple):
    """What a scan finds: the GPUs, which of them are CDI devices, and what keeps others from it."""

    inventory: Inventory
    cdi: frozenset[str]
    cdi_trouble: str


@dataclass(frozen=True)
class Sources:
    """Where the plugin looks, and how often. Empty `endpoint`: no health from XPU Manager 2.x."""

    roots: Roots
    label_file: Path = labels.DEFAULT_PATH
    namespace: str = DEFAULT_NAMESPACE
    allow_ids: frozenset[int] = frozenset()
    deny_ids: frozenset[int] = frozenset()
    cdi_dir: Path | None = None
    by_path: ByPath = ByPath.SINGLE
    endpoint: str = ""
    rule: xpumd.Rule = field(default_factory=xpumd.Rule)
    scan_seconds: float = 5.0
    look_seconds: float = 1.0
    """Between two looks for a change that makes a scan due at once."""


class Node:
    """Follows every source and gives snapshots to `watch`."""

    def __init__(
        self,
        sources: Sources,
        assembler: Assembler,
        watch: Watch[Snapshot],
        telemetry: NodeTelemetry,
        log: FilteringBoundLogger,
    ) -> None:
        self._sources = sources
        self._assembler = assembler
        self._watch = watch
        self._telemetry = telemetry
        self._log = log
        self._changes = Changes()
        self._reading: Reading | None = None
        self._doubts: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._latest = Seen()
        """What the sources told last; a moment ahead of what is in use."""
        self.seen = Seen()
        """What the latest snapshot was made of."""
        self.last_look = 0.0
        """When the scan last went round, by the monotonic clock."""
        self._signs: tuple[str, ...] | None = None
        self._due = 0.0
        self.scanned = False
        """Whether a scan has ever succeeded."""
        self._assembled = False

    async def run(self, stop: asyncio.Event) -> None:
        """Follow all sources until `stop` is set."""
        self.last_look = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._scan(stop))
            tasks.create_task(self._assemble(stop))
            tasks.create_task(
                labels.follow(
                    self._sources.label_file, self._sources.namespace, self._read_labels, stop
                )
            )
            if self._sources.endpoint:
                tasks.create_task(
                    xpumd.watch(self._sources.endpoint, self._sources.rule, self._judge, stop)
                )

    @property
    def label_state(self) -> str:
        """Say in one line what the links in use come from, or why there are none."""
        known = self.seen.links
        return f"links {known.state.value}{f': {known.reason}' if known.reason else ''}"

    @property
    def device_trouble(self) -> str:
        """Say in one line why there is no GPU, or no CDI name, to give; empty where there are."""
        if not self._assembled:
            return ""
        seen = self.seen
        ill = {card.bdf: card.complaint for card in seen.inventory.cards}
        ill |= health.complaints(seen.health, seen.inventory.cards)
        return "; ".join(filter(None, (_nothing_to_give(seen, ill), seen.cdi_trouble)))

    @property
    def must_restart(self) -> str | None:
        """Say what only a new start of this container mends; None where nothing is so."""
        sight = self.seen.inventory.sight
        return sight.value if sight is Sight.GONE else None

    @property
    def health_state(self) -> str:
        """Say in one line what the GPUs' health comes from, or why it is not known."""
        if not self._sources.endpoint:
            return "by device nodes alone, as there is no -xpumd-endpoint"
        trouble = self.seen.health.trouble
        return f"unknown: {trouble}" if trouble else "as XPU Manager tells it"

    @property
    def health_unknown(self) -> tuple[str, ...]:
        """Name the GPUs of which XPU Manager, which tells of others, says nothing."""
        return self._health_unknown(self.seen)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What should be looked at by somebody."""
        trouble = self.seen.cdi_trouble
        cdi_trouble = (f"{_unnamed(self.seen.cdi)}: {trouble}",) if trouble else ()
        return (*sorted(self._doubts), *cdi_trouble)

    # Sources

    async def _scan(self, stop: asyncio.Event) -> None:
        def looked() -> None:
            self.last_look = time.monotonic()

        # By way of the loop, so that one that hangs is seen as well.
        tell = partial(asyncio.get_running_loop().call_soon_threadsafe, looked)
        found: Found | None = None
        while not stop.is_set():
            found = await self._unless(stop, partial(self._next_found, found, stop.is_set, tell))
            if found:
                # The others go on meanwhile: only what was scanned is taken over.
                self._latest = replace(self._latest, **found._asdict())
                self.scanned = True
                self._news.set()

    def _next_found(
        self, known: Found | None, is_over: Callable[[], bool], tell: Callable[[], object]
    ) -> Found | None:
        """Scan, when there are new signs or it is due, until something else is found; None: over.

        All in one thread: to return to the loop for each look, or for each scan that finds the
        same, would cost more than the look. `tell` is called after each scan.
        """
        while not is_over():
            if self._signs is not None:
                now = time.monotonic()
                time.sleep(beat(now, self._sources.look_seconds) - now)
            signs = fingerprint(self._sources.roots)
            now = time.monotonic()
            if is_over() or (signs == self._signs and now < self._due):
                continue
            self._signs, self._due = signs, now + self._sources.scan_seconds
            found = self._look_around(known.inventory if known else Inventory())
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know
                tell()
            if found and found != known:
                return found
        return None

    @staticmethod
    async def _unless(stop: asyncio.Event, work: Callable[[], T]) -> T | None:
        """Do work that may take long, as a device may be slow to tell; None when the end came."""
        task = asyncio.ensure_future(aside(work))
        await first_of(_wait_for(task), stop.wait())
        if task.done():
            return task.result()
        task.cancel()
        return None

    def _look_around(self, before: Inventory) -> Found | None:
        """Scan the node and refresh the CDI spec. None: it failed."""
        try:
            inventory = self._inventory(before)
        except ScanError as error:
            self._telemetry.scanned(good=False)
            if self._changes.of("scan", str(error)):
                kept = "the last good one stands" if self.scanned else "no GPU is offered yet"
                self._log.error(f"scan failed: {kept}", reason=str(error))
            return None
        self._telemetry.scanned(good=True)
        if self._changes.of("scan", None):
            self._log.info("scans are good again")
        standing = self._refresh_cdi(inventory)
        return Found(inventory, standing.named, standing.trouble)

    def _inventory(self, before: Inventory) -> Inventory:
        sources = self._sources
        found = scan(sources.roots, sources.allow_ids, sources.deny_ids)
        return found.keep_known(before)

    def _refresh_cdi(self, inventory: Inventory) -> Standing:
        """Make the CDI spec tell these GPUs, and say what changed of it."""
        directory = self._sources.cdi_dir
        if directory is None:
            return Standing(frozenset())
        standing = cdi.refresh(directory, inventory, self._sources.by_path)
        if standing.changed:
            self._log.info("CDI spec refreshed", directory=str(directory))
        if self._changes.of(
            "cdi", (standing.named, standing.trouble) if standing.trouble else None
        ):
            if standing.trouble:
                self._log.warning(_unnamed(standing.named), reason=standing.trouble)
            else:
                self._log.info("CDI devices are named again")
        return standing

    def _read_labels(self, reading: Reading) -> None:
        self._reading = reading
        self._news.set()

    def _judge(self, news: health.Health) -> None:
        before = self._latest.health
        self._telemetry.judged(news)
        if news == before:
            return
        if news.trouble != before.trouble:
            if news.trouble:
                self._log.warning("health is unknown", reason=news.trouble)
            else:
                self._log.info("health is known")
        for bdf in sorted(news.unhealthy.keys() ^ before.unhealthy.keys()):
            self._telemetry.health_changed(healthy=bdf not in news.unhealthy)
            if bdf in news.unhealthy:
                self._log.warning("GPU is unhealthy", gpu=bdf, reason=news.unhealthy[bdf])
            else:
                self._log.info("GPU is healthy again", gpu=bdf)
        self._latest = replace(self._latest, health=news)
        self._news.set()

    # Snapshots

    async def _assemble(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await first_of(self._news.wait(), stop.wait())
            self._news.clear()
            # Links without GPUs would be told as a doubt, GPUs without links be preferred as if
            # there were none. The file is given up after some seconds, so it keeps no GPU back.
            if not self.scanned or self._reading is None:
                continue
            joined = links.join(self._reading, self._latest.inventory)
            self._latest = seen = replace(self._latest, links=joined)
            # Beside the loop: preparing a preference may take tens of milliseconds.
            snapshot = await self._unless(stop, partial(self._assembler.assemble, seen))
            if snapshot:
                self._watch.replace(snapshot)
                self.seen, self._assembled = seen, True
                self._say(seen)
                self._telemetry.sees(seen, health_unknown=len(self._health_unknown(seen)))

    def _health_unknown(self, seen: Seen) -> tuple[str, ...]:
        """Name the GPUs of which XPU Manager, which tells of others, says nothing."""
        if not self._sources.endpoint or seen.health.trouble:
            return ()
        return health.unknown(seen.health, seen.inventory.cards)

    def _say(self, seen: Seen) -> None:
        found = [f"{card.name}={card.bdf}" for card in seen.inventory.cards]
        if self._changes.of("cards", found or None):
            self._log.info("GPUs of this node", cards=" ".join(found) or "none")
        self._say_doubts(frozenset(_doubts(seen)))
        withheld = [str(gpu) for gpu in seen.inventory.withheld]
        if self._changes.of("withheld", withheld or None):
            self._log.info("GPUs that are not offered", gpus="; ".join(withheld) or "none")
        silent = self._health_unknown(seen)
        if self._changes.of("silent", silent or None):
            self._log.info("GPUs of unknown health", gpus=" ".join(silent) or "none")
        known = seen.links
        if self._changes.of("links", known):
            self._log.info(
                "links",
                state=known.state.value,
                pairs=len(known.lanes),
                lanes=sum(known.lanes.values()),
                reason=known.reason or "none",
            )

    def _say_doubts(self, doubts: frozenset[str]) -> None:
        for text in sorted(doubts - self._doubts):
            self._log.warning(text)
        for text in sorted(self._doubts - doubts):
            self._log.info("no longer so", was=text)
        self._doubts = doubts


async def _wait_for(task: asyncio.Future[T]) -> None:
    """Wait for a task without taking it along when this wait is canceled."""
    await asyncio.wait([task])


def _doubts(seen: Seen) -> Iterator[str]:
    """Say what should be looked at by somebody."""
    inventory = seen.inventory
    yield from (str(problem) for problem in inventory.problems)
    if not inventory.cards:
        yield _no_gpu(inventory)
    for card in inventory.cards:
        if card.complaint and not card.broken:  # what is broken is a problem already
            yield f"{card.name} at {card.bdf} is unhealthy: {card.complaint}"
    if inventory.sight is not Sight.FINE:
        yield inventory.sight.value
    if seen.links.not_on_bus:
        yield f"in the id map but not on this bus: {' '.join(seen.links.not_on_bus)}"
    if seen.links.not_in_map:
        yield f"on this bus but not in the id map: {' '.join(seen.links.not_in_map)}"
    if seen.links.without_address:
        ids = " ".join(map(str, seen.links.without_address))
        yield f"linked but without an address in the id map: {ids}"


def _unnamed(named: AbstractSet[str]) -> str:
    return "not every GPU is named as a CDI device" if named else "no CDI devices are named"


def _nothing_to_give(seen: Seen, ill: Mapping[str, str | None]) -> str:
    if not ill:
        return _no_gpu(seen.inventory)
    if not all(ill.values()):
        return ""
    reasons = dict.fromkeys(filter(None, ill.values()))
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"every GPU is unhealthy: {next(iter(reasons))}{more}"


def _no_gpu(inventory: Inventory) -> str:
    if inventory.withheld:
        return f"no GPU is offered: {len(inventory.withheld)} of Intel's are withheld"
    if inventory.problems:
        return "no GPU is offered: none can be read"
    return "no GPU is offered: this node has none of Intel's, or its driver is not loaded"
