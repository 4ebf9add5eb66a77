"""The source of the sidecar, made from its settings.

XPU Manager's client loads HTTP and TLS, so that it is imported only where it is a source.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from sidecar.auto_source import AutoSource
from sidecar.source_choice import SourceChoice
from xelink.daemon.command import CannotStartError
from xelink.daemon.stopping import Stop
from xelink.iaf.channel import kernel, simulator
from xelink.iaf.source import DriverSource
from xelink.inventory.devfs import Roots
from xelink.inventory.fabric_bus import FabricBus
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
    bus = FabricBus(Roots.under(settings.prefix))
    with ExitStack() as cleanup:
        driver = _driver(settings, rules, stop, bus)
        if settings.source is SourceChoice.DRIVER:
            yield driver
            return
        from sidecar.xpu_manager_source import xpu_manager  # noqa: PLC0415 - loads HTTP

        other = cleanup.enter_context(xpu_manager(settings, rules, stop))
        if settings.source is SourceChoice.XPUM:
            yield Advising(other, bus.has_fabric)
        else:
            life = settings.life or _FOREVER
            yield AutoSource(driver, other, log, life=life, monotonic=time.monotonic)


def _driver(settings: "SidecarSettings", rules: Rules, stop: Stop, bus: FabricBus) -> DriverSource:
    connect = kernel
    if settings.driver_socket:
        if FabricBus(Roots.under()).has_fabric():
            raise CannotStartError("-driver-socket: this node has the real Xe Link driver")
        connect = simulator(settings.driver_socket)

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return DriverSource(
        connect,
        bus.node,
        rules,
        seconds=settings.timeout,
        sleep=sleep,
        monotonic=time.monotonic,
        bounded=stop.bounded,
        confirmations=settings.confirmations,
    )


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
