"""Keeps the snapshot current: observations in, snapshots out, and a log line for each change."""

import asyncio
from functools import partial

from structlog.typing import FilteringBoundLogger

from device_plugin.assembly import Assembler
from device_plugin.snapshot import Snapshot
from device_plugin.telemetry import NodeTelemetry
from xelink.daemon.logs import Changes
from xelink.daemon.polling import first_of
from xelink.daemon.watch import Watch
from xelink.inventory.observation import NodeObservation
from xelink.inventory.watcher import unless


class Updates:
    """Assembles a snapshot of each observation.

    `observation` is what the current one is made of; `assembled`: whether there ever was one.
    """

    def __init__(
        self,
        observed: Watch[NodeObservation],
        assembler: Assembler,
        watch: Watch[Snapshot],
        telemetry: NodeTelemetry,
        log: FilteringBoundLogger,
    ) -> None:
        self._observed = observed
        self._assembler = assembler
        self._watch = watch
        self._telemetry = telemetry
        self._log = log
        self._changes = Changes()
        self._warnings: frozenset[str] = frozenset()
        self.observation = observed.current
        self.assembled = False

    async def run(self, stop: asyncio.Event) -> None:
        """Assemble until `stop` is set."""
        observation = self.observation
        while not stop.is_set():
            await first_of(self._observed.next(observation), stop.wait())
            observation = self._observed.current
            # Beside the loop: preparing a preference may take tens of milliseconds.
            snapshot = await unless(stop, partial(self._assembler.assemble, observation))
            if snapshot:
                self._watch.replace(snapshot)
                self.observation, self.assembled = observation, True
                self._announce(observation)
                self._telemetry.observed(observation)

    @property
    def device_error(self) -> str:
        """Why no GPU, or no CDI name, can be allocated; empty where some can, or at first."""
        return self.observation.device_error if self.assembled else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Conditions that need attention."""
        if not self.assembled:
            return ()
        observed = self.observation
        return (*sorted(observed.warnings), *filter(None, (observed.cdi_warning,)))

    def _announce(self, observed: NodeObservation) -> None:
        """Log what is in use now, where it differs from what was."""
        inventory, links = observed.inventory, observed.links
        found = " ".join(f"{card.name}={card.bdf}" for card in inventory.cards)
        if self._changes.of("cards", found or None):
            self._log.info("GPUs of this node", cards=found or "none")
        self._announce_warnings(observed.warnings)
        excluded = "; ".join(map(str, inventory.excluded))
        if self._changes.of("excluded", excluded or None):
            self._log.info("GPUs that are not advertised", gpus=excluded or "none")
        unknown = " ".join(observed.health_unknown)
        if self._changes.of("unknown", unknown or None):
            self._log.info("GPUs of unknown health", gpus=unknown or "none")
        if self._changes.of("links", links):
            self._log.info(
                "links",
                state=links.state.value,
                pairs=len(links.lanes),
                lanes=sum(links.lanes.values()),
                reason=links.reason or "none",
            )

    def _announce_warnings(self, warnings: frozenset[str]) -> None:
        for text in sorted(warnings - self._warnings):
            self._log.warning(text)
        for text in sorted(self._warnings - warnings):
            self._log.info("resolved", warning=text)
        self._warnings = warnings
