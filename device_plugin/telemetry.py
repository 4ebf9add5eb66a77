"""The Prometheus metrics of the plugin: what kubelet asked for and got, and what it was made of."""

import time
from datetime import datetime

from device_plugin.history import Followed
from device_plugin.responses import AdvertisedDevice
from xelink.daemon.metrics import Metrics
from xelink.inventory.health import Health
from xelink.inventory.observation import NodeObservation
from xelink.inventory.workload_facts import Linked
from xelink.nfd.reader import FileState
from xelink.preference.decision import WORDS
from xelink.preference.shares import Preference

_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


class ServingTelemetry:
    """The metrics of what kubelet asked for and got."""

    def __init__(self, metrics: Metrics) -> None:
        self._devices = metrics.gauge(
            "devices", "devices as last advertised to kubelet", "resource", "health"
        )
        self._streams = metrics.gauge("streams", "ListAndWatch streams that are open", "resource")
        self._registrations = metrics.counter(
            "registrations", "registrations: accepted or failed", "resource", "outcome"
        )
        self._registered = metrics.gauge(
            "registered", "1 while kubelet knows the resource", "resource"
        )
        self._preferences = metrics.counter(
            "preferences",
            "preferences given: proven, unproven, or fallback after an error",
            "resource",
            "outcome",
        )
        self._preference = metrics.histogram(
            "preference_seconds", "time to find a preference", _BUCKETS, "resource"
        )
        self._decisions = metrics.counter(
            "preference_decisions",
            "preferences by the criterion that decided; none: there was no other set; policy:"
            " it uses no criteria; fallback: the preference failed; unknown: not found in time",
            "resource",
            "criterion",
        )
        self._allocations = metrics.counter(
            "allocations",
            "containers by how much of their set is linked, and whether kubelet followed our"
            " preference",
            "resource",
            "linked",
            "preference",
        )
        self._request_errors = metrics.counter(
            "request_errors", "requests that were rejected", "resource", "rpc", "code"
        )
        self._record_errors = metrics.counter(
            "allocation_record_errors",
            "containers that got their devices without workload facts or records: an error, or too"
            " much to do",
            "resource",
            "record",
        )

    def begin(self, resource: str) -> None:
        """Show every series of a resource from the start."""
        self._streams.labels(resource).set(0)
        self._registered.labels(resource).set(0)
        for outcome in ("accepted", "failed"):
            self._registrations.labels(resource, outcome)
        for outcome in ("proven", "unproven", "fallback"):
            self._preferences.labels(resource, outcome)
        for linked in Linked:
            for followed in Followed:
                self._allocations.labels(resource, linked.value, followed.value)
        for word in WORDS:
            self._decisions.labels(resource, word)
        for record in ("workload_facts", "allocation", "decision"):
            self._record_errors.labels(resource, record)

    def advertised(self, resource: str, devices: tuple[AdvertisedDevice, ...]) -> None:
        """Show the devices that were advertised to kubelet."""
        healthy = sum(device.healthy for device in devices)
        self._devices.labels(resource, "healthy").set(healthy)
        self._devices.labels(resource, "unhealthy").set(len(devices) - healthy)

    def streaming(self, resource: str, streams: int) -> None:
        """Show how many streams are open."""
        self._streams.labels(resource).set(streams)

    def attempted(self, resource: str, *, accepted: bool) -> None:
        """Count one attempt to register."""
        self._registrations.labels(resource, "accepted" if accepted else "failed").inc()

    def registered(self, resource: str, *, known: bool) -> None:
        """Show whether kubelet knows the resource."""
        self._registered.labels(resource).set(known)

    def preferred(self, resource: str, preference: Preference, seconds: float) -> None:
        """Count one preference and its time."""
        outcome = "proven" if preference.proven else "unproven"
        self._preferences.labels(resource, "fallback" if preference.error else outcome).inc()
        self._preference.labels(resource).observe(seconds)

    def decided(self, resource: str, criterion: str) -> None:
        """Count one preference by what decided it."""
        self._decisions.labels(resource, criterion).inc()

    def allocated(self, resource: str, linked: Linked, followed: Followed) -> None:
        """Count one container that got devices."""
        self._allocations.labels(resource, linked.value, followed.value).inc()

    def rejected(self, resource: str, rpc: str, code: str) -> None:
        """Count one rejected request."""
        self._request_errors.labels(resource, rpc, code).inc()

    def record_error(self, resource: str, record: str) -> None:
        """Count one container without a record."""
        self._record_errors.labels(resource, record).inc()


class NodeTelemetry:
    """The metrics of what was observed of the node."""

    def __init__(self, metrics: Metrics) -> None:
        self._scans = metrics.counter("scans", "scans of sysfs and devfs: good, failed", "outcome")
        self._gpus = metrics.gauge("gpus", "GPUs that are advertised")
        self._problems = metrics.gauge("gpu_problems", "GPUs of which something cannot be read")
        self._unusable = metrics.gauge(
            "unusable_gpus",
            "GPUs that are advertised as unhealthy: without a device node or a render node, or no"
            " longer readable",
        )
        self._cdi = metrics.gauge("cdi_devices", "GPUs that are named as CDI devices")
        self._pairs = metrics.gauge("linked_pairs", "pairs of GPUs that are linked")
        self._state = metrics.gauge("feature_file_state", "1 for the feature file's state", "state")
        self._published = metrics.gauge(
            "feature_file_timestamp_seconds", "when the feature file was written; 0: there is none"
        )
        self._written = 0.0
        metrics.gauge(
            "feature_file_age_seconds", "time since it was written, renewals included; 0: none"
        ).set_function(lambda: max(0.0, time.time() - self._written) if self._written else 0)
        self._expiry = metrics.gauge(
            "feature_file_expiry_timestamp_seconds", "when it expires; 0: never, or there is none"
        )
        self._unhealthy = metrics.gauge(
            "unhealthy_gpus", "GPUs that XPU Manager reports as unhealthy"
        )
        self._known = metrics.gauge("health_known", "1 while XPU Manager reports GPUs' health")
        self._silent = metrics.gauge(
            "gpus_health_unknown", "GPUs missing from XPU Manager's health report"
        )
        self._changes = metrics.counter("health_changes", "changes of a GPU's health", "to")
        self._unread = metrics.counter(
            "health_unread", "messages, addresses and severities that were not understood"
        )
        for outcome in ("good", "failed"):
            self._scans.labels(outcome)
        for to in ("healthy", "unhealthy"):
            self._changes.labels(to)
        self._unread_before = 0

    def scanned(self, *, good: bool) -> None:
        """Count one scan."""
        self._scans.labels("good" if good else "failed").inc()

    def observed(self, observed: NodeObservation) -> None:
        """Show the observation that is in use."""
        self._silent.set(len(observed.health_unknown))
        self._gpus.set(len(observed.inventory.cards))
        self._problems.set(len(observed.inventory.problems))
        self._unusable.set(sum(not card.healthy for card in observed.inventory.cards))
        self._cdi.set(len(observed.cdi))
        self._pairs.set(len(observed.links.lanes))
        for state in FileState:
            self._state.labels(state.value).set(state is observed.links.state)
        self._written = _timestamp(observed.links.published)
        self._published.set(self._written)
        self._expiry.set(_timestamp(observed.links.expiry))

    def health_reported(self, health: Health) -> None:
        """Show the latest health report."""
        self._unhealthy.set(len(health.unhealthy))
        self._known.set(not health.error)
        unread = health.bad_messages + health.bad_addresses + health.bad_severities
        self._unread.inc(unread - self._unread_before)
        self._unread_before = unread

    def health_changed(self, *, healthy: bool) -> None:
        """Count one change of a GPU's health."""
        self._changes.labels("healthy" if healthy else "unhealthy").inc()


def _timestamp(instant: datetime | None) -> float:
    return instant.timestamp() if instant else 0
