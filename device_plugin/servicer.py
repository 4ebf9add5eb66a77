"""The DevicePlugin service of one resource: translates between kubelet's messages and answers.

`responses` and the preference decide; here are the messages, the streams and the account of what
kubelet did with our preference.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from structlog.typing import FilteringBoundLogger

from device_plugin import messages
from device_plugin.deferred import Journal
from device_plugin.history import Allocated, History, Preferred
from device_plugin.limits import Limits
from device_plugin.responses import (
    Choice,
    Container,
    MalformedError,
    Told,
    UnusableError,
    WrongPreferenceError,
    container,
    farewell,
    listing,
    offered,
    require_answer,
    require_links,
)
from device_plugin.snapshot import Snapshot
from device_plugin.telemetry import Telemetry
from xelink.api import StatusCode
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginServicer
from xelink.daemon.polling import first_of
from xelink.daemon.watch import Watch
from xelink.daemon.worker_threads import Asides, NoRoomError
from xelink.inventory.workload_facts import Facts, facts
from xelink.preference.decision import PLAIN, UNKNOWN, Decision
from xelink.preference.shares import Preference, RequestError, plain

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

Context: TypeAlias = "ServicerContext[Any, Any]"

_UNDECIDED = Decision(UNKNOWN)
_REMEMBERED = 64  # preferences that kubelet has not followed or passed over yet, and sets given
# kubelet names each device once, and may remember some of an instance before us; a request that
# names far more is no kubelet's, and is answered, but not kept
_OLDER_TOO = 4
# Of requests that are too many, one is told of, and the next one after so many seconds without any
_QUIET = 10.0


@dataclass(frozen=True)
class Manners:
    """How a resource is served.

    `prefers` offers kubelet a preference, for resources of single GPUs. `allocate_env` gives the
    workload its facts as environment variables, too. `require_links` refuses a container several
    GPUs that are known not to be all linked. A vanished device is unhealthy for `farewell`
    seconds, or until the next change, before it is left out. kubelet follows a preference at once:
    what it allocates more than `memory` seconds later has nothing to do with it.

    A preference that takes longer than `patience` seconds is a fault, answered with a plain choice.
    Give more than the time after which a preference settles for the best that it has found, or that
    would be lost. Of those that take long at most `threads` are looked for at the same time, those
    that hang included: what is asked for beyond them gets a plain choice at once.

    `limits` bound what may be asked in one request, and at the same time.
    """

    prefers: bool = True
    allocate_env: bool = True
    require_links: bool = False
    farewell: float = 10.0
    memory: float = 10.0
    patience: float = 2.0
    threads: int = 8
    limits: Limits = field(default_factory=Limits)


class _Given(NamedTuple):
    """What a container is given, what is told of it, and the message that says both."""

    container: Container
    facts: Facts
    message: pb.ContainerAllocateResponse


@dataclass(eq=False)
class _Preferred:
    """A preference that kubelet was given, of what, and what decided it, as soon as that is known.

    `account` finds that out; it takes its time.
    """

    preference: Preference
    seconds: float
    account: Callable[[], Decision]
    available: Sequence[str]
    must: Sequence[str]
    at: float = 0.0
    until: float = 0.0
    decision: Decision = _UNDECIDED

    def could_be(self, ids: frozenset[str]) -> bool:
        """Tell whether kubelet may have asked for this preference to allocate these devices."""
        return len(self.preference.ids) == len(ids) and ids <= {*self.available, *self.must}


def _remembered(one: _Preferred) -> Preferred:
    preference = one.preference
    return Preferred(
        at=one.at,
        size=len(preference.ids),
        available=len(one.available),
        must=one.must,
        chosen=preference.ids,
        decision=one.decision,
        proven=preference.proven and not preference.fault,
        fault=preference.fault,
        seconds=one.seconds,
    )


def _plainly(*_request: object) -> Decision:
    """Decide as a resource does that has no preference of its own."""
    return Decision(PLAIN)


class Plugin(DevicePluginServicer):
    """Serves one resource from the snapshots of `watch`, to any number of streams.

    `begun` counts the streams that ever were. `silent_since` is when the last stream ended, by
    `clock`. `silent` is set when none is left; who waits for that clears it. `history` is
    what it did last.
    """

    def __init__(
        self,
        resource: str,
        watch: Watch[Snapshot],
        telemetry: Telemetry,
        log: FilteringBoundLogger,
        manners: Manners | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self._watch = watch
        self._telemetry = telemetry
        self._log = log.bind(resource=resource)
        self._manners = manners or Manners()
        self._clock = clock
        self._seen: Snapshot | None = None
        self._known: set[str] = set()
        self._given: dict[frozenset[str], _Given] = {}  # in the snapshot that was seen last
        self._preferred: deque[_Preferred] = deque(maxlen=_REMEMBERED)
        self._asides = Asides(self._manners.threads)
        self._journal = Journal()
        self._ending = asyncio.Event()
        self._flooded_until = 0.0
        self._streams: set[object] = set()
        # Which resources a preference is asked for is fixed at registration.
        self._prefers = self._manners.prefers and any(
            device.card for device in watch.current.devices(resource)
        )
        self.begun = 0
        self.silent = asyncio.Event()
        self.silent_since = 0.0
        self.history = History()
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

    @property
    def limits(self) -> Limits:
        """How much may be asked of it."""
        return self._manners.limits

    async def close(self, patience: float) -> None:
        """Write down what is still to be told, but within so many seconds."""
        await self._journal.close(patience)

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
        asyncio.get_running_loop().call_soon(self._note, chosen)
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(deviceIDs=one.preference.ids)
                for one in chosen
            ]
        )

    async def Allocate(  # noqa: N802 - as the API names it
        self, request: pb.AllocateRequest, context: Context
    ) -> pb.AllocateResponse:
        """Give each container what it needs to use the devices that kubelet chose."""
        try:
            given = [
                self._give(frozenset(asked.devices_ids)) for asked in request.container_requests
            ]
        except (MalformedError, UnusableError) as error:
            await self._refuse(context, "Allocate", error)
        call_soon = asyncio.get_running_loop().call_soon
        for one in given:
            call_soon(self._account, one.container, one.facts)
        return pb.AllocateResponse(container_responses=[one.message for one in given])

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
        self.begun += 1
        self._telemetry.streaming(self.resource, self.streams)
        self._log.info("kubelet listens", streams=self.streams)
        try:
            yield
        finally:
            self._streams.discard(context)
            self.silent_since = self._clock()
            if not self._streams:
                self.silent.set()
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

    def _give(self, ids: frozenset[str]) -> _Given:
        """Give devices to a container; those that were given before are given as they were.

        Raises as `responses.container` and `responses.require_links` do.
        """
        snapshot, known = self._look()
        if ids in self._given:
            return self._given[ids]
        one = container(snapshot, self.resource, (*ids,), known)
        if self._manners.require_links:
            require_links(snapshot.links, one.gpus)
        given = _Given(one, Facts(), messages.allocation(one))
        with self._spared("facts"):
            told = facts(snapshot.links, one.gpus)
            account = messages.account(told, with_env=self._manners.allocate_env)
            given.message.MergeFrom(account)
            given = given._replace(facts=told)
            if len(self._given) < _REMEMBERED:
                self._given[ids] = given
        return given

    def _look(self) -> tuple[Snapshot, set[str]]:
        """Read the snapshot, and remember the ids that kubelet may have heard of."""
        snapshot = self._watch.current
        if snapshot is not self._seen:
            self._known |= snapshot.places(self.resource).keys()
            self._given = {}
            self._seen = snapshot
        return snapshot, self._known

    async def _prefer(self, available: Sequence[str], must: Sequence[str], size: int) -> _Preferred:
        snapshot, _ = self._look()
        usable = offered(snapshot, self.resource, available, must, size)
        clock = asyncio.get_running_loop().time
        start = clock()
        preference = await self._ask(snapshot, usable, must, size)
        if preference.fault:
            self._log.error("no preference: a plain choice instead", fault=preference.fault)
        seconds = clock() - start
        decide = snapshot.decide.get(self.resource, _plainly)
        return _Preferred(preference, seconds, partial(decide, preference), available, must)

    async def _ask(
        self, snapshot: Snapshot, available: Sequence[str], must: Sequence[str], size: int
    ) -> Preference:
        """Ask for a preference; whatever becomes of it, kubelet gets an answer.

        This is the one place where a fault of the preference ends. Raises `RequestError` for a
        request that nobody could meet.
        """
        prefer = snapshot.prefer.get(self.resource)
        if prefer is None:
            return plain(available, must, size)
        try:
            if self.resource in snapshot.quick:
                preference = prefer(available, must, size)
            else:
                # Whatever becomes of it, the end of the process does not wait for it.
                async with asyncio.timeout(self._manners.patience):
                    preference = await self._asides.run(partial(prefer, available, must, size))
            require_answer(preference, available, must, size)
        except NoRoomError:
            problem = f"{self._manners.threads} others are still looked for: do they hang?"
        except TimeoutError:
            problem = f"nothing was found in {self._manners.patience} s"
        except WrongPreferenceError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            problem = f"{type(error).__name__}: {error}"
        else:
            return preference
        return plain(available, must, size)._replace(fault=problem)

    # What is told of them, once the answer is on its way; beside the loop, where it takes a while

    @contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Let no fault in what is but told fail a Pod that can have its devices."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, kubelet is owed an answer
            self._telemetry.lost(self.resource, what)
            done = "preferred" if what == "decision" else "allocated"
            self._log.error(f"{done} without {what}", fault=f"{type(error).__name__}: {error}")

    def _later(self, what: str, work: Callable[[], None]) -> None:
        """Do work after the answer, in order; it is lost when too much waits, or to a fault."""

        def spared() -> None:
            with self._spared(what):
                work()

        if not self._journal.add(spared):
            self._telemetry.lost(self.resource, what)

    def _note(self, chosen: Sequence[_Preferred]) -> None:
        at, until = time.time(), self._clock() + self._manners.memory
        for one in chosen:
            one.at, one.until = at, until
            with self._spared("decision"):
                self._telemetry.preferred(self.resource, one.preference, one.seconds)
                if len(one.available) + len(one.must) <= _OLDER_TOO * len(self._known):
                    self._preferred.append(one)
                    self._later("decision", partial(self._decide, one))

    def _decide(self, one: _Preferred) -> None:
        try:
            one.decision = one.account()
        finally:
            self.history.prefer(_remembered(one))
        self._telemetry.decided(self.resource, one.decision.wish)
        self._log.debug(
            "preferred",
            devices=" ".join(one.preference.ids),
            decided=one.decision.wish,
            runner_up=" ".join(one.decision.runner_up),
        )

    def _account(self, given: Container, told: Facts) -> None:
        with self._spared("account"):
            choice, asked = self._choice(frozenset(given.ids))
            self._telemetry.allocated(self.resource, told.linked, choice)
            done = Allocated(time.time(), given.ids, given.gpus, told.linked, choice)
            self._later("account", partial(self._say, done, asked))

    def _say(self, done: Allocated, asked: _Preferred | None) -> None:
        """Tell of an allocation: by now it is known what decided."""
        self.history.allocate(done)
        decision = {}
        if asked:
            decision = {"decided": asked.decision.wish}
            if asked.decision.runner_up:
                decision["runner_up"] = " ".join(asked.decision.runner_up)
        self._log.info(
            "allocated",
            devices=" ".join(done.ids),
            gpus=" ".join(done.gpus),
            linked=done.linked.value,
            choice=done.choice.value,
            **decision,
        )

    def _choice(self, ids: frozenset[str]) -> tuple[Choice, _Preferred | None]:
        """Tell what became of a preference, and of which."""
        now = self._clock()
        while self._preferred and self._preferred[0].until <= now:
            self._preferred.popleft()
        asked = [one for one in self._preferred if one.could_be(ids)]
        if not asked:
            return Choice.UNASKED, None
        followed = [one for one in asked if ids == {*one.preference.ids}]
        one = (followed or asked)[-1]
        self._preferred.remove(one)
        return Choice.PREFERRED if followed else Choice.OTHER, one

    async def _refuse(self, context: Context, rpc: str, error: Exception) -> NoReturn:
        unusable = isinstance(error, UnusableError)
        code = StatusCode.FAILED_PRECONDITION if unusable else StatusCode.INVALID_ARGUMENT
        self.refused(rpc, code.name, str(error))
        await context.abort(code, str(error))

    def refused(self, rpc: str, code: str, reason: str) -> None:
        """Count a request that was refused, and say so; of a flood, the first."""
        self._telemetry.refused(self.resource, rpc, code)
        if code == StatusCode.RESOURCE_EXHAUSTED.name:
            now = asyncio.get_running_loop().time()
            flooded, self._flooded_until = now < self._flooded_until, now + _QUIET
            if flooded:
                return
        self._log.warning("refused", rpc=rpc, code=code, reason=reason)
