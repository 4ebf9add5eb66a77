"""Serves every resource on a socket, registers it with kubelet, and keeps it registered.

Each resource has its own server and its own states:

    serve -> wait for kubelet.sock -> register -> watch -+-> register again (kubelet.sock is new,
      ^                                                  |   or kubelet closed its stream, or never
      |                                                  |   opened one)
      +---------------- our socket is gone --------------+

Sockets are polled: two calls of `lstat` cost nothing, work on every kind of mount, and cannot miss
an event. The end of a stream is noticed at once.
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
from device_plugin.servicer import Plugin, ServingOptions
from device_plugin.snapshot import Snapshot
from device_plugin.telemetry import ServingTelemetry
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
class Timings:
    """Seconds.

    Sockets are polled every `poll` seconds, while a stream is open every `connected_poll`: where
    kubelet ends or restarts, its streams end first. When a running kubelet closes its stream, we
    register again after `reregister_delay`, and after twice as long each time, until a registration
    has held for `stream_timeout`. After `stream_timeout` without a stream, since it closed or since
    we registered, we register again in any case. `rpc_timeout` is for one attempt, `max_backoff`
    the longest pause between two. `grace` is for RPCs under way when a server ends.

    `reregister_delay` is not 0: kubelet closes the stream first and marks the resource's devices
    unhealthy next. Those of a plugin that was back in between would stay unhealthy, though kubelet
    has a new stream from it.
    """

    poll: float = 0.25
    connected_poll: float = 1.0
    reregister_delay: float = 0.1
    stream_timeout: float = 10.0
    rpc_timeout: float = 15.0
    max_backoff: float = 30.0
    grace: float = 0.5


class Endpoint:
    """One resource: its server, its socket, its registration.

    `path` is its socket, beside kubelet's own. `known` is whether kubelet knows the resource, as
    far as that can be observed, and `since` when that began, in seconds since 1970; 0 while it
    does not. `error` is why it could not be served or registered last, empty once that is over.
    `served`: sockets have worked here before, so a later error may be temporary.
    """

    def __init__(
        self,
        plugin: Plugin,
        path: Path,
        telemetry: ServingTelemetry,
        log: FilteringBoundLogger,
        timings: Timings,
        clock: Callable[[], float],
    ) -> None:
        self.plugin = plugin
        self.path = path
        self.known = False
        self.since = 0.0
        self.error = ""
        self.served = False
        self._kubelet = path.with_name(sockets.KUBELET)
        self._telemetry = telemetry
        self._log = log.bind(resource=plugin.resource)
        self._timings = timings
        self._clock = clock
        self._own: Identity | None = None
        self._registered_at = 0.0
        self._begun_before = 0  # streams, when we registered
        self._pause = (
            timings.reregister_delay
        )  # before we register again, when kubelet hangs up soon
        self._changes = Changes()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve and stay registered until `stop` is set.

        Raises `SocketError` when there is no socket to serve on at first, later only
        `SocketTakenError`.
        """
        dead = sockets.remove_stale(self.path.parent, self.plugin.resource)
        if dead:
            self._log.info("removed sockets that were left behind", sockets=" ".join(dead))
        pause = self._timings.poll
        while not stop.is_set():
            try:
                async with self._serving():
                    self.served = True
                    pause = self._timings.poll
                    await self._stay_registered(stop)
            except SocketTakenError:
                raise
            except SocketError as error:
                if not (self.served or isinstance(error, SocketWipedError)):
                    raise
                self.error = str(error)
                if self._changes.of("socket", str(error)):
                    self._log.error("cannot serve", reason=str(error), pause=round(pause, 1))
                await first_of(stop.wait(), seconds=pause)
                pause = min(2 * pause, self._timings.max_backoff)
            finally:
                await self.plugin.close(self._timings.grace)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        sockets.require_free(self.path)
        born = sockets.temporary_path(self.path)
        limits = self.plugin.limits
        server = grpc.aio.server(options=options(limits))
        server.add_generic_rpc_handlers((handlers(self.plugin, self.plugin.rejected, limits),))
        try:
            server.add_insecure_port(f"unix:{born}")
            await server.start()
            self._own = sockets.identity(born)
            born.rename(self.path)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            # gRPC names no reason. And by the name that stays the same: a reason is logged once.
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
            await server.stop(self._timings.grace)

    async def _stay_registered(self, stop: asyncio.Event) -> None:
        """Register whenever there is reason to; return when our socket is gone, or at the end."""
        registered: Identity | None = None
        while not stop.is_set():
            self.plugin.silent.clear()
            # kubelet's first: a new one has deleted our socket before its own appears.
            kubelet = sockets.identity(self._kubelet)
            if not self._is_served():
                return
            if kubelet is None:
                self._set_known(known=False)
                self._wait_for_kubelet(f"there is no {self._kubelet}")
            elif kubelet != registered or self._is_without_stream() or self._is_closed():
                self._pause = (
                    self._next_pause() if kubelet == registered else self._timings.reregister_delay
                )
                self._set_known(known=False)
                registered = await self._register(stop)
            has_news = partial(self._has_news, kubelet, registered)
            await first_of(
                stop.wait(), self.plugin.silent.wait(), until(has_news, self._until_poll)
            )

    def _has_news(self, kubelet: Identity | None, registered: Identity | None) -> bool:
        """Return whether there may be something to do, other than to wait for this kubelet."""
        due = self._due()
        return (
            sockets.identity(self._kubelet) != kubelet
            or sockets.identity(self.path) != self._own
            or (kubelet is not None and (kubelet != registered or self._is_without_stream()))
            or (due is not None and self._clock() >= due)
        )

    def _is_served(self) -> bool:
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

    def _is_without_stream(self) -> bool:
        """Return whether there has been no stream for too long."""
        if self.plugin.streams:
            return False
        since = max(self._registered_at, self.plugin.silent_since)
        return self._clock() - since >= self._timings.stream_timeout

    def _is_closed(self) -> bool:
        """Return whether kubelet has closed its stream, but runs: we register with it again.

        When kubelet ends, its streams end, too: then its socket is stale, and a new one
        appears.
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
        """Return when a closed stream makes us register again; None: one is open, or never was."""
        if self.plugin.streams or self.plugin.begun <= self._begun_before:
            return None
        return self.plugin.silent_since + self._pause_now()

    def _pause_now(self) -> float:
        held = self.plugin.silent_since - self._registered_at
        return (
            self._timings.reregister_delay if held >= self._timings.stream_timeout else self._pause
        )

    def _next_pause(self) -> float:
        return min(2 * self._pause_now(), self._timings.stream_timeout)

    def _until_poll(self) -> float:
        if self.plugin.streams:
            return self._timings.connected_poll
        left = (self._due() or 0.0) - self._clock()
        return min(left, self._timings.poll) if left > 0 else self._timings.poll

    async def _register(self, stop: asyncio.Event) -> Identity | None:
        """Register, and return with which kubelet; None when sockets moved, or at the end.

        A kubelet is identified by the socket that was connected to, not by the one now at the
        path before or after: a kubelet that appears meanwhile would be registered with twice.
        """
        try:
            with sockets.holding(self._kubelet) as kubelet:
                if kubelet is None or sockets.identity(self.path) != self._own:
                    return None
                if not sockets.is_answered(kubelet.path):  # it has ended, or is starting
                    self._wait_for_kubelet(f"nothing answers on {self._kubelet}")
                    return None
                return await self._register_with(kubelet, stop)
        except UncertainError as error:
            self._cannot_look(error)
            return None

    def _cannot_look(self, error: UncertainError) -> None:
        self.error = str(error)
        if self._changes.of("failure", self.error):
            self._log.error("cannot check sockets", reason=self.error)

    async def _register_with(self, kubelet: Held, stop: asyncio.Event) -> Identity | None:
        registration = Registration(self.plugin.resource, self.path.name, self.plugin.options)
        before = kubelet.identity, self._own

        async def attempt() -> None:
            self._begun_before = self.plugin.begun
            try:
                await register(kubelet.path, registration, self._timings.rpc_timeout)
            except ConnectedAlreadyError:
                if not self.plugin.streams:
                    raise
                self._begun_before -= self.plugin.streams  # these are the ones that kubelet has

        def moved() -> bool:
            return (sockets.identity(self._kubelet), sockets.identity(self.path)) != before

        # Whoever dials back to a socket that is gone waits for it longer than we should.
        await first_of(
            until_accepted(attempt, asyncio.sleep, self._failed, self._timings.max_backoff),
            stop.wait(),
            until(moved, lambda: self._timings.poll),
        )
        if stop.is_set() or moved():
            return None
        self._registered_at = self._clock()
        self._telemetry.attempted(self.plugin.resource, accepted=True)
        self._set_known(known=True)
        self.error = ""
        self._changes.of("failure", None)
        self._log.info("registered", endpoint=self.path.name)
        return kubelet.identity

    def _failed(self, error: RegistrationError, pause: float) -> None:
        self._telemetry.attempted(self.plugin.resource, accepted=False)
        self.error = str(error)
        if self._changes.of("failure", str(error)):
            self._log.warning("cannot register", reason=str(error), pause=round(pause, 1))

    def _wait_for_kubelet(self, reason: str) -> None:
        self.error = f"{reason}: kubelet is not up"
        if self._changes.of("failure", self.error):
            self._log.info("waiting for kubelet", reason=self.error)

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
        telemetry: ServingTelemetry,
        log: FilteringBoundLogger,
        *,
        directory: Path = sockets.DIRECTORY,
        suffix: str = "",
        serving: ServingOptions | None = None,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._telemetry = telemetry
        self._log = log
        self._directory = directory
        self._suffix = suffix
        self._options = serving or ServingOptions()
        self._timings = timings or Timings()
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
                    current = self._watch.current
                    for resource in current.resources.keys() - self._endpoints.keys():
                        self._endpoints[resource] = self._endpoint(resource)
                        tasks.create_task(self._endpoints[resource].run(stop), name=resource)
                    await first_of(self._watch.next(current), stop.wait())
        except BaseExceptionGroup as group:
            # Whatever else there was, it came of the first.
            raise group.exceptions[0] from None

    @property
    def every(self) -> tuple[Endpoint, ...]:
        """The endpoint of each resource; from any thread."""
        return tuple(self._endpoints.values())

    def not_ready(self) -> str | None:
        """Return which resources kubelet does not know or has no stream of, None when none.

        From any thread. Without a resource there is nothing that could be missing.
        """
        every = self.every
        unknown = [one.plugin.resource for one in every if not one.known]
        unheard = [one.plugin.resource for one in every if one.known and not one.plugin.streams]
        missing = [
            f"{what}: {' '.join(sorted(names))}"
            for what, names in (
                ("not registered with kubelet", unknown),
                ("no ListAndWatch stream", unheard),
            )
            if names
        ]
        return "; ".join(missing) or None

    def _endpoint(self, resource: str) -> Endpoint:
        plugin = Plugin(
            resource, self._watch, self._telemetry, self._log, self._options, self._clock
        )
        path = self._directory / sockets.socket_name(resource, self._suffix)
        endpoint = Endpoint(plugin, path, self._telemetry, self._log, self._timings, self._clock)
        endpoint.served = any(other.served for other in self._endpoints.values())
        return endpoint
