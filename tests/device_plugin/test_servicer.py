import asyncio
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from itertools import combinations
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from device_plugin.messages import MESSAGE_LIMIT
from device_plugin.servicer import ServingOptions
from device_plugin.snapshot import Prefer, Snapshot
from tests.device_plugin.events import until
from tests.device_plugin.plugins import (
    I915,
    Served,
    bdf,
    card,
    changed,
    node,
    preferring,
    quicken,
    served,
)
from tests.patience import PATIENCE
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.nfd.reader import FileState
from xelink.preference.decision import Decision, Decisions
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preference, RequestError, prepare

Listing = list[tuple[str, str]]
NEVER = pb.Empty()


def meet(
    snapshot: Snapshot, story: Callable[[Served], Awaitable[None]], **serving: bool | float
) -> None:
    """Serve a snapshot to a story."""

    async def told() -> None:
        async with served(
            snapshot,
            ServingOptions(**serving),  # type: ignore[arg-type]  # fields of the caller
        ) as plugin:
            await story(plugin)

    asyncio.run(told())


async def listings(plugin: Served) -> AsyncGenerator[Listing]:
    stream: Any = plugin.stub.ListAndWatch(pb.Empty())
    try:
        async for response in stream:
            yield [(device.ID, device.health) for device in response.devices]
    finally:
        stream.cancel()


async def following(stream: AsyncIterator[Listing]) -> Listing:
    async with asyncio.timeout(PATIENCE):
        return await anext(stream)


async def prefer(
    plugin: Served, available: Sequence[str], must: Sequence[str], size: int
) -> list[str]:
    request = pb.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )
    response = await plugin.stub.GetPreferredAllocation(
        pb.PreferredAllocationRequest(container_requests=[request])
    )
    return list(response.container_responses[0].deviceIDs)


async def allocate(plugin: Served, *ids: str) -> pb.ContainerAllocateResponse:
    response = await plugin.stub.Allocate(
        pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
    )
    await plugin.plugin.close(PATIENCE)  # all is written down
    return response.container_responses[0]


async def refusal(call: Awaitable[object]) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


def last(available: Sequence[str], _must: Sequence[str], size: int) -> Preference:
    """Prefer the last ones, which the fallback does not."""
    return Preference(tuple(sorted(available)[-size:]))


# Options


def test_there_is_a_preference_and_nothing_to_do_before_a_start() -> None:
    async def story(plugin: Served) -> None:
        options = await plugin.stub.GetDevicePluginOptions(pb.Empty())
        assert options.get_preferred_allocation_available
        assert not options.pre_start_required
        await plugin.stub.PreStartContainer(pb.PreStartContainerRequest(devices_ids=["what"]))

    meet(node(), story)


def test_a_preference_can_be_off() -> None:
    async def story(plugin: Served) -> None:
        options = await plugin.stub.GetDevicePluginOptions(pb.Empty())
        assert not options.get_preferred_allocation_available

    meet(node(), story, prefers=False)


# Streams


def test_every_stream_gets_all_devices_at_once_and_every_change() -> None:
    async def story(plugin: Served) -> None:
        streams = [listings(plugin) for _ in range(5)]
        for stream in streams:
            assert await following(stream) == [(f"card{n}-0", "Healthy") for n in (1, 2, 3, 4)]
        assert plugin.plugin.streams == 5
        for missing in ("/dev/dri/card3",), (), ("/dev/dri/card3",):
            cards = [card(n, missing=missing if n == 3 else ()) for n in (1, 2, 3, 4)]
            plugin.watch.replace(node(cards))
            health = "Unhealthy" if missing else "Healthy"
            for stream in streams:
                assert (await following(stream))[2] == ("card3-0", health)

    meet(node(), story)


def test_a_change_that_kubelet_cannot_see_is_not_sent() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        await following(stream)
        plugin.watch.replace(node(lanes={(1, 2): 4}))
        plugin.watch.replace(node(3, lanes={(1, 2): 4}))
        assert len(await following(stream)) == 4, "the removal notice is next, no repetition"

    meet(node(), story)


def test_a_vanished_device_is_unhealthy_once_and_then_left_out() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        await following(stream)
        plugin.watch.replace(node(1))
        assert await following(stream) == [
            ("card1-0", "Healthy"),
            ("card2-0", "Unhealthy"),
            ("card3-0", "Unhealthy"),
            ("card4-0", "Unhealthy"),
        ]
        assert await following(stream) == [("card1-0", "Healthy")]

    meet(node(), story, removal_notice=0.05)


def test_devices_that_vanish_one_after_the_other_all_say_farewell() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        await following(stream)
        plugin.watch.replace(node(3))
        assert (await following(stream))[-1] == ("card4-0", "Unhealthy")
        plugin.watch.replace(node(2))
        assert (await following(stream))[-2:] == [("card2-0", "Healthy"), ("card3-0", "Unhealthy")]

    meet(node(), story)


def test_a_device_that_comes_back_is_healthy_again() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        before = await following(stream)
        plugin.watch.replace(Snapshot())
        assert {health for _, health in await following(stream)} == {"Unhealthy"}
        plugin.watch.replace(node())
        assert await following(stream) == before

    meet(node(), story)


def test_a_gpu_that_xpu_manager_condemns_is_unhealthy() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        assert [health for _, health in await following(stream)] == ["Healthy"] * 2
        plugin.watch.replace(node(2, unhealthy={bdf(2): "memory: too many errors"}))
        assert [health for _, health in await following(stream)] == ["Healthy", "Unhealthy"]
        assert await refusal(allocate(plugin, "card1-0", "card2-0")) == (
            StatusCode.FAILED_PRECONDITION,
            "card2-0: memory: too many errors",
        )

    meet(node(2), story)


def test_streams_end_cleanly_and_later_ones_are_served() -> None:
    async def story(plugin: Served) -> None:
        stream = listings(plugin)
        await following(stream)
        plugin.plugin.end_streams()
        with pytest.raises(StopAsyncIteration):
            await following(stream)
        assert await following(listings(plugin))

    meet(node(), story)


def test_a_reader_that_hangs_up_is_forgotten() -> None:
    async def story(plugin: Served) -> None:
        async with AsyncExitStack() as channels:
            for _ in range(20):
                channel = grpc.aio.insecure_channel(
                    plugin.address, options=[("grpc.use_local_subchannel_pool", 1)]
                )
                await channels.enter_async_context(channel)
                await DevicePluginStub(channel).ListAndWatch(pb.Empty()).read()
            assert plugin.plugin.streams == 20
            assert plugin.count("streams") == 20
        await until(lambda: plugin.plugin.streams == 0)
        assert plugin.count("streams") == 0
        assert plugin.plugin.silent_since > 0

    meet(node(), story)


def test_a_reader_that_reads_nothing_and_hangs_up_holds_up_nobody() -> None:
    """64 GPUs shared by 1000: some 3 MB a message, more than a connection buffers."""
    many = [replace(card(number), name=f"card{number:060}") for number in range(64)]
    full, fewer = node(many, 500), node(many[1:], 500)

    async def story(plugin: Served) -> None:
        async with grpc.aio.insecure_channel(
            plugin.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            DevicePluginStub(channel).ListAndWatch(pb.Empty())
            await until(lambda: plugin.plugin.streams == 1)
            stream = listings(plugin)
            assert len(await following(stream)) == 32_000
            for snapshot in (fewer, full, fewer, full):
                plugin.watch.replace(snapshot)
                await following(stream)
        await until(lambda: plugin.plugin.streams == 1)

    meet(full, story)


def test_more_devices_than_a_message_holds_are_cut_and_told() -> None:
    many = [replace(card(number), name=f"card{number:060}") for number in range(64)]

    async def story(plugin: Served) -> None:
        response = await plugin.stub.ListAndWatch(pb.Empty()).read()
        assert isinstance(response, pb.ListAndWatchResponse)
        assert MESSAGE_LIMIT // 2 < response.ByteSize() <= MESSAGE_LIMIT
        (entry,) = plugin.events("too many devices for one message: share less")
        assert entry["left_out"] == 64 * 1000 - len(response.devices)

    meet(node(many, 1000), story)


# Preferences


def test_the_preference_of_the_snapshot_is_given() -> None:
    async def story(plugin: Served) -> None:
        ids = ["card3-0", "card1-0", "card4-0", "card2-0"]
        assert await prefer(plugin, ids, [], 2) == ["card3-0", "card4-0"]
        assert plugin.count("preferences_total", outcome="proven") == 1

    meet(node(prefer=last), story)


def test_linked_gpus_are_preferred_end_to_end() -> None:
    lanes = {(1, 3): 16, (3, 4): 16, (1, 4): 16}
    preferences = prepare(
        [GpuFacts(f"card{n}", bdf(n)) for n in (1, 2, 3, 4)],
        {(bdf(one), bdf(other)): width for (one, other), width in lanes.items()},
        clock=lambda: 0.0,
    )

    async def story(plugin: Served) -> None:
        ids = ["card2-0", "card4-0", "card1-0", "card3-0"]
        assert await prefer(plugin, ids, [], 3) == ["card1-0", "card3-0", "card4-0"]
        assert await prefer(plugin, ids, ["card2-0"], 1) == ["card2-0"]

    meet(node(lanes=lanes, prefer=preferences.prefer), story)


def fails(*_: object) -> Preference:
    raise ZeroDivisionError("no links")


def refuses(*_: object) -> Preference:
    raise RequestError("nothing suits")


_OVER = threading.Event()


def forever(*_: object) -> Preference:
    _OVER.wait(PATIENCE)
    return Preference(("card4-0", "card3-0"))


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        pytest.param(fails, "ZeroDivisionError: no links", id="raises"),
        pytest.param(refuses, "RequestError: nothing suits", id="refuses"),
        pytest.param(forever, "nothing was found in 0.05 s", id="hangs"),
        pytest.param(lambda *_: None, "AttributeError", id="answers nothing"),
        pytest.param(lambda *_: Preference(()), "preferred 0 devices", id="too few"),
        pytest.param(
            lambda *_: Preference(("card2-0", "card9-0")), "is not available", id="unavailable"
        ),
        pytest.param(
            lambda *_: Preference(("card1-0", "card4-0")), "must be included", id="without must"
        ),
        pytest.param(
            lambda *_: Preference(("card2-0", "card2-0")), "preferred 2 devices", id="one twice"
        ),
        pytest.param(
            lambda *_: Preference(("card2-0", "card1-0", "card2-0")),
            "preferred 3 devices instead of 2",
            id="enough, and one twice",
        ),
    ],
)
def test_an_error_in_the_preference_gives_the_fallback(
    broken: Callable[..., Any], fault: str
) -> None:
    async def story(plugin: Served) -> None:
        ids = ["card4-0", "card3-0", "card1-0", "card2-0"]
        assert await prefer(plugin, ids, ["card2-0"], 2) == ["card1-0", "card2-0"]
        assert plugin.count("preferences_total", outcome="fallback") == 1
        (entry,) = plugin.events("preference failed, using the fallback")
        assert fault in entry["error"]

    _OVER.clear()
    try:
        meet(node(prefer=broken), story, timeout=0.05 if broken is forever else PATIENCE)
    finally:
        _OVER.set()


@pytest.mark.parametrize("quick", [True, False], ids=["on the loop", "in a thread"])
@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError,
        RecursionError,
        MemoryError,
        AssertionError,
        KeyError,
        RequestError,
        TimeoutError,
    ],
)
def test_whatever_the_engine_raises_is_answered_by_the_fallback_and_counted(
    fault: type[Exception],
    quick: bool,  # noqa: FBT001 - a case
) -> None:
    def clock() -> float:
        raise fault("no time")

    engine = prepare([GpuFacts(f"card{n}", bdf(n)) for n in range(20)], {}, clock=clock)
    with pytest.raises(fault):
        engine.prefer(engine.bits, [], 2)

    async def story(plugin: Served) -> None:
        ids = ["card12-0", "card3-0", "card2-0"]
        assert await prefer(plugin, ids, ["card12-0"], 2) == ["card2-0", "card12-0"]
        assert plugin.count("preferences_total", outcome="fallback") == 1
        assert len(plugin.events(FALLBACK_EVENT)) == 1

    meet(preferring(node(20, prefer=engine.prefer), quick=quick), story)


@pytest.mark.parametrize(
    ("available", "must", "size", "reason"),
    [
        pytest.param(["card1-0"], [], 2, "only 1 devices", id="more than there are"),
        pytest.param(["card1-0"], [], 0, "at least one", id="none"),
        pytest.param(["card1-0"], [], -5, "at least one", id="fewer than none"),
        pytest.param(
            ["card1-0", "card2-0"], ["card1-0", "card2-0"], 1, "must be included", id="too small"
        ),
        pytest.param(["gpu7"], [], 2, "only 1 devices are available", id="too few unknown ones"),
    ],
)
def test_a_malformed_request_is_refused(
    available: list[str], must: list[str], size: int, reason: str
) -> None:
    async def story(plugin: Served) -> None:
        code, text = await refusal(prefer(plugin, available, must, size))
        assert code is StatusCode.INVALID_ARGUMENT
        assert reason in text
        rpc = "GetPreferredAllocation"
        assert plugin.count("request_errors_total", rpc=rpc, code="INVALID_ARGUMENT") == 1

    meet(node(prefer=last), story)


def test_what_has_just_vanished_or_broken_is_not_preferred_and_not_an_error() -> None:
    async def story(plugin: Served) -> None:
        ids = [f"card{n}-0" for n in (1, 2, 3, 4)]
        await prefer(plugin, ids, [], 1)
        plugin.watch.replace(node(3, unhealthy={bdf(3): "hot"}, prefer=last))
        assert await prefer(plugin, ids, [], 2) == ["card1-0", "card2-0"]
        assert len(await prefer(plugin, ids, [], 3)) == 3, "too few are left: kubelet is told"

    meet(node(prefer=last), story)


def test_a_broken_device_that_must_be_included_brings_no_other_broken_one() -> None:
    async def story(plugin: Served) -> None:
        ids = [f"card{n}-0" for n in (1, 2, 3, 4)]
        chosen = await prefer(plugin, ids, ["card3-0"], 3)
        assert sorted(chosen) == ["card1-0", "card2-0", "card3-0"]
        assert plugin.count("preferences_total", outcome="fallback") == 0

    def with_must(available: Sequence[str], must: Sequence[str], size: int) -> Preference:
        rest = last([id_ for id_ in available if id_ not in must], [], size - len(must))
        return Preference((*must, *rest.ids))

    meet(node(4, unhealthy={bdf(3): "hot", bdf(4): "hot"}, prefer=with_must), story)


@pytest.mark.parametrize(
    ("available", "must", "chosen"),
    [
        pytest.param(
            ["card9-0", "card3-0", "card1-0"], [], ["card3-0", "card1-0"], id="passed over"
        ),
        pytest.param(["card9-0", "card3-0"], [], ["card3-0", "card9-0"], id="no other choice"),
        pytest.param(["card3-0", "card1-0"], ["card9-0"], ["card1-0", "card9-0"], id="required"),
        pytest.param(["card8-0", "card9-0"], [], ["card8-0", "card9-0"], id="all of them"),
    ],
)
def test_what_another_instance_told_of_is_taken_last_and_no_error(
    available: list[str], must: list[str], chosen: list[str]
) -> None:
    preferences = prepare(
        [GpuFacts(f"card{n}", bdf(n)) for n in (3, 1)],
        {},
        clock=lambda: 0.0,
        policy=AllocationPolicy.TOPOLOGY,
    )

    async def story(plugin: Served) -> None:
        assert sorted(await prefer(plugin, available, must, 2)) == sorted(chosen)
        assert plugin.count("preferences_total", outcome="fallback") == 0

    meet(node([card(3), card(1)], prefer=preferences.prefer), story)


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_preference_is_asked_for_on_the_loop_any_other_in_a_daemon_thread(
    quick: bool,  # noqa: FBT001 - a case
) -> None:
    threads: list[threading.Thread] = []

    def noting(available: Sequence[str], must: Sequence[str], size: int) -> Preference:
        threads.append(threading.current_thread())
        return last(available, must, size)

    async def story(plugin: Served) -> None:
        assert await prefer(plugin, ["card1-0", "card2-0"], [], 1) == ["card2-0"]

    meet(preferring(node(prefer=noting), quick=quick), story)
    (thread,) = threads
    assert (thread is threading.main_thread()) == quick
    assert thread.daemon != quick


@pytest.mark.parametrize("broken", [fails, refuses])
def test_an_error_in_a_quick_preference_gives_the_fallback_too(
    broken: Callable[..., Preference],
) -> None:
    async def story(plugin: Served) -> None:
        assert await prefer(plugin, ["card3-0", "card1-0"], [], 1) == ["card1-0"]
        assert plugin.count("preferences_total", outcome="fallback") == 1

    meet(preferring(node(prefer=broken), quick=True), story)


def test_the_end_does_not_wait_for_a_preference_that_hangs() -> None:
    freed, ended = threading.Event(), threading.Event()

    def hangs(*_: object) -> Preference:
        freed.wait(PATIENCE)
        ended.set()
        return Preference(())

    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0"], [], 1)

    try:
        meet(node(prefer=hangs), story, timeout=0.05)
        assert not ended.is_set()
    finally:
        freed.set()


def test_preferences_that_hang_take_so_many_threads_and_then_answers_are_the_fallback_at_once() -> (
    None
):
    freed = threading.Event()
    begun: list[threading.Thread] = []

    def hangs(*_: object) -> Preference:
        begun.append(threading.current_thread())
        freed.wait(PATIENCE)
        return Preference(("card2-0",))

    async def story(plugin: Served) -> None:
        try:
            for number in range(3):
                assert await prefer(plugin, ["card1-0", "card2-0"], [], 1) == ["card1-0"]
                assert plugin.count("preferences_total", outcome="fallback") == number + 1
            assert len(begun) == 2
            faults = [entry["error"] for entry in plugin.events(FALLBACK_EVENT)]
            assert faults == [
                *["nothing was found in 0.05 s"] * 2,
                "2 others are still being searched for: do they hang?",
            ]
        finally:
            freed.set()
        for thread in begun:
            await asyncio.to_thread(thread.join, PATIENCE)
        quicken(plugin.serving, timeout=PATIENCE)
        assert await prefer(plugin, ["card1-0", "card2-0"], [], 1) == ["card2-0"], "room again"

    meet(node(prefer=hangs), story, timeout=0.05, threads=2)


def test_the_best_that_a_slow_preference_has_found_is_given_within_the_patience() -> None:
    def slow(*_: object) -> Preference:
        threading.Event().wait(0.2)
        return Preference(("card4-0",), proven=False)

    async def story(plugin: Served) -> None:
        assert await prefer(plugin, ["card1-0", "card4-0"], [], 1) == ["card4-0"]
        assert plugin.count("preferences_total", outcome="unproven") == 1

    meet(node(prefer=slow), story, timeout=PATIENCE)


def test_what_a_request_needs_of_a_snapshot_is_prepared_once() -> None:
    snapshot = node(3, shared=2, unhealthy={bdf(2): "hot"})
    resource = snapshot.resource(I915)
    assert resource.usable == {"card1-0", "card1-1", "card3-0", "card3-1"}
    assert list(resource.positions) == [device.id for device in resource.devices]
    assert resource.usable is resource.usable
    assert resource.positions is resource.positions
    absent = snapshot.resource("gpu.intel.com/xe")
    assert not absent.usable
    assert not absent.positions
    assert snapshot == node(3, shared=2, unhealthy={bdf(2): "hot"}), "whatever was asked of it"


# Allocations


def test_an_allocation_brings_nodes_mounts_and_cdi_names() -> None:
    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card2-0", "card1-0")
        assert [
            (node.container_path, node.host_path, node.permissions) for node in given.devices
        ] == [
            (f"/dev/dri/{name}", f"/host/dev/dri/{name}", "rw")
            for name in ("card1", "renderD129", "card2", "renderD130")
        ]
        assert [(m.container_path, m.host_path, m.read_only) for m in given.mounts] == [
            (f"/dev/dri/by-path/pci-{bdf(number)}-card", f"/host/{number}", True)
            for number in (1, 2)
        ]
        assert [name.name for name in given.cdi_devices] == [
            "intel.cdi.k8s.io/gpu=card1",
            "intel.cdi.k8s.io/gpu=card2",
        ]

    meet(node(cdi=True), story)


def test_without_a_cdi_spec_no_cdi_names_are_given() -> None:
    async def story(plugin: Served) -> None:
        assert not (await allocate(plugin, "card1-0")).cdi_devices

    meet(node(), story)


def test_two_shares_of_a_gpu_bring_its_nodes_once() -> None:
    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card1-1", "card1-0")
        assert len(given.devices) == 2
        assert len(given.mounts) == 1
        assert len(given.cdi_devices) == 1
        assert given.envs["XELINK_GPUS"] == bdf(1)
        assert given.envs["XELINK_LINKED"] == "single"

    meet(node(shared=2, cdi=True), story)


def test_the_workload_is_told_what_it_got() -> None:
    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card3-0", "card1-0", "card2-0")
        assert dict(given.envs) == {
            "XELINK_GPUS": f"{bdf(1)},{bdf(2)},{bdf(3)}",
            "XELINK_LINKS": f"{bdf(1)}-{bdf(2)}=16,{bdf(2)}-{bdf(3)}",
            "XELINK_LINKED": "some",
        }
        assert dict(given.annotations) == {
            f"gpu.intel.com/xelink.{name.removeprefix('XELINK_').lower()}": value
            for name, value in given.envs.items()
        }

    meet(node(lanes={(1, 2): 16, (3, 2): 0}), story)


def test_what_was_given_before_is_given_as_the_node_is_now() -> None:
    async def story(plugin: Served) -> None:
        first = await allocate(plugin, "card1-0", "card2-0")
        assert await allocate(plugin, "card2-0", "card1-0", "card2-0") == first
        plugin.watch.replace(node(lanes={(1, 2): 4}, cdi=True))
        second = await allocate(plugin, "card1-0", "card2-0")
        assert first.envs["XELINK_LINKS"] == f"{bdf(1)}-{bdf(2)}=8"
        assert second.envs["XELINK_LINKS"] == f"{bdf(1)}-{bdf(2)}=4"
        assert not first.cdi_devices
        assert second.cdi_devices
        assert second.devices == first.devices

    meet(node(lanes={(1, 2): 8}), story)


def test_of_the_sets_that_were_given_so_many_are_remembered() -> None:
    async def story(plugin: Served) -> None:
        pairs = [*combinations([f"card{n}-0" for n in range(1, 13)], 2)]
        for pair in pairs[:50]:
            await allocate(plugin, *pair)
        assert len(plugin.plugin._given) == 50  # noqa: SLF001 - what it takes is its own affair
        for pair in pairs[50:]:
            await allocate(plugin, *pair)
        assert len(pairs) > len(plugin.plugin._given) == 64  # noqa: SLF001 - as above

    meet(node(12), story)


def test_the_environment_can_be_left_alone() -> None:
    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card1-0")
        assert not given.envs
        assert given.annotations

    meet(node(), story, allocate_env=False)


@pytest.mark.parametrize(
    ("lanes", "linked"),
    [
        pytest.param(None, "unknown", id="no topology"),
        pytest.param({}, "none", id="no links"),
        pytest.param({(1, 2): 4}, "some", id="one pair of three"),
        pytest.param({(1, 2): 4, (2, 3): 4, (3, 1): 4}, "all", id="every pair"),
    ],
)
@pytest.mark.parametrize("followed", ["followed", "not_followed", "not_requested"])
def test_whether_the_set_was_linked_and_preferred_is_logged_and_counted(
    lanes: dict[tuple[int, int], int] | None, linked: str, followed: str
) -> None:
    async def story(plugin: Served) -> None:
        if followed != "not_requested":
            await prefer(plugin, [f"card{n}-0" for n in (1, 2, 3, 4)], [], 3)
        if followed == "not_followed":
            plugin.watch.replace(node(lanes=lanes))
            await allocate(plugin, "card4-0", "card2-0", "card1-0")
            assert plugin.events("allocated")[0]["preference"] == "not_followed"
            return
        await allocate(plugin, "card3-0", "card1-0", "card2-0")
        (entry,) = plugin.events("allocated")
        assert (entry["linked"], entry["preference"]) == (linked, followed)
        assert plugin.count("allocations_total", linked=linked, preference=followed) == 1

    meet(node(lanes=lanes), story)


@pytest.mark.parametrize("memory", [0.0, 60.0])
def test_a_preference_that_kubelet_has_let_pass_is_forgotten(memory: float) -> None:
    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0", "card2-0"], [], 1)
        await allocate(plugin, "card2-0")
        (entry,) = plugin.events("allocated")
        assert entry["preference"] == ("not_followed" if memory else "not_requested")

    meet(node(), story, memory=memory)


def test_a_request_that_no_kubelet_makes_is_answered_and_not_kept() -> None:
    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0", *(f"card{n}-9" for n in range(1000))], [], 1)
        await allocate(plugin, "card1-0")
        (entry,) = plugin.events("allocated")
        assert entry["preference"] == "not_requested"

    meet(node(), story)


def test_a_preference_among_other_devices_has_not_been_passed_over() -> None:
    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0", "card2-0"], [], 1)
        await allocate(plugin, "card4-0")
        await allocate(plugin, "card1-0")
        choices = [entry["preference"] for entry in plugin.events("allocated")]
        assert choices == ["not_requested", "followed"]

    meet(node(), story)


FALLBACK_EVENT = "preference failed, using the fallback"
ENDLESS = 10**5000  # more digits than Python writes


def test_a_fault_in_the_facts_costs_the_facts_and_no_pod() -> None:
    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card1-0", "card2-0")
        assert len(given.devices) == 4
        assert len(given.cdi_devices) == 2
        assert not given.envs
        assert not given.annotations
        (entry,) = plugin.events("allocated without a record")
        assert entry["error"].startswith("ValueError: Exceeds the limit")
        assert plugin.count("allocation_record_errors_total", record="workload_facts") == 1
        assert len(plugin.events("allocated")) == 1

    meet(node(lanes={(1, 2): ENDLESS}, cdi=True), story)


def test_a_fault_in_the_account_costs_no_pod() -> None:
    def breaks(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> Any:  # noqa: ANN401 - as structlog has it
        if entry["event"] == "allocated":
            raise ZeroDivisionError("no account")
        return entry

    async def story(plugin: Served) -> None:
        plugin.processors.insert(0, breaks)
        given = await allocate(plugin, "card1-0")
        assert len(given.devices) == 2
        assert given.envs
        (entry,) = plugin.events("allocated without a record")
        assert entry["error"] == "ZeroDivisionError: no account"
        assert plugin.count("allocation_record_errors_total", record="allocation") == 1

    meet(node(), story)


# What decided


def mesh_of_pairs(prefer: Prefer | None = None) -> Snapshot:
    """Four GPUs of which 1 and 3, and 2 and 4, are linked; the second pair is wider."""
    gpus = [GpuFacts(f"card{n}", bdf(n), 0, ports_healthy=True) for n in (1, 2, 3, 4)]
    lanes = {(1, 3): 8, (2, 4): 16}
    by_address = {(bdf(one), bdf(other)): width for (one, other), width in lanes.items()}
    prepared = prepare(gpus, by_address, clock=time.monotonic)
    snapshot = node(lanes=lanes, prefer=prefer or prepared.prefer)
    return preferring(snapshot, decide=Decisions(prepared).decide, quick=True)


@pytest.mark.parametrize("followed", ["followed", "not_followed"])
def test_the_log_and_the_metrics_tell_the_criterion_that_decided_and_what_came_second(
    followed: str,
) -> None:
    got = ("card2-0", "card4-0") if followed == "followed" else ("card1-0", "card2-0")

    async def story(plugin: Served) -> None:
        every = [f"card{n}-0" for n in (1, 2, 3, 4)]
        assert await prefer(plugin, every, [], 2) == ["card2-0", "card4-0"]
        await allocate(plugin, *got)
        (entry,) = plugin.events("allocated")
        assert (entry["preference"], entry["decided"]) == (followed, "weakest")
        assert entry["runner_up"] == "card1 card3"
        assert plugin.count("preference_decisions_total", criterion="weakest") == 1
        (entry,) = plugin.events("preferred")
        assert (entry["log_level"], entry["devices"]) == ("debug", "card2-0 card4-0")

    meet(mesh_of_pairs(), story)


def test_with_nothing_to_choose_no_runner_up_is_told() -> None:
    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0"], [], 1)
        await allocate(plugin, "card1-0")
        (entry,) = plugin.events("allocated")
        assert entry["decided"] == "none"
        assert "runner_up" not in entry
        await allocate(plugin, "card1-0")
        assert "decided" not in plugin.events("allocated")[-1], "nobody asked"

    meet(mesh_of_pairs(), story)


def test_a_fallback_is_told_as_one() -> None:
    async def story(plugin: Served) -> None:
        await prefer(plugin, ["card1-0", "card2-0"], [], 1)
        await allocate(plugin, "card1-0")
        assert plugin.events("allocated")[0]["decided"] == "fallback"
        assert plugin.count("preference_decisions_total", criterion="fallback") == 1

    meet(mesh_of_pairs(fails), story)


def test_a_fault_in_the_decision_is_counted_and_costs_nothing_else() -> None:
    def breaks(*_: object) -> Decision:
        raise ZeroDivisionError("no decision")

    async def story(plugin: Served) -> None:
        assert await prefer(plugin, ["card1-0", "card2-0"], [], 1) == ["card1-0"]
        await allocate(plugin, "card1-0")
        (entry,) = plugin.events("preferred without a record")
        assert entry["error"] == "ZeroDivisionError: no decision"
        assert plugin.count("allocation_record_errors_total", record="decision") == 1
        assert plugin.events("allocated")[0]["decided"] == "unknown"
        (one,) = plugin.plugin.history.preferences
        assert (one.chosen, one.decision.criterion) == (("card1-0",), "unknown")

    meet(preferring(mesh_of_pairs(), decide=breaks), story)


def test_answers_wait_for_no_account_and_what_is_too_much_of_it_is_counted() -> None:
    go_on = threading.Event()

    def slow(*_: object) -> Decision:
        go_on.wait(PATIENCE)
        return Decision("linked")

    async def story(plugin: Served) -> None:
        try:
            for _ in range(300):
                await prefer(plugin, ["card1-0", "card2-0"], [], 1)
            assert (
                plugin.count("allocation_record_errors_total", record="decision") >= 300 - 256 - 1
            )
        finally:
            go_on.set()
        await plugin.plugin.close(PATIENCE)
        lost = plugin.count("allocation_record_errors_total", record="decision")
        assert lost + plugin.count("preference_decisions_total", criterion="linked") == 300

    meet(preferring(mesh_of_pairs(), decide=slow), story)


@pytest.mark.parametrize(
    ("known", "links", "linked"),
    [
        pytest.param({}, "1-2=4", "all", id="everything"),
        pytest.param({"mapped": {1, 2}}, "1-2=4", "all", id="both"),
        pytest.param({"mapped": {1}}, "1-2=4", "unknown", id="one of them"),
        pytest.param({"mapped": {1}, "lanes": {}}, "", "unknown", id="one of them, and no links"),
        pytest.param({"mapped": {1, 2}, "lanes": {}}, "", "none", id="both, and no links"),
        pytest.param({"guessed": True}, "1-2", "unknown", id="a guess"),
        pytest.param({"guessed": True, "lanes": {}}, "", "unknown", id="a guess of no links"),
    ],
)
def test_nothing_is_claimed_of_gpus_whose_links_are_not_known(
    known: dict[str, Any], links: str, linked: str
) -> None:
    lanes = known.get("lanes", {(1, 2): 4})
    snapshot = node(lanes=lanes)
    lacking = {1, 2} - known.get("mapped", {1, 2})
    state = FileState.INFERRED if known.get("guessed") else FileState.IN_USE
    unmapped = tuple(map(bdf, sorted(lacking)))
    links_known = snapshot.resource(I915).links
    assert links_known
    snapshot = changed(snapshot, links=replace(links_known, state=state, not_in_map=unmapped))

    async def story(plugin: Served) -> None:
        given = await allocate(plugin, "card1-0", "card2-0")
        assert given.envs["XELINK_LINKED"] == linked
        told = links.replace("1-2", f"{bdf(1)}-{bdf(2)}")
        assert given.envs["XELINK_LINKS"] == told
        assert plugin.count("allocations_total", linked=linked, preference="not_requested") == 1

    meet(snapshot, story)


@pytest.mark.parametrize(
    ("lanes", "ids", "reason"),
    [
        ({(1, 2): 4, (1, 3): 4, (2, 3): 4}, (1, 2, 3), ""),
        ({(1, 2): 4, (2, 3): 4}, (1, 2, 3), f"2 of 3 pairs of these GPUs are linked ({bdf(1)} and"),
        ({}, (2, 3), f"0 of 1 pairs of these GPUs are linked ({bdf(2)} and {bdf(3)} are not)"),
        ({}, (2,), ""),
        (None, (1, 2), ""),
    ],
    ids=["all", "some", "none", "single", "links unknown"],
)
def test_where_links_are_required_several_gpus_are_given_linked_or_not_at_all(
    lanes: dict[tuple[int, int], int] | None, ids: tuple[int, ...], reason: str
) -> None:
    devices = [f"card{number}-0" for number in ids]

    async def strict(plugin: Served) -> None:
        for _ in range(2):  # what was refused is not remembered as given
            if reason:
                code, said = await refusal(allocate(plugin, *devices))
                assert code is StatusCode.FAILED_PRECONDITION
                assert said.startswith(reason)
                assert said.endswith("and -require-links is set")
            else:
                await allocate(plugin, *devices)
        refused = plugin.count("request_errors_total", rpc="Allocate", code="FAILED_PRECONDITION")
        assert refused == (2 if reason else 0)

    async def lenient(plugin: Served) -> None:
        await allocate(plugin, *devices)

    meet(node(3, lanes=lanes), strict, require_links=True)
    meet(node(3, lanes=lanes), lenient)


def test_an_unknown_device_is_refused_by_name() -> None:
    async def story(plugin: Served) -> None:
        assert await refusal(allocate(plugin, "card1-0", "card7-0")) == (
            StatusCode.INVALID_ARGUMENT,
            f"{I915} has no device 'card7-0'",
        )

    meet(node(), story)


def test_a_refusal_names_a_few_of_many_and_fits_into_a_header() -> None:
    """Details of more than 8 KiB would come as another error."""
    unknown = [f"{'x' * 100}{number}" for number in range(500)]
    gone = {bdf(number): "it is hot, " * 100 for number in range(1, 101)}

    async def story(plugin: Served) -> None:
        code, text = await refusal(allocate(plugin, *unknown))
        assert code is StatusCode.INVALID_ARGUMENT
        assert text.endswith(" and 492 more")
        assert len(text) < 1000
        code, text = await refusal(allocate(plugin, *(f"card{n}-0" for n in range(1, 101))))
        assert code is StatusCode.FAILED_PRECONDITION
        assert text.endswith(" and 92 more")
        assert len(text) < 4000

    meet(node(100, unhealthy=gone), story)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        pytest.param(node(1), "card2-0: it is gone", id="gone"),
        pytest.param(
            node([card(1), card(2, missing=("/dev/dri/card2",))]),
            "card2-0: /dev/dri/card2 is not there",
            id="without its node",
        ),
    ],
)
def test_an_unusable_device_is_refused_with_the_reason(after: Snapshot, reason: str) -> None:
    async def story(plugin: Served) -> None:
        await following(listings(plugin))
        plugin.watch.replace(after)
        assert await refusal(allocate(plugin, "card1-0", "card2-0")) == (
            StatusCode.FAILED_PRECONDITION,
            reason,
        )
        assert plugin.count("request_errors_total", rpc="Allocate", code="FAILED_PRECONDITION") == 1

    meet(node(2), story)


# Any input

ids = st.sampled_from([f"card{n}-0" for n in range(1, 6)]) | st.text(max_size=200)
id_lists = st.lists(ids, max_size=12)
sizes = st.integers(-2, 8) | st.integers(-(1 << 31), (1 << 31) - 1)
preferences = st.builds(
    pb.PreferredAllocationRequest,
    container_requests=st.lists(
        st.builds(
            pb.ContainerPreferredAllocationRequest,
            available_deviceIDs=id_lists,
            must_include_deviceIDs=id_lists,
            allocation_size=sizes,
        ),
        max_size=4,
    ),
)
allocations = st.builds(
    pb.AllocateRequest,
    container_requests=st.lists(
        st.builds(pb.ContainerAllocateRequest, devices_ids=id_lists), max_size=4
    ),
)
starts = st.builds(pb.PreStartContainerRequest, devices_ids=id_lists)
requests = preferences | allocations | starts


@pytest.fixture(scope="module")
def session() -> Iterator[tuple[asyncio.Runner, Served]]:
    """One server for all examples: a new one for each would take minutes."""
    snapshot = node(lanes={(1, 2): 4}, unhealthy={bdf(4): "hot"}, prefer=last, cdi=True)
    with asyncio.Runner() as runner:
        block = served(snapshot)
        plugin = runner.run(block.__aenter__())
        try:
            yield runner, plugin
        finally:
            runner.run(block.__aexit__(None, None, None))


@settings(max_examples=300, deadline=None)
@given(request=requests)
def test_any_request_is_answered_or_refused_and_streams_live_on(
    session: tuple[asyncio.Runner, Served], request: Message
) -> None:
    runner, plugin = session
    rpcs: dict[type[Message], Any] = {
        pb.PreferredAllocationRequest: plugin.stub.GetPreferredAllocation,
        pb.AllocateRequest: plugin.stub.Allocate,
        pb.PreStartContainerRequest: plugin.stub.PreStartContainer,
    }

    async def story() -> StatusCode:
        stream = plugin.stub.ListAndWatch(pb.Empty())
        await stream.read()
        call = rpcs[type(request)](request)
        code: StatusCode = await call.code()
        assert code is StatusCode.OK or await call.details()
        assert not stream.done()
        stream.cancel()
        return code

    refusals = {StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION}
    assert runner.run(story()) in {StatusCode.OK, *refusals}


@given(snapshots=st.lists(st.sets(st.integers(1, 6), max_size=6), max_size=5))
@settings(max_examples=50, deadline=None)
def test_whatever_comes_and_goes_the_last_word_is_what_there_is(
    session: tuple[asyncio.Runner, Served], snapshots: list[set[int]]
) -> None:
    runner, plugin = session

    async def story() -> None:
        before = plugin.watch.current
        async with aclosing(listings(plugin)) as stream:  # a connection has so many, and no more
            await following(stream)
            for numbers in snapshots:
                plugin.watch.replace(node([card(number) for number in sorted(numbers)]))
                await asyncio.sleep(0)
            plugin.watch.replace(node([card(9)]))
            told = await following(stream)
            while ("card9-0", "Healthy") not in told:
                told = await following(stream)
        assert [id_ for id_, health in told if health == "Healthy"] == ["card9-0"]
        plugin.watch.replace(before)

    runner.run(story())
