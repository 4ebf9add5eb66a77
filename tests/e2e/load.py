"""Pods created all the time, as a busy cluster does, and what became of each."""

import math
import time
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event, Thread
from types import TracebackType
from typing import NamedTuple, Self

from tests.e2e.api import Api, Object
from tests.e2e.kubelet import NODE_PATH, PODS, RESOURCE
from tests.e2e.pods import manifest, why
from tests.e2e.programs import PATIENCE, monotonic, until


@dataclass
class Fate:
    """One Pod: when it was created, and how it ended; instants by the monotonic clock."""

    name: str
    created: float
    phase: str = ""
    ended: float = 0.0
    reason: str = ""


@dataclass
class Load:
    """Creates a Pod of one GPU every `every` seconds until the block ends, then awaits them all."""

    api: Api
    every: float = 1.0
    fates: list[Fate] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)
    _threads: list[Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        creating = Thread(target=self._create, daemon=True)
        self._threads.append(creating)
        creating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        for fate in self.fates:
            self.api.delete(f"{PODS}/{fate.name}")

    def settle(self) -> None:
        """Wait until one more Pod, created from now on, has got its GPU."""
        now = time.monotonic()
        until(
            lambda: any(fate.created > now for fate in self.succeeded()),
            "a Pod gets a GPU again",
        )

    def failed(self) -> list[Fate]:
        """Give the Pods that were refused."""
        return [fate for fate in self.fates if fate.phase == "Failed"]

    def succeeded(self) -> list[Fate]:
        """Give the Pods that got their GPU and were done."""
        return [fate for fate in self.fates if fate.phase == "Succeeded"]

    def _create(self) -> None:
        number = 0
        while not self._stop.is_set():
            name = f"load-{time.monotonic_ns()}-{number}"
            fate = Fate(name, time.monotonic())
            self.fates.append(fate)
            self.api.create(PODS, manifest(name, 1, script="true"))
            follower = Thread(target=self._follow, args=(fate,), daemon=True)
            self._threads.append(follower)
            follower.start()
            number += 1
            self._stop.wait(self.every)

    def _follow(self, fate: Fate) -> None:
        seen = self.api.wait(
            f"{PODS}/{fate.name}",
            lambda pod: pod.get("status", {}).get("phase") in {"Succeeded", "Failed"},
            f"{fate.name} ends",
        )
        fate.phase, fate.ended = seen.object["status"]["phase"], seen.at
        fate.reason = why(seen.object) if fate.phase == "Failed" else ""


class Status(NamedTuple):
    """How many GPUs kubelet reported, and when, by the monotonic clock: its own is in seconds."""

    earliest: float
    allocatable: int

    @property
    def latest(self) -> float:
        """The end of the second in which it was made."""
        return self.earliest + 1.0


class Timeline:
    """What kubelet reports of its allocatable GPUs; and each change with its instant."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)
        self._heartbeat = ""
        self.changes: list[tuple[float, int]] = []
        self.statuses: list[Status] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def between(self, begin: float, end: float = math.inf) -> list[Status]:
        """Give the statuses that were certainly made between two instants."""
        return [each for each in self.statuses if begin <= each.earliest and each.latest <= end]

    def lowest(self) -> int:
        """Give the least that was ever said."""
        return min(number for _, number in self.changes)

    def longest_without(self, whole: int, since: float = 0.0) -> float:
        """Give the longest time in seconds, since an instant, that the node said less."""
        ends = [*(when for when, _ in self.changes[1:]), time.monotonic()]
        longest = total = 0.0
        for (begin, number), end in zip(self.changes, ends, strict=True):
            total = total + max(end - max(begin, since), 0.0) if number < whole else 0.0
            longest = max(longest, total)
        return longest

    def _follow(self) -> None:
        while not self._stop.is_set():
            node = self._api.get(NODE_PATH)
            self._note(time.monotonic(), node)
            with self._api.watching(NODE_PATH, node, 1.0) as events:
                for seen in events:
                    self._note(seen.at, seen.object)

    def _note(self, at: float, node: Object) -> None:
        number = int(node["status"].get("allocatable", {}).get(RESOURCE, 0))
        changed = not self.changes or self.changes[-1][1] != number
        if changed:
            self.changes.append((at, number))
        heartbeat = max(each["lastHeartbeatTime"] for each in node["status"]["conditions"])
        if changed or heartbeat != self._heartbeat:
            self._heartbeat = heartbeat
            self.statuses.append(Status(monotonic(datetime.fromisoformat(heartbeat)), number))
