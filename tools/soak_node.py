# ruff: noqa: INP001 - a program's part, not a package
"""A node for the soak: both daemons as processes, all else simulated, and the truth about it."""

import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from tests.device_plugin.test_story import Scene
from tests.faults.rig import FILE, NS
from tests.faults.shim import LackingError, Shim
from tests.faults.test_file_system import DISK, SHIM, Place, UnmountableError, mounted
from tests.faults.test_kubelet import I915
from tests.faults.test_tls import Site
from tests.patience import PATIENCE
from tests.processes import Running, address, get
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.xpu_manager import Blueprint, Serving, SimulatedNode, Simulator
from xelink.topology.model import Topology
from xelink.topology.publication import UnusableError, read

EXPIRY = 60
RECOVERY = PATIENCE
"""Seconds until what has to come again is given up: the truth in the file, a registration."""
ENDS_WELL = "every daemon goes on, and ends well"
_GLANCE = 0.05
_BEST = "1.0-6.0"  # card2 and card7: by its lanes the pair that every Pod of two is to get


class ViolationError(Exception):
    """An invariant does not hold: the run ends, and its logs are kept."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


class Daemon(Running):
    """A daemon of ours; `url` is where its probes are."""

    url = ""


@dataclass
class Truth:
    """What XPU Manager knows now, and what may still be read of before, by the clock of all."""

    now: Topology
    also: tuple[Topology, ...] = ()
    ahead: timedelta = timedelta(0)
    """How far the clock of the daemons is ahead."""
    spoiled: int = 0
    """How many faults are at the file itself, or at the clock: nothing is claimed meanwhile."""
    spoils: int = 0
    """How many there were."""

    def allows(self, said: Topology) -> bool:
        """Return whether a file may say this: the truth, and for a while what was true before."""
        if said == self.now:
            return True
        known = (self.now, *self.also)
        ends = [{*topology.by_ends} for topology in known]
        maps = {(gpu.id, gpu.bdf, gpu.card) for topology in known for gpu in topology.gpus}
        return (
            bool(self.also)
            and set.intersection(*ends) <= {*said.by_ends} <= set.union(*ends)
            and {(gpu.id, gpu.bdf, gpu.card) for gpu in said.gpus} == maps
        )

    def set_ahead(self, seconds: int) -> None:
        """Let the clock of all be so many seconds ahead."""
        self.ahead = timedelta(seconds=seconds)

    def clock(self) -> datetime:
        """Return the time as the daemons see it."""
        return datetime.now(UTC) + self.ahead


@dataclass
class Node:
    """Both daemons on one node. Faults that exclude each other hold `quiet`."""

    folder: Path
    chance: random.Random
    kubelet: Kubelet
    stack: ExitStack
    lacking: set[str] = field(default_factory=set)
    quiet: threading.RLock = field(default_factory=threading.RLock)
    admitting: threading.RLock = field(default_factory=threading.RLock)
    logs: list[tuple[str, Daemon]] = field(default_factory=list)

    def __post_init__(self) -> None:
        disk = self.folder / "d"
        try:
            self.stack.enter_context(mounted(disk))
        except UnmountableError:
            self.lacking.add(DISK)
        self.place = Place(disk, disk / "o")
        self.place.prepare()
        try:
            self.place.shim = Shim(self.folder / "wrong", self.place.features_d)
        except LackingError:
            self.lacking.add(SHIM)
        self.scene = Scene(self.folder, self.kubelet)
        self.scene.labels = self.place.file
        tls = self.folder / "t"
        tls.mkdir()
        self.site = Site(tls)
        self.lanes = 16
        first = self.some_node()
        self.truth = Truth(first.topology)
        serving = Serving(cert=self.site.cert, key=self.site.key, keep_alive=0.5)
        self.xpum = self.stack.enter_context(Simulator(first, serving))
        self.sidecar = self._sidecar()
        self.wait_for_truth("start")
        self.plugin = self._plugin()
        # It says that it is ready for a moment before it has a resource to serve.
        self.kubelet.wait_for_allocatable(I915, 8, RECOVERY)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, chance: random.Random) -> Iterator[Self]:
        """Run a node while the block runs."""
        with ExitStack() as stack:
            kubelet = stack.enter_context(Kubelet(folder / "k"))
            node = cls(folder, chance, kubelet, stack)
            yield node

    # What is true

    def some_node(self) -> SimulatedNode:
        """Return a node with some links: the best pair has the most lanes, more every time."""
        self.lanes += 1
        mesh = Blueprint(gpus=8, tiles=2).build()
        others = [str(link) for link in mesh.links if str(link) != _BEST]
        gone = self.chance.sample(others, self.chance.randrange(10, 50))
        return mesh.cut(*gone).degrade(self.lanes, self.lanes, _BEST)

    def gain(self) -> None:
        """Let the best pair have more lanes: to be published at once."""
        self.lanes += 1
        self.change(self.xpum.node.degrade(self.lanes, self.lanes, _BEST))

    def change(self, node: SimulatedNode) -> None:
        """Let XPU Manager know something else from now on."""
        truth = self.truth
        truth.also = (*truth.also, truth.now, node.topology)
        truth.now = node.topology
        self.xpum.node = node

    def content(self) -> bytes:
        """Read the feature file; who opens a pipe in its place is not kept waiting for ever."""
        with open(self.place.file, "rb", opener=_at_once) as file:
            return file.read()

    def wait_for_truth(self, fault: str) -> None:
        """Wait until the truth and nothing else is published. Raises `ViolationError`."""
        until = time.monotonic() + RECOVERY
        said: object = None
        while time.monotonic() < until:
            try:
                said = read(self.content(), NS, self.truth.clock()).topology
            except (OSError, UnusableError) as error:
                said = error
            if said == self.truth.now:
                self.truth.also = ()
                return
            threading.Event().wait(_GLANCE)
        raise ViolationError("the next good scrape recovers", f"after {fault}: {said}")

    def wait_for_links(self, fault: str) -> None:
        """Wait until the plugin is registered and uses the links of now. Raises `ViolationError`.

        Not those of before a fault of the file: it may have read that, and not acted on it yet.
        """
        started, since = time.monotonic(), self.place.file.stat().st_mtime
        while time.monotonic() - started < RECOVERY:
            if self.has_links(since):
                return
            threading.Event().wait(_GLANCE)
        said = get(f"{self.plugin.url}/readyz")
        raise ViolationError("the plugin comes back", f"after {fault}: {said}")

    def has_links(self, since: float = 0.0) -> bool:
        """Return whether the plugin is registered and uses links that were written since then."""
        said = json.loads(get(f"{self.plugin.url}/status.json")[1])
        if (said["ready"], said["readyz"]) != (True, "links in use"):
            return False
        return datetime.fromisoformat(said["links"]["written"]).timestamp() >= int(since)

    @contextmanager
    def spoiling(self) -> Iterator[None]:
        """Claim nothing of the file while the block runs."""
        self.truth.spoiled += 1
        self.truth.spoils += 1
        try:
            yield
        finally:
            self.truth.spoiled -= 1

    # Processes

    def _process(self, name: str, module: str, arguments: Sequence[str]) -> Daemon:
        env = {**(self.place.shim.environment if self.place.shim else {})}
        process = self.stack.enter_context(Daemon(module, *arguments, env=env))
        self.logs.append((name, process))
        process.url = address(process)
        return process

    def another_sidecar(self) -> Daemon:
        """Run a second one beside the first, of other flags, so that each writes its own."""
        return self._sidecar("-summary-labels=false")

    def _sidecar(self, *more: str) -> Daemon:
        return self._process(
            "sidecar",
            "sidecar",
            (
                f"-xpum-port={self.xpum.port}",
                f"-cert={self.site.trust}",
                f"-dst-file-path={self.place.file}",
                f"-tmp-dir-prefix={self.place.features_d}",
                "-startup-delay=0",
                "-interval=1",
                "-timeout=2",
                f"-expiry={EXPIRY}",
                "-listen=127.0.0.1:0",
                *more,
            ),
        )

    def _plugin(self) -> Daemon:
        return self._process(
            "device-plugin",
            "device_plugin",
            (
                f"-prefix={self.folder / 'n'}",
                f"-plugin-dir={self.kubelet.directory}",
                f"-label-file={self.place.file}",
                f"-cdi-dir={self.folder / 'cdi'}",
                "-listen=127.0.0.1:0",
            ),
        )

    def kill_sidecar(self) -> None:
        """Kill the sidecar; another takes its place."""
        self.sidecar.process.kill()
        self.sidecar.wait()
        self.sidecar = self._sidecar()

    def kill_plugin(self) -> None:
        """Kill the plugin; another takes its place."""
        self.plugin.process.kill()
        self.plugin.wait()
        self.plugin = self._plugin()

    def end(self) -> int:
        """Stop both daemons; give how many processes there were. Raises `ViolationError`.

        None has ended before, but those that were killed; none has told a traceback.
        """
        for daemon in (self.sidecar, self.plugin):
            alive = daemon.process.poll() is None
            code = daemon.stop()
            if not alive or code:
                raise ViolationError(ENDS_WELL, f"exit code {code}: {daemon.lines[-5:]}")
        for name, daemon in self.logs:
            daemon.forget()
            if any("Traceback" in line for line in daemon.lines):
                raise ViolationError(ENDS_WELL, f"{name}: a traceback in its log")
        return len(self.logs)

    def keep_logs(self, folder: Path) -> None:
        """Write what every daemon has logged."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, process) in enumerate(self.logs):
            process.forget()
            (folder / f"{number:02d}-{name}.log").write_text("\n".join(process.lines) + "\n")


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


__all__ = ["DISK", "ENDS_WELL", "FILE", "SHIM", "Node", "ViolationError"]
