"""Watcher and snapshots on a simulated node, with real files: nothing is lost or logged twice."""

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PosixPath
from typing import Any, ClassVar

import pytest
import structlog

from device_plugin.assembly import Assembler, PreferenceConfig
from device_plugin.cdi_spec import CdiSpec
from device_plugin.responses import UnusableDeviceError, container
from device_plugin.snapshot import Snapshot
from device_plugin.updates import Updates
from tests.device_plugin.events import HeardLogs, HeardNodeTelemetry, hang_until, until
from tests.device_plugin.plugins import I915, directory
from tests.patience import NEVER, PATIENCE
from xelink.daemon.metrics import Metrics
from xelink.daemon.watch import Watch
from xelink.inventory import xpumd
from xelink.inventory.by_path import ByPath
from xelink.inventory.devfs import DeviceNode, Roots
from xelink.inventory.health import Severity
from xelink.inventory.links import AddressPair
from xelink.inventory.observation import NodeObservation
from xelink.inventory.units import Unit
from xelink.inventory.watcher import Watcher, WatcherConfig
from xelink.preference.shares import Preference
from xelink.simulators.node.sysfs import Damage, PciGpu
from xelink.simulators.node.sysfs import NodeTree as Tree
from xelink.simulators.xpu_manager import Blueprint
from xelink.simulators.xpumd import Xpumd
from xelink.topology.publication import Publication, render

FIRST, SECOND = "0000:29:00.0", "0000:3a:00.0"
MESH = Blueprint(gpus=8, tiles=2).build()


class SlowSysfs(PosixPath):
    """A sysfs that holds a scan, which asks for its path alone, or a look at its fingerprint."""

    held: ClassVar[threading.Event] = threading.Event()
    go_on: ClassVar[threading.Event] = threading.Event()
    holds_looks: ClassVar[bool] = False

    def __str__(self) -> str:
        self._wait()
        return super().__str__()

    def __format__(self, _: str) -> str:
        if self.holds_looks:
            self._wait()
        return super().__str__()

    def _wait(self) -> None:
        if not self.go_on.is_set():
            self.held.set()
            self.go_on.wait(PATIENCE)

    @classmethod
    def hold(cls, *, looks: bool = False) -> None:
        cls.holds_looks = looks
        cls.held.clear()
        cls.go_on.clear()


@pytest.fixture(autouse=True)
def _nothing_is_held() -> Iterator[None]:
    SlowSysfs.go_on.set()
    yield
    SlowSysfs.go_on.set()


class SlowFile(PosixPath):
    """A feature file on a file system that takes its time."""

    held: ClassVar[threading.Event] = threading.Event()
    go_on: ClassVar[threading.Event] = threading.Event()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        self.held.set()
        self.go_on.wait(PATIENCE)
        return super().stat(follow_symlinks=follow_symlinks)

    def __fspath__(self) -> str:
        self.held.set()
        self.go_on.wait(PATIENCE)
        return super().__fspath__()


class SlowAssembler(Assembler):
    """One that can be held."""

    def __init__(self) -> None:
        super().__init__(PreferenceConfig(clock=time.monotonic))
        self.held, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def assemble(self, observed: NodeObservation) -> Snapshot:
        if not self.go_on.is_set():
            self.held.set()
            self.go_on.wait(PATIENCE)
        return super().assemble(observed)


def complaints(snapshot: Snapshot) -> dict[str, str]:
    devices = snapshot.resource(I915).devices
    return {device.id: device.complaint for device in devices if device.complaint}


def lanes(snapshot: Snapshot) -> Mapping[AddressPair, int]:
    links = snapshot.resource(I915).links
    return links.lanes if links else {}


def preferred(snapshot: Snapshot, ids: list[str], size: int) -> Preference:
    preference = snapshot.resource(I915).preference
    assert preference
    return preference.prefer(ids, [], size)


@dataclass
class Scene:
    """A node in a directory, and what the plugin saw and said of it."""

    path: Path
    tree: Tree
    config: WatcherConfig
    watch: Watch[Snapshot] = field(default_factory=lambda: Watch(Snapshot()))
    logs: HeardLogs = field(default_factory=HeardLogs)
    metrics: Metrics = field(default_factory=lambda: Metrics("x"))
    assembler: SlowAssembler = field(default_factory=SlowAssembler)
    cdi_dir: Path | None = None
    watcher: Watcher = field(init=False)
    updates: Updates = field(init=False)

    @property
    def observed(self) -> NodeObservation:
        return self.updates.observation

    def publish(self, *cut: str) -> None:
        """Put a feature file of a mesh, without some links, in place."""
        expiry = datetime.now(UTC) + timedelta(minutes=5)
        topology = (MESH.cut(*cut) if cut else MESH).topology
        staged = self.path / "staged"
        staged.write_bytes(render(Publication(topology, expiry), "gpu.intel.com"))
        staged.rename(self.config.label_file)

    def said(self, event: str) -> list[Any]:
        return [entry for entry in self.logs.entries if entry["event"] == event]

    def scans(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.metrics.registry.get_sample_value("x_scans_total", labels) or 0.0

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"x_{name}")

    async def scanned(self, outcome: str, times: int = 3) -> None:
        """Wait for so many more scans."""
        before = self.scans(outcome)
        await until(lambda: self.scans(outcome) >= before + times)

    async def until(self, true: Callable[[Snapshot], object]) -> Snapshot:
        """Wait for a snapshot."""
        async with asyncio.timeout(PATIENCE):
            while not true(seen := self.watch.current):
                await self.watch.next(seen)
        return seen

    def ids(self) -> list[str]:
        return [device.id for device in self.watch.current.resource(I915).devices]


@asynccontextmanager
async def following(scene: Scene) -> AsyncIterator[None]:
    """Follow the sources until the block ends."""
    stop = asyncio.Event()
    before = {*threading.enumerate()}
    log = structlog.wrap_logger(None, processors=[scene.logs])
    telemetry = HeardNodeTelemetry(scene.metrics)
    observed = Watch(NodeObservation(monitored=bool(scene.config.endpoint)))
    spec = CdiSpec(scene.cdi_dir, ByPath.SINGLE, log) if scene.cdi_dir else None
    scene.watcher = Watcher(scene.config, observed, telemetry, log, spec.refresh if spec else None)
    scene.updates = Updates(observed, scene.assembler, scene.watch, telemetry, log)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scene.watcher.run(stop))
            tasks.create_task(scene.updates.run(stop))

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        stop.set()
        SlowSysfs.go_on.set()
        scene.assembler.go_on.set()
        await asyncio.wait_for(task, PATIENCE)
        # A scan that was left alone may still write what is about to be removed.
        for scan in {*threading.enumerate()} - before:
            if scan.daemon:
                await asyncio.to_thread(scan.join, PATIENCE)


def tell(story: Callable[[Scene], Awaitable[None]], gpus: int = 8, **changes: Any) -> None:  # noqa: ANN401 - fields of `WatcherConfig`
    with directory() as path:
        tree = Tree.eight_max_1550(path / "n")
        for gpu in tree.gpus[1 + gpus :]:
            tree.remove(gpu.bdf)
        config = WatcherConfig(
            replace(Roots.under(path / "n"), sysfs=SlowSysfs(path / "n/sys")),
            label_file=path / "labels",
            scan_seconds=0.02,
            poll_seconds=0.005,
        )
        scene = Scene(path, tree, replace(config, **changes))

        async def whole() -> None:
            await story(scene)

        asyncio.run(whole())


# Scans


async def hold_a_look() -> None:
    """Hold the next look for a change, while there is no scan."""
    SlowSysfs.hold(looks=True)
    await asyncio.to_thread(SlowSysfs.held.wait, PATIENCE)


async def hold_a_scan() -> None:
    SlowSysfs.hold()
    await asyncio.to_thread(SlowSysfs.held.wait, PATIENCE)


@asynccontextmanager
async def between_scans() -> AsyncIterator[None]:
    """Let no scan see half of a change."""
    await hold_a_scan()
    yield
    SlowSysfs.go_on.set()


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("sys", "no sysfs at"), ("sys/class/drm", "cannot list")],
)
def test_a_scan_that_fails_keeps_the_last_good_one_and_is_said_once_and_counted(
    lost: str, reason: str
) -> None:
    async def story(scene: Scene) -> None:
        # A link that is replaced, so that no scan finds nothing at all in between.
        place = scene.tree.root / lost
        there, gone = place.with_name("there"), place.with_name("gone")
        place.rename(there)
        place.symlink_to(there.name)
        async with following(scene):
            before = await scene.until(lambda snapshot: snapshot.resources)
            gone.write_text("no directory")
            async with between_scans():
                gone.replace(place)
            await scene.scanned("failed", 5)
            assert scene.watch.current == before
            (entry,) = scene.said("scan failed: the last good one is kept")
            assert entry["log_level"] == "error"
            assert entry["reason"].startswith(reason)
            assert not scene.said("scans are good again")
            gone.symlink_to(there.name)
            async with between_scans():
                gone.replace(place)
            await scene.scanned("good")
            assert len(scene.said("scans are good again")) == 1
            assert scene.watch.current == before

    tell(story)


def test_a_first_scan_that_fails_does_not_speak_of_one_before() -> None:
    async def story(scene: Scene) -> None:
        scene.tree.root.rename(scene.tree.root.with_name("elsewhere"))
        async with following(scene):
            await scene.scanned("failed")
            (entry,) = scene.said("scan failed: no GPU is advertised yet")
            assert entry["reason"].startswith("no sysfs at")
            scene.tree.root.with_name("elsewhere").rename(scene.tree.root)
            await scene.until(lambda snapshot: snapshot.resources)
            assert len(scene.said("scans are good again")) == 1

    tell(story)


def test_a_second_failure_of_another_kind_is_said_too() -> None:
    async def story(scene: Scene) -> None:
        failures = "scan failed: the last good one is kept"
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resources)
            drm = scene.tree.root / "sys/class/drm"
            async with between_scans():
                shutil.rmtree(drm)
                drm.touch()
            await until(lambda: len(scene.said(failures)) >= 1)
            async with between_scans():
                shutil.rmtree(scene.tree.root / "sys")
            await until(lambda: len(scene.said(failures)) >= 2)
            await scene.scanned("failed")
            assert len(scene.said(failures)) == 2

    tell(story)


def test_without_a_good_scan_nothing_is_offered() -> None:
    async def story(scene: Scene) -> None:
        (scene.tree.root / "sys").rename(scene.path / "away")
        scene.publish()
        async with following(scene):
            await scene.scanned("failed")
            assert scene.watch.current.resources == {}
            (scene.path / "away").rename(scene.tree.root / "sys")
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 8)

    tell(story)


def test_a_card_that_comes_is_seen_before_the_next_scan_is_due() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 2)
            await hold_a_look()
            scene.tree.add(PciGpu("0000:9a:00.0", 5, numa=1, render=140))
            SlowSysfs.go_on.set()
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 3)
            assert [entry["cards"].count("=") for entry in scene.said("GPUs of this node")][-1] == 3

    tell(story, gpus=2, scan_seconds=NEVER)


def test_while_nothing_changes_nothing_is_said_and_the_snapshot_stays_equal() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            before = await scene.until(lambda snapshot: snapshot.resources)
            await scene.scanned("good", 1)
            said = len(scene.logs.entries)
            await scene.scanned("good", 10)
            assert len(scene.logs.entries) == said
            assert scene.watch.current == before

    tell(story)


def test_a_card_that_breaks_stays_as_unhealthy() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 2)
            async with between_scans():
                scene.tree.damage(FIRST, "device", Damage.NONSENSE)
            broken = await scene.until(
                lambda snapshot: (
                    not all(device.healthy for device in snapshot.resource(I915).devices)
                )
            )
            assert [device.healthy for device in broken.resource(I915).devices] == [False, True]
            scene.tree.repair(FIRST)
            await scene.until(
                lambda snapshot: (
                    [one.healthy for one in snapshot.resource(I915).devices] == [True, True]
                )
            )

    tell(story, gpus=2)


def test_a_loop_that_hangs_is_not_covered_by_scans_that_go_on() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.scanned("good")
            looked, scans = scene.watcher.last_scan, scene.scans("good")
            hang_until(lambda: scene.scans("good") >= scans + 3)
            assert scene.watcher.last_scan == looked
            await until(lambda: scene.watcher.last_scan > looked)

    tell(story)


def test_no_scan_begins_after_the_end() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 2)
            scans = scene.scans("good")
            await hold_a_look()
            scene.tree.remove(FIRST)  # a sign for the look that is under way when the end comes
        assert scene.scans("good") == scans

    tell(story, gpus=2, scan_seconds=NEVER)


# What is learned while a scan is under way


def test_health_that_arrives_during_a_slow_scan_is_not_lost() -> None:
    async def story(scene: Scene) -> None:
        socket = scene.path / "x.sock"
        scene.config = replace(scene.config, endpoint=str(socket))
        async with Xpumd(socket, [FIRST, SECOND], every=None) as health, following(scene):
            await scene.until(lambda snapshot: snapshot.resources)
            await until(lambda: scene.said("health is known"))
            await hold_a_scan()
            scene.tree.remove("0000:da:00.0")
            health.report(SECOND, "core", Severity.CRITICAL, "hot")
            health.push()
            held = await scene.until(complaints)
            assert len(held.resource(I915).devices) == 8
            SlowSysfs.go_on.set()
            after = await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 7)
            assert complaints(after) == complaints(held) == {"card2-0": "core is critical (hot)"}
            await scene.scanned("good")
            assert complaints(scene.watch.current) == complaints(held)
            (entry,) = scene.said("GPU is unhealthy")
            assert (entry["gpu"], entry["reason"]) == (SECOND, "core is critical (hot)")
            health.recover(SECOND)
            health.push()
            await scene.until(lambda snapshot: not complaints(snapshot))
            assert len(scene.said("GPU is healthy again")) == 1

    tell(story, rule=xpumd.Rule(confirmations=1))


def test_labels_that_arrive_during_a_slow_scan_are_not_lost() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resources)
            await hold_a_scan()
            scene.tree.remove("0000:da:00.0")
            scene.publish()
            held = await scene.until(lanes)
            assert len(held.resource(I915).devices) == 8
            SlowSysfs.go_on.set()
            after = await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 7)
            assert len(lanes(after)) == 7 * 6 // 2
            await scene.scanned("good")
            assert lanes(scene.watch.current) == lanes(after)

    tell(story)


def test_links_are_said_to_be_in_use_when_they_are_and_not_when_they_are_read() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resources)
            scene.assembler.go_on.clear()
            scene.publish()
            await asyncio.to_thread(scene.assembler.held.wait, PATIENCE)
            assert scene.observed.link_state.startswith("links missing")
            scene.assembler.go_on.set()
            await scene.until(lanes)
            assert scene.observed.link_state == "links in use"

    tell(story)


def test_half_of_the_first_look_is_told_to_nobody() -> None:
    async def story(scene: Scene) -> None:
        SlowSysfs.hold()
        scene.publish()
        socket = scene.path / "x.sock"
        scene.config = replace(scene.config, endpoint=str(socket))
        async with Xpumd(socket, [FIRST], every=None), following(scene):
            await asyncio.to_thread(SlowSysfs.held.wait, PATIENCE)
            await until(lambda: scene.said("health is known"))
            assert scene.watch.current == Snapshot()
            assert scene.observed.link_state == "links missing: it has not been read yet"
            assert {entry["event"] for entry in scene.logs.entries} == {"health is known"}
            SlowSysfs.go_on.set()
            snapshot = await scene.until(lambda snapshot: snapshot.resources)
            assert len(lanes(snapshot)) == 28
            assert scene.observed.link_state == "links in use"
            assert not [entry for entry in scene.logs.entries if entry["log_level"] == "warning"]

    tell(story)


def test_no_gpu_is_told_before_the_links_have_been_looked_at() -> None:
    async def story(scene: Scene) -> None:
        SlowFile.held.clear()
        SlowFile.go_on.clear()
        scene.publish()
        scene.config = replace(scene.config, label_file=SlowFile(scene.config.label_file))
        try:
            async with following(scene):
                await asyncio.to_thread(SlowFile.held.wait, PATIENCE)
                await scene.scanned("good")
                assert scene.watch.current == Snapshot()
                SlowFile.go_on.set()
                snapshot = await scene.until(lambda snapshot: snapshot.resources)
                assert len(lanes(snapshot)) == 28
        finally:
            SlowFile.go_on.set()

    tell(story)


# Doubts


def test_doubts_are_said_once() -> None:
    async def story(scene: Scene) -> None:
        scene.publish()
        scene.tree.remove("0000:da:00.0")
        scene.tree.add(PciGpu("0000:db:00.0", 8, numa=1, render=135))
        scene.tree.damage(FIRST, "numa_node", Damage.NONSENSE)
        async with following(scene):
            await scene.until(lanes)
            await scene.scanned("good", 5)
            said = len(scene.said("links"))
            scene.publish("0.0-1.0")  # other news do not repeat them
            await until(lambda: len(scene.said("links")) > said)
            await scene.scanned("good", 5)
            warnings = [entry for entry in scene.logs.entries if entry["log_level"] == "warning"]
            reason = "numa_node: not a number, '0xzz and more'"
            assert sorted(entry["event"] for entry in warnings) == [
                f"card1 at {FIRST}: its NUMA node is unknown: {reason}",
                "in the id map but not on this bus: 0000:da:00.0",
                "on this bus but not in the id map: 0000:db:00.0",
            ]

    tell(story)


def test_gpus_that_are_withheld_are_told_with_the_reason() -> None:
    async def story(scene: Scene) -> None:
        scene.tree.rebind(FIRST, "vfio-pci")
        async with following(scene):
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 7)
            (entry,) = scene.said("GPUs that are not advertised")
            assert FIRST in entry["gpus"]
            assert "vfio-pci" in entry["gpus"]
            scene.tree.rebind(FIRST, "i915")
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 8)
            assert scene.said("GPUs that are not advertised")[-1]["gpus"] == "none"

    tell(story)


# GPUs that cannot be given


def warnings(scene: Scene) -> list[str]:
    return [entry["event"] for entry in scene.logs.entries if entry["log_level"] == "warning"]


def test_each_gpu_that_cannot_be_given_is_said_once_with_the_reason() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resources)
            scene.tree.lose_node(FIRST, "renderD128")
            said = f"card1 at {FIRST} is unhealthy: /dev/dri/renderD128 is not there"
            await until(lambda: warnings(scene) == [said])
            await scene.scanned("good", 5)
            assert warnings(scene) == [said]
            await until(lambda: scene.gauge("unusable_gpus") == 1)
            assert scene.updates.device_error == ""  # the other one can be given
            scene.tree.lose_node(SECOND)
            await until(lambda: len(warnings(scene)) == 2)
            await until(lambda: scene.updates.device_error != "")
            assert scene.updates.device_error == (
                "every GPU is unhealthy: /dev/dri/renderD128 is not there and 1 more"
            )
            async with between_scans():
                scene.tree.repair(FIRST)
                scene.tree.repair(SECOND)
            await until(lambda: len(scene.said("resolved")) == 2)
            await until(lambda: scene.updates.device_error == "")

    tell(story, gpus=2)


def test_a_node_whose_every_gpu_xpu_manager_calls_unhealthy_says_so() -> None:
    async def story(scene: Scene) -> None:
        socket = scene.path / "x.sock"
        scene.config = replace(scene.config, endpoint=str(socket))
        async with Xpumd(socket, [FIRST], every=None) as health, following(scene):
            await until(lambda: scene.said("health is known"))
            health.report(FIRST, "core", Severity.CRITICAL, "hot")
            health.push()
            await until(lambda: scene.updates.device_error != "")
            assert scene.updates.device_error == "every GPU is unhealthy: core is critical (hot)"

    tell(story, gpus=1, rule=xpumd.Rule(confirmations=1))


def test_while_nobody_tells_of_health_no_gpu_is_named_as_left_out() -> None:
    async def story(scene: Scene) -> None:
        scene.config = replace(scene.config, endpoint=str(scene.path / "nobody.sock"))
        # Another's server, so that gRPC's thread is there before, and is not waited for.
        async with Xpumd(scene.path / "x.sock", every=None), following(scene):
            await until(lambda: scene.said("GPUs of this node"))
            assert scene.observed.health_state.startswith("unknown: ")
            assert scene.observed.health_unknown == ()
        assert not scene.said("GPUs of unknown health")

    tell(story, gpus=2)


def test_a_card_without_a_render_node_is_not_offered_as_healthy_without_a_word() -> None:
    async def story(scene: Scene) -> None:
        scene.tree.renumber(FIRST, 1, render=None)
        async with following(scene):
            snapshot = await scene.until(lambda snapshot: snapshot.resources)
            (device,) = snapshot.resource(I915).devices
            why = "it has no render node, which is what computes"
            assert device.complaint == why
            await until(lambda: warnings(scene) == [f"card1 at {FIRST} is unhealthy: {why}"])

    tell(story, gpus=1)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, "no GPU is advertised: 1 of Intel's are excluded"),
        (
            "gone",
            "no GPU is advertised: this node has none of Intel's, or its driver is not loaded",
        ),
    ],
    ids=["no driver", "no GPU"],
)
def test_a_node_without_a_gpu_to_give_says_so_once(driver: str | None, said: str) -> None:
    async def story(scene: Scene) -> None:
        if driver:
            scene.tree.remove(FIRST)
        else:
            scene.tree.rebind(FIRST, None)
        async with following(scene):
            await until(lambda: warnings(scene) == [said])
            await scene.scanned("good", 5)
            assert warnings(scene) == [said]
            assert scene.updates.device_error == said
            if not driver:
                async with between_scans():
                    scene.tree.rebind(FIRST, "i915")
                await scene.until(lambda snapshot: snapshot.resources)
                await until(lambda: len(scene.said("resolved")) == 1)

    tell(story, gpus=1)


def test_a_directory_of_before_a_reload_of_the_driver_asks_for_a_restart() -> None:
    async def story(scene: Scene) -> None:
        dri = os.open(scene.tree.root / "dev/dri", os.O_RDONLY | os.O_DIRECTORY)
        mounted = scene.path / "mounted"
        mounted.mkdir()
        (mounted / "dri").symlink_to(f"/proc/self/fd/{dri}")
        scene.config = replace(scene.config, roots=replace(scene.config.roots, devfs=mounted))
        try:
            async with following(scene):
                await scene.until(lambda snapshot: snapshot.resource(I915).usable)
                assert scene.observed.must_restart is None
                async with between_scans():
                    scene.tree.reload_driver()
                await until(lambda: scene.observed.must_restart is not None)
                assert scene.observed.must_restart in warnings(scene)
        finally:
            os.close(dri)

    tell(story, gpus=1)


def test_a_directory_without_the_nodes_of_any_gpu_is_said_and_asks_for_no_restart() -> None:
    async def story(scene: Scene) -> None:
        scene.config = replace(
            scene.config, roots=replace(scene.config.roots, devfs=scene.path / "nothing")
        )
        async with following(scene):
            await until(lambda: len(warnings(scene)) == 2)
            assert warnings(scene)[0].startswith(
                "/dev/dri has no node of the GPUs that sysfs names"
            )
            assert scene.observed.must_restart is None

    tell(story, gpus=1)


def test_vfs_of_different_gpus_are_preferred_to_two_of_one() -> None:
    async def story(scene: Scene) -> None:
        for bdf in (FIRST, SECOND):
            scene.tree.enable_vfs(bdf, 2)
        async with following(scene):
            snapshot = await scene.until(lambda snapshot: snapshot.resources)
            functions = {card.bdf: card.physfn for card in scene.observed.inventory.cards}
            homes = {one.id: functions[one.unit] for one in snapshot.resource(I915).devices}
            answer = preferred(snapshot, list(homes), 2)
            assert {homes[id_] for id_ in answer.ids} == {FIRST, SECOND}

    tell(story, gpus=2)


# CDI


def named(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the CDI names that a container of the first device would get."""
    return container(snapshot.resource(I915), ["card1-0"], set()).cdi


def every_name(snapshot: Snapshot) -> set[str]:
    return {device.cdi for device in snapshot.resource(I915).devices if device.cdi}


CARD1 = ("intel.cdi.k8s.io/gpu=card1",)
SPEC = "intel.cdi.k8s.io-gpu.json"


def test_the_cdi_spec_follows_the_node() -> None:
    async def story(scene: Scene) -> None:
        directory = scene.path / "cdi"
        scene.cdi_dir = directory

        def devices() -> list[str]:
            spec = json.loads((directory / SPEC).read_text())
            return [device["name"] for device in spec["devices"]]

        async with following(scene):
            assert named(await scene.until(every_name)) == CARD1
            assert devices() == ["card1", "card2"]
            async with between_scans():
                scene.tree.remove(SECOND)
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 1)
            assert devices() == ["card1"]
            async with between_scans():
                (directory / SPEC).write_text("{}")
            await until(lambda: len(scene.said("CDI spec refreshed")) >= 3)
            assert devices() == ["card1"]
            async with between_scans():
                scene.tree.remove(FIRST)
            await scene.until(lambda snapshot: not every_name(snapshot))
            assert [*directory.iterdir()] == []

    tell(story, gpus=2)


def test_without_a_directory_no_spec_is_written_and_no_name_handed_out() -> None:
    async def story(scene: Scene) -> None:
        async with following(scene):
            assert named(await scene.until(lambda snapshot: snapshot.resources)) == ()

    tell(story)


def test_while_a_rival_defines_a_card_the_others_are_named_and_it_is_told() -> None:
    async def story(scene: Scene) -> None:
        directory = scene.path / "cdi"
        directory.mkdir()
        scene.cdi_dir = directory
        async with following(scene):
            assert named(await scene.until(every_name)) == CARD1
            rival = directory / "other.yaml"
            rival.write_text("kind: intel.cdi.k8s.io/gpu\ndevices:\n- name: card2\n")
            snapshot = await scene.until(lambda snapshot: len(every_name(snapshot)) == 7)
            assert named(snapshot) == CARD1
            both = container(snapshot.resource(I915), ["card1-0", "card2-0"], set())
            assert both.cdi == CARD1
            assert len(both.nodes) == 4  # the rest goes on
            assert '"card1"' in (directory / SPEC).read_text()
            assert '"card2"' not in (directory / SPEC).read_text()
            await scene.scanned("good", 5)
            (entry,) = scene.said("not every GPU is named as a CDI device")
            assert "(card2)" in entry["reason"]
            remedy = f"stop what wrote them, then rm {rival}"
            assert entry["reason"].endswith(remedy)
            assert scene.updates.device_error.endswith(remedy)
            (doubt,) = scene.updates.warnings
            assert doubt == f"not every GPU is named as a CDI device: {entry['reason']}"
            assert scene.gauge("cdi_devices") == 7
            rival.unlink()
            await scene.until(lambda snapshot: len(every_name(snapshot)) == 8)
            await until(lambda: not scene.updates.device_error)
            assert len(scene.said("CDI devices are named again")) == 1
            assert scene.gauge("cdi_devices") == 8

    tell(story)


def test_while_the_spec_cannot_be_written_no_name_is_handed_out_and_it_is_told() -> None:
    async def story(scene: Scene) -> None:
        # Below a file there is no directory, not even for root.
        blocker = scene.path / "run"
        blocker.touch()
        scene.cdi_dir = blocker / "cdi"
        async with following(scene):
            snapshot = await scene.until(lambda snapshot: snapshot.resources)
            assert named(snapshot) == ()
            assert container(snapshot.resource(I915), ["card1-0"], set()).nodes  # the rest goes on
            await scene.scanned("good", 5)
            (entry,) = scene.said("no CDI devices are named")
            assert entry["reason"].startswith(f"cannot write {blocker}/cdi/{SPEC}: ")
            blocker.unlink()
            assert named(await scene.until(every_name)) == CARD1
            assert len(scene.said("CDI devices are named again")) == 1

    tell(story)


def test_a_failed_scan_leaves_the_cdi_names_as_they_were() -> None:
    async def story(scene: Scene) -> None:
        scene.cdi_dir = scene.path / "cdi"
        async with following(scene):
            await scene.until(every_name)
            (scene.tree.root / "sys").rename(scene.path / "away")
            await scene.scanned("failed")
            assert named(scene.watch.current) == CARD1
            assert (scene.path / "cdi" / SPEC).exists()

    tell(story)


# Families beside GPUs

CAMERA = "example.com/camera"


def cameras(roots: Roots) -> list[Unit]:
    """Find the video nodes of a devfs; `videoN` is broken where it is empty."""
    found = sorted((roots.devfs / "video").iterdir())
    return [
        Unit(
            path.name,
            (DeviceNode(f"/dev/{path.name}", f"/dev/{path.name}"),),
            complaint=None if path.read_bytes() else "it has no firmware",
        )
        for path in found
    ]


def test_units_of_another_family_are_advertised_as_they_come_break_and_go() -> None:
    async def story(scene: Scene) -> None:
        devfs = scene.tree.root / "dev/video"
        devfs.mkdir()
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resources.keys() == {I915})
            (devfs / "video1").write_bytes(b"x")
            (devfs / "video0").write_bytes(b"x")
            found = await scene.until(lambda now: len(now.resource(CAMERA).devices) == 2)
            camera = found.resource(CAMERA)
            assert camera.preference is None
            assert [device.id for device in camera.devices] == ["video0", "video1"]
            given = container(camera, ["video1"], frozenset())
            assert given.nodes == (DeviceNode("/dev/video1", "/dev/video1"),)
            (devfs / "video1").write_bytes(b"")
            broken = await scene.until(lambda now: now.resource(CAMERA).usable == {"video0"})
            with pytest.raises(UnusableDeviceError, match="video1: it has no firmware"):
                container(broken.resource(CAMERA), ["video1"], frozenset())
            (devfs / "video0").unlink()
            (devfs / "video1").unlink()
            await scene.until(lambda snapshot: snapshot.resources.keys() == {I915})

    tell(story, gpus=2, finders={CAMERA: cameras})


def test_units_that_cannot_be_listed_are_kept_logged_once_and_counted() -> None:
    async def story(scene: Scene) -> None:
        devfs = scene.tree.root / "dev/video"
        devfs.mkdir()
        (devfs / "video0").write_bytes(b"x")
        async with following(scene):
            await scene.until(lambda snapshot: snapshot.resource(CAMERA).devices)
            devfs.rename(devfs.with_name("away"))
            await scene.scanned("failed")
            assert scene.watch.current.resource(CAMERA).devices
            (entry,) = scene.said("units not found: the last ones are kept")
            assert entry["resource"] == CAMERA
            assert "No such file or directory" in entry["reason"]
            scene.tree.remove(scene.tree.gpus[-1].bdf)
            await scene.until(lambda snapshot: len(snapshot.resource(I915).devices) == 1)
            devfs.with_name("away").rename(devfs)
            await until(lambda: scene.said("units are found again"))
            assert scene.watch.current.resource(CAMERA).devices

    tell(story, gpus=2, finders={CAMERA: cameras})
