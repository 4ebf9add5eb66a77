"""kubelet misbehaves, and so do others in its directory: the next Pod gets linked GPUs even so.

One table, which `make soak` takes its mischief from, too. A row is held against a plugin that runs
as a process on a simulated node; what it takes of memory, descriptors and threads stays bounded.
"""

import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.device_plugin.test_story import Scene, linked
from tests.faults.rig import Footprint, footprint
from tests.patience import PATIENCE
from tests.processes import Running, address, get
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.simulators.kubelet.kubelet import Kubelet

I915 = "gpu.intel.com/i915"
SOCKET = "gpu.intel.com-i915.sock"
ALL = [f"card{number}-0" for number in range(1, 9)]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LONG = PATIENCE
MEMORY = 128 << 20
"""Bytes that the peak may lie above what was taken at first; a message has 4 MB at most."""


def absent(scene: Scene, plugin: Running) -> None:
    """kubelet goes, for as long as it takes to hear of it."""
    scene.kubelet.stop()
    plugin.wait_for("ListAndWatch stream closed")
    scene.kubelet.start()


def restarting(scene: Scene, _: Running) -> None:
    """kubelet restarts in a tight loop."""
    for _restart in range(20):
        scene.kubelet.restart()


def refusing(scene: Scene, plugin: Running) -> None:
    """kubelet refuses registrations."""
    scene.kubelet.stop()
    scene.kubelet.faults.refuse("not today", times=3)
    scene.kubelet.start()
    assert "not today" in plugin.wait_for("cannot register")


def wiping(scene: Scene, plugin: Running) -> None:
    """Sockets are deleted as soon as they are served, and while they are registered."""
    scene.kubelet.wipe_sockets()
    plugin.wait_for("our socket is gone")
    plugin.wait_for("event=serving")
    # While it registers: kubelet dials a socket that is gone, and would give up after ten seconds.
    scene.kubelet.wipe_sockets()
    plugin.wait_for("event=serving")
    is_back(scene)


def wiping_without_an_answer(scene: Scene, plugin: Running) -> None:
    """Sockets are deleted while kubelet takes its time for a registration."""
    scene.kubelet.stop()
    plugin.wait_for("ListAndWatch stream closed")
    with stranger(scene) as connections:
        connection, _ = connections.accept()
        scene.kubelet.wipe_sockets()
        plugin.wait_for("our socket is gone")
        plugin.wait_for("event=serving")
        connection.close()
    scene.kubelet.start()


def wiping_without_end(scene: Scene, plugin: Running) -> None:
    """Sockets are deleted at every moment there is: when they are made, moved, dialed."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        scene.kubelet.wipe_sockets()
    plugin.wait_for("our socket is gone")
    is_back(scene)


def is_back(scene: Scene) -> None:
    """Hold that Pods are admitted again, then forget the registrations that were cut off.

    What they dialed is there again, and so kubelet may have a stream more from each.
    """
    scene.kubelet.wait_for_allocatable(I915, 8, LONG)
    admits(scene)
    scene.kubelet.restart()


def half_open(scene: Scene, _: Running) -> None:
    """Fifty clients connect, begin to speak, and fall silent."""
    with ExitStack() as clients:
        for number in range(50):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(scene.kubelet.directory / SOCKET))
            client.sendall(PREFACE[: number + 1])
        admits(scene)


def unread(scene: Scene, _: Running) -> None:
    """Fifty clients ask for the devices, and read not one message while those come and go."""
    with ExitStack() as clients:
        for _client in range(50):
            channel = clients.enter_context(dialed(scene))
            clients.callback(DevicePluginStub(channel).ListAndWatch(pb.Empty()).cancel)
        for gpu in scene.gpus[2:5]:  # not those that are linked
            scene.node.lose_node(gpu.bdf)
            scene.node.repair(gpu.bdf)
        admits(scene)


def slow(scene: Scene, _: Running) -> None:
    """kubelet reads no stream while devices come and go."""
    scene.kubelet.faults.stop_reading()
    for gpu in scene.gpus[2:5]:  # not those that are linked
        scene.node.lose_node(gpu.bdf)
        scene.node.repair(gpu.bdf)
    admits(scene)
    scene.kubelet.faults.clear()


def hanging_up(scene: Scene, plugin: Running) -> None:
    """kubelet hangs up on the stream, and never says so."""
    scene.kubelet.lose_streams()
    plugin.wait_for("ListAndWatch stream closed")
    scene.kubelet.restart()


def deaf(scene: Scene, plugin: Running) -> None:
    """Something accepts connections in kubelet's place and says nothing."""
    scene.kubelet.stop()
    plugin.wait_for("ListAndWatch stream closed")
    with stranger(scene) as connections:
        connection, _ = connections.accept()
        connection.close()
    scene.kubelet.start()


def crowding(scene: Scene, _: Running) -> None:
    """A thousand calls at once, each of which is owed its answer."""
    prefer, allocate = pb.PreferredAllocationRequest(), pb.AllocateRequest()
    prefer.container_requests.add(available_deviceIDs=ALL, allocation_size=2)
    allocate.container_requests.add(devices_ids=["card2-0", "card7-0"])
    with dialed(scene) as channel:
        stub = DevicePluginStub(channel)
        calls = [
            (
                stub.GetPreferredAllocation.future(prefer, timeout=LONG),
                stub.Allocate.future(allocate, timeout=LONG),
            )
            for _call in range(500)
        ]
        for preferred, allocated in calls:
            assert {*preferred.result().container_responses[0].deviceIDs} == {"card2-0", "card7-0"}
            assert allocated.result().container_responses[0].envs["XELINK_LINKED"] == "all"


def giant(scene: Scene, _: Running) -> None:
    """Requests larger than those of any kubelet, and larger than they may be."""
    ids = [f"card{number}-0" for number in range(4000)]
    prefer, allocate = pb.PreferredAllocationRequest(), pb.AllocateRequest()
    prefer.container_requests.add(available_deviceIDs=[*ALL, *ids], allocation_size=2)
    allocate.container_requests.add(devices_ids=ids)
    endless = pb.AllocateRequest()
    endless.container_requests.add(devices_ids=["x" * (5 << 20)])
    many = pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=["card1-0"])] * 10_000
    )
    with dialed(scene) as channel:
        stub = DevicePluginStub(channel)
        (answer,) = stub.GetPreferredAllocation(prefer, timeout=LONG).container_responses
        assert len({*answer.deviceIDs}) == 2
        assert refusal(partial(stub.Allocate, allocate, timeout=LONG)) == "INVALID_ARGUMENT"
        assert refusal(partial(stub.Allocate, endless, timeout=LONG)) == "RESOURCE_EXHAUSTED"
        assert refusal(partial(stub.Allocate, many, timeout=LONG)) == "RESOURCE_EXHAUSTED"


def nonsense(scene: Scene, plugin: Running) -> None:
    """What is no message, to every method and one that there is not; and what is no HTTP/2."""
    with dialed(scene) as channel:
        for method in ("Nothing", "Allocate", "GetPreferredAllocation", "PreStartContainer"):
            call = channel.unary_unary(f"/v1beta1.DevicePlugin/{method}", bytes, bytes)
            expected = "UNIMPLEMENTED" if method == "Nothing" else "UNKNOWN"
            assert refusal(partial(call, b"\xff" * 9, timeout=LONG)) == expected
            if expected == "UNKNOWN":
                assert f"rpc={method} code=UNKNOWN" in plugin.wait_for('event="request rejected"')
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(scene.kubelet.directory / SOCKET))
        with suppress(OSError):
            client.sendall(b"\0" * 100_000)


def namesake(scene: Scene, _: Running) -> None:
    """A second plugin of the same name starts: it is the one that ends."""
    with scene.plugin() as second:
        assert second.wait() == 1, second.lines
        assert "is served by another process" in second.lines[-1], second.lines


TABLE: dict[str, Callable[[Scene, Running], None]] = {
    row.__name__: row
    for row in (
        absent,
        restarting,
        refusing,
        wiping,
        wiping_without_an_answer,
        wiping_without_end,
        half_open,
        unread,
        slow,
        hanging_up,
        deaf,
        crowding,
        giant,
        nonsense,
        namesake,
    )
}


@contextmanager
def stranger(scene: Scene) -> Iterator[socket.socket]:
    """Listen in the place of a kubelet that is gone."""
    scene.kubelet.socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(scene.kubelet.socket))
        listener.listen(8)
        listener.settimeout(LONG)
        yield listener


def dialed(scene: Scene) -> grpc.Channel:
    return grpc.insecure_channel(
        f"unix:{scene.kubelet.directory / SOCKET}",
        options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
    )


def refusal(call: Callable[[], object]) -> str:
    """Give the code of a call that has to be refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code = caught.value.code()
    return str(code.name)


def admits(scene: Scene) -> None:
    """Admit a Pod of two GPUs: it gets the two that are linked, and is told so."""
    pod = scene.kubelet.run_pod("pod", I915, 2)
    scene.kubelet.delete_pod("pod")
    assert {*pod.ids} == {"card2-0", "card7-0"}
    assert pod.response.envs["XELINK_LINKED"] == "all"


def hold(name: str, scene: Scene, plugin: Running, first: Footprint) -> None:
    """Hold one row against a plugin that serves."""
    plugin.forget()
    TABLE[name](scene, plugin)
    scene.kubelet.wait_for_allocatable(I915, 8, LONG)
    scene.kubelet.wait_for_streams(1, LONG)
    admits(scene)
    now = footprint(plugin.process.pid)
    assert plugin.process.poll() is None
    assert now.peak <= first.peak + MEMORY, (name, first, now)
    assert now.descriptors <= first.descriptors + 60, (name, first, now)
    assert now.threads <= first.threads + 16, (name, first, now)


@pytest.fixture
def scene() -> Iterator[Scene]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name, Kubelet(Path(name) / "k") as kubelet:
        yield Scene(Path(name), kubelet)


def test_whatever_kubelet_does_the_next_pod_gets_linked_gpus(scene: Scene) -> None:
    scene.publish(linked("1.0-6.0"), life=3600)
    with scene.plugin() as plugin:
        plugin.wait_for('event=links state="in use"')
        scene.kubelet.wait_for_allocatable(I915, 8)
        admits(scene)
        first = footprint(plugin.process.pid)
        for name in TABLE:
            try:
                hold(name, scene, plugin, first)
            except Exception as error:
                raise AssertionError(f"{name}: {error!r}; {plugin.lines[-5:]}") from error
        assert plugin.stop() == 0
    assert not [line for line in plugin.lines if "Traceback" in line]


def test_a_plugin_that_starts_while_sockets_are_deleted_is_known_when_that_is_over(
    scene: Scene,
) -> None:
    over = threading.Event()

    def wipe() -> None:
        while not over.is_set():
            scene.kubelet.wipe_sockets()

    wiping = threading.Thread(target=wipe)
    wiping.start()
    try:
        with scene.plugin() as plugin:
            assert "No such file" in plugin.wait_for("cannot serve")
            over.set()
            scene.kubelet.wait_for_allocatable(I915, 8, LONG)
            assert plugin.stop() == 0
    finally:
        over.set()
        wiping.join()


@pytest.mark.parametrize("rpc", ["Allocate", "GetPreferredAllocation", "ListAndWatch"])
def test_a_request_that_is_no_message_is_counted_and_harms_nothing(scene: Scene, rpc: str) -> None:
    scene.publish(linked("1.0-6.0"), life=3600)
    with scene.plugin() as plugin:
        url = address(plugin)
        plugin.wait_for('event=links state="in use"')
        scene.kubelet.wait_for_allocatable(I915, 8)
        with dialed(scene) as channel:
            call = channel.unary_unary(f"/v1beta1.DevicePlugin/{rpc}", bytes, bytes)
            for _call in range(3):
                assert refusal(partial(call, b"\xff" * 9, timeout=LONG)) == "UNKNOWN"
            assert refused(url) == {(rpc, "UNKNOWN"): 3}
            admits(scene)
        assert refused(url) == {(rpc, "UNKNOWN"): 3}
        assert plugin.stop() == 0


def refused(url: str) -> dict[tuple[str, str], float]:
    """Give how many requests were refused, by RPC and code."""
    text = get(f"{url}/metrics")[1]
    series = re.findall(
        r'_request_errors_total\{code="(\w+)",resource="\S+",rpc="(\w+)"\} (\S+)', text
    )
    return {(rpc, code): float(count) for code, rpc, count in series}
