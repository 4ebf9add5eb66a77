"""Where the processor time of a call goes: functions are wrapped, and each has what is its own."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


class Phases:
    """Sums the time inside of functions, without that of wrapped ones which they call."""

    def __init__(self, phases: Mapping[str, tuple[tuple[object, str], ...]]) -> None:
        """Take the phases: each some functions, as what they are attributes of and their names."""
        self._running: list[list[Any]] = []
        self._spent: dict[str, float] = defaultdict(float)
        for phase, functions in phases.items():
            for owner, name in functions:
                setattr(owner, name, self._timed(phase, getattr(owner, name)))

    def _timed(self, phase: str, function: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object, **named: object) -> object:
            self._pause()
            self._running.append([phase, time.process_time()])
            try:
                return function(*arguments, **named)
            finally:
                self._pause()
                self._running.pop()
                if self._running:
                    self._running[-1][1] = time.process_time()

        return timed

    def _pause(self) -> None:
        if self._running:
            phase, since = self._running[-1]
            self._spent[phase] += time.process_time() - since

    def medians(self, work: Callable[[], object], times: int) -> dict[str, float]:
        """Call `work` so often; give the seconds of each phase in the median call."""
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(times):
            self._spent.clear()
            work()
            for phase, seconds in self._spent.items():
                found[phase].append(seconds)
        return {phase: median(seconds) for phase, seconds in found.items()}
