"""Health of GPUs, as the xpumd of XPU Manager 2.x tells it: judged by a pure state machine.

A GPU is unhealthy at a severity or above in so many messages in a row, and healthy again after as
many without. What a message does not tell of, and the lack of messages, changes no verdict: it only
makes what stands unknown, which is reported. `xpumd` is the client that brings the messages.

XPU Manager 1.x tells no health of this kind: its port states and links travel in the feature file
and lower preference only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from xelink.inventory.gpus import Card
from xelink.topology.text import printable

PATIENCE = 30.0
"""Seconds without news after which health is unknown; a message comes about every 5."""

_TEXT_LIMIT = 300  # bytes of what xpumd says of one GPU

# [ domain ":" ] bus ":" device "." function, in either case; some tools print an 8-digit domain
_BDF = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII | re.IGNORECASE
)


class Severity(IntEnum):
    """How bad a status is, in the numbers of the wire; `UNKNOWN` tells nothing."""

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
class Status:
    """One thing that xpumd looks after (`memory`); any number may come as its severity."""

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
class Report:
    """All statuses of one GPU in one message; `bdf` as it came."""

    bdf: str
    statuses: tuple[Status, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message, which is a full snapshot; `at` is when it came, in monotonic seconds."""

    at: float
    reports: tuple[Report, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """The verdict on one GPU, and what speaks against it.

    `known` says that it rests on recent news. `reason` tells why it is unhealthy. `contrary`
    counts the messages in a row that say otherwise, `heard` is when it was told of last; two
    verdicts that differ only in these are equal.
    """

    healthy: bool = True
    known: bool = False
    reason: str = ""
    signs: frozenset[tuple[str, int]] = frozenset()
    contrary: int = field(default=0, compare=False)
    heard: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Health:
    """What is known of every GPU that xpumd has told of, by PCI address.

    `trouble` says why there is no news, empty while there is. Two values are equal when they say
    the same of every GPU and of the news. Counted since the start are messages, messages that
    cannot be read, addresses that are none, and severities that this version does not know.
    """

    gpus: Mapping[str, GpuHealth] = field(default_factory=dict)
    trouble: str = "not connected yet"
    messages: int = field(default=0, compare=False)
    bad_messages: int = field(default=0, compare=False)
    bad_addresses: int = field(default=0, compare=False)
    bad_severities: int = field(default=0, compare=False)
    heard: float | None = field(default=None, compare=False)

    @property
    def unhealthy(self) -> dict[str, str]:
        """Why each unhealthy GPU is so, by PCI address; old news stand until there are others."""
        return {bdf: gpu.reason for bdf, gpu in self.gpus.items() if not gpu.healthy}


def pci_address(text: str) -> str | None:
    """Give a PCI address as sysfs spells it (lower case, domain of 4 digits or more), else None."""
    match = _BDF.fullmatch(text.strip())
    if not match:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()


def judge(before: Health, message: Message, severity: Severity, confirmations: int) -> Health:
    """Judge every GPU in the light of one more message.

    `confirmations` (at least 1) messages in a row must agree before a verdict changes. A GPU that
    the message does not mention, or of which it tells no severity that means something, keeps
    verdict and count: silence neither confirms nor contradicts.
    """
    told: dict[str, tuple[Status, ...]] = {}
    bad_addresses = 0
    for report in message.reports:
        if bdf := pci_address(report.bdf):
            told[bdf] = (*told.get(bdf, ()), *report.statuses)
        else:
            bad_addresses += 1
    statuses = [status for of_one in told.values() for status in of_one]
    judged = {
        bdf: _judge_gpu(before.gpus.get(bdf, GpuHealth()), known, severity, confirmations)
        for bdf, of_one in told.items()
        if (known := [status for status in of_one if _means_something(status)])
    }
    heard = {bdf: replace(gpu, known=True, heard=message.at) for bdf, gpu in judged.items()}
    return replace(
        before,
        gpus={**before.gpus, **heard},
        trouble="",
        messages=before.messages + 1,
        bad_addresses=before.bad_addresses + bad_addresses,
        bad_severities=before.bad_severities
        + sum(status.severity not in _SEVERITIES for status in statuses),
        heard=message.at,
    )


def _means_something(status: Status) -> bool:
    return status.severity in _SEVERITIES - {Severity.UNKNOWN}


def _judge_gpu(
    before: GpuHealth, statuses: Iterable[Status], severity: Severity, confirmations: int
) -> GpuHealth:
    bad = [status for status in statuses if status.severity >= severity]
    if bool(bad) is before.healthy:
        if before.contrary + 1 < confirmations:
            return replace(before, contrary=before.contrary + 1)
        before = replace(before, healthy=not bad, reason="", signs=frozenset())
    # The words may change with every message (a temperature), without being news.
    signs = frozenset((status.name, status.severity) for status in bad)
    reason = before.reason if signs == before.signs else _describe(bad)
    return replace(before, signs=signs, reason=reason, contrary=0)


def _describe(statuses: Iterable[Status]) -> str:
    worst_first = sorted(statuses, key=lambda status: (-status.severity, status.name))
    return told("; ".join(map(str, worst_first)))


def told(text: str) -> str:
    """Make what xpumd or gRPC says fit for one log line, and not too long."""
    return printable(text.strip(), _TEXT_LIMIT)


def age(health: Health, now: float, patience: float = PATIENCE) -> Health:
    """Let time pass: what was told longer ago than `patience` seconds is unknown from now on.

    A verdict stands all the same: no GPU becomes healthy or unhealthy for lack of news.
    """
    gpus = {
        bdf: replace(gpu, known=gpu.heard is not None and now - gpu.heard <= patience)
        for bdf, gpu in health.gpus.items()
    }
    trouble = health.trouble
    if not trouble and health.heard is not None and now - health.heard > patience:
        trouble = f"no news for {patience:g} s"
    return replace(health, gpus=gpus, trouble=trouble)


def complaints(health: Health, cards: Iterable[Card]) -> dict[str, str]:
    """Say why cards must not be used, by PCI address; a VF is as ill as its physical function."""
    unhealthy = health.unhealthy
    found: dict[str, str] = {}
    for card in cards:
        if reason := unhealthy.get(card.bdf):
            found[card.bdf] = reason
        elif card.physfn and (reason := unhealthy.get(card.physfn)):
            found[card.bdf] = f"its physical function {card.physfn}: {reason}"
    return found


def unknown(health: Health, cards: Iterable[Card]) -> tuple[str, ...]:
    """Name the cards, by PCI address, of which there is no recent news."""
    known = {bdf for bdf, gpu in health.gpus.items() if gpu.known}
    return tuple(card.bdf for card in cards if card.bdf not in known and card.physfn not in known)
