"""Nobody but kubelet calls us, and nobody can ask more of us than a node can have."""

import asyncio
import re
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.limits import ExceededError, Limits, require_few
from device_plugin.servicer import ServingOptions
from tests.device_plugin.plugins import I915, Served, node, served
from tests.device_plugin.test_daemon import SOCKET, Scene
from tests.faults.rig import footprint
from tests.patience import PATIENCE
from tests.processes import address, get
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.preference.shares import Preference
from xelink.simulators.kubelet.kubelet import Kubelet

ROOT = Path(__file__).resolve().parents[2]
LONG = 120.0
ALLOCATE = "/v1beta1.DevicePlugin/Allocate"


def allocate(*ids: str, containers: int = 1) -> pb.AllocateRequest:
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)] * containers
    )


def prefer(available: list[str], must: list[str] | None = None) -> pb.PreferredAllocationRequest:
    request = pb.PreferredAllocationRequest()
    request.container_requests.add(
        available_deviceIDs=available, must_include_deviceIDs=must or [], allocation_size=1
    )
    return request


def meet(
    limits: Limits,
    story: Callable[[Served], Coroutine[Any, Any, None]],
    hangs: Callable[..., Preference] | None = None,
) -> None:
    async def play() -> None:
        async with served(
            node(4, prefer=hangs), ServingOptions(limits=limits, timeout=LONG)
        ) as plugin:
            await story(plugin)

    asyncio.run(play())


async def refusal(call: Any) -> str:  # noqa: ANN401 - any RPC that is under way
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call, PATIENCE)
    return f"{refused.value.code().name}: {refused.value.details()}"


# Pure


@given(st.lists(st.binary(max_size=300), max_size=9), st.integers(1, 10))
def test_fields_are_counted_without_parsing_them(payloads: list[bytes], most: int) -> None:
    message = pb.PreStartContainerRequest(
        devices_ids=[payload.hex() for payload in payloads]
    ).SerializeToString()
    if len(payloads) > most:
        with pytest.raises(ExceededError, match=f"more than {most} fields"):
            require_few(message, most)
    else:
        require_few(message, most)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"\x08\x96\x80\x01", id="a number"),
        pytest.param(b"\x09" + b"\x07" * 8, id="8 bytes"),
        pytest.param(b"\x0a\x80\x80\x01" + b"\x07" * (1 << 14), id="16 KiB of text"),
        pytest.param(b"\x0d" + b"\x07" * 4, id="4 bytes"),
        pytest.param(b"\x82\x80\x01\x00", id="a field of a high number"),
    ],
)
def test_a_field_of_any_kind_counts_as_one(field: bytes) -> None:
    require_few(field * 5, 5)
    with pytest.raises(ExceededError):
        require_few(field * 5, 4)


@given(st.binary(max_size=200), st.integers(1, 5))
def test_whatever_is_no_message_is_left_to_who_parses_it(message: bytes, most: int) -> None:
    try:
        require_few(message, most)
    except ExceededError:
        assert len(message) > most


@pytest.mark.parametrize("shares", [1, 2, 9, 10, 100, 1000])
@pytest.mark.parametrize(
    "cards", [16, 8 * 63, 20 * 31, 16 * 63], ids=["GPUs", "VFs of 8", "VFs of 20", "VFs of 16"]
)
def test_the_largest_request_of_a_kubelet_is_within_its_bounds(cards: int, shares: int) -> None:
    """Of 16 GPUs, the most that there are, or their VFs; each device named twice.

    The VFs of a GPU are offered, too: up to 63 of a Max, 31 of a Flex, of which 20 are in a node.
    Beyond a hundred thousand devices there is no node.
    """
    ids = [f"card{card}-{share}" for share in range(shares) for card in range(cards)][:102_400]
    limits = Limits.of(shares)
    assert 2 * len(ids) <= limits.ids
    assert len(prefer(ids, ids).SerializeToString()) <= limits.bytes


@pytest.mark.parametrize("shares", [1, 9, 1000])
def test_an_id_of_any_card_is_within_the_bound_of_bytes(shares: int) -> None:
    limits = Limits.of(shares)
    request = allocate(*["card999999-999"] * limits.ids)
    assert len(request.SerializeToString()) <= limits.bytes


@pytest.mark.parametrize(("shares", "calls"), [(1, 128), (2, 128), (9, 28), (100, 2), (1000, 2)])
def test_the_larger_a_request_may_be_the_fewer_are_under_way(shares: int, calls: int) -> None:
    assert Limits.of(shares).calls == calls


# One request


@pytest.mark.parametrize(
    ("rpc", "request_", "why"),
    [
        ("Allocate", allocate(*["card1-0"] * 11), "11 device ids in one request: at most 10"),
        (
            "GetPreferredAllocation",
            prefer(["card1-0"] * 6, ["card1-0"] * 5),
            "11 device ids in one request: at most 10",
        ),
        ("Allocate", allocate(containers=4), "more than 3 fields in one request"),
        ("Allocate", allocate("x" * (1 << 20)), "Received message larger than max"),
    ],
    ids=["ids", "ids that are offered", "containers", "bytes"],
)
def test_a_request_that_asks_for_too_much_is_refused_and_counted(
    rpc: str, request_: object, why: str
) -> None:
    async def story(plugin: Served) -> None:
        for count in (1, 2):
            said = await refusal(getattr(plugin.stub, rpc)(request_, timeout=LONG))
            assert said.startswith("RESOURCE_EXHAUSTED: ")
            assert why in said
            assert plugin.count("request_errors_total", rpc=rpc, code="RESOURCE_EXHAUSTED") == count
        assert len(plugin.events("request rejected")) == 1  # of a flood, the first
        (given_,) = (await plugin.stub.Allocate(allocate("card1-0"))).container_responses
        assert given_.devices

    meet(Limits(ids=10, containers=3), story)


def test_a_flood_is_told_again_only_after_a_time_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(plugin: Served) -> None:
        now, told = 0.0, []
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "time", lambda: now)
            for now in (0.0, 6.0, 12.0, 18.0, 29.0):  # noqa: B007 - what the loop tells
                plugin.plugin.rejected("Allocate", "RESOURCE_EXHAUSTED", "too much")
                told.append(len(plugin.events("request rejected")))
        assert told == [1, 1, 1, 1, 2]

    meet(Limits(), story)


def test_what_is_just_within_the_bounds_is_answered() -> None:
    async def story(plugin: Served) -> None:
        answer = await plugin.stub.Allocate(allocate("card1-0", containers=3), timeout=LONG)
        assert len(answer.container_responses) == 3
        await plugin.stub.Allocate(allocate(*["card1-0"] * 10), timeout=LONG)
        await plugin.stub.GetPreferredAllocation(prefer(["card1-0"] * 5, ["card1-0"] * 5))
        assert plugin.count("request_errors_total", rpc="Allocate", code="RESOURCE_EXHAUSTED") == 0

    meet(Limits(ids=10, containers=3), story)


def test_a_request_that_never_comes_is_refused() -> None:
    async def story(plugin: Served) -> None:
        silent = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            await silent.wait()
            yield b""

        async with grpc.aio.insecure_channel(plugin.address) as channel:
            call = channel.stream_unary(ALLOCATE, bytes, bytes)(nothing(), timeout=LONG)
            said = await refusal(call)
            silent.set()
        assert said == "RESOURCE_EXHAUSTED: the request was not there within 0.05 s"
        assert plugin.count("request_errors_total", rpc="Allocate", code="RESOURCE_EXHAUSTED") == 1

    meet(Limits(read_timeout=0.05), story)


# All requests together


def test_calls_beyond_those_that_may_be_under_way_are_refused_until_one_ends() -> None:
    freed = threading.Event()
    begun = threading.Semaphore(0)

    def hangs(available: list[str], *_: object) -> Preference:
        begun.release()
        assert freed.wait(LONG)
        return Preference((available[0],))

    async def story(plugin: Served) -> None:
        try:
            calls = [
                asyncio.ensure_future(plugin.stub.GetPreferredAllocation(prefer(["card1-0"])))
                for _ in range(3)
            ]
            for _ in calls:
                assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
            said = await refusal(plugin.stub.Allocate(allocate("card1-0"), timeout=LONG))
            assert said == "RESOURCE_EXHAUSTED: more than 3 calls at the same time"
            assert (
                plugin.count("request_errors_total", rpc="Allocate", code="RESOURCE_EXHAUSTED") == 1
            )
        finally:
            freed.set()
        for call in calls:
            assert (await call).container_responses[0].deviceIDs == ["card1-0"]
        # An answer that was sent may be put away a moment later.
        for _ in range(100):
            try:
                await plugin.stub.Allocate(allocate("card1-0"), timeout=LONG)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0)
        else:
            raise AssertionError("no room again")

    meet(Limits(calls=3), story, hangs)


def test_streams_are_counted_for_themselves() -> None:
    async def story(plugin: Served) -> None:
        async with AsyncExitStack() as cleanup:
            for _ in range(2):
                stream: Any = plugin.stub.ListAndWatch(pb.Empty())
                cleanup.callback(stream.cancel)
                assert len((await stream.read()).devices) == 4
            said = await refusal(plugin.stub.ListAndWatch(pb.Empty(), timeout=LONG).read())
            assert (
                said == "RESOURCE_EXHAUSTED: more than 2 streams of ListAndWatch at the same time"
            )
            await plugin.stub.Allocate(allocate("card1-0"), timeout=LONG)

    meet(Limits(calls=1, streams=2), story)


# The process itself, under the limit of the overlay


def memory_limit() -> int:
    container = ROOT / "overlays/components/device-plugin/container.yaml"
    (spec,) = yaml.safe_load(container.read_text())["spec"]["template"]["spec"]["containers"]
    match = re.fullmatch("([0-9]+)Mi", spec["resources"]["limits"]["memory"])
    assert match
    return int(match[1]) << 20


async def flood(socket: Path, request: object, calls: int, channels: int = 1) -> Counter[str]:
    """Make as many calls at the same time; count how they end."""
    ends: Counter[str] = Counter()
    async with AsyncExitStack() as cleanup:
        stubs = [
            DevicePluginStub(
                await cleanup.enter_async_context(
                    grpc.aio.insecure_channel(
                        f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]
                    )
                )
            )
            for _ in range(channels)
        ]

        async def call(stub: Any) -> None:  # noqa: ANN401 - of either kind
            method = (
                stub.Allocate
                if isinstance(request, pb.AllocateRequest)
                else stub.GetPreferredAllocation
            )
            try:
                await method(request, timeout=LONG)
                ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1

        await asyncio.gather(*(call(stubs[number % channels]) for number in range(calls)))
    return ends


ALL = [f"card{number}-0" for number in range(1, 9)]
NAMED = {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}


def floods() -> dict[str, tuple[object, int, int, set[str]]]:
    """Return requests, made only here as that takes a second: how many, on how many connections."""
    return {
        "allocations": (allocate("card1-0"), 2000, 1, {"OK"}),
        "preferences": (prefer(ALL), 2000, 1, {"OK"}),
        "connections": (allocate("card1-0"), 2000, 100, NAMED),
        "large ones": (allocate(*ALL * 400), 2000, 16, NAMED),
        "ids": (allocate(*["card1-0"] * 400_000), 64, 8, {"RESOURCE_EXHAUSTED"}),
        "containers": (allocate(containers=1_900_000), 16, 8, {"RESOURCE_EXHAUSTED"}),
        "answers": (allocate(*ALL, containers=32), 2000, 16, NAMED),
    }


def test_a_flood_ends_with_answers_or_a_named_error_within_the_memory_of_the_overlay() -> None:
    with tempfile.TemporaryDirectory(prefix="x") as name:
        scene = Scene(Path(name))
        scene.publish()
        with Kubelet(scene.kubelets) as kubelet, scene.plugin() as plugin:
            url = address(plugin)
            kubelet.wait_for_capacity(I915, 8)
            socket = scene.kubelets / SOCKET
            for what, (request, calls, channels, allowed) in floods().items():
                ends = asyncio.run(flood(socket, request, calls, channels))
                assert ends.keys() <= allowed, (what, ends)
                assert sum(ends.values()) == calls
                peak = footprint(plugin.process.pid).peak
                assert peak < memory_limit(), (what, peak)
            assert asyncio.run(flood(socket, allocate("card1-0"), 1)) == {"OK": 1}
            told = get(f"{url}/metrics")[1]
            counted = re.findall(
                r'_request_errors_total\{code="RESOURCE_EXHAUSTED",\S+\} (\S+)', told
            )
            assert float(counted[0]) >= 80
            kubelet.wait_for_allocatable(I915, 8)
            assert plugin.stop() == 0
            assert not [line for line in plugin.lines if "Traceback" in line]


@pytest.mark.parametrize("shares", [9, 1000])
def test_the_largest_requests_of_many_shares_fit_the_memory_of_the_overlay(shares: int) -> None:
    with tempfile.TemporaryDirectory(prefix="x") as name:
        scene = Scene(Path(name))
        scene.publish()
        ids = [f"card{gpu}-{share}" for gpu in range(1, 9) for share in range(shares)]
        most = Limits.of(shares).ids
        ids = (ids * (most // len(ids) + 1))[:most]
        with (
            Kubelet(scene.kubelets) as kubelet,
            scene.plugin(f"-shared-dev-num={shares}") as plugin,
        ):
            kubelet.wait_for_capacity(I915, 8 * shares)
            for request in (allocate(*ids), prefer(ids)):
                ends = asyncio.run(flood(scene.kubelets / SOCKET, request, 64, 16))
                assert {"OK"} <= ends.keys() <= NAMED, ends
                assert footprint(plugin.process.pid).peak < memory_limit(), ends
            assert plugin.stop() == 0
