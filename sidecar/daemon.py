"""The sidecar as a process: settings in, one synchronous loop, a clean end."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from socket import gethostname
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from sidecar.loop import Sidecar
from sidecar.publishing import Policy
from sidecar.pulse import Pulse, ticks
from sidecar.source_choice import SourceChoice
from sidecar.sources import chosen
from sidecar.status import body, status
from sidecar.telemetry import Telemetry
from xelink.daemon.command import OK
from xelink.daemon.descriptors import require_descriptors
from xelink.daemon.html import pages
from xelink.daemon.http_requests import own_names
from xelink.daemon.http_server import Page, Site, serving
from xelink.daemon.logs import logger_to_stderr
from xelink.daemon.stdio import discard_stdout
from xelink.daemon.stopping import Stop, Stopped
from xelink.daemon.version import VERSION
from xelink.nfd.bounded_writer import BoundedPublisher
from xelink.nfd.writer import Publisher, PublishError
from xelink.topology.observation import Observation, ObservedLinks, Source

if TYPE_CHECKING:
    from sidecar.settings import SidecarSettings
    from xelink.daemon.loaded_settings import Loaded

NO_LINKS = 3
UNKNOWN = 4
NOT_PUBLISHED = 5

_LEAST_DESCRIPTORS = 64


class Printer:
    """The destination with -dry-run: prints what would be written."""

    verb = "printed"

    def __init__(self, publisher: BoundedPublisher) -> None:
        self._publisher = publisher
        self._content: bytes | None = None

    def read(self) -> bytes | None:
        """Return what was printed last, or else the current file. Raises `PublishError`."""
        return self._content or self._publisher.read()

    def publish(self, content: bytes) -> None:
        """Print the feature file."""
        self._content = content
        try:
            sys.stdout.write(content.decode())
            sys.stdout.flush()
        except BrokenPipeError:
            discard_stdout()
            raise Stopped from None
        except OSError as error:
            discard_stdout()
            raise PublishError(f"cannot print: {error.strerror or error}") from error

    def withdraw(self) -> None:
        """Remove nothing."""

    def other_writer(self) -> str | None:
        """Return None: what is printed is nobody else's."""
        return None


def run(loaded: "Loaded[SidecarSettings]") -> int:
    """Run until SIGTERM or SIGINT, or once with -oneshot; return the exit code.

    Raises `CannotStartError`.
    """
    settings = loaded.settings
    log = logger_to_stderr(settings.log_format, debug=settings.debug)
    for warning in (*loaded.warnings, *settings.warnings, *_without_effect(loaded)):
        log.warning(warning)
    require_descriptors(_LEAST_DESCRIPTORS)
    policy = Policy.of(settings)
    with ExitStack() as cleanup:
        stop = Stop()
        stop.install()
        cleanup.callback(stop.close)
        source = cleanup.enter_context(chosen(settings, policy.rules, stop, log))
        telemetry = Telemetry(source.reasons)
        file = settings.dst_file_path
        publisher = BoundedPublisher(Publisher(file, settings.tmp_dir_prefix), file)
        cleanup.callback(publisher.close)
        target = Printer(publisher) if settings.dry_run else publisher
        sidecar = Sidecar(source, target, policy, telemetry, log)
        pulse = Pulse(settings, time.monotonic)
        probes = {"/healthz": pulse.problem, "/readyz": sidecar.ready}
        listen = "" if settings.oneshot else settings.listen
        names = own_names(gethostname(), os.environ, settings.listen_names)
        site = Site(probes, _pages(settings, sidecar, source), names)
        address = cleanup.enter_context(serving(listen, telemetry.metrics, site, log))
        log.info("started", version=VERSION, source=source.address, listen=address or "none")
        _prepare(settings, publisher, log)
        sidecar.resume(_now())
        try:
            tick = partial(sidecar.tick, _now, time.monotonic)
            observation = ticks(settings, tick, stop.wait, pulse.beat, log)
        except Stopped:
            observation = None
        if settings.oneshot:
            return _exit_code(observation, published=sidecar.published)
        if settings.dry_run:
            log.info("stopped", labels="as they were")
        else:
            sidecar.leave(settings.on_exit, _now())
    return OK


def _pages(settings: "SidecarSettings", sidecar: Sidecar, source: Source) -> Mapping[str, Page]:
    file = "printed, not written" if settings.dry_run else str(settings.dst_file_path)
    host = gethostname()
    title = f"{settings.PROGRAM} {VERSION} on {host}"
    return pages(title, lambda: status(sidecar, source.address, file, _now(), host=host), body)


def _prepare(
    settings: "SidecarSettings", publisher: BoundedPublisher, log: FilteringBoundLogger
) -> None:
    if settings.dry_run:
        log.info("dry run: labels are printed, nothing is written")
        return
    try:
        removed = publisher.prepare()
    except PublishError:  # the first publication logs it, and makes the stage if it is not there
        return
    if removed:
        log.info("removed leftovers of an earlier run", names=" ".join(removed))


# Flags that mean something for a daemon only, or for a file that is really written
_IDLE_WITH = {
    "oneshot": {
        *("confirmations", "interval", "listen", "listen_names", "on_exit", "startup_delay"),
    },
    "dry_run": {"on_exit"},
}


_OF_XPU_MANAGER = {
    *("cert", "client_cert", "client_key", "max_body", "password_file", "username", "xpum_port"),
}


def _without_effect(loaded: "Loaded[SidecarSettings]") -> Iterator[str]:
    if loaded.settings.source is SourceChoice.DRIVER:
        for name in sorted(_OF_XPU_MANAGER & loaded.origins.keys()):
            yield f"-{name.replace('_', '-')} has no effect with -source=driver"
    for mode, idle in _IDLE_WITH.items():
        if getattr(loaded.settings, mode):
            for name in sorted(idle & loaded.origins.keys()):
                flag, other = name.replace("_", "-"), mode.replace("_", "-")
                yield f"-{flag} has no effect with -{other}"


def _exit_code(observation: Observation | None, *, published: bool) -> int:
    if not isinstance(observation, ObservedLinks):
        return UNKNOWN
    if not published:
        return NOT_PUBLISHED
    return OK if observation.topology.links else NO_LINKS


def _now() -> datetime:
    return datetime.now(UTC)
