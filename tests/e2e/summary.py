"""The summary of a run: every story with its time and what it has measured, and all versions."""

import platform
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.e2e.programs import run

FACT = "fact"
"""Name of a report's property that goes into the table."""

_INDENT = " " * 18
_WIDEST = 300
_CGROUPS = Path("/sys/fs/cgroup")

# Each tells its version in words of its own.
_PROGRAMS = {
    "kubelet": ("--version",),
    "kube-apiserver": ("--version",),
    "kube-controller-manager": ("--version",),
    "kube-scheduler": ("--version",),
    "kubectl": ("version", "--client"),
    "nfd-worker": ("-version",),
    "nfd-master": ("-version",),
    "etcd": ("--version",),
    "containerd": ("--version",),
    "runc": ("--version",),
}


def versions() -> Iterator[str]:
    """Give a line for the real programs, and one for what they stand on."""
    told = {
        name: re.search(r"v?\d+\.\d+[\w.~+-]*", run(name, *words))
        for name, words in _PROGRAMS.items()
    }
    yield ", ".join(f"{name} {found[0]}" for name, found in told.items() if found)
    groups = 2 if (_CGROUPS / "cgroup.controllers").exists() else 1
    yield (
        f"xelink {version('xelink')}, Python {platform.python_version()},"
        f" Linux {platform.release()}, cgroup v{groups}"
    )


def table(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Give the lines of the table, in the order of the stories."""
    file = ""
    for report in sorted(reports, key=lambda report: report.start):
        if report.when != "call" and report.passed:
            continue
        if file != report.location[0]:
            file = report.location[0]
            yield f"{'RESULT':10}{'TIME':8}STORY ({file})"
        story = report.location[2].removeprefix("test_").replace("_", " ")
        yield f"{report.outcome:8}{report.duration:6.1f} s  {story}{_why(report)}"
        for name, fact in report.user_properties:
            if name == FACT:
                yield _INDENT + str(fact)


def _why(report: pytest.TestReport) -> str:
    """Tell in one line why a story failed or was skipped."""
    if report.passed:
        return ""
    if report.skipped:
        return f": {why_skipped(report)}"
    lines = report.longreprtext.splitlines()
    errors = [line[1:] for line in lines if line.startswith("E ")]
    return f": {line.strip()[:_WIDEST]}" if (line := next(iter(errors or lines), "")) else ""


def why_skipped(report: pytest.TestReport) -> str:
    """Return the reason of a skip."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else report.longreprtext
