"""What must hold for any bytes at all: one function for each reader of what others wrote.

Each takes bytes and raises `AssertionError`, or whatever the reader should not have raised.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from device_plugin.settings import PluginSettings
from sidecar.settings import SidecarSettings
from tests.device_plugin.plugins import Served, bdf, node, served
from tests.patience import PATIENCE, Ticks
from xelink.api import deviceplugin_pb2 as pb
from xelink.daemon.flags import DaemonSettings, HelpRequested, UsageError, load, print_config
from xelink.iaf import dump, replies, wire
from xelink.iaf.recording import Replay
from xelink.iaf.source import DriverSource
from xelink.iaf.source import Node as FabricNode
from xelink.iaf.wire import MalformedFrameError, NetlinkError
from xelink.inventory import xpumd
from xelink.inventory.health import Health, Message, Threshold, evaluate
from xelink.nfd import reader as plugin_labels
from xelink.preference.fabric import GpuFacts
from xelink.preference.shares import prepare
from xelink.topology import labels, nfd_format
from xelink.topology.observation import ObservedLinks
from xelink.topology.pci import PciAddress
from xelink.topology.publication import Publication, UnusableError, UnwritableError, read, render
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.exposition import Exposition, ExpositionReader
from xelink.xpu_manager.line_filter import LineFilter
from xelink.xpu_manager.rows import Matrix

NS = "gpu.intel.com"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
CORPUS = Path(__file__).with_name("corpus")
LONGEST = 1 << 16

Target = Callable[[bytes], None]


def exposition(data: bytes) -> None:
    """Any body is read the same however it is cut, and what it proves can be published or not."""
    reading = _read(data, LONGEST)
    assert reading == _read(data, 1 + len(data) % 97)
    lines = data.split(b"\n")
    rows, unread = Matrix().read(data)
    each = [Matrix().read(line) for line in lines]  # each on its own, without the ones before it
    assert rows == [row for found, _ in each for row in found]
    assert unread == sum(count for _, count in each)
    outcome = classify(reading, Rules(allow_subdeviceless_links=True))
    if isinstance(outcome, ObservedLinks):
        _published(Publication(outcome.topology, NOW + timedelta(minutes=5)))


def _read(data: bytes, size: int) -> Exposition:
    lines = LineFilter()
    for start in range(0, len(data), size):
        lines.feed(data[start : start + size])
    return ExpositionReader().read(lines)


def _published(publication: Publication) -> None:
    """Whatever can be written is what is read back, and NFD has nothing against it."""
    try:
        content = render(publication, NS)
    except UnwritableError:
        return
    assert read(content, NS, NOW) == publication
    file = nfd_format.parse(content, NOW)
    assert not file.problems
    assert not [pair for pair in file.labels.items() if nfd_format.label_problem(*pair)]
    assert {name.rpartition("/")[0] for name in (*file.labels, *file.features)} <= {NS}


def label_set(data: bytes) -> None:
    """Any labels are one set of links, or none; what is decoded is what would be encoded."""
    pairs = (line.partition("=") for line in data.decode(errors="replace").split("\n"))
    given = {name: value for name, _, value in pairs}
    try:
        links = labels.decode(given, NS)
    except labels.LabelSetError:
        return
    assert len({link.ends for link in links}) == len(links)
    encoded = labels.encode(links, NS)
    assert labels.decode(encoded, NS) == links
    assert sum(map(len, encoded.values())) <= sum(len(v) for n, v in given.items() if n in encoded)


def feature_file(data: bytes) -> None:
    """Any file says all or nothing, to us and to the plugin, and never raises anything else."""
    file = nfd_format.parse(data, NOW)
    reading = plugin_labels.read(plugin_labels.Look(content=data), NS, NOW)
    assert len(reading.reason) <= 1000
    assert reading.reason.isprintable()
    try:
        publication = read(data, NS, NOW)
    except UnusableError:
        assert reading.publication is None
        return
    assert reading.publication == publication
    assert not (file.expired and publication.topology)
    if publication.whole:
        _published(publication)


def settings(data: bytes) -> None:
    """Any arguments, or any file, are settings, help, or one line that says what is wrong."""
    kind: type[DaemonSettings] = (SidecarSettings, PluginSettings)[len(data) % 2]
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\n")]
    if not any("config" in word for word in words):
        _load(kind, words)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_bytes(data)
        _load(kind, [f"-config-file={file}"])


def _load(kind: type[DaemonSettings], words: list[str]) -> None:
    said = "settings"
    try:
        print_config(load(kind, words))
    except HelpRequested:
        said = "help"
    except UsageError as error:
        said = str(error)
    assert said
    assert said.isprintable()


def health(data: bytes) -> None:
    """Any message of XPU Manager 2.x gives verdicts on addresses, said in one line, or none."""
    try:
        message = xpumd.read(data, 1.0)
    except DecodeError:
        return
    for threshold in Threshold:
        once = evaluate(Health(), message, threshold.severity, 1)
        for address, gpu in once.gpus.items():
            assert PciAddress(address) == address
            assert bool(gpu.reason) is not gpu.healthy
            assert gpu.reason.isprintable()
            assert len(gpu.reason) <= 300
        assert evaluate(once, message, threshold.severity, 1) == once
        assert evaluate(once, Message(2.0), threshold.severity, 1).unhealthy == once.unhealthy
        assert not evaluate(Health(), message, threshold.severity, 2).unhealthy


_METHODS: tuple[tuple[str, Callable[[bytes], object]], ...] = (
    ("GetPreferredAllocation", pb.PreferredAllocationRequest.FromString),
    ("Allocate", pb.AllocateRequest.FromString),
    ("PreStartContainer", pb.PreStartContainerRequest.FromString),
    ("GetDevicePluginOptions", pb.Empty.FromString),
)
_REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}


def rpc(channel: grpc.Channel, data: bytes) -> None:
    """Any request is answered or refused; a sound one is answered right afterwards."""
    name, parse = _METHODS[(data[0] if data else 0) % len(_METHODS)]
    request = data[1:]
    try:
        _call(channel, name, request)
    except grpc.RpcError as error:
        code: Any = error.code()
        if code.name not in _REFUSALS:
            try:
                parse(request)
            except DecodeError:
                pass
            else:
                raise
    sound = pb.PreferredAllocationRequest()
    sound.container_requests.add(
        available_deviceIDs=[f"card{number}-0" for number in range(1, 9)], allocation_size=2
    )
    answer = _call(channel, "GetPreferredAllocation", sound.SerializeToString())
    preferred = pb.PreferredAllocationResponse.FromString(answer).container_responses[0]
    assert {*preferred.deviceIDs} == {"card2-0", "card7-0"}


def _call(channel: grpc.Channel, name: str, request: bytes) -> bytes:
    call = channel.unary_unary(f"/v1beta1.DevicePlugin/{name}", bytes, bytes)
    return bytes(call(request, timeout=PATIENCE))


@contextmanager
def serving_rpc() -> Iterator[Target]:
    """Serve a plugin of eight GPUs, 2 and 7 linked, 8 unhealthy, in a thread; give the target."""

    preferences = prepare(
        [GpuFacts(f"card{number}", bdf(number)) for number in range(1, 9)],
        {(bdf(2), bdf(7)): 8},
        clock=time.monotonic,
    )
    ill = {bdf(8): "memory is failed"}
    snapshot = node(8, lanes={(2, 7): 8}, unhealthy=ill, prefer=preferences.prefer)
    ready, done = threading.Event(), asyncio.Event()
    found: list[Served] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with served(snapshot) as given:
            found.append(given)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        with grpc.insecure_channel(found[0].address) as channel:
            yield partial(rpc, channel)
    finally:
        loops[0].call_soon_threadsafe(done.set)
        thread.join(PATIENCE)


def fabric(data: bytes) -> None:
    """Any frames are a fabric or refused; any dump proves links, or is unknown for a reason."""
    try:
        reply = wire.parse(data, 0x1F)
        for parsed in (replies.devices, replies.generation, replies.guid):
            parsed(reply)
        replies.ports(reply, reply, reply)
    except (MalformedFrameError, NetlinkError, replies.DriverError):
        pass
    try:
        dumped = dump.read(data.decode("ascii", "replace"))
    except dump.DumpError:
        return
    assert dump.read(dump.write(dumped)) == dumped
    source = DriverSource(
        lambda: Replay(dumped.frames),
        lambda: FabricNode(has_fabric=True, gpus=dumped.gpus),
        Rules(lane_count=1, allow_subdeviceless_links=True),
        seconds=60.0,
        sleep=lambda _: None,
        monotonic=Ticks(),
    )
    outcome = source.observe()
    if isinstance(outcome, ObservedLinks):
        _published(Publication(outcome.topology, NOW + timedelta(minutes=5)))
    else:
        assert outcome.detail


TARGETS: Mapping[str, Target] = {
    "fabric": fabric,
    "exposition": exposition,
    "labels": label_set,
    "features": feature_file,
    "settings": settings,
    "health": health,
}
RPC = "rpc"


@contextmanager
def target(name: str) -> Iterator[Target]:
    """Give a target by its name, with what it needs while the block runs."""
    if name == RPC:
        with serving_rpc() as found:
            yield found
    else:
        yield TARGETS[name]


def cases(name: str) -> Iterator[Path]:
    """Give the files of a target's corpus."""
    yield from sorted((CORPUS / name).iterdir())
