"""The driver as a source: the same links as XPU Manager, and unknown wherever nothing is proven."""

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.iaf.drivers import EVERYTHING, asking, on_bus, topology, without_uuids
from tests.patience import Clock
from tests.xpu_manager.bodies import read_body
from xelink.iaf.channel import kernel, simulator
from xelink.iaf.reasons import DriverReason
from xelink.iaf.replies import DriverResult
from xelink.iaf.source import FULL_LOOK_SECONDS, BusError, DriverSource, Node
from xelink.iaf.wire import Command
from xelink.simulators.iaf.driver import Behavior, FrameFault, PortFault, reply
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode, render
from xelink.simulators.xpu_manager.blueprint import WIRINGS
from xelink.topology.model import PortState, Tile
from xelink.topology.observation import Observation, ObservedLinks, Unknown
from xelink.topology.publication import Publication
from xelink.topology.publication import render as feature_file
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify

MESH = Blueprint(gpus=4, tiles=2).build()
ONE, OTHER = Tile(0, 0), Tile(1, 0)


@st.composite
def nodes(draw: st.DrawFn) -> SimulatedNode:
    """Draw a node of any wiring, with some links cut and a GPU gone."""
    node = Blueprint(
        gpus=draw(st.integers(1, 8)),
        tiles=draw(st.integers(1, 2)),
        wiring=draw(st.sampled_from(sorted(WIRINGS))),
        lanes=draw(st.integers(1, 8)),
        igpu=draw(st.booleans()),
        cards=draw(st.sampled_from(["ordered", "reversed", "shuffled"])),
    ).build()
    if node.links:
        cut = draw(st.lists(st.sampled_from(node.links), max_size=4, unique=True))
        node = node.alter(*(replace(link, lanes=0, lanes_back=0) for link in cut))
    return node


@given(nodes(), st.integers(1, 8), st.booleans())
@settings(max_examples=40)
def test_both_sources_give_the_same_feature_file(
    node: SimulatedNode,
    lane_count: int,
    subdeviceless: bool,  # noqa: FBT001 - drawn
) -> None:
    rules = Rules(lane_count, subdeviceless)
    expected = classify(read_body(render(node)), rules)
    assert isinstance(expected, ObservedLinks), expected
    with asking(node, rules) as scene:
        found = scene.source.observe()
    assert isinstance(found, ObservedLinks), found
    assert (found.narrow, found.one_tile) == (expected.narrow, expected.one_tile)
    files = {
        feature_file(Publication(without_uuids(one.topology)), "gpu.intel.com")
        for one in (found, expected)
    }
    assert len(files) == 1


# Ports


@pytest.mark.parametrize("fault", PortFault)
def test_a_port_that_is_not_whole_on_both_sides_makes_no_link(fault: PortFault) -> None:
    faults = {(ONE, 1): fault}
    with asking(MESH, ports=faults) as scene:
        links = topology(scene.source.observe()).links
    assert {link.ends for link in MESH.links} - {link.ends for link in links} == {(ONE, OTHER)}


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (PortFault.OFF, PortState.DISABLED),
        (PortFault.DEGRADED, PortState.DEGRADED),
        (PortFault.FAILED, PortState.FAILED),
        (PortFault.ISOLATED, PortState.FAILED),
        (None, PortState.HEALTHY),
    ],
)
def test_the_worst_port_is_the_state_of_its_gpu(fault: PortFault | None, state: PortState) -> None:
    with asking(MESH, ports={(ONE, 1): fault} if fault else {}) as scene:
        gpus = topology(scene.source.observe()).gpus
    assert [gpu.ports for gpu in gpus] == [state, *[PortState.HEALTHY] * 3]


def test_what_a_degraded_port_lacks_is_a_warning() -> None:
    with asking(MESH, ports={(ONE, 1): PortFault.DEGRADED}) as scene:
        scene.source.observe()
        fabric = scene.source.fabric
    assert fabric
    port = fabric.devices[0].tiles[0].ports[0]
    assert port.ailment == "degraded (link width, 3 of 4 lanes)"
    assert scene.source.facts.warning == (
        "Xe Link ports: 0000:29:00.0 tile 0 port 1: degraded (link width, 3 of 4 lanes)"
    )


def test_ids_are_ranks_on_the_bus_and_never_the_ids_of_the_fabric() -> None:
    node = Blueprint(gpus=2, tiles=1, igpu=True).build()
    with asking(node) as scene:
        found = topology(scene.source.observe())
        assert [str(link) for link in found.links] == ["1.0-2.0"]
        assert [gpu.bdf for gpu in found.gpus] == [gpu.bdf for gpu in node.present]


# Unknown


@pytest.mark.parametrize(
    ("behavior", "reason", "detail"),
    [
        pytest.param({"has_family": False}, "not-host-network", "hostNetwork: true", id="netns"),
        pytest.param({"result": DriverResult.AGAIN}, "starting", "result 5 (AGAIN)", id="starting"),
        pytest.param({"sweep": True}, "starting", "a routing sweep is under way", id="sweep"),
        *(
            pytest.param({"result": code}, "driver-error", f"result {code.value}", id=code.name)
            for code in DriverResult
            if code not in {DriverResult.SUCCESS, DriverResult.AGAIN}
        ),
        pytest.param({"result": 99}, "driver-error", "result 99 (unknown)", id="result unknown"),
        pytest.param({"frames": FrameFault.CUT}, "malformed-reply", "says ", id="cut"),
        pytest.param({"frames": FrameFault.STRETCHED}, "malformed-reply", "goes on", id="long"),
        pytest.param({"frames": FrameFault.GARBAGE}, "malformed-reply", "ffffffff", id="garbage"),
    ],
)
def test_whatever_proves_nothing_is_unknown_with_its_reason(
    behavior: dict[str, Any], reason: str, detail: str
) -> None:
    clock = Clock()
    with asking(MESH, seconds=1.0, monotonic=clock, **behavior) as scene:
        scene.source._sleep = lambda _: clock.run_out()  # noqa: SLF001 - the time that it takes
        found = scene.source.observe()
    assert isinstance(found, Unknown)
    assert found.reason == reason
    assert detail in found.detail


def test_silence_ends_with_the_time() -> None:
    with asking(MESH, seconds=0.05, frames=FrameFault.SILENCE) as scene:
        found = scene.source.observe()
    assert found == Unknown(DriverReason.TIMEOUT, "the driver gave no answer within 0.05 s")


def test_a_gpu_that_the_bus_does_not_have_is_a_contradiction() -> None:
    with asking(MESH) as scene:
        scene.node = MESH.remove(2)
        found = scene.source.observe()
    assert isinstance(found, Unknown)
    assert found.reason == DriverReason.MALFORMED
    assert "which is no GPU on this node's bus" in found.detail


def test_where_no_gpu_has_a_fabric_the_kernel_is_not_asked() -> None:
    def never() -> None:
        raise AssertionError("asked")

    source = DriverSource(
        never,  # type: ignore[arg-type]  # must not be called
        lambda: Node(has_fabric=False, gpus=on_bus(MESH).gpus),
        EVERYTHING,
        seconds=1.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    )
    found = source.observe()
    assert isinstance(found, Unknown)
    assert found.reason == DriverReason.NO_DRIVER


def test_a_bus_that_cannot_be_read_is_told_as_that_and_nobody_is_asked() -> None:
    def unreadable() -> Node:
        raise BusError("card1 cannot be read")

    source = DriverSource(
        kernel,
        unreadable,
        EVERYTHING,
        seconds=1.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    )
    detail = "device ids are not certain: card1 cannot be read"
    assert source.observe() == Unknown(DriverReason.BUS, detail)


# One snapshot is one truth


def test_between_full_looks_only_the_generation_is_asked() -> None:
    clock = Clock()
    with asking(MESH, monotonic=clock) as scene:
        first = scene.source.observe()
        full = scene.driver.requests
        assert full == 1 + 2 + 1 + 4 * 8
        assert scene.source.facts.rows == 24
        assert scene.source.observe() is first
        assert scene.driver.requests == 2 * full, "what is new is looked for again"
        assert scene.source.observe() is first
        assert scene.driver.requests == 2 * full + 2
        assert scene.source.facts.rows == 0
        clock.now += FULL_LOOK_SECONDS
        assert scene.source.observe() is first
        assert scene.driver.requests == 3 * full + 2


def test_a_generation_that_moved_makes_a_full_look_due_at_once() -> None:
    with asking(MESH, monotonic=Clock()) as scene:
        scene.source.observe()
        scene.change(MESH.cut("0.0-1.0"))
        assert len(topology(scene.source.observe()).links) == len(MESH.links) - 1


def test_a_health_that_changed_without_a_sweep_is_seen_within_a_minute() -> None:
    clock = Clock()
    with asking(MESH, monotonic=clock) as scene:
        first = scene.source.observe()
        scene.source.observe()
        scene.driver.behavior = replace(scene.driver.behavior, ports={(ONE, 1): PortFault.DEGRADED})
        assert scene.source.observe() is first
        clock.now += FULL_LOOK_SECONDS
        assert len(topology(scene.source.observe()).links) == len(MESH.links) - 1


@pytest.mark.parametrize("confirmations", [1, 2, 4])
def test_no_loss_is_repeated_that_full_looks_have_not_confirmed(confirmations: int) -> None:
    well = len(MESH.links)
    with asking(MESH, monotonic=Clock(), confirmations=confirmations) as scene:
        for _ in range(confirmations):
            scene.source.observe()
        healthy = scene.driver.behavior
        scene.change(MESH)
        scene.driver.behavior = replace(scene.driver.behavior, ports={(ONE, 1): PortFault.DEGRADED})
        assert len(topology(scene.source.observe()).links) == well - 1
        scene.driver.behavior = replace(healthy, generation=scene.driver.behavior.generation)
        found = len(topology(scene.source.observe()).links)
        assert found == (well - 1 if confirmations == 1 else well)


def test_a_driver_that_never_gets_ready_is_asked_less_and_less() -> None:
    clock = Clock()
    with asking(MESH, seconds=30.0, monotonic=clock, result=DriverResult.AGAIN) as scene:

        def sleep(seconds: float) -> None:
            scene.slept.append(seconds)
            clock.now += seconds

        scene.source._sleep = sleep  # noqa: SLF001 - the time that it takes
        scene.source.observe()
    assert scene.slept[:3] == [0.05, 0.1, 0.2]
    assert len(scene.slept) < 25
    assert scene.driver.requests == 1 + len(scene.slept) + 1, "one query, and no more"


def test_a_width_that_is_unknown_costs_its_link_and_is_no_loss() -> None:
    def widened(frame: bytes) -> bytes | None:
        answer = reply(Behavior(MESH), frame)
        enabled = struct.pack("=HHB", 5, 60, 8)
        return answer and answer.replace(enabled, struct.pack("=HHB", 5, 60, 0x10), 1)

    found = observed_through(widened)
    assert isinstance(found, ObservedLinks)
    assert found.unread == 8  # the first port of each tile
    assert len(found.topology.links) == len(MESH.links) - 2


def test_a_port_that_only_one_reply_lists_is_none() -> None:
    def with_bridge(frame: bytes) -> bytes | None:
        answer = reply(Behavior(MESH), frame)
        (command,) = struct.unpack_from("=B", frame, 16)
        if not answer or command != Command.FPORT_PROPERTIES:
            return answer
        bridge = struct.pack("=HHHHBxxxHHBxxx", 20, 24, 5, 25, 0, 5, 26, 2)
        longer = answer[:20] + bridge + answer[20:]
        return struct.pack("=I", len(longer)) + longer[4:]

    assert observed_through(with_bridge) == observed_through(
        lambda frame: reply(Behavior(MESH), frame)
    )


def observed_through(answer: Callable[[bytes], bytes | None]) -> Observation:
    """Observe a driver whose replies are made by a function."""

    class Channel:
        def send(self, frame: bytes, _seconds: float) -> None:
            self._reply = answer(frame)

        def receive(self, _seconds: float) -> bytes | None:
            return self._reply

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return DriverSource(
        Channel,
        lambda: on_bus(MESH),
        EVERYTHING,
        seconds=1.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    ).observe()


def test_a_driver_that_is_ready_after_a_moment_is_asked_again_within_the_time() -> None:
    with asking(MESH, sweep=True) as scene:

        def settle(_: float) -> None:
            scene.driver.behavior = replace(scene.driver.behavior, sweep=False)

        scene.source._sleep = settle  # noqa: SLF001 - what happens meanwhile
        assert len(topology(scene.source.observe()).links) == len(MESH.links)


def test_an_outage_forgets_nothing_and_an_answer_after_it_is_read_anew() -> None:
    with asking(MESH, monotonic=Clock()) as scene:
        first = scene.source.observe()
        well = scene.driver.behavior
        scene.driver.behavior = replace(well, result=DriverResult.FAILURE)
        assert isinstance(scene.source.observe(), Unknown)
        scene.driver.behavior = well
        assert scene.source.observe() is first


def test_late_replies_to_earlier_requests_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        connection, _ = listening.accept()
        late = b""
        with connection:
            while request := connection.recv(1 << 16):
                answer = reply(Behavior(MESH), request) or b""
                if late:
                    connection.send(late)
                connection.send(answer)
                late = answer

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    source = DriverSource(
        simulator(path),
        lambda: on_bus(MESH),
        EVERYTHING,
        seconds=60.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    )
    assert len(topology(source.observe()).links) == len(MESH.links)
    thread.join()
    listening.close()


# The real kernel


def real() -> Unknown:
    source = DriverSource(
        kernel,
        lambda: Node(has_fabric=True, gpus=()),
        EVERYTHING,
        seconds=10.0,
        sleep=lambda _: None,
        monotonic=time.monotonic,
    )
    found = source.observe()
    assert isinstance(found, Unknown)
    return found


@pytest.mark.skipif(Path("/sys/module/iaf").exists(), reason="this machine has the driver")
def test_the_real_kernel_without_the_family_is_told_as_that() -> None:
    assert real().reason == DriverReason.NOT_HOST_NETWORK


SETUPS = {
    "nobody": "os.setgid(65534); os.setuid(65534)",
    "a network namespace of its own": (
        "import ctypes; assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0"
    ),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(Path("/sys/module/iaf").exists(), reason="this machine has the driver")
@pytest.mark.parametrize("who", SETUPS)
def test_the_real_kernel_tells_the_same_to_anybody(who: str) -> None:
    # Imported first: another user may not read this checkout.
    code = f"from tests.iaf.test_source import real\nimport os\n{SETUPS[who]}\nprint(real().reason)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == DriverReason.NOT_HOST_NETWORK, done.stderr


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        (errno.EMFILE, DriverReason.RESOURCES, "no netlink socket"),
        (errno.EAFNOSUPPORT, DriverReason.DRIVER_ERROR, "allow AF_NETLINK"),
        (errno.EIO, DriverReason.DRIVER_ERROR, "the kernel refused"),
    ],
)
def test_a_socket_that_cannot_be_had_has_its_reason(
    code: int, reason: DriverReason, detail: str
) -> None:
    def full() -> None:
        raise OSError(code, os.strerror(code))

    source = DriverSource(
        full,  # type: ignore[arg-type]  # raises
        lambda: on_bus(MESH),
        EVERYTHING,
        seconds=1.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    )
    found = source.observe()
    assert isinstance(found, Unknown)
    assert found.reason == reason
    assert detail in found.detail
