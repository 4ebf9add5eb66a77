import asyncio
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import grpc
import pytest

from device_plugin.endpoints import Timings
from device_plugin.registration import Registration, RegistrationError, register
from device_plugin.resources import Device
from device_plugin.snapshot import Resource, Snapshot
from tests.device_plugin.events import HeardTelemetry, never, until
from tests.device_plugin.plugins import (
    FAST,
    I915,
    MONITORING,
    Running,
    bdf,
    card,
    directory,
    node,
    quicken,
    running,
)
from tests.patience import NEVER, PATIENCE, Clock
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import RegistrationStub
from xelink.kubelet.sockets import (
    Identity,
    SocketError,
    SocketTakenError,
    holding,
    identity,
    is_answered,
    require_free,
    socket_name,
)
from xelink.simulators.kubelet.admission import AdmissionError, Devices
from xelink.simulators.kubelet.kubelet import Kubelet

# Whatever happens in time comes of being told, not of a look.
NEVER_LOOKS = replace(FAST, poll=NEVER, connected_poll=NEVER)

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as short:
        yield short


async def off(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call the kubelet, which blocks."""
    return await asyncio.to_thread(call, *arguments, **named)


def sockets(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if stat.S_ISSOCK(p.lstat().st_mode))


async def settled(plugin: Running, kubelet: Kubelet, devices: int = 4) -> None:
    """Wait until kubelet has the devices, and its answer to the registration has arrived."""
    await off(kubelet.wait_for_allocatable, I915, devices)
    await until(lambda: plugin.endpoints.not_ready() is None)


async def said(plugin: Running, event: str, times: int) -> None:
    """Wait until the plugin has said something so many times."""
    await until(lambda: len(plugin.events(event)) >= times)


# Registration


def test_a_plugin_serves_then_registers_and_is_listened_to(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                assert sockets(path) == ["gpu.intel.com-i915.sock", "kubelet.sock"]
                (one,) = kubelet.registrations
                assert one.endpoint == "gpu.intel.com-i915.sock"
                assert one.options.get_preferred_allocation_available
                assert not one.options.pre_start_required
            await off(kubelet.wait_for_streams, 0)
            assert sockets(path) == ["kubelet.sock"]
            assert kubelet.capacity(I915) == 4, "capacity stays, as with a real one"

    asyncio.run(story())


def test_a_pod_gets_devices(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, node(4, lanes={(1, 2): 16})):
                await off(kubelet.wait_for_allocatable, I915, 4)
                pod = await off(kubelet.run_pod, "train", I915, 2)
                assert len(pod.response.devices) == 4
                with pytest.raises(AdmissionError, match="unavailable: 3, available: 2"):
                    await off(kubelet.run_pod, "greedy", I915, 3)
                kubelet.delete_pod("train")
                await off(kubelet.run_pod, "greedy", I915, 3)

    asyncio.run(story())


def test_a_kubelet_that_comes_late_is_registered_with(path: Path) -> None:
    async def story() -> None:
        async with running(path) as plugin:
            await until(lambda: plugin.events("serving"))
            assert plugin.endpoints.not_ready() == f"not registered with kubelet: {I915}"
            await until(lambda: plugin.events("waiting for kubelet"))
            (endpoint,) = plugin.endpoints.every
            assert endpoint.error == f"there is no {path / 'kubelet.sock'}: kubelet is not up"
            with Kubelet(path) as kubelet:
                await off(kubelet.wait_for_allocatable, I915, 4)
                assert len(plugin.events("waiting for kubelet")) == 1, "said once"
                await until(lambda: not endpoint.error)

    asyncio.run(story())


def test_a_kubelet_that_is_missed_again_is_told_of_again(path: Path) -> None:
    async def story() -> None:
        async with running(path) as plugin:
            await said(plugin, "waiting for kubelet", 1)
            kubelet = Kubelet(path)
            await off(kubelet.start)
            await settled(plugin, kubelet)
            before = len(plugin.events("waiting for kubelet"))
            await off(kubelet.stop)
            kubelet.socket.unlink()
            await said(plugin, "waiting for kubelet", before + 1)

    asyncio.run(story())


def test_a_refused_registration_is_tried_again_until_accepted(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.refuse("not now", times=5)
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                assert [one.accepted for one in kubelet.registrations] == [False] * 5 + [True]
                assert len(plugin.events("cannot register")) == 1, "said once"
                assert plugin.count("registrations_total", outcome="failed") == 5
                await until(lambda: plugin.count("registrations_total", outcome="accepted") >= 1)

    asyncio.run(story())


@contextmanager
def deaf(path: Path) -> Iterator[socket.socket]:
    """Listen in kubelet's place, accept whoever connects, and say nothing."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path / "kubelet.sock"))
        one.listen()
        one.settimeout(PATIENCE)
        yield one


def test_a_kubelet_that_never_answers_is_given_up_and_asked_again(path: Path) -> None:
    async def story() -> None:
        with deaf(path):
            async with running(path, timings=replace(FAST, rpc_timeout=0.05)) as plugin:
                await until(lambda: plugin.count("registrations_total", outcome="failed") >= 3)
                (entry,) = plugin.events("cannot register")
                assert entry["reason"].startswith("DEADLINE_EXCEEDED")

    asyncio.run(story())


@pytest.mark.parametrize("what", ["kubelet.sock", "gpu.intel.com-i915.sock"])
def test_a_registration_that_was_not_answered_before_a_socket_moved_is_none(
    path: Path, what: str
) -> None:
    async def story() -> None:
        with deaf(path) as kubelet, ExitStack() as connections:
            async with running(path, timings=replace(FAST, rpc_timeout=NEVER)) as plugin:
                look, _ = await off(kubelet.accept)  # whether anybody is there
                look.close()
                connection, _ = await off(kubelet.accept)
                connections.callback(connection.close)
                (path / what).unlink()
                if what == "kubelet.sock":
                    await until(lambda: plugin.events("waiting for kubelet"))
                else:
                    await until(lambda: len(plugin.events("serving")) >= 2)
                assert not plugin.events("registered")
                assert plugin.count("registrations_total", outcome="accepted") == 0

    asyncio.run(story())


def test_the_end_does_not_wait_for_a_backoff(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.refuse("never")
            async with running(path, timings=Timings()) as plugin:
                await until(lambda: plugin.count("registrations_total", outcome="failed") >= 1)
                await plugin.ended()  # attempts alone would go on for ever

    asyncio.run(story())


def test_the_end_does_not_wait_for_an_answer_of_kubelet(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.delay(NEVER)
            async with running(path, timings=replace(FAST, rpc_timeout=NEVER)) as plugin:
                await until(lambda: plugin.events("serving"))
                await plugin.ended()
                assert plugin.count("registrations_total", outcome="accepted") == 0

    asyncio.run(story())


def test_a_plugin_that_ends_never_registers_again(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                plugin.stop.set()
                await off(kubelet.restart)
                await plugin.ended()
            assert len(kubelet.registrations) == 1

    asyncio.run(story())


def test_nothing_is_registered_twice_while_nothing_happens(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            timings = replace(FAST)
            async with running(path, timings=timings) as plugin:
                await settled(plugin, kubelet)
                quicken(
                    timings, stream_timeout=0.1
                )  # a kubelet that did not listen would be missed at once
                await never(lambda: len(plugin.events("registered")) > 1, 0.5)
                assert len(kubelet.registrations) == 1

    asyncio.run(story())


def test_a_resource_is_ready_when_kubelet_knows_it_and_listens(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.ignore()
            async with running(path) as plugin:
                await until(lambda: plugin.events("registered"))
                assert plugin.endpoints.not_ready() == f"no ListAndWatch stream: {I915}"
            kubelet.faults.clear()
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                kubelet.faults.ignore()
                kubelet.lose_streams()
                await until(lambda: len(plugin.events("registered")) >= 2)
                assert plugin.endpoints.not_ready() == f"no ListAndWatch stream: {I915}"

    asyncio.run(story())


def test_without_a_resource_nothing_is_missing(path: Path) -> None:
    async def story() -> None:
        async with running(path, Snapshot()) as plugin:
            await asyncio.sleep(0)  # it runs
            assert plugin.endpoints.not_ready() is None

    asyncio.run(story())


# kubelet's misbehavior


def test_a_restart_of_kubelet_is_heard_and_need_not_be_seen(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, timings=replace(FAST, connected_poll=1e6)) as plugin:
                for restart in range(1, 4):
                    await settled(plugin, kubelet)
                    await off(kubelet.restart)
                    await off(kubelet.wait_for_registrations, restart + 1)
                await settled(plugin, kubelet)

    asyncio.run(story())


def test_a_hundred_restarts_are_registered_each_time_and_nothing_leaks(path: Path) -> None:
    async def story() -> None:
        # Of the test's own threads there is one: Python's pool grows as it likes, in 3.12 to six.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                held: list[tuple[int, int, int]] = []
                for restart in range(1, 101):
                    await settled(plugin, kubelet)
                    held.append(
                        (
                            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names, not paths
                            threading.active_count(),
                            len(asyncio.all_tasks()),
                        )
                    )
                    await off(kubelet.restart)
                    assert kubelet.capacity(I915) == 0
                    await off(kubelet.wait_for_registrations, restart + 1)
                await off(kubelet.wait_for_allocatable, I915, 4)
                assert len(kubelet.registrations) == 101, "one each"
                await until(lambda: plugin.count("streams") == 1)
                early, late = held[10:20], held[-10:]
                for what, before, after in zip(
                    ("descriptors", "threads", "tasks"),
                    map(max, zip(*early, strict=True)),
                    map(max, zip(*late, strict=True)),
                    strict=True,
                ):
                    assert after <= before + 2, what

    asyncio.run(story())


class Meddler(HeardTelemetry):
    """Does something at the instant at which the plugin has seen a reason to register."""

    meddle: ClassVar[list[Callable[[], None]]] = []

    def registered(self, resource: str, *, known: bool) -> None:
        super().registered(resource, known=known)
        if not known and self.meddle:
            self.meddle.pop()()


def test_a_kubelet_that_appears_while_we_turn_to_its_forerunner_is_registered_with_once(
    path: Path,
) -> None:
    async def story() -> None:
        with Kubelet(path, keyed_by_name=True) as kubelet:
            kubelet.stop()
            dead = identity(kubelet.socket)
            assert dead, "the plugin sees this one"
            Meddler.meddle.append(kubelet.listen_anew)
            async with running(path, telemetry=Meddler) as plugin:
                await settled(plugin, kubelet)
                assert not Meddler.meddle
                assert identity(kubelet.socket) != dead, "and this one answers"
                await never(lambda: len(plugin.events("registered")) > 1, 0.5)
                assert len(kubelet.registrations) == 1
                assert kubelet.history(I915) == (4,), "never hung up on"

    asyncio.run(story())


def test_who_dials_a_socket_that_is_held_reaches_that_one_or_none(path: Path) -> None:
    registration = Registration(I915, "gpu.intel.com-i915.sock", pb.DevicePluginOptions())

    async def story() -> None:
        with Kubelet(path) as kubelet, holding(kubelet.socket) as held:
            assert held
            assert held.identity == identity(kubelet.socket)
            kubelet.faults.ignore()
            await register(held.path, registration, PATIENCE)
            await off(kubelet.listen_anew)
            assert held.identity != identity(kubelet.socket)
            with pytest.raises(RegistrationError, match="UNAVAILABLE"):
                await register(held.path, registration, PATIENCE)
            assert len(kubelet.registrations) == 1

    asyncio.run(story())


@pytest.mark.parametrize("what", ["nothing", "a file", "a link to a socket"])
def test_what_is_no_socket_is_not_held(path: Path, what: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path / "s"))
        match what:
            case "a file":
                (path / "kubelet.sock").touch()
            case "a link to a socket":
                (path / "kubelet.sock").symlink_to("s")
        with holding(path / "kubelet.sock") as held:
            assert held is None


def test_a_running_pod_is_left_alone_by_a_restart(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path):
                await off(kubelet.wait_for_allocatable, I915, 4)
                pod = await off(kubelet.run_pod, "train", I915, 3)
                await off(kubelet.restart)
                await off(kubelet.wait_for_allocatable, I915, 4)
                other = await off(kubelet.run_pod, "other", I915, 1)
                assert not {*pod.ids} & {*other.ids}

    asyncio.run(story())


def test_a_wiped_socket_is_served_and_registered_anew(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                kubelet.wipe_sockets()
                await until(lambda: len(plugin.events("registered")) >= 2)
                await off(kubelet.wait_for_allocatable, I915, 4)
                await off(kubelet.wait_for_streams, 1)
                assert (await off(kubelet.run_pod, "train", I915, 4)).ids

    asyncio.run(story())


def test_a_socket_that_is_wiped_while_kubelet_takes_its_time_is_served_anew(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.delay(NEVER)
            async with running(path, timings=replace(FAST, rpc_timeout=NEVER)) as plugin:
                for times in range(1, 4):
                    await said(plugin, "serving", times)
                    kubelet.wipe_sockets()

    asyncio.run(story())


@pytest.mark.parametrize("keyed_by_name", [False, True], ids=["by path", "by name"])
def test_a_kubelet_that_hangs_up_is_registered_with_in_a_moment(
    path: Path,
    keyed_by_name: bool,  # noqa: FBT001 - a case
) -> None:
    async def story() -> None:
        with Kubelet(path, keyed_by_name=keyed_by_name) as kubelet:
            async with running(path, timings=NEVER_LOOKS) as plugin:
                await settled(plugin, kubelet)
                kubelet.lose_streams()
                await said(plugin, "ListAndWatch stream closed", 1)
                await until(lambda: len(plugin.events("registered")) >= 2)
                await settled(plugin, kubelet)

    asyncio.run(story())


def test_a_kubelet_that_hangs_up_again_and_again_is_given_ever_more_time(path: Path) -> None:
    timings = replace(FAST, reregister_delay=1.0, stream_timeout=4.0)
    clock = Clock()

    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, timings=timings, clock=clock) as plugin:

                def registered_more(times: int) -> bool:
                    return len(plugin.events("registered")) > times

                for times, pause in enumerate((1.0, 2.0, 4.0, 4.0, 4.0), 1):
                    await settled(plugin, kubelet)
                    kubelet.lose_streams()
                    await said(plugin, "ListAndWatch stream closed", times)
                    clock.now += pause - 0.125
                    await never(partial(registered_more, times), 4 * timings.poll)
                    clock.now += 0.125
                    await said(plugin, "registered", times + 1)
                await settled(plugin, kubelet)
                accepted = [one for one in kubelet.registrations if one.accepted]
                assert len(accepted) == 6, "one each"

    asyncio.run(story())


def test_a_registration_that_held_makes_up_for_earlier_hang_ups(path: Path) -> None:
    timings = replace(FAST, reregister_delay=1.0, stream_timeout=4.0)
    clock = Clock()

    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, timings=timings, clock=clock) as plugin:
                for times in range(1, 3):
                    await settled(plugin, kubelet)
                    kubelet.lose_streams()
                    await said(plugin, "ListAndWatch stream closed", times)
                    clock.now += 2.0
                    await said(plugin, "registered", times + 1)
                await settled(plugin, kubelet)
                clock.now += timings.stream_timeout
                kubelet.lose_streams()
                await said(plugin, "ListAndWatch stream closed", 3)
                # Not at once, though it is long ago that we registered; nor after 4.0, as it would
                # be by now.
                clock.now += timings.reregister_delay - 0.125
                await never(lambda: len(plugin.events("registered")) > 3, 4 * timings.poll)
                clock.now += 0.125
                await said(plugin, "registered", 4)

    asyncio.run(story())


def test_when_kubelet_ends_nothing_is_registered_with_what_it_leaves(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                await off(kubelet.stop)
                await said(plugin, "ListAndWatch stream closed", 1)
                await never(lambda: plugin.events("cannot register"), 10 * FAST.poll)
                await off(kubelet.start)
                await settled(plugin, kubelet)
                assert len(kubelet.registrations) == 2
                assert plugin.count("registrations_total", outcome="failed") == 0

    asyncio.run(story())


def test_a_stream_that_a_kubelet_was_connected_with_already_is_missed_when_it_ends(
    path: Path,
) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                await off(kubelet.listen_anew)
                await until(lambda: len(plugin.events("registered")) >= 2)
                kubelet.lose_streams()
                await until(lambda: len(plugin.events("registered")) >= 3)
                await settled(plugin, kubelet)

    asyncio.run(story())


def test_a_new_kubelet_sock_is_registered_with_though_the_stream_lives_on(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                await off(kubelet.listen_anew)
                await until(lambda: len(plugin.events("registered")) >= 2)
                first, second = kubelet.registrations
                assert (first.accepted, second.accepted) == (True, False), "connected already"
                assert kubelet.streams == 1
                assert kubelet.history(I915) == (4,)

    asyncio.run(story())


def test_a_kubelet_that_was_killed_is_waited_for(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            timings = replace(FAST)
            async with running(path, timings=timings) as plugin:
                await settled(plugin, kubelet)
                quicken(timings, stream_timeout=0.1)
                await off(kubelet.stop)
                assert "kubelet.sock" in sockets(path), "nobody answers there"
                await until(lambda: plugin.events("waiting for kubelet"))
                (entry,) = plugin.events("waiting for kubelet")
                assert entry["reason"].startswith("nothing answers on ")
                assert plugin.endpoints.not_ready()
                quicken(timings, stream_timeout=FAST.stream_timeout)
                await off(kubelet.start)
                await off(kubelet.wait_for_allocatable, I915, 4)
                assert plugin.count("registrations_total", outcome="failed") == 0

    asyncio.run(story())


def test_a_kubelet_that_accepts_and_does_not_listen_is_asked_again(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.ignore()
            async with running(path, timings=replace(FAST, stream_timeout=0.1)):
                await off(kubelet.wait_for_registrations, 2)
                kubelet.faults.clear()
                await off(kubelet.wait_for_allocatable, I915, 4)

    asyncio.run(story())


def test_a_slow_kubelet_finds_the_latest_devices_and_holds_up_nobody(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                kubelet.faults.stop_reading()
                for round_ in range(200):
                    plugin.watch.replace(node(3 + round_ % 2))
                    await asyncio.sleep(0)
                plugin.watch.replace(node(2))
                kubelet.faults.clear()
                await off(kubelet.wait_for_allocatable, I915, 2)

    asyncio.run(story())


# Changes


def test_a_resource_that_appears_later_is_registered_then(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, node([])) as plugin:
                plugin.watch.replace(node(2))
                await off(kubelet.wait_for_allocatable, I915, 2)

    asyncio.run(story())


def test_every_resource_has_a_socket_and_monitoring_has_no_preference(path: Path) -> None:
    async def story() -> None:
        both = node(2)
        nodes = tuple(node for device in both.resource(I915).devices for node in device.nodes)
        monitoring = Resource(MONITORING, (Device("all", nodes),))
        snapshot = Snapshot({**both.resources, MONITORING: monitoring})
        with Kubelet(path) as kubelet:
            async with running(path, snapshot):
                await off(kubelet.wait_for_allocatable, I915, 2)
                await off(kubelet.wait_for_allocatable, MONITORING, 1)
                assert {
                    (one.endpoint, one.options.get_preferred_allocation_available)
                    for one in kubelet.registrations
                } == {
                    ("gpu.intel.com-i915.sock", True),
                    ("gpu.intel.com-monitoring.sock", False),
                }
                pod = await off(kubelet.run_pod, "monitor", MONITORING, 1)
                assert len(pod.response.devices) == 4
                assert (pod.env, len(pod.response.cdi_devices)) == ({}, 0)
                assert not pod.response.annotations
            assert sockets(path) == ["kubelet.sock"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param({"broken": True}, "card1-0: its card can no longer be read", id="broken"),
        pytest.param({"nodes": ()}, "card1-0: it has no device node", id="without nodes"),
    ],
)
def test_a_bad_card_is_counted_and_not_allocated(
    path: Path, bad: dict[str, Any], reason: str
) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, node(2)) as plugin:
                await settled(plugin, kubelet, 2)
                kubelet.faults.stop_reading()
                plugin.watch.replace(node([replace(card(1), **bad), card(2)]))
                with pytest.raises(AdmissionError, match=reason):
                    await off(kubelet.run_pod, "train", I915, 2)
                kubelet.faults.clear()
                await off(kubelet.wait_for_allocatable, I915, 1)
                assert kubelet.capacity(I915) == 2

    asyncio.run(story())


def test_a_vanished_device_is_unhealthy_and_then_gone(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                plugin.watch.replace(node(3))
                await off(kubelet.wait_for_allocatable, I915, 3)
                assert kubelet.capacity(I915) == 4
                plugin.watch.replace(node(2))
                await off(kubelet.wait_for_allocatable, I915, 2)
                assert kubelet.capacity(I915) == 3

    asyncio.run(story())


def test_numa_is_told_where_it_is_known_and_only_there(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, node([card(1, numa=1), card(2)])):
                await off(kubelet.wait_for_allocatable, I915, 2)
                known, unknown = kubelet.devices(I915)
                assert [one.ID for one in known.topology.nodes] == [1]
                assert not unknown.HasField("topology")
                await off(kubelet.run_pod, "train", I915, 2)

    asyncio.run(story())


# Instances


def test_a_successor_that_is_hung_up_on_with_its_predecessor_is_back_in_a_moment(
    path: Path,
) -> None:
    async def story() -> None:
        with Kubelet(path, keyed_by_name=True) as kubelet:
            async with AsyncExitStack() as news, running(path, suffix="old", timings=FAST) as old:
                await settled(old, kubelet)
                new = await news.enter_async_context(
                    running(path, suffix="new", timings=NEVER_LOOKS)
                )
                await until(lambda: new.events("ListAndWatch stream opened"))
                await settled(new, kubelet)
                await old.ended()
                await said(new, "ListAndWatch stream closed", 1)
                await until(lambda: len(new.events("registered")) > 1)
                await settled(new, kubelet)
                assert (await off(kubelet.run_pod, "train", I915, 4)).ids
                assert kubelet.history(I915)[:3] == (4, 0, 4)

    asyncio.run(story())


@pytest.mark.parametrize("keyed_by_name", [False, True], ids=["by path", "by name"])
def test_two_instances_overlap_under_unique_sockets(path: Path, keyed_by_name: bool) -> None:  # noqa: FBT001 - a case
    async def story() -> None:
        with Kubelet(path, keyed_by_name=keyed_by_name) as kubelet:
            async with AsyncExitStack() as news, running(path, suffix="old") as old:
                await off(kubelet.wait_for_allocatable, I915, 4)
                timings = replace(FAST)
                await news.enter_async_context(running(path, suffix="new", timings=timings))
                await off(kubelet.wait_for_streams, 2)
                # By name it is hung up on, too, perhaps before it has heard that it is listened to.
                quicken(timings, stream_timeout=0.1)
                await old.ended()
                assert sockets(path) == ["gpu.intel.com-i915-new.sock", "kubelet.sock"]
                await off(kubelet.wait_for_streams, 1)
                await off(kubelet.wait_for_allocatable, I915, 4)
                await off(kubelet.run_pod, "train", I915, 4)
                if not keyed_by_name:
                    assert kubelet.history(I915) == (4,), "never fewer"

    asyncio.run(story())


def test_a_stale_socket_is_replaced(path: Path) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path / "gpu.intel.com-i915.sock"))
        with Kubelet(path) as kubelet:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path / "gpu.intel.com-i915.sock"))
            async with running(path):
                await off(kubelet.wait_for_allocatable, I915, 4)

    asyncio.run(story())


def test_a_socket_that_answers_belongs_to_someone_else(path: Path) -> None:
    async def story() -> None:
        async with running(path) as first:
            await until(lambda: first.events("serving"))
            with pytest.raises(SocketTakenError, match="served by another process"):
                async with running(path) as second:
                    await second.task
            assert sockets(path) == ["gpu.intel.com-i915.sock"], "and stays theirs"

    asyncio.run(story())


def test_only_our_own_socket_is_removed_at_the_end(path: Path) -> None:
    async def story() -> None:
        ours = path / "gpu.intel.com-i915.sock"
        async with running(path, timings=NEVER_LOOKS) as plugin:
            await until(lambda: plugin.events("serving"))
            ours.unlink()
            with socket.socket(socket.AF_UNIX) as theirs:
                theirs.bind(str(ours))
                before = identity(ours)
                await plugin.ended()
                assert identity(ours) == before

    asyncio.run(story())


def test_a_socket_taken_over_while_we_serve_ends_us(path: Path) -> None:
    async def story() -> None:
        ours = path / "gpu.intel.com-i915.sock"
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(path / "theirs.sock"))
            theirs.listen()
            async with running(path) as plugin:
                await until(lambda: plugin.events("serving"))
                (path / "theirs.sock").rename(ours)
                await plugin.task

    with pytest.raises(SocketTakenError, match="taken over"):
        asyncio.run(story())


def test_a_plugin_that_is_canceled_leaves_no_socket_and_no_task(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path) as plugin:
                await settled(plugin, kubelet)
                plugin.task.cancel()
                await asyncio.wait([plugin.task])
                assert sockets(path) == ["kubelet.sock"]
                assert asyncio.all_tasks() == {asyncio.current_task(), plugin.task}
                await off(kubelet.wait_for_streams, 0)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(story())


@pytest.mark.parametrize(
    ("resource", "suffix", "name"),
    [
        (I915, "", "gpu.intel.com-i915.sock"),
        ("gpu.intel.com/xe_monitoring", "", "gpu.intel.com-xe_monitoring.sock"),
        (I915, "0badcafe", "gpu.intel.com-i915-0badcafe.sock"),
    ],
)
def test_a_socket_is_named_after_its_resource(resource: str, suffix: str, name: str) -> None:
    assert socket_name(resource, suffix) == name


def test_a_socket_is_told_from_another_in_its_place(path: Path) -> None:
    """The kernel may give the second one the inode of the first, and tells time by its ticks."""

    def born() -> Identity:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path / "s"))
            told = identity(path / "s")
            (path / "s").chmod(0o600)
            assert identity(path / "s") == told, "whatever its mode"
            (path / "s").unlink()
            assert told
            return told

    first = born()
    while (second := born()).created == first.created:
        pass
    assert second != first
    assert identity(path / "s") is None


def test_who_is_too_busy_to_accept_is_there(path: Path) -> None:
    with ExitStack() as open_, socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path / "s"))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = open_.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)  # noqa: FBT003 - it has no name
                client.connect(str(path / "s"))
        assert is_answered(path / "s")
    assert not is_answered(path / "s")


def test_nobody_answers_where_nothing_is(path: Path) -> None:
    assert not is_answered(path / "nothing")


def test_what_is_no_socket_is_not_removed(path: Path) -> None:
    async def story() -> None:
        (path / "gpu.intel.com-i915.sock").write_text("precious")
        with pytest.raises(SocketError, match="is no socket: remove it"):
            async with running(path) as plugin:
                await plugin.task

    asyncio.run(story())


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        deep = tmp_path / ("d" * 100)
        deep.mkdir()
        with pytest.raises(SocketError, match="at most 107 bytes"):
            async with running(deep) as plugin:
                await plugin.task

    asyncio.run(story())


def test_a_directory_that_is_not_there_is_told(path: Path) -> None:
    async def story() -> None:
        with pytest.raises(SocketError, match="there is no directory"):
            async with running(path / "nowhere") as plugin:
                await plugin.task

    asyncio.run(story())


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user whom modes concern, if we are root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("inner", [".", "inner"])
def test_a_directory_that_may_not_be_entered_is_told_in_one_line(path: Path, inner: str) -> None:
    closed = path / inner
    closed.mkdir(exist_ok=True)
    path.chmod(0)
    try:
        with nobody(), pytest.raises(SocketError) as told:
            require_free(closed / "s.sock")
    finally:
        path.chmod(0o700)
    assert str(told.value) == f"cannot read {closed}: Permission denied"


def test_a_directory_where_nothing_may_be_made_is_told_in_one_line(path: Path) -> None:
    async def story() -> None:
        async with running(path) as plugin:
            await plugin.task

    path.chmod(0o555)
    with nobody(), pytest.raises(SocketError) as told:
        asyncio.run(story())
    where = f"{path}/gpu.intel.com-i915.sock"
    assert str(told.value) == f"cannot serve on {where}: Permission denied"


def test_a_directory_that_goes_for_a_while_is_waited_for_and_that_is_said_once(path: Path) -> None:
    async def story() -> None:
        there, away = path / "there", path / "away"
        with Kubelet(there) as kubelet:
            async with running(there) as plugin:
                await settled(plugin, kubelet)
                there.rename(away)
                await until(lambda: plugin.events("cannot serve"))
                await never(plugin.task.done, 3 * FAST.max_backoff)
                assert plugin.endpoints.not_ready() == f"not registered with kubelet: {I915}"
                away.rename(there)
                await until(lambda: len(plugin.events("registered")) >= 2)
                await settled(plugin, kubelet)
                (entry,) = plugin.events("cannot serve")
                assert entry["reason"].startswith(f"there is no directory {there}")
                there.rename(away)
                await until(lambda: len(plugin.events("cannot serve")) >= 2)
                await plugin.ended()  # to wait for the directory would be to wait for ever
            away.rename(there)

    asyncio.run(story())


def test_a_socket_that_is_taken_while_we_wait_for_the_directory_ends_us(path: Path) -> None:
    async def story() -> None:
        there, away = path / "there", path / "away"
        there.mkdir()
        async with running(there) as plugin:
            await until(lambda: plugin.events("serving"))
            there.rename(away)
            await until(lambda: plugin.events("cannot serve"))
            (away / "gpu.intel.com-i915.sock").unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as theirs:
                theirs.bind(str(away / "gpu.intel.com-i915.sock"))
                theirs.listen()
                away.rename(there)
                await plugin.task

    with pytest.raises(SocketTakenError, match="served by another process"):
        asyncio.run(story())


def test_a_later_resource_that_cannot_be_served_ends_nothing(path: Path) -> None:
    async def story() -> None:
        blocker = path / "gpu.intel.com-monitoring.sock"
        blocker.write_text("precious")
        first = node(2)
        nodes = first.resource(I915).devices[0].nodes
        monitoring = Resource(MONITORING, (Device("all", nodes),))
        with Kubelet(path) as kubelet:
            async with running(path, first) as plugin:
                await settled(plugin, kubelet, 2)
                plugin.watch.replace(Snapshot({**first.resources, MONITORING: monitoring}))
                await until(lambda: plugin.events("cannot serve"))
                blocker.unlink()
                await off(kubelet.wait_for_allocatable, MONITORING, 1)
                assert len(plugin.events("cannot serve")) == 1
                assert kubelet.history(I915) == (2,), "undisturbed"

    asyncio.run(story())


def test_what_a_killed_instance_left_is_removed_and_nothing_else(path: Path) -> None:
    left = ("gpu.intel.com-i915-0badcafe.sock", "gpu.intel.com-i915-00000000.sock")
    hidden = (".0123456789ab.sock", ".fedcba987654.sock")
    others = (
        *("gpu.intel.com-i915-0badcaf.sock", "gpu.intel.com-i915-0BADCAFE.sock"),
        *("gpu.intel.com-xe-0badcafe.sock", "gpuXintel.com-i915-0badcafe.sock"),
        *(".0123456789abc.sock", "0123456789ab.sock", "example.com-i915-0badcafe.sock"),
    )
    living = ("gpu.intel.com-i915-12345678.sock", ".abcdefabcdef.sock")
    newborn = ".bbbbbbbbbbbb.sock"
    file = "gpu.intel.com-i915-aaaaaaaa.sock"

    async def story() -> None:
        with ExitStack() as held:
            for name in (*left, *hidden, *others, *living, newborn):
                one = held.enter_context(socket.socket(socket.AF_UNIX))
                one.bind(str(path / name))
                if name in living:
                    one.listen()
                if name != newborn:
                    os.utime(path / name, (0, 0))
            (path / file).write_text("precious")
            os.utime(path / newborn, (time.time() + 60,) * 2)  # however long this test takes
            async with running(path, suffix="abadcafe") as plugin:
                await until(lambda: plugin.events("serving"))
                assert sockets(path) == sorted(
                    [*others, *living, newborn, "gpu.intel.com-i915-abadcafe.sock"]
                )
                assert (path / file).read_text() == "precious"
                (entry,) = plugin.events("removed sockets that were left behind")
                assert entry["sockets"].split() == sorted([*left, *hidden])

    asyncio.run(story())


# The simulated kubelet


def test_aligned_devices_come_first_as_the_topology_manager_wants(path: Path) -> None:
    async def story() -> None:
        cards = [card(number, numa=number % 2) for number in range(1, 9)]
        with Kubelet(path) as kubelet:
            async with running(path, node(cards)) as plugin:
                await settled(plugin, kubelet, 8)
                pod = await off(kubelet.run_pod, "near", I915, 3, numa=[1])
                assert {*pod.ids} <= {f"card{number}-0" for number in (1, 3, 5, 7)}
                pod = await off(kubelet.run_pod, "far", I915, 4, numa=[1])
                assert {f"card{number}-0" for number in (1, 3, 5, 7)} & {*pod.ids}
                await until(lambda: len(plugin.events("allocated")) >= 2)

    asyncio.run(story())


def test_a_container_takes_over_the_devices_of_its_init_container(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            async with running(path, node(6)):
                await off(kubelet.wait_for_allocatable, I915, 6)
                pod = await off(kubelet.run_pod, "train", I915, 4, init=2)
                assert len(pod.held) == 4
                pod = await off(kubelet.run_pod, "small", I915, 1, init=2)
                assert (len(pod.ids), len(pod.held)) == (1, 2)
                with pytest.raises(AdmissionError, match="available: 0"):
                    await off(kubelet.run_pod, "late", I915, 1)

    asyncio.run(story())


def test_a_pod_without_a_plugin_or_with_a_refusal_is_not_admitted(path: Path) -> None:
    async def story() -> None:
        with Kubelet(path) as kubelet:
            with pytest.raises(AdmissionError, match="no plugin is registered"):
                await off(kubelet.run_pod, "early", I915, 1)
            async with running(path, node(1)) as plugin:
                await settled(plugin, kubelet, 1)
                await off(kubelet.run_pod, "train", I915, 1)
                with pytest.raises(ValueError, match="there is a Pod train already"):
                    await off(kubelet.run_pod, "train", I915, 1)
                kubelet.delete_pod("train")
                kubelet.faults.stop_reading()
                plugin.watch.replace(node(1, unhealthy={bdf(1): "its memory is worn"}))
                with pytest.raises(AdmissionError, match="its memory is worn"):
                    await off(kubelet.run_pod, "late", I915, 1)

    asyncio.run(story())


def test_a_wait_in_vain_says_what_there_is(path: Path) -> None:
    with Kubelet(path) as kubelet, pytest.raises(TimeoutError, match=f"0 devices of {I915}"):
        kubelet.wait_for_capacity(I915, 1, timeout=0.01)


def test_the_simulated_kubelet_takes_nobody_of_another_version(tmp_path: Path) -> None:
    with Kubelet(tmp_path) as kubelet, grpc.insecure_channel(f"unix:{kubelet.socket}") as channel:
        request = pb.RegisterRequest(version="v1alpha", endpoint="x.sock", resource_name=I915)
        with pytest.raises(grpc.RpcError, match="'v1alpha' is not supported"):
            RegistrationStub(channel).Register(request, timeout=PATIENCE)
        assert [one.accepted for one in kubelet.registrations] == [False]


def test_an_empty_topology_keeps_none_from_a_pod_but_the_device_that_has_it() -> None:
    told = (pb.Device(ID="empty", topology=pb.TopologyInfo()), pb.Device(ID="none"))
    devices = Devices(told, connected=True)
    devices.require_topology(["none"])
    with pytest.raises(AdmissionError, match="empty has TopologyInfo without a NUMA node"):
        devices.require_topology(["none", "empty"])


def test_what_the_simulated_kubelet_is_asked_is_bounded(tmp_path: Path) -> None:
    with Kubelet(tmp_path) as kubelet, grpc.insecure_channel(f"unix:{kubelet.socket}") as channel:
        stub = RegistrationStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Register(pb.RegisterRequest(resource_name="x" * (1 << 17)), timeout=PATIENCE)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not kubelet.registrations
