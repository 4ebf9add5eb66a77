"""How long a test waits for what has to come, and clocks that a test moves.

Only what never comes takes as long as `PATIENCE`: a verdict hangs on what happens, or on which of
two things happens first, never on how fast a machine is. So no test holds that something takes less
than some seconds; it makes the other way out take for ever (`NEVER`), and the right one is the only
one that is left.
"""

PATIENCE = 120.0
"""Seconds; far below `faulthandler_timeout`, which ends a run in which a test hangs."""

NEVER = 3600.0
"""Seconds that no test lives to see: for intervals, pauses and limits that are not to be reached.

Not more, as some of what takes seconds takes no more than an hour.
"""


class Clock:
    """Time that stands still until it is moved; from any thread."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def run_out(self) -> None:
        """Let the time be up for whatever has a limit below `NEVER`."""
        self.now += NEVER


class Ticks:
    """Time that is as long as one looks at it, however much of it goes by in between."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now
