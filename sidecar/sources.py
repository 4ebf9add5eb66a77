"""The source of the sidecar, made from its settings.

Each kind of source is imported only where it is one: XPU Manager's client loads HTTP and TLS, the
driver's loads the inventory of this node.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from sidecar.auto_source import AutoSource
from sidecar.source_choice import SourceChoice
from xelink.daemon.stopping import Stop
from xelink.topology.observation import Observation, ObservedLinks, Source, SourceFacts, Unknown
from xelink.topology.rules import Rules

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings

_FOREVER = 600.0
"""The life of labels that live for ever, to decide when another source is asked."""

_UNANSWERED = {"refused", "not-xpu-manager"}
"""Reasons of XPU Manager's client that mean that there is none of version 1.x."""


@contextmanager
def chosen(
    settings: "SidecarSettings", rules: Rules, stop: Stop, log: FilteringBoundLogger
) -> Iterator[Source]:
    """Hold the source that the settings ask for. Raises `CannotStartError`."""
    with ExitStack() as cleanup:
        sources: list[Source] = []
        if settings.source is not SourceChoice.XPUM:
            from sidecar.driver_source import driver  # noqa: PLC0415 - loads the inventory

            sources.append(driver(settings, rules, stop))
        if settings.source is not SourceChoice.DRIVER:
            from sidecar.xpu_manager_source import xpu_manager  # noqa: PLC0415 - loads HTTP

            sources.append(cleanup.enter_context(xpu_manager(settings, rules, stop)))
        match sources:
            case [first, second]:
                life = settings.life or _FOREVER
                yield AutoSource(first, second, log, life=life, monotonic=time.monotonic)
            case [only] if settings.source is SourceChoice.XPUM:
                yield Advising(only, partial(_driver_could_tell, settings.prefix))
            case [only]:
                yield only


def _driver_could_tell(prefix: Path) -> bool:
    from sidecar.driver_source import bus  # noqa: PLC0415 - loads the inventory

    return bus(prefix).has_fabric()


class Advising:
    """XPU Manager as a source that says where the driver could report what it does not."""

    def __init__(self, source: Source, could_tell: Callable[[], bool]) -> None:
        self._source = source
        self._could_tell = could_tell

    @property
    def name(self) -> str:
        """Its name in a sentence."""
        return self._source.name

    @property
    def address(self) -> str:
        """Where it is read."""
        return self._source.address

    @property
    def reasons(self) -> Collection[str]:
        """Every reason for which it can be unknown."""
        return self._source.reasons

    @property
    def facts(self) -> SourceFacts:
        """What is known of it after the last observation."""
        return self._source.facts

    def observe(self) -> Observation:
        """Observe; where nobody knows of links, name the flag that may."""
        observation = self._source.observe()
        if isinstance(observation, ObservedLinks) or (
            isinstance(observation, Unknown) and observation.reason not in _UNANSWERED
        ):
            return observation
        if self._could_tell():
            detail = (
                f"{observation.detail}; the driver of this node knows its links: -source driver"
            )
            return replace(observation, detail=detail)
        return observation
