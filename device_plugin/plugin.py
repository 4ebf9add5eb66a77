"""The DevicePlugin service of one resource: translates between kubelet's messages and answers.

`answers` and `allocation` decide; here are the messages, the streams and the account of what
kubelet did with our preference.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from grpc import StatusCode
from structlog.typing import FilteringBoundLogger

from device_plugin import messages
from device_plugin.allocation import Preference, RequestError, plain
from device_plugin.answers import (
    Choice,
    Container,
    Facts,
    MalformedError,
    Told,
    UnusableError,
    container,
    facts,
    farewell,
    fault,
    listing,
    offered,
)
from device_plugin.api import deviceplugin_pb2 as pb
from device_plugin.api.deviceplugin_pb2_grpc import DevicePluginServicer
from device_plugin.aside import aside
from device_plugin.snapshot import Snapshot, Watch
from device_plugin.telemetry import Telemetry
from device_plugin.waiting import first_of

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

Context: TypeAlias = "ServicerContext[Any, Any]"

_REMEMBERED = 64  # preferences that kubelet has not followed or passed over yet


@dataclass(frozen=True)
class Manners:
    """How a resource is served.

    `prefers` offers kubelet a preference, for resources of single GPUs. `allocate_env` gives the
    workload its facts as environment variables, too. A vanished device is unhealthy for `farewell`
    seconds, or until the next change, before it is left out. kubelet follows a preference at once:
    what it allocates more than `memory` seconds later has nothing to do with it.

    A preference that takes longer than `patience` seconds is a fault, answered with a plain choice.
    Give more than the time after which a preference settles for the best that it has found, or that
    would be lost.
    """

    prefers: bool = True
    allocate_env: bool = True
    farewell: float = 10.0
    memory: float = 10.0
    patience: float = 2.0


class _Preferred(NamedTuple):
    """A preference that kubelet was given, and of what."""

    ids: frozenset[str]
    available: frozenset[str]
    until: float


class Plugin(DevicePluginServicer):
    """Serves one resource from the snapshots of `watch`, to any number of streams.

    `silent_since` is when the last stream ended, by the clock of the loop.
    """

    def __init__(
        self,
        resource: str,
        watch: Watch[Snapshot],
        telemetry: Telemetry,
        log: FilteringBoundLogger,
        manners: Manners | None = None,
    ) -> None:
        self.resource = resource
        self._watch = watch
        self._telemetry = telemetry
        self._log = log.bind(resource=resource)
        self._manners = manners or Manners()
        self._seen: Snapshot | None = None
        self._known: set[str] = set()
        self._preferred: deque[_Preferred] = deque(maxlen=_REMEMBERED)
        self._ending = asyncio.Event()
        self._streams: set[object] = set()
        # Which resources a preference is asked for is fixed at registration.
        self._prefers = self._manners.prefers and any(
            device.card for device in watch.current.devices(resource)
        )
        self.silent_since = 0.0
        telemetry.begin(resource)

    @property
    def streams(self) -> int:
        """How many ListAndWatch streams are open."""
        return len(self._streams)

    @property
    def options(self) -> pb.DevicePluginOptions:
        """What of the API we take part in."""
        return pb.DevicePluginOptions(get_preferred_allocation_available=self._prefers)

    def end_streams(self) -> None:
        """End every open stream as finished; those that come later are not ended."""
        self._ending.set()
        self._ending = asyncio.Event()

    # The RPCs, named as in the API

    async def GetDevicePluginOptions(  # noqa: N802 - as the API names it
        self,
        request: pb.Empty,  # noqa: ARG002 - says nothing
        context: Context,  # noqa: ARG002 - needed by others
    ) -> pb.DevicePluginOptions:
        """Say that there is a preference, and nothing to do before a container starts."""
        return self.options

    async def ListAndWatch(  # noqa: N802 - as the API names it
        self,
        request: pb.Empty,  # noqa: ARG002 - says nothing
        context: Context,
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Tell all devices at once, and again whenever they change."""
        with self._stream(context):
            async with aclosing(self._listings(self._ending)) as listings:
                async for told in listings:
                    self._telemetry.told(self.resource, told)
                    yield self._message(told)

    async def GetPreferredAllocation(  # noqa: N802 - as the API names it
        self, request: pb.PreferredAllocationRequest, context: Context
    ) -> pb.PreferredAllocationResponse:
        """Prefer devices for each container; only a size that cannot be met is an error."""
        try:
            chosen = [
                await self._prefer(
                    (*asked.available_deviceIDs,),
                    (*asked.must_include_deviceIDs,),
                    asked.allocation_size,
                )
                for asked in request.container_requests
            ]
        except RequestError as error:
            await self._refuse(context, "GetPreferredAllocation", error)
        until = asyncio.get_running_loop().time() + self._manners.memory
        for asked, preference in zip(request.container_requests, chosen, strict=True):
            available = frozenset((*asked.available_deviceIDs, *asked.must_include_deviceIDs))
            self._preferred.append(_Preferred(frozenset(preference.ids), available, until))
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(deviceIDs=preference.ids)
                for preference in chosen
            ]
        )

    async def Allocate(  # noqa: N802 - as the API names it
        self, request: pb.AllocateRequest, context: Context
    ) -> pb.AllocateResponse:
        """Give each container what it needs to use the devices that kubelet chose."""
        snapshot, known = self._look()
        try:
            given = [
                container(snapshot, self.resource, asked.devices_ids, known)
                for asked in request.container_requests
            ]
        except (MalformedError, UnusableError) as error:
            await self._refuse(context, "Allocate", error)
        told = [messages.allocation(one) for one in given]
        for one, message in zip(given, told, strict=True):
            known_of_it = Facts()
            with self._spared("facts"):
                known_of_it = facts(snapshot, one.gpus)
                message.MergeFrom(
                    messages.account(known_of_it, with_env=self._manners.allocate_env)
                )
            with self._spared("account"):
                self._account(one, known_of_it)
        return pb.AllocateResponse(container_responses=told)

    async def PreStartContainer(  # noqa: N802 - as the API names it
        self,
        request: pb.PreStartContainerRequest,  # noqa: ARG002 - nothing is done with it
        context: Context,  # noqa: ARG002 - needed by others
    ) -> pb.PreStartContainerResponse:
        """Do nothing: the options say that it is not required."""
        return pb.PreStartContainerResponse()

    # Streams

    @contextmanager
    def _stream(self, context: Context) -> Iterator[None]:
        self._streams.add(context)
        self._telemetry.streaming(self.resource, self.streams)
        self._log.info("kubelet listens", streams=self.streams)
        try:
            yield
        finally:
            self._streams.discard(context)
            self.silent_since = asyncio.get_running_loop().time()
            self._telemetry.streaming(self.resource, self.streams)
            self._log.info("kubelet listens no longer", streams=self.streams)

    async def _listings(self, ending: asyncio.Event) -> AsyncGenerator[tuple[Told, ...], None]:
        sent: tuple[Told, ...] | None = None
        there: tuple[Told, ...] = ()
        while not ending.is_set():
            snapshot, _ = self._look()
            now = listing(snapshot, self.resource)
            gone = farewell(there, now)
            if sent != (*now, *gone):
                yield (*now, *gone)
            there, sent = now, (*now, *gone)
            await first_of(
                self._watch.next(snapshot),
                ending.wait(),
                seconds=self._manners.farewell if gone else None,
            )

    def _message(self, told: Sequence[Told]) -> pb.ListAndWatchResponse:
        message = messages.device_list(told)
        if left_out := len(told) - len(message.devices):
            self._log.error("too many devices for one message: share less", left_out=left_out)
        return message

    # Preferences and allocations

    def _look(self) -> tuple[Snapshot, set[str]]:
        """Read the snapshot, and remember the ids that kubelet may have heard of."""
        snapshot = self._watch.current
        if snapshot is not self._seen:
            self._known |= snapshot.places(self.resource).keys()
            self._seen = snapshot
        return snapshot, self._known

    async def _prefer(self, available: Sequence[str], must: Sequence[str], size: int) -> Preference:
        snapshot, _ = self._look()
        usable = offered(snapshot, self.resource, available, must, size)
        clock = asyncio.get_running_loop().time
        start = clock()
        preference = await self._ask(snapshot, usable, must, size)
        if preference.fault:
            self._log.error("no preference: a plain choice instead", fault=preference.fault)
        self._telemetry.preferred(self.resource, preference, clock() - start)
        return preference

    async def _ask(
        self, snapshot: Snapshot, available: Sequence[str], must: Sequence[str], size: int
    ) -> Preference:
        prefer = snapshot.prefer.get(self.resource)
        if prefer is None:
            return plain(available, must, size)
        try:
            if self.resource in snapshot.quick:
                preference = prefer(available, must, size)
            else:
                # Whatever becomes of it, the end of the process does not wait for it.
                async with asyncio.timeout(self._manners.patience):
                    preference = await aside(partial(prefer, available, must, size))
            problem = preference.fault or fault(preference, available, must, size)
        except TimeoutError:
            problem = f"nothing was found in {self._manners.patience} s"
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            problem = f"{type(error).__name__}: {error}"
        else:
            if not problem:
                return preference
        # Raises `RequestError` where nobody could meet the request.
        return plain(available, must, size)._replace(fault=problem)

    @contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Let no fault in what is but told fail a Pod that can have its devices."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            self._telemetry.lost(self.resource, what)
            self._log.error(f"allocated without {what}", fault=f"{type(error).__name__}: {error}")

    def _account(self, given: Container, told: Facts) -> None:
        choice = self._choice(frozenset(given.ids))
        self._telemetry.allocated(self.resource, told.linked, choice)
        self._log.info(
            "allocated",
            devices=" ".join(given.ids),
            gpus=" ".join(given.gpus),
            linked=told.linked.value,
            choice=choice.value,
        )

    def _choice(self, ids: frozenset[str]) -> Choice:
        now = asyncio.get_running_loop().time()
        while self._preferred and self._preferred[0].until <= now:
            self._preferred.popleft()
        asked = [
            one for one in self._preferred if len(one.ids) == len(ids) and ids <= one.available
        ]
        if not asked:
            return Choice.UNASKED
        followed = [one for one in asked if one.ids == ids]
        self._preferred.remove((followed or asked)[-1])
        return Choice.PREFERRED if followed else Choice.OTHER

    async def _refuse(self, context: Context, rpc: str, error: Exception) -> NoReturn:
        unusable = isinstance(error, UnusableError)
        code = StatusCode.FAILED_PRECONDITION if unusable else StatusCode.INVALID_ARGUMENT
        self._telemetry.refused(self.resource, rpc, code.name)
        self._log.warning("refused", rpc=rpc, code=code.name, reason=str(error))
        await context.abort(code, str(error))
