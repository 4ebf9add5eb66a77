"""The ticks of the daemon, one after the other, and their pulse, for /healthz."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from sidecar.source_choice import SourceChoice
from xelink.nfd.bounded_writer import SECONDS
from xelink.topology.observation import Observation

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings

# The loop is dead, and kubelet should restart us, after so many intervals without a tick.
_MISSED_INTERVALS = 3
# At the feature file, in one tick: who owns it, the current file, the one before, a publication.
_LOOKS = 4


class Pulse:
    """Whether the loop still ticks; only a tick that succeeded is a beat."""

    def __init__(self, settings: "SidecarSettings", monotonic: Callable[[], float]) -> None:
        """Allow for the delay before the first tick, and for a tick that takes its whole time."""
        self._monotonic = monotonic
        sources = 2 if settings.source is SourceChoice.AUTO else 1  # asked in one tick
        steps = sources * settings.timeout + _LOOKS * SECONDS
        self._timeout = _MISSED_INTERVALS * settings.interval + steps
        self._last = monotonic() + settings.startup_delay

    def beat(self) -> None:
        """Note that a tick succeeded."""
        self._last = self._monotonic()

    def problem(self) -> str | None:
        """Return for how long there was no beat, where that is too long."""
        silence = self._monotonic() - self._last
        return f"the loop has not ticked for {silence:.0f} s" if silence > self._timeout else None


def ticks(
    settings: "SidecarSettings",
    tick: Callable[[], Observation],
    wait: Callable[[float], bool],
    beat: Callable[[], None],
    log: FilteringBoundLogger,
) -> Observation | None:
    """Tick until `wait` returns that the end is asked for, or once with -oneshot.

    Return the observation of that one tick; what it raises is raised then.
    """
    delay = 0 if settings.oneshot else settings.startup_delay
    while not wait(delay):
        try:
            outcome = tick()
        except Exception:
            # An error of ours must not end the daemon: the published labels stay. But without a
            # beat /healthz fails before long, and kubelet restarts us.
            if settings.oneshot:
                raise
            log.exception("a tick failed: the published labels stay")
        else:
            beat()
            if settings.oneshot:
                return outcome
        delay = settings.interval
    return None
