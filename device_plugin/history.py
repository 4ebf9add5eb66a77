"""The last preferences and allocations, for the status page: bounded.

The device plugin API reports every allocation and never its end: of each device the last container
that got it since this process started is remembered.
"""

import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple

from xelink.inventory.workload_facts import Linked
from xelink.preference.decision import Decision

MOST_PREFERENCES = 20
MOST_DEVICES = 1024

# kubelet may ask with any ids; of those that a node really has, all are kept.
_MOST_IDS = 64
_LONGEST_ID = 64
_LONGEST_ERROR = 300


class Followed(Enum):
    """Whether kubelet followed our preference when it allocated."""

    YES = "followed"
    NO = "not_followed"
    NOT_REQUESTED = "not_requested"


class PreferenceRecord(NamedTuple):
    """A preference that was given: `size` of so many `available` ids, with all of `must`.

    `at` is in seconds since 1970. `proven`: no set is better. `error` is why it was a fallback.
    """

    at: float
    size: int
    available: int
    must: Sequence[str]
    chosen: Sequence[str]
    decision: Decision
    proven: bool
    error: str | None
    seconds: float


class AllocationRecord(NamedTuple):
    """What one container got; `gpus` are PCI addresses, `at` is in seconds since 1970."""

    at: float
    ids: tuple[str, ...]
    gpus: tuple[str, ...]
    linked: Linked
    followed: Followed


class History:
    """The last preferences, newest first, and the last allocation of each device, newest first.

    Both are replaced, never changed, so that any thread may read them.
    """

    def __init__(self) -> None:
        self.preferences: tuple[PreferenceRecord, ...] = ()
        self.allocations: Mapping[str, AllocationRecord] = {}
        self._writing = threading.Lock()

    def prefer(self, one: PreferenceRecord) -> None:
        """Remember a preference in place of the oldest."""
        error = one.error and one.error[:_LONGEST_ERROR]
        kept = one._replace(must=_kept(one.must), chosen=_kept(one.chosen), error=error)
        with self._writing:
            self.preferences = (kept, *self.preferences[: MOST_PREFERENCES - 1])

    def allocate(self, one: AllocationRecord) -> None:
        """Remember who got these devices last."""
        with self._writing:
            # Once for its place in front, once to outdo what was there before.
            newest = dict.fromkeys(one.ids, one)
            every = newest | dict(self.allocations) | newest
            self.allocations = dict(islice(every.items(), MOST_DEVICES))


def _kept(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(id_[:_LONGEST_ID] for id_ in ids[:_MOST_IDS])
