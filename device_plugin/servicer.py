"""The DevicePlugin service of one resource: RPCs and streams.

`responses` decides what is answered, `messages` makes protobuf of it, and `records` takes note of
it after the answer.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from structlog.typing import FilteringBoundLogger

from device_plugin import messages
from device_plugin.history import History
from device_plugin.limits import Limits
from device_plugin.records import REMEMBERED, GivenPreference, Records
from device_plugin.responses import (
    AdvertisedDevice,
    Container,
    InvalidRequestError,
    UnusableDeviceError,
    WrongPreferenceError,
    advertised,
    container,
    removed,
    require_answer,
    require_links,
    usable,
)
from device_plugin.snapshot import Resource, Snapshot
from device_plugin.telemetry import ServingTelemetry
from xelink.api import StatusCode
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginServicer
from xelink.daemon.polling import first_of
from xelink.daemon.watch import Watch
from xelink.daemon.worker_threads import NoThreadError, WorkerThreads
from xelink.inventory.workload_facts import WorkloadFacts, facts
from xelink.preference.decision import FALLBACK, Decision
from xelink.preference.shares import Preference, RequestError, fallback

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

Context: TypeAlias = "ServicerContext[Any, Any]"

# kubelet names each device once, and may remember some that an earlier instance advertised. A
# request that names far more is not kubelet's: it is answered, but not kept.
_MOST_KNOWN = 4
# Of too many requests one is logged, and the next one after so many seconds without any.
_QUIET = 10.0


@dataclass(frozen=True)
class ServingOptions:
    """How a resource is served.

    `prefers`: kubelet may ask for preferences, where a resource has them. `allocate_env` describes
    its GPUs to the workload in environment variables, too. `require_links` rejects a container's
    request for several GPUs that are known not to be all linked. A vanished device is reported as
    unhealthy for `removal_notice` seconds, or until the next change, before it is left out. kubelet
    follows a preference at once: what it allocates more than `memory` seconds later has nothing to
    do with it.

    A preference that takes longer than `timeout` seconds is an error, answered with a fallback. It
    must be longer than the time after which the search settles for the best set found, or that
    would be lost. At most `threads` slow preferences are searched for at the same time, those that
    hang included; further requests get a fallback at once.

    `limits` bound what one request may ask for, and how many are served at the same time.
    """

    prefers: bool = True
    allocate_env: bool = True
    require_links: bool = False
    removal_notice: float = 10.0
    memory: float = 10.0
    timeout: float = 2.0
    threads: int = 8
    limits: Limits = field(default_factory=Limits)


class _Given(NamedTuple):
    """What a container gets, how it is described to it, and the message with both."""

    container: Container
    facts: WorkloadFacts
    message: pb.ContainerAllocateResponse


def _no_preference(*_request: object) -> Decision:
    """Return the decision of a resource that has no preference of its own."""
    return Decision(FALLBACK)


class Plugin(DevicePluginServicer):
    """Serves one resource from the snapshots of `watch`, to any number of streams.

    `begun` counts all streams that were ever opened. `silent_since` is when the last one closed, by
    `clock`. `silent` is set when none is open; who waits for it clears it.
    """

    def __init__(
        self,
        resource: str,
        watch: Watch[Snapshot],
        telemetry: ServingTelemetry,
        log: FilteringBoundLogger,
        options: ServingOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self._watch = watch
        self._telemetry = telemetry
        self._log = log.bind(resource=resource)
        self._options = options or ServingOptions()
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._known: set[str] = set()
        self._given: dict[frozenset[str], _Given] = {}  # by the latest snapshot
        self._workers = WorkerThreads(self._options.threads)
        self._records = Records(resource, telemetry, self._log, self._options.memory, clock)
        self._ending = asyncio.Event()
        self._flooded_until = 0.0
        self._streams: set[object] = set()
        # Which resources a preference is asked for is fixed at registration.
        has_preference = watch.current.resource(resource).preference is not None
        self._prefers = self._options.prefers and has_preference
        self.begun = 0
        self.silent = asyncio.Event()
        self.silent_since = 0.0
        telemetry.begin(resource)

    @property
    def streams(self) -> int:
        """How many ListAndWatch streams are open."""
        return len(self._streams)

    @property
    def options(self) -> pb.DevicePluginOptions:
        """The optional parts of the API that are implemented."""
        return pb.DevicePluginOptions(get_preferred_allocation_available=self._prefers)

    @property
    def history(self) -> History:
        """The last preferences and allocations."""
        return self._records.history

    @property
    def limits(self) -> Limits:
        """Bounds of what may be asked."""
        return self._options.limits

    def end_streams(self) -> None:
        """End every open stream as finished; those that come later are not ended."""
        self._ending.set()
        self._ending = asyncio.Event()

    async def close(self, grace: float) -> None:
        """Finish what is still to be recorded, within `grace` seconds."""
        await self._records.close(grace)

    # The RPCs, named as in the API

    async def GetDevicePluginOptions(  # noqa: N802 - as the API names it
        self,
        request: pb.Empty,  # noqa: ARG002 - it is empty
        context: Context,  # noqa: ARG002 - needed by others
    ) -> pb.DevicePluginOptions:
        """Return that there is a preference, and nothing to do before a container starts."""
        return self.options

    async def ListAndWatch(  # noqa: N802 - as the API names it
        self,
        request: pb.Empty,  # noqa: ARG002 - it is empty
        context: Context,
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Report all devices at once, and again whenever they change."""
        with self._stream(context):
            async with aclosing(self._listings(self._ending)) as listings:
                async for devices in listings:
                    self._telemetry.advertised(self.resource, devices)
                    yield self._message(devices)

    async def GetPreferredAllocation(  # noqa: N802 - as the API names it
        self, request: pb.PreferredAllocationRequest, context: Context
    ) -> pb.PreferredAllocationResponse:
        """Prefer devices for each container; only a size that cannot be met is an error."""
        try:
            given = [
                await self._prefer(
                    (*asked.available_deviceIDs,),
                    (*asked.must_include_deviceIDs,),
                    asked.allocation_size,
                )
                for asked in request.container_requests
            ]
        except RequestError as error:
            await self._reject(context, "GetPreferredAllocation", error)
        most_ids = _MOST_KNOWN * len(self._known)
        asyncio.get_running_loop().call_soon(self._records.preferred, given, most_ids)
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(deviceIDs=one.preference.ids)
                for one in given
            ]
        )

    async def Allocate(  # noqa: N802 - as the API names it
        self, request: pb.AllocateRequest, context: Context
    ) -> pb.AllocateResponse:
        """Return what each container needs to use the devices that kubelet chose."""
        try:
            given = [
                self._give(frozenset(asked.devices_ids)) for asked in request.container_requests
            ]
        except (InvalidRequestError, UnusableDeviceError) as error:
            await self._reject(context, "Allocate", error)
        call_soon = asyncio.get_running_loop().call_soon
        for one in given:
            call_soon(self._records.allocated, one.container, one.facts)
        return pb.AllocateResponse(container_responses=[one.message for one in given])

    async def PreStartContainer(  # noqa: N802 - as the API names it
        self,
        request: pb.PreStartContainerRequest,  # noqa: ARG002 - nothing is done with it
        context: Context,  # noqa: ARG002 - needed by others
    ) -> pb.PreStartContainerResponse:
        """Do nothing: by the options it is not required."""
        return pb.PreStartContainerResponse()

    def rejected(self, rpc: str, code: str, reason: str) -> None:
        """Count a request that was rejected, and log it; of a flood, the first."""
        self._telemetry.rejected(self.resource, rpc, code)
        if code == StatusCode.RESOURCE_EXHAUSTED.name:
            now = asyncio.get_running_loop().time()
            flooded, self._flooded_until = now < self._flooded_until, now + _QUIET
            if flooded:
                return
        self._log.warning("request rejected", rpc=rpc, code=code, reason=reason)

    async def _reject(self, context: Context, rpc: str, error: Exception) -> NoReturn:
        unusable = isinstance(error, UnusableDeviceError)
        code = StatusCode.FAILED_PRECONDITION if unusable else StatusCode.INVALID_ARGUMENT
        self.rejected(rpc, code.name, str(error))
        await context.abort(code, str(error))

    # Streams

    @contextmanager
    def _stream(self, context: Context) -> Iterator[None]:
        self._streams.add(context)
        self.begun += 1
        self._telemetry.streaming(self.resource, self.streams)
        self._log.info("ListAndWatch stream opened", streams=self.streams)
        try:
            yield
        finally:
            self._streams.discard(context)
            self.silent_since = self._clock()
            if not self._streams:
                self.silent.set()
            self._telemetry.streaming(self.resource, self.streams)
            self._log.info("ListAndWatch stream closed", streams=self.streams)

    async def _listings(
        self, ending: asyncio.Event
    ) -> AsyncGenerator[tuple[AdvertisedDevice, ...], None]:
        sent: tuple[AdvertisedDevice, ...] | None = None
        there: tuple[AdvertisedDevice, ...] = ()
        while not ending.is_set():
            resource = self._current()
            snapshot = self._watch.current
            now = advertised(resource)
            gone = removed(there, now)
            if sent != (*now, *gone):
                yield (*now, *gone)
            there, sent = now, (*now, *gone)
            await first_of(
                self._watch.next(snapshot),
                ending.wait(),
                seconds=self._options.removal_notice if gone else None,
            )

    def _message(self, devices: Sequence[AdvertisedDevice]) -> pb.ListAndWatchResponse:
        message = messages.device_list(devices)
        if left_out := len(devices) - len(message.devices):
            self._log.error("too many devices for one message: share less", left_out=left_out)
        return message

    # Allocations and preferences

    def _current(self) -> Resource:
        """Return the resource as it is now, and remember the ids that kubelet may have heard of."""
        snapshot = self._watch.current
        resource = snapshot.resource(self.resource)
        if snapshot is not self._snapshot:
            self._known |= resource.positions.keys()
            self._given = {}
            self._snapshot = snapshot
        return resource

    def _give(self, ids: frozenset[str]) -> _Given:
        """Return a container's devices; those that were allocated before are as they were.

        Raises as `responses.container` and `responses.require_links` do.
        """
        resource = self._current()
        if ids in self._given:
            return self._given[ids]
        one = container(resource, (*ids,), self._known)
        if self._options.require_links and resource.links:
            require_links(resource.links, one.units)
        # All three forms are kept: to make them again would take most of an allocation's time.
        given = _Given(one, WorkloadFacts(), messages.allocation(one))
        with self._records.guarded("workload_facts"):
            described = facts(resource.links, one.units)
            given.message.MergeFrom(
                messages.workload_environment(described, with_env=self._options.allocate_env)
            )
            given = given._replace(facts=described)
            if len(self._given) < REMEMBERED:
                self._given[ids] = given
        return given

    async def _prefer(
        self, available: Sequence[str], must: Sequence[str], size: int
    ) -> GivenPreference:
        resource = self._current()
        candidates = usable(resource, available, must, size)
        clock = asyncio.get_running_loop().time
        start = clock()
        preference = await self._ask(resource, candidates, must, size)
        if preference.error:
            self._log.error("preference failed, using the fallback", error=preference.error)
        seconds = clock() - start
        decide = resource.preference.decide if resource.preference else _no_preference
        return GivenPreference(preference, seconds, partial(decide, preference), available, must)

    async def _ask(
        self, resource: Resource, available: Sequence[str], must: Sequence[str], size: int
    ) -> Preference:
        """Ask for a preference; whatever becomes of it, kubelet gets an answer.

        This is the one place where an error of the preference ends. Raises `RequestError` for a
        request that cannot be met.
        """
        if resource.preference is None:
            return fallback(available, must, size)
        prefer = partial(resource.preference.prefer, available, must, size)
        try:
            if resource.preference.quick:
                preference = prefer()
            else:
                # Whatever becomes of it, the end of the process does not wait for it.
                async with asyncio.timeout(self._options.timeout):
                    preference = await self._workers.run(prefer)
            require_answer(preference, available, must, size)
        except NoThreadError:
            problem = f"{self._options.threads} others are still being searched for: do they hang?"
        except TimeoutError:
            problem = f"nothing was found in {self._options.timeout} s"
        except WrongPreferenceError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            problem = f"{type(error).__name__}: {error}"
        else:
            return preference
        return fallback(available, must, size)._replace(error=problem)
