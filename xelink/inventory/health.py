"""Health of GPUs as reported by xpumd of XPU Manager 2.x: a pure state machine.

A GPU becomes unhealthy when so many messages in a row report a severity or above, and healthy again
after as many without. A GPU that a message does not mention, and a lack of messages, change no
verdict: health becomes unknown, which is reported. `xpumd` is the client that receives the
messages.

XPU Manager 1.x reports no health of this kind: its port states and links are in the feature file
and only lower a preference.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from xelink.inventory.gpus import Card
from xelink.topology.pci import PciAddress
from xelink.topology.text import printable

SILENCE_SECONDS = 30.0
"""Seconds without a message after which health is unknown; one comes about every 5."""

_TEXT_LIMIT = 300  # bytes of the reason of one GPU


class Severity(IntEnum):
    """How bad a status is, in the numbers of the wire; `UNKNOWN` means nothing."""

    UNKNOWN = 0
    OK = 1
    WARNING = 2
    CRITICAL = 3
    FAILED = 4


_SEVERITIES = frozenset(Severity)


class Threshold(Enum):
    """From which severity on a GPU counts as unhealthy: a choice for a flag."""

    WARNING = "warning"
    CRITICAL = "critical"
    FAILED = "failed"

    @property
    def severity(self) -> Severity:
        """The severity of that name."""
        return Severity[self.name]


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """One thing that xpumd monitors (`memory`); any number may come as its severity."""

    name: str
    severity: int
    reason: str = ""
    message: str = ""

    def __str__(self) -> str:
        known = self.severity in _SEVERITIES
        severity = Severity(self.severity).name.lower() if known else f"severity {self.severity}"
        why = ", ".join(filter(None, (self.reason, self.message)))
        return f"{self.name} is {severity}{f' ({why})' if why else ''}"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All statuses of one GPU in one message; `bdf` as it came."""

    bdf: str
    statuses: tuple[HealthStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message, which is a full snapshot; `at` is when it came, in monotonic seconds."""

    at: float
    reports: tuple[HealthReport, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """The verdict on one GPU, and what contradicts it.

    `known`: it rests on a recent message. `reason` is why it is unhealthy. `contrary`
    counts the messages in a row that contradict it, `reported` is when it was last mentioned; two
    verdicts that differ only in these are equal.
    """

    healthy: bool = True
    known: bool = False
    reason: str = ""
    fingerprint: frozenset[tuple[str, int]] = frozenset()
    contrary: int = field(default=0, compare=False)
    reported: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Health:
    """What is known of every GPU that xpumd has reported, by PCI address.

    `error` is why there are no reports, empty while there are. Two values are equal when they
    agree on every GPU and on the reports. Counted since the start are messages, messages that
    cannot be read, addresses that are none, and severities that this version does not know.
    """

    gpus: Mapping[str, GpuHealth] = field(default_factory=dict)
    error: str = "not connected yet"
    messages: int = field(default=0, compare=False)
    bad_messages: int = field(default=0, compare=False)
    bad_addresses: int = field(default=0, compare=False)
    bad_severities: int = field(default=0, compare=False)
    reported: float | None = field(default=None, compare=False)

    @property
    def unhealthy(self) -> dict[str, str]:
        """Why each unhealthy GPU is so, by PCI address, as last reported."""
        return {bdf: gpu.reason for bdf, gpu in self.gpus.items() if not gpu.healthy}


def evaluate(before: Health, message: Message, severity: Severity, confirmations: int) -> Health:
    """Return the health of every GPU after one more message.

    `confirmations` (at least 1) messages in a row must agree before a verdict changes. A GPU that
    the message does not mention, or reports without a meaningful severity, keeps its verdict and
    its count: silence neither confirms nor contradicts.
    """
    reported: dict[str, tuple[HealthStatus, ...]] = {}
    bad_addresses = 0
    for report in message.reports:
        try:
            bdf = PciAddress.lenient(report.bdf)
        except ValueError:
            bad_addresses += 1
        else:
            reported[bdf] = (*reported.get(bdf, ()), *report.statuses)
    statuses = [status for of_one in reported.values() for status in of_one]
    evaluated = {
        bdf: _evaluate_gpu(before.gpus.get(bdf, GpuHealth()), known, severity, confirmations)
        for bdf, of_one in reported.items()
        if (known := [status for status in of_one if _means_something(status)])
    }
    latest = {bdf: replace(gpu, known=True, reported=message.at) for bdf, gpu in evaluated.items()}
    return replace(
        before,
        gpus={**before.gpus, **latest},
        error="",
        messages=before.messages + 1,
        bad_addresses=before.bad_addresses + bad_addresses,
        bad_severities=before.bad_severities
        + sum(status.severity not in _SEVERITIES for status in statuses),
        reported=message.at,
    )


def _means_something(status: HealthStatus) -> bool:
    return status.severity in _SEVERITIES - {Severity.UNKNOWN}


def _evaluate_gpu(
    before: GpuHealth, statuses: Iterable[HealthStatus], severity: Severity, confirmations: int
) -> GpuHealth:
    bad = [status for status in statuses if status.severity >= severity]
    if bool(bad) is before.healthy:
        if before.contrary + 1 < confirmations:
            return replace(before, contrary=before.contrary + 1)
        before = replace(before, healthy=not bad, reason="", fingerprint=frozenset())
    # The words may change with every message (a temperature), without being news.
    fingerprint = frozenset((status.name, status.severity) for status in bad)
    reason = before.reason if fingerprint == before.fingerprint else _describe(bad)
    return replace(before, fingerprint=fingerprint, reason=reason, contrary=0)


def _describe(statuses: Iterable[HealthStatus]) -> str:
    worst_first = sorted(statuses, key=lambda status: (-status.severity, status.name))
    return one_line("; ".join(map(str, worst_first)))


def one_line(text: str) -> str:
    """Return a text of xpumd or gRPC as one log line of limited length."""
    return printable(text.strip(), _TEXT_LIMIT)


def age(health: Health, now: float, silence: float = SILENCE_SECONDS) -> Health:
    """Return the health at `now`: what was reported more than `silence` seconds ago is unknown.

    A verdict holds all the same: no GPU becomes healthy or unhealthy for lack of reports.
    """
    gpus = {
        bdf: replace(gpu, known=gpu.reported is not None and now - gpu.reported <= silence)
        for bdf, gpu in health.gpus.items()
    }
    error = health.error
    if not error and health.reported is not None and now - health.reported > silence:
        error = f"no news for {silence:g} s"
    return replace(health, gpus=gpus, error=error)


def complaints(health: Health, cards: Iterable[Card]) -> dict[str, str]:
    """Return why cards must not be used, by PCI address: a VF is as its physical function."""
    unhealthy = health.unhealthy
    found: dict[str, str] = {}
    for card in cards:
        if reason := unhealthy.get(card.bdf):
            found[card.bdf] = reason
        elif card.physfn and (reason := unhealthy.get(card.physfn)):
            found[card.bdf] = f"its physical function {card.physfn}: {reason}"
    return found


def unknown(health: Health, cards: Iterable[Card]) -> tuple[str, ...]:
    """Return the PCI addresses of the cards without a recent report."""
    known = {bdf for bdf, gpu in health.gpus.items() if gpu.known}
    return tuple(card.bdf for card in cards if card.bdf not in known and card.physfn not in known)
