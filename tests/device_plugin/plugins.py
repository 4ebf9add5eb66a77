"""Devices, snapshots and running plugins for the tests of kubelet's side."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from structlog.typing import FilteringBoundLogger, Processor

from device_plugin.endpoints import Endpoints, Timings
from device_plugin.grpc_handlers import handlers, options
from device_plugin.resources import Device
from device_plugin.servicer import Plugin, ServingOptions
from device_plugin.snapshot import DevicePreference, Prefer, Resource, Snapshot
from device_plugin.telemetry import ServingTelemetry
from tests.device_plugin.events import HeardLogs, HeardTelemetry
from tests.patience import PATIENCE
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.daemon.metrics import Metrics
from xelink.daemon.watch import Watch
from xelink.inventory.cdi import qualified_name
from xelink.inventory.devfs import DeviceNode, Mount
from xelink.inventory.gpus import Card
from xelink.inventory.links import UNREAD, NodeLinks, pair
from xelink.nfd.reader import FileState
from xelink.preference.decision import FALLBACK, Decision
from xelink.preference.shares import fallback

if TYPE_CHECKING:
    from xelink.api.deviceplugin_pb2_grpc import DevicePluginAsyncStub

I915 = "gpu.intel.com/i915"
MONITORING = "gpu.intel.com/monitoring"
# A look is soon over; whatever else has a time is told apart from what takes long by never coming.
FAST = Timings(
    poll=0.02,
    connected_poll=0.02,
    stream_timeout=3600.0,
    rpc_timeout=PATIENCE,
    max_backoff=0.1,
    grace=0.5,
)


def quicken(timings: Timings | ServingOptions, **changes: float) -> None:
    """Let a plugin that runs with these times go on with others."""
    for name, seconds in changes.items():
        object.__setattr__(timings, name, seconds)  # frozen, and read anew each time


def bdf(number: int) -> str:
    return f"0000:{number:02x}:00.0"


def card(number: int, numa: int | None = None, missing: tuple[str, ...] = ()) -> Card:
    """Return card N at bus N, so that test data can be read."""
    render = f"/dev/dri/renderD{128 + number}"
    return Card(
        name=f"card{number}",
        bdf=bdf(number),
        driver="i915",
        device_id=0x0BD5,
        numa=numa,
        nodes=tuple(
            DeviceNode(path, f"/host{path}") for path in (f"/dev/dri/card{number}", render)
        ),
        missing=missing,
        by_path=(Mount(f"/dev/dri/by-path/pci-{bdf(number)}-card", f"/host/{number}"),),
    )


def shares(
    one: Card, shared: int = 1, complaint: str | None = None, *, cdi: bool = False
) -> tuple[Device, ...]:
    return tuple(
        Device(
            f"{one.name}-{share}",
            one.nodes,
            one.by_path,
            one.numa,
            one.bdf,
            qualified_name(one) if cdi else "",
            complaint or one.complaint,
        )
        for share in range(shared)
    )


def node(
    cards: Iterable[Card] | int = 4,
    shared: int = 1,
    *,
    lanes: Mapping[tuple[int, int], int] | None = None,
    unhealthy: Mapping[str, str] | None = None,
    prefer: Prefer | None = None,
    cdi: bool = False,
) -> Snapshot:
    """Return a snapshot of one resource; `lanes` by the numbers of the cards."""
    every = [card(number) for number in range(1, cards + 1)] if isinstance(cards, int) else [*cards]
    links = UNREAD
    if lanes is not None:
        widths = {pair(bdf(one), bdf(other)): width for (one, other), width in lanes.items()}
        links = NodeLinks(FileState.IN_USE, lanes=widths)
    devices = tuple(
        device
        for one in every
        for device in shares(one, shared, (unhealthy or {}).get(one.bdf), cdi=cdi)
    )
    preference = DevicePreference(prefer or fallback, no_decision) if devices else None
    return Snapshot({I915: Resource(I915, devices, preference, links)})


def no_decision(*_: object) -> Decision:
    return Decision(FALLBACK)


def changed(snapshot: Snapshot, **changes: Any) -> Snapshot:  # noqa: ANN401 - fields of `Resource`
    """Return the snapshot with its one resource changed."""
    return Snapshot({I915: replace(snapshot.resource(I915), **changes)})


def preferring(snapshot: Snapshot, **changes: Any) -> Snapshot:  # noqa: ANN401 - fields of `DevicePreference`
    """Return the snapshot with the preference of its one resource changed."""
    preference = snapshot.resource(I915).preference
    assert preference
    return changed(snapshot, preference=replace(preference, **changes))


@contextmanager
def directory() -> Iterator[Path]:
    """Make a directory with a short name: paths of sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="x") as path:
        yield Path(path)


@dataclass
class Account:
    """The log and the metrics of a plugin; `processors` see what is logged first."""

    logs: HeardLogs = field(default_factory=HeardLogs)
    processors: list[Processor] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics("xelink_device_plugin"))
    telemetry_type: type[ServingTelemetry] = HeardTelemetry
    log: FilteringBoundLogger = field(init=False)
    telemetry: ServingTelemetry = field(init=False)

    def __post_init__(self) -> None:
        self.processors.append(self.logs)
        self.log = structlog.wrap_logger(None, processors=self.processors)
        self.telemetry = self.telemetry_type(self.metrics)

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.logs.entries if entry["event"] == name]

    def count(self, name: str, **labels: str) -> float:
        labels = {"resource": I915, **labels}
        return self.metrics.registry.get_sample_value(f"xelink_device_plugin_{name}", labels) or 0.0


@dataclass
class Running(Account):
    """A plugin that serves and registers."""

    watch: Watch[Snapshot] = field(default_factory=lambda: Watch(Snapshot()))
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] = field(init=False)
    endpoints: Endpoints = field(init=False)

    async def ended(self) -> None:
        """Ask for the end, and wait for it."""
        self.stop.set()
        await asyncio.wait_for(self.task, PATIENCE)


@asynccontextmanager
async def running(  # noqa: PLR0913 - what differs between two plugins has names
    path: Path,
    snapshot: Snapshot | None = None,
    *,
    suffix: str = "",
    serving: ServingOptions | None = None,
    timings: Timings = FAST,
    telemetry: type[ServingTelemetry] = HeardTelemetry,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Running]:
    """Run the endpoints of a snapshot until the block ends."""
    run = Running(telemetry_type=telemetry, watch=Watch(snapshot or node()))
    run.endpoints = Endpoints(
        run.watch,
        run.telemetry,
        run.log,
        directory=path,
        suffix=suffix,
        serving=serving,
        timings=timings,
        clock=clock,
    )
    run.task = asyncio.create_task(run.endpoints.run(run.stop))
    try:
        yield run
    finally:
        await run.ended()


@dataclass
class Served(Account):
    """One Plugin behind a server, without kubelet."""

    plugin: Plugin = field(init=False)
    watch: Watch[Snapshot] = field(default_factory=lambda: Watch(Snapshot()))
    stub: "DevicePluginAsyncStub" = field(init=False)
    address: str = ""
    serving: ServingOptions = field(default_factory=ServingOptions)


@asynccontextmanager
async def served(
    snapshot: Snapshot, serving: ServingOptions | None = None
) -> AsyncIterator[Served]:
    """Serve one resource of a snapshot on a socket, and dial it."""
    with directory() as path:
        given = Served(
            watch=Watch(snapshot),
            address=f"unix:{path}/plugin.sock",
            serving=serving or ServingOptions(),
        )
        given.plugin = Plugin(I915, given.watch, given.telemetry, given.log, given.serving)
        limits = given.plugin.limits
        server = grpc.aio.server(options=options(limits))
        server.add_generic_rpc_handlers((handlers(given.plugin, given.plugin.rejected, limits),))
        server.add_insecure_port(given.address)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(given.address) as channel:
                given.stub = DevicePluginStub(channel)
                yield given
        finally:
            given.plugin.end_streams()
            await server.stop(1)
            await given.plugin.close(1)
