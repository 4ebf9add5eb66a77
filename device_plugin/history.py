"""What was preferred and allocated last, for people to look at: bounded, and as far as we know.

kubelet tells of every allocation and never of its end: what is remembered of a device is who got it
last, since this process began.
"""

import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from device_plugin.responses import Choice
from xelink.inventory.workload_facts import Linked
from xelink.preference.decision import Decision

MOST_PREFERENCES = 20
MOST_DEVICES = 1024

# kubelet may ask with any ids; of those that a node really has, all are kept.
_MOST_IDS = 64
_LONGEST_ID = 64
_LONGEST_FAULT = 300


class Preferred(NamedTuple):
    """A preference that was given: asked for `size` of so many `available` ids, with `must`.

    `at` is in seconds since 1970. `proven` says that no set is better, `fault` why it was a plain
    choice instead.
    """

    at: float
    size: int
    available: int
    must: Sequence[str]
    chosen: Sequence[str]
    decision: Decision
    proven: bool
    fault: str | None
    seconds: float


class Allocated(NamedTuple):
    """What one container got; `gpus` are PCI addresses, `at` is in seconds since 1970."""

    at: float
    ids: tuple[str, ...]
    gpus: tuple[str, ...]
    linked: Linked
    choice: Choice


class History:
    """The last preferences, newest first, and the last allocation of each device, newest first.

    Both are replaced, never changed, so that any thread may read them.
    """

    def __init__(self) -> None:
        self.preferences: tuple[Preferred, ...] = ()
        self.allocations: Mapping[str, Allocated] = {}
        self._writing = threading.Lock()

    def prefer(self, one: Preferred) -> None:
        """Remember a preference; takes the place of the oldest."""
        fault = one.fault and one.fault[:_LONGEST_FAULT]
        kept = one._replace(must=_kept(one.must), chosen=_kept(one.chosen), fault=fault)
        with self._writing:
            self.preferences = (kept, *self.preferences[: MOST_PREFERENCES - 1])

    def allocate(self, one: Allocated) -> None:
        """Remember who got these devices last."""
        with self._writing:
            # Once for its place in front, once to outdo what was there before.
            newest = dict.fromkeys(one.ids, one)
            every = newest | dict(self.allocations) | newest
            self.allocations = dict(islice(every.items(), MOST_DEVICES))


def _kept(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(id_[:_LONGEST_ID] for id_ in ids[:_MOST_IDS])
