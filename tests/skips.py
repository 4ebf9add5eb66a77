"""Which tests may be skipped: where everything is installed, a skip is a fault."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

VARIABLE = "XELINK_ALLOWED_SKIPS"
"""Names a file of what may be skipped; any other skip fails the run."""


class MalformedError(ValueError):
    """The file of allowed skips cannot be read; the text names the line."""


def parse(text: str) -> Mapping[re.Pattern[str], int]:
    """Return how often each reason may be given. Raises `MalformedError`."""
    # line = count white-space reason ; reason = regular expression for the whole text
    allowed = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            count, _, reason = line.partition(" ")
            if not count.isdecimal() or not reason.strip():
                raise MalformedError(f"want `count reason`, not {line!r}")
            allowed[re.compile(reason.strip())] = int(count)
    return allowed


def unexpected(reasons: Iterable[str], allowed: Mapping[re.Pattern[str], int]) -> list[str]:
    """Return a line for each reason that is not allowed, or is given more often than allowed."""
    given = Counter(reasons)
    known = {reason: next((p for p in allowed if p.fullmatch(reason)), None) for reason in given}
    by_pattern: Counter[re.Pattern[str]] = Counter()
    for reason, count in given.items():
        if pattern := known[reason]:
            by_pattern[pattern] += count
    return [
        *(f"{count} x {reason}" for reason, count in given.items() if known[reason] is None),
        *(
            f"{count} x {pattern.pattern}: {allowed[pattern]} are allowed"
            for pattern, count in by_pattern.items()
            if count > allowed[pattern]
        ),
    ]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def check(reporter: pytest.TerminalReporter, path: Path) -> bool:
    """Print each skip that the file does not allow; return whether there was none."""
    found = unexpected(
        (reason_of(report) for report in reporter.stats.get("skipped", [])),
        parse(path.read_text()),
    )
    reporter.ensure_newline()
    for line in found:
        reporter.write_line(f"skipped and not allowed by {path}: {line}", red=True)
    return not found
