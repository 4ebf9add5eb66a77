"""The CDI spec of the GPUs that are advertised, and what is logged of it."""

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from xelink.daemon.logs import Changes
from xelink.inventory import cdi
from xelink.inventory.by_path import ByPath
from xelink.inventory.gpus import Inventory
from xelink.inventory.observation import cdi_consequence
from xelink.inventory.watcher import CdiNames


class CdiSpec:
    """The spec in one directory. For one thread at a time."""

    def __init__(self, directory: Path, by_path: ByPath, log: FilteringBoundLogger) -> None:
        self._directory = directory
        self._by_path = by_path
        self._log = log
        self._changes = Changes()

    def refresh(self, inventory: Inventory) -> CdiNames:
        """Make the spec describe these GPUs; log what changed."""
        state = cdi.refresh(self._directory, inventory, self._by_path)
        if state.changed:
            self._log.info("CDI spec refreshed", directory=str(self._directory))
        if self._changes.of("cdi", (state.named, state.error) if state.error else None):
            if state.error:
                self._log.warning(cdi_consequence(state.named), reason=state.error)
            else:
                self._log.info("CDI devices are named again")
        return CdiNames(state.named, state.error)
