"""The device plugin as a process: settings in, one event loop, a clean end."""

import asyncio
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from socket import gethostname
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from device_plugin.assembly import Assembler, PreferenceConfig
from device_plugin.cdi_spec import CdiSpec
from device_plugin.endpoints import Endpoints
from device_plugin.families import FINDERS
from device_plugin.limits import Limits
from device_plugin.page import body
from device_plugin.resources import ResourceOptions
from device_plugin.servicer import ServingOptions
from device_plugin.snapshot import Snapshot
from device_plugin.status import Parts, status
from device_plugin.telemetry import NodeTelemetry, ServingTelemetry
from device_plugin.updates import Updates
from xelink.daemon.command import OK
from xelink.daemon.descriptors import require_descriptors
from xelink.daemon.html import pages
from xelink.daemon.http_requests import own_names
from xelink.daemon.http_server import Page, ProbeResult, Site, serving
from xelink.daemon.logs import logger_to_stderr
from xelink.daemon.metrics import Metrics
from xelink.daemon.polling import poll_duration
from xelink.daemon.signals import STOPPING, release_signals
from xelink.daemon.version import VERSION
from xelink.daemon.watch import Watch
from xelink.inventory import xpumd
from xelink.inventory.devfs import Roots
from xelink.inventory.observation import NodeObservation
from xelink.inventory.watcher import Watcher, WatcherConfig
from xelink.kubelet import sockets
from xelink.kubelet.sockets import SocketName

if TYPE_CHECKING:
    from device_plugin.settings import PluginSettings
    from xelink.daemon.loaded_settings import Loaded

# kubelet should restart us after so many seconds without a scan: the loop hangs, or a device.
_STALLED = 60.0
_PREFERENCE_MARGIN = 1.0
# gRPC takes a dozen for a server, and ends the process where it cannot have them
_LEAST_DESCRIPTORS = 128


def run(loaded: "Loaded[PluginSettings]") -> int:
    """Run until SIGTERM or SIGINT and return the exit code. Raises `CannotStartError`."""
    settings = loaded.settings
    log = logger_to_stderr(settings.log_format, debug=settings.debug)
    for warning in loaded.warnings:
        log.warning(warning)
    require_descriptors(_LEAST_DESCRIPTORS)
    # Before anything is written: without kubelet a CDI spec has no use.
    sockets.require_directory(settings.plugin_dir)
    asyncio.run(_serve(settings, log))
    log.info("stopped")
    return OK


async def _serve(settings: "PluginSettings", log: FilteringBoundLogger) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, stop.set)
    release_signals()
    metrics = Metrics("xelink_device_plugin")
    telemetry, node_telemetry = ServingTelemetry(metrics), NodeTelemetry(metrics)
    observed = Watch(NodeObservation(monitored=bool(settings.xpumd_endpoint)))
    watch = Watch(Snapshot())
    spec = CdiSpec(settings.cdi_dir, settings.bypath, log) if settings.cdi else None
    watcher = Watcher(
        _watcher_config(settings), observed, node_telemetry, log, spec.refresh if spec else None
    )
    assembler = Assembler(_preference_config(settings))
    updates = Updates(observed, assembler, watch, node_telemetry, log)
    endpoints = Endpoints(
        watch,
        telemetry,
        log,
        directory=settings.plugin_dir,
        suffix=sockets.unique_suffix() if settings.socket_name is SocketName.UNIQUE else "",
        serving=serving_options(settings),
    )

    def alive() -> str | None:
        hangs = stalled(time.monotonic() - watcher.last_scan, poll_duration())
        return hangs or updates.observation.must_restart

    def ready() -> ProbeResult:
        problem = endpoints.not_ready() if watcher.scanned else "no scan has succeeded yet"
        facts = (problem, updates.device_error, updates.observation.link_state)
        return ProbeResult(problem is None, "; ".join(filter(None, facts)))

    watcher.last_scan = time.monotonic()
    parts = Parts(
        host=gethostname(),
        policy=settings.allocation_policy,
        file=settings.label_file,
        ready=ready,
        updates=updates,
        watch=watch,
        endpoints=endpoints,
    )
    probes = {"/healthz": alive, "/readyz": ready}
    names = own_names(parts.host, os.environ, settings.listen_names)
    site = Site(probes, _pages(settings, parts), names)
    with serving(settings.listen, metrics, site, log) as address:
        log.info("started", version=VERSION, listen=address or "none")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watcher.run(stop))
                tasks.create_task(updates.run(stop))
                tasks.create_task(endpoints.run(stop))
        except BaseExceptionGroup as group:
            # Whatever else there was, the first error caused it.
            raise group.exceptions[0] from None


def stalled(silence: float, poll: float) -> str | None:
    """Return what hangs so that kubelet should restart us, None where nothing does.

    `silence` is the seconds since the last scan, `poll` those that a poll of sockets or of the
    feature file has taken by now.
    """
    if silence > _STALLED:
        return f"no scan of the node for {silence:.0f} s"
    if poll > _STALLED:
        return f"a poll of sockets or the feature file has taken {poll:.0f} s"
    return None


def serving_options(settings: "PluginSettings") -> ServingOptions:
    """Return how the settings have kubelet's requests answered."""
    return ServingOptions(
        allocate_env=settings.allocate_env,
        require_links=settings.require_links,
        # Later than the search's own limit: what it has found by then is worth more than none.
        timeout=settings.allocation_timeout / 1000 + _PREFERENCE_MARGIN,
        limits=Limits.of(settings.shared_dev_num),
    )


def _pages(settings: "PluginSettings", parts: Parts) -> Mapping[str, Page]:
    title = f"{settings.PROGRAM} {VERSION} on {parts.host}"
    return pages(title, lambda: status(parts, datetime.now(UTC)), body)


def _preference_config(settings: "PluginSettings") -> PreferenceConfig:
    return PreferenceConfig(
        clock=time.monotonic,
        options=ResourceOptions(
            settings.shared_dev_num,
            settings.bypath,
            settings.monitoring_mode if settings.enable_monitoring else None,
        ),
        policy=settings.allocation_policy,
        timeout=settings.allocation_timeout / 1000,
    )


def _watcher_config(settings: "PluginSettings") -> WatcherConfig:
    return WatcherConfig(
        Roots.under(settings.prefix, settings.device_root),
        settings.label_file,
        settings.label_namespace,
        settings.allow_ids,
        settings.deny_ids,
        endpoint=settings.xpumd_endpoint,
        rule=xpumd.Rule(settings.health_severity.severity, settings.health_confirmations),
        finders=FINDERS,
    )
