"""The feature file as NFD reads it, and the rules that a line must pass to be published.

Source: NFD's local feature source from 0.15 on, measured. Older versions know fewer directives:
they see an unknown one as a comment.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

FILE_LIMIT = 65536
"""Bytes; NFD drops a longer file as a whole."""

# What Go's strings.TrimSpace trims; Python's strip() would take four more control characters.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_DIRECTIVE = "# +"

# RFC 3339 as Go reads it: upper case T and Z, a zone is a must, a fraction may follow the seconds
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.,][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)

# label = [ subdomain "/" ] name "=" value
_SUBDOMAIN = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII
)
_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", re.ASCII)
_SUBDOMAIN_LIMIT = 253
_NAME_LIMIT = 63

_DENIED = re.compile(r"(.+\.)?kubernetes\.io")
_ALLOWED = re.compile(r"(.+\.)?(feature|profile)\.node\.kubernetes\.io")


@dataclass(frozen=True)
class FeatureFile:
    """What NFD takes from one file: `labels` before validation, and `features` for its rules."""

    labels: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    expiry: datetime | None = None
    """The last expiry that the file names, passed or not."""
    expired: bool = False
    """Whether lines were left out because their time had passed."""
    problems: tuple[str, ...] = ()
    """What NFD would log as an error."""


def parse(content: bytes, now: datetime) -> FeatureFile:
    """Read a feature file exactly as NFD does at the instant `now` (with a time zone)."""
    if len(content) > FILE_LIMIT:
        return FeatureFile(problems=(f"over {FILE_LIMIT} bytes: NFD drops the whole file",))
    labels: dict[str, str] = {}
    features: dict[str, str] = {}
    expiry: datetime | None = None
    expired = no_label = no_feature = False
    problems: list[str] = []
    for raw in content.decode(errors="surrogateescape").split("\n"):
        line = raw.strip(_BLANKS)
        if line.startswith(_DIRECTIVE):
            name, is_pair, value = line.removeprefix(_DIRECTIVE).partition("=")
            if name == "no-label":
                no_label = True
            elif name == "no-feature":
                no_feature = True
            elif name == "expiry-time" and is_pair and (instant := _instant(value)):
                expiry = instant
            else:
                problems.append(f"bad directive: {line}")
        elif line and not line.startswith("#"):
            if expiry and expiry < now:
                expired = True
                continue
            key, is_pair, value = line.partition("=")
            _put(labels, key, value if is_pair else "true", wanted=not no_label)
            _put(features, key, value if is_pair else "true", wanted=not no_feature)
            no_label = no_feature = False
    return FeatureFile(labels, features, expiry, expired, tuple(problems))


def _put(entries: dict[str, str], key: str, value: str, *, wanted: bool) -> None:
    if wanted:
        entries[key] = value
    else:
        entries.pop(key, None)


def _instant(value: str) -> datetime | None:
    text = value.strip(_BLANKS)
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # the form is right, the calendar is not: 2026-02-30
        return None


def format_expiry(instant: datetime) -> str:
    """Write the directive line of an expiry: UTC, whole seconds, `Z`."""
    return f"{_DIRECTIVE}expiry-time={instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def without_expiry(content: bytes) -> bytes:
    """Return the feature file without its expiry."""
    directive = f"{_DIRECTIVE}expiry-time".encode()
    return b"".join(
        line for line in content.splitlines(keepends=True) if not line.startswith(directive)
    )


def format_raw(name: str, value: str) -> str:
    """Write a raw feature, which NFD keeps for its rules and never makes a label of."""
    return f"{_DIRECTIVE}no-label\n{name}={value}"


def label_problem(name: str, value: str) -> str | None:
    """Return why Kubernetes or NFD would refuse this label; None when both accept it."""
    return name_problem(name) or value_problem(value)


def name_problem(name: str) -> str | None:
    """Return why a label or raw feature of this name would be refused."""
    namespace, _, local = name.rpartition("/")
    if "/" in name and (problem := namespace_problem(namespace)):
        return problem
    if len(local) > _NAME_LIMIT or not _NAME.fullmatch(local):
        return f"label name {local!r} is not 1 to 63 of A-Z a-z 0-9 - _ . between alphanumerics"
    return None


def namespace_problem(namespace: str) -> str | None:
    """Return why a label in this namespace would be refused."""
    if len(namespace) > _SUBDOMAIN_LIMIT or not _SUBDOMAIN.fullmatch(namespace):
        return "a label's namespace should be a lower-case DNS name such as gpu.intel.com"
    if _DENIED.fullmatch(namespace) and not _ALLOWED.fullmatch(namespace):
        return "this namespace belongs to Kubernetes: NFD refuses labels in it"
    return None


def namespace(value: str) -> str:
    """Return the namespace as it is. Raises `ValueError` when labels in it would be refused."""
    if problem := namespace_problem(value):
        raise ValueError(problem)
    return value


def value_problem(value: str) -> str | None:
    """Return why Kubernetes would refuse this label value."""
    if len(value) > _NAME_LIMIT or (value and not _NAME.fullmatch(value)):
        return f"label value {value!r} is not at most 63 of A-Z a-z 0-9 - _ . between alphanumerics"
    return None
