"""What became of preferences and allocations: counted, logged and remembered after the answer.

kubelet does not report for which preference it allocates. A preference is followed when the next
allocation that it could have been for takes exactly its devices.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from structlog.typing import FilteringBoundLogger

from device_plugin.deferred import DeferredWork
from device_plugin.history import AllocationRecord, Followed, History, PreferenceRecord
from device_plugin.responses import Container
from device_plugin.telemetry import ServingTelemetry
from xelink.inventory.workload_facts import WorkloadFacts
from xelink.preference.decision import UNKNOWN, Decision
from xelink.preference.shares import Preference

REMEMBERED = 64
"""Preferences that kubelet has neither followed nor passed over yet."""

Record: TypeAlias = Literal["workload_facts", "allocation", "decision"]

_UNDECIDED = Decision(UNKNOWN)


@dataclass(eq=False)
class GivenPreference:
    """A preference that kubelet was given, for which request, and what decided it.

    `decide` finds out what decided it, which takes a while; `decision` has it from then on. `at` is
    in seconds since 1970; `until` is when it is forgotten, by the records' clock.
    """

    preference: Preference
    seconds: float
    decide: Callable[[], Decision]
    available: Sequence[str]
    must: Sequence[str]
    at: float = 0.0
    until: float = 0.0
    decision: Decision = _UNDECIDED

    def could_be(self, ids: frozenset[str]) -> bool:
        """Return whether kubelet may have asked for this preference to allocate these devices."""
        return len(self.preference.ids) == len(ids) and ids <= {*self.available, *self.must}


class Records:
    """The records of one resource; `history` holds the last of them.

    Slow work is done in one background thread, in order. An error in a record never fails a Pod:
    it is counted and logged.
    """

    def __init__(
        self,
        resource: str,
        telemetry: ServingTelemetry,
        log: FilteringBoundLogger,
        memory: float,
        clock: Callable[[], float],
    ) -> None:
        self._resource = resource
        self._telemetry = telemetry
        self._log = log
        self._memory = memory
        self._clock = clock
        self._pending: deque[GivenPreference] = deque(maxlen=REMEMBERED)
        self._work = DeferredWork()
        self.history = History()

    async def close(self, grace: float) -> None:
        """Finish the work that waits, within `grace` seconds."""
        await self._work.close(grace)

    @contextmanager
    def guarded(self, record: Record) -> Iterator[None]:
        """Count and log an error of the block instead of raising it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            self._telemetry.record_error(self._resource, record)
            done = "preferred" if record == "decision" else "allocated"
            self._log.error(
                f"{done} without a record",
                record=record,
                error=f"{type(error).__name__}: {error}",
            )

    def preferred(self, given: Sequence[GivenPreference], most_ids: int) -> None:
        """Record preferences; those that name more than `most_ids` devices are only counted."""
        at, until = time.time(), self._clock() + self._memory
        for one in given:
            one.at, one.until = at, until
            with self.guarded("decision"):
                self._telemetry.preferred(self._resource, one.preference, one.seconds)
                if len(one.available) + len(one.must) <= most_ids:
                    self._pending.append(one)
                    self._later("decision", partial(self._decide, one))

    def allocated(self, given: Container, facts: WorkloadFacts) -> None:
        """Record what one container got."""
        with self.guarded("allocation"):
            followed, given_for = self._followed(frozenset(given.ids))
            self._telemetry.allocated(self._resource, facts.linked, followed)
            record = AllocationRecord(time.time(), given.ids, given.units, facts.linked, followed)
            self._later("allocation", partial(self._log_allocation, record, given_for))

    def _later(self, record: Record, work: Callable[[], None]) -> None:
        """Do work after the answer; where too much waits it is counted as lost."""

        def guarded() -> None:
            with self.guarded(record):
                work()

        if not self._work.add(guarded):
            self._telemetry.record_error(self._resource, record)

    def _decide(self, one: GivenPreference) -> None:
        try:
            one.decision = one.decide()
        finally:
            self.history.prefer(_record(one))
        self._telemetry.decided(self._resource, one.decision.criterion)
        self._log.debug(
            "preferred",
            devices=" ".join(one.preference.ids),
            decided=one.decision.criterion,
            runner_up=" ".join(one.decision.runner_up),
        )

    def _log_allocation(self, record: AllocationRecord, given_for: GivenPreference | None) -> None:
        """Log an allocation: by now it is known what decided."""
        self.history.allocate(record)
        decision = {}
        if given_for:
            decision = {"decided": given_for.decision.criterion}
            if given_for.decision.runner_up:
                decision["runner_up"] = " ".join(given_for.decision.runner_up)
        self._log.info(
            "allocated",
            devices=" ".join(record.ids),
            gpus=" ".join(record.gpus),
            linked=record.linked.value,
            preference=record.followed.value,
            **decision,
        )

    def _followed(self, ids: frozenset[str]) -> tuple[Followed, GivenPreference | None]:
        """Return whether an allocation followed a preference, and which."""
        now = self._clock()
        while self._pending and self._pending[0].until <= now:
            self._pending.popleft()
        candidates = [one for one in self._pending if one.could_be(ids)]
        if not candidates:
            return Followed.NOT_REQUESTED, None
        exact = [one for one in candidates if ids == {*one.preference.ids}]
        one = (exact or candidates)[-1]
        self._pending.remove(one)
        return Followed.YES if exact else Followed.NO, one


def _record(one: GivenPreference) -> PreferenceRecord:
    preference = one.preference
    return PreferenceRecord(
        at=one.at,
        size=len(preference.ids),
        available=len(one.available),
        must=one.must,
        chosen=preference.ids,
        decision=one.decision,
        proven=preference.proven and not preference.error,
        error=preference.error,
        seconds=one.seconds,
    )
