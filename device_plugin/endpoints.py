"""kubelet's side: serve every resource on a socket, register it, and stay registered.

Each resource has a server and a life of its own:

    serve -> wait for kubelet.sock -> register -> watch -+-> register again (kubelet.sock is new,
      ^                                                  |   or kubelet hung up, or never listened)
      +---------------- our socket is gone --------------+

Sockets are looked at once in a while instead of being watched: two calls of `lstat` cost nothing,
see every kind of mount, and cannot miss an event. The end of a stream is heard at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from device_plugin.grpc_handlers import handlers, options
from device_plugin.registration import (
    ConnectedAlreadyError,
    Registration,
    RegistrationError,
    register,
    until_accepted,
)
from device_plugin.servicer import Manners, Plugin
from device_plugin.snapshot import Snapshot
from device_plugin.telemetry import Telemetry
from xelink.api import grpc
from xelink.daemon.logs import Changes
from xelink.daemon.polling import first_of, until
from xelink.daemon.watch import Watch
from xelink.kubelet import sockets
from xelink.kubelet.sockets import (
    Held,
    Identity,
    SocketError,
    SocketTakenError,
    SocketWipedError,
    UncertainError,
)


@dataclass(frozen=True)
class Pace:
    """Seconds: how long what takes.

    `look` lies between two looks at the sockets, `calm` while kubelet listens: where it ends or
    begins anew, its streams end first. When a kubelet that lives hangs up, we register
    again after `again`, and after twice as long each time, until a registration has held for
    `lost`. After `lost` without a stream, since it ended or since we registered, we register again
    in any case. `patience` is for one attempt, `longest` the longest pause between two. `grace` is
    for RPCs that are under way when a server ends.

    `again` is not 0: kubelet hangs up first and calls the resource's devices unhealthy next. Those
    of a plugin that was back in between would stay unhealthy, though kubelet listens to it.
    """

    look: float = 0.25
    calm: float = 1.0
    again: float = 0.1
    lost: float = 10.0
    patience: float = 15.0
    longest: float = 30.0
    grace: float = 0.5


class Endpoint:
    """One resource: its server, its socket, its registration.

    `path` is where its socket stands, beside kubelet's own. `known` says whether kubelet knows the
    resource, as far as we can tell, and `since` when that began, in seconds since 1970; 0 while it
    does not. `trouble` is why it could not be served or registered last, empty once that is over.
    `served` says that sockets have worked here before: what goes wrong from then on may pass.
    """

    def __init__(
        self,
        plugin: Plugin,
        path: Path,
        telemetry: Telemetry,
        log: FilteringBoundLogger,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self.plugin = plugin
        self.path = path
        self.known = False
        self.since = 0.0
        self.trouble = ""
        self.served = False
        self._kubelet = path.with_name(sockets.KUBELET)
        self._telemetry = telemetry
        self._log = log.bind(resource=plugin.resource)
        self._pace = pace
        self._clock = clock
        self._own: Identity | None = None
        self._registered_at = 0.0
        self._begun_before = 0  # streams, when we registered
        self._pause = pace.again  # before we register again, when kubelet hangs up soon
        self._changes = Changes()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve and stay registered until `stop` is set.

        Raises `SocketError` when there is no socket to serve on at first, later only
        `SocketTakenError`.
        """
        dead = sockets.remove_dead(self.path.parent, self.plugin.resource)
        if dead:
            self._log.info("removed sockets that were left behind", sockets=" ".join(dead))
        pause = self._pace.look
        while not stop.is_set():
            try:
                async with self._serving():
                    self.served = True
                    pause = self._pace.look
                    await self._stay_registered(stop)
            except SocketTakenError:
                raise
            except SocketError as error:
                if not (self.served or isinstance(error, SocketWipedError)):
                    raise
                self.trouble = str(error)
                if self._changes.of("socket", str(error)):
                    self._log.error("cannot serve", reason=str(error), pause=round(pause, 1))
                await first_of(stop.wait(), seconds=pause)
                pause = min(2 * pause, self._pace.longest)
            finally:
                await self.plugin.close(self._pace.grace)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        sockets.require_free(self.path)
        born = sockets.birthplace(self.path)
        limits = self.plugin.limits
        server = grpc.aio.server(options=options(limits))
        server.add_generic_rpc_handlers((handlers(self.plugin, self.plugin.refused, limits),))
        try:
            server.add_insecure_port(f"unix:{born}")
            await server.start()
            self._own = sockets.identity(born)
            born.rename(self.path)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            # gRPC names no reason. And by the name that stays the same: a reason is said once.
            reason = sockets.why_unbindable(born) or str(error).replace(str(born), str(self.path))
            wiped = isinstance(error, FileNotFoundError) and self.path.parent.is_dir()
            kind = SocketWipedError if wiped else SocketError
            raise kind(f"cannot serve on {self.path}: {reason}") from error
        self._changes.of("socket", None)
        self._log.info("serving", socket=str(self.path))
        try:
            yield
        finally:
            self._set_known(known=False)
            sockets.remove_own(self.path, self._own)
            self._own = None
            self.plugin.end_streams()
            await server.stop(self._pace.grace)

    async def _stay_registered(self, stop: asyncio.Event) -> None:
        """Register whenever there is reason to; return when our socket is gone, or at the end."""
        registered: Identity | None = None
        while not stop.is_set():
            self.plugin.silent.clear()
            # kubelet's first: a new one has deleted our socket before its own appears.
            kubelet = sockets.identity(self._kubelet)
            if not self._stands():
                return
            if kubelet is None:
                self._set_known(known=False)
                self._wait_for_kubelet(f"there is no {self._kubelet}")
            elif kubelet != registered or self._is_lost() or self._is_hung_up():
                self._pause = self._next_pause() if kubelet == registered else self._pace.again
                self._set_known(known=False)
                registered = await self._register(stop)
            restless = partial(self._is_restless, kubelet, registered)
            await first_of(
                stop.wait(), self.plugin.silent.wait(), until(restless, self._until_look)
            )

    def _is_restless(self, kubelet: Identity | None, registered: Identity | None) -> bool:
        """Tell whether there may be something to do, other than to wait for this kubelet."""
        due = self._due()
        return (
            sockets.identity(self._kubelet) != kubelet
            or sockets.identity(self.path) != self._own
            or (kubelet is not None and (kubelet != registered or self._is_lost()))
            or (due is not None and self._clock() >= due)
        )

    def _stands(self) -> bool:
        now = sockets.identity(self.path)
        if now == self._own:
            return True
        try:
            if now is not None and sockets.is_answered(self.path):
                raise SocketTakenError(f"{self.path} was taken over by another process")
        except UncertainError as error:
            self._cannot_look(error)
            return True
        self._log.warning("our socket is gone: serving anew", socket=str(self.path))
        return False

    def _is_lost(self) -> bool:
        """Tell whether kubelet has not listened for too long."""
        if self.plugin.streams:
            return False
        since = max(self._registered_at, self.plugin.silent_since)
        return self._clock() - since >= self._pace.lost

    def _is_hung_up(self) -> bool:
        """Tell whether kubelet has hung up, and we shall register again with it, as it lives.

        When it ends, its streams end, too: then nobody answers at its socket, and a new one comes.
        """
        due = self._due()
        if due is None or self._clock() < due:
            return False
        try:
            return sockets.is_answered(self._kubelet)
        except UncertainError as error:
            self._cannot_look(error)
            return False

    def _due(self) -> float | None:
        """Tell when a hang-up makes us register again; None while kubelet listens or never did."""
        if self.plugin.streams or self.plugin.begun <= self._begun_before:
            return None
        return self.plugin.silent_since + self._pause_now()

    def _pause_now(self) -> float:
        held = self.plugin.silent_since - self._registered_at
        return self._pace.again if held >= self._pace.lost else self._pause

    def _next_pause(self) -> float:
        return min(2 * self._pause_now(), self._pace.lost)

    def _until_look(self) -> float:
        if self.plugin.streams:
            return self._pace.calm
        left = (self._due() or 0.0) - self._clock()
        return min(left, self._pace.look) if left > 0 else self._pace.look

    async def _register(self, stop: asyncio.Event) -> Identity | None:
        """Register, and tell with which kubelet; None when sockets moved, or the end came, before.

        It is the socket that is dialed that tells kubelets apart, not the one that stands at the
        path before or after: a kubelet that appears meanwhile would be registered with twice.
        """
        try:
            with sockets.holding(self._kubelet) as kubelet:
                if kubelet is None or sockets.identity(self.path) != self._own:
                    return None
                if not sockets.is_answered(kubelet.path):  # it has gone, or does not listen yet
                    self._wait_for_kubelet(f"nobody listens on {self._kubelet}")
                    return None
                return await self._register_with(kubelet, stop)
        except UncertainError as error:
            self._cannot_look(error)
            return None

    def _cannot_look(self, error: UncertainError) -> None:
        self.trouble = str(error)
        if self._changes.of("failure", self.trouble):
            self._log.error("cannot look at sockets", reason=self.trouble)

    async def _register_with(self, kubelet: Held, stop: asyncio.Event) -> Identity | None:
        registration = Registration(self.plugin.resource, self.path.name, self.plugin.options)
        before = kubelet.identity, self._own

        async def attempt() -> None:
            self._begun_before = self.plugin.begun
            try:
                await register(kubelet.path, registration, self._pace.patience)
            except ConnectedAlreadyError:
                if not self.plugin.streams:
                    raise
                self._begun_before -= self.plugin.streams  # it is these that kubelet hears

        def moved() -> bool:
            return (sockets.identity(self._kubelet), sockets.identity(self.path)) != before

        # Whoever dials back to a socket that is gone waits for it longer than we should.
        await first_of(
            until_accepted(attempt, asyncio.sleep, self._failed, self._pace.longest),
            stop.wait(),
            until(moved, lambda: self._pace.look),
        )
        if stop.is_set() or moved():
            return None
        self._registered_at = self._clock()
        self._telemetry.attempted(self.plugin.resource, accepted=True)
        self._set_known(known=True)
        self.trouble = ""
        self._changes.of("failure", None)
        self._log.info("registered", endpoint=self.path.name)
        return kubelet.identity

    def _failed(self, error: RegistrationError, pause: float) -> None:
        self._telemetry.attempted(self.plugin.resource, accepted=False)
        self.trouble = str(error)
        if self._changes.of("failure", str(error)):
            self._log.warning("cannot register", reason=str(error), pause=round(pause, 1))

    def _wait_for_kubelet(self, reason: str) -> None:
        self.trouble = f"{reason}: kubelet is not up"
        if self._changes.of("failure", self.trouble):
            self._log.info("waiting for kubelet", reason=self.trouble)

    def _set_known(self, *, known: bool) -> None:
        self.known = known
        self.since = time.time() if known else 0.0
        self._telemetry.registered(self.plugin.resource, known=known)


class Endpoints:
    """Every resource of the snapshots, each served and registered from when it first appears.

    One that vanishes is served on, with no devices: kubelet has to hear that, and it may come back.
    `suffix` makes the names of the sockets unique (`sockets.unique_suffix`), so that two instances
    can overlap in a rolling update.
    """

    def __init__(  # noqa: PLR0913 - what differs between two plugins on one node has names
        self,
        watch: Watch[Snapshot],
        telemetry: Telemetry,
        log: FilteringBoundLogger,
        *,
        directory: Path = sockets.DIRECTORY,
        suffix: str = "",
        manners: Manners | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._telemetry = telemetry
        self._log = log
        self._directory = directory
        self._suffix = suffix
        self._manners = manners or Manners()
        self._pace = pace or Pace()
        self._clock = clock
        self._endpoints: dict[str, Endpoint] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then end streams, remove our sockets, register no more.

        Raises `SocketError` when there is no socket to serve on at first; once a resource was
        served, only `SocketTakenError`.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                while not stop.is_set():
                    seen = self._watch.current
                    for resource in seen.resources.keys() - self._endpoints.keys():
                        self._endpoints[resource] = self._endpoint(resource)
                        tasks.create_task(self._endpoints[resource].run(stop), name=resource)
                    await first_of(self._watch.next(seen), stop.wait())
        except BaseExceptionGroup as group:
            # Whatever else there was, it came of the first.
            raise group.exceptions[0] from None

    @property
    def every(self) -> tuple[Endpoint, ...]:
        """The endpoint of each resource; from any thread."""
        return tuple(self._endpoints.values())

    def not_ready(self) -> str | None:
        """Say of which resource kubelet does not know or hear, None when of none.

        From any thread. Without a resource there is nothing that could be missing.
        """
        every = self.every
        unknown = [one.plugin.resource for one in every if not one.known]
        unheard = [one.plugin.resource for one in every if one.known and not one.plugin.streams]
        missing = [
            f"{what}: {' '.join(sorted(names))}"
            for what, names in (
                ("not registered with kubelet", unknown),
                ("kubelet does not listen", unheard),
            )
            if names
        ]
        return "; ".join(missing) or None

    def _endpoint(self, resource: str) -> Endpoint:
        plugin = Plugin(
            resource, self._watch, self._telemetry, self._log, self._manners, self._clock
        )
        path = self._directory / sockets.socket_name(resource, self._suffix)
        endpoint = Endpoint(plugin, path, self._telemetry, self._log, self._pace, self._clock)
        endpoint.served = any(other.served for other in self._endpoints.values())
        return endpoint
