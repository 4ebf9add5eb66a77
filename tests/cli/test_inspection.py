"""Checks of the doctor on looks that end badly: one that hangs, is refused, or sees too much."""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from xelink.cli.doctor import checks_file
from xelink.cli.doctor.command import PLUGIN, SIDECAR
from xelink.cli.doctor.finding import CheckStatus, Finding
from xelink.cli.doctor.inspection import MOST_FILES, Locations, NodeInspection
from xelink.cli.doctor.permissions import User
from xelink.cli.timed_calls import TimedCalls
from xelink.daemon.hanging_work import HungError
from xelink.topology.publication import DEFAULT_NAMESPACE
from xelink.xpu_manager.scrape import ScrapeTarget

T = TypeVar("T")
OTHER = f"{DEFAULT_NAMESPACE}/xe-links=0.0-1.0\n"


@dataclass
class Failing(TimedCalls):
    """TimedCalls that end with an error from when it is set."""

    error: OSError | None = None
    asked: list[str] = field(default_factory=list)

    def __call__(self, name: str, path: Path, look: Callable[[], T]) -> T:  # noqa: ARG002 - as `TimedCalls` is called
        self.asked.append(name)
        if self.error:
            raise self.error
        return look()


def visit(directory: Path, looks: TimedCalls, *given: str) -> NodeInspection:
    place = Locations(
        Path("/"),
        directory,
        directory / "ours.txt",
        directory,
        SIDECAR,
        PLUGIN,
        DEFAULT_NAMESPACE,
        frozenset(given),
    )
    user = User(0, frozenset({0}))
    now = datetime.now(UTC)
    return NodeInspection(
        place, ScrapeTarget(1), user, now, lambda _: nullcontext(), lambda _: None, looks
    )


def writers(directory: Path, error: OSError, *given: str) -> Finding:
    """Let the directory be there, and the list of its files end with an error."""
    looks = Failing()
    seen = visit(directory, looks, *given)
    assert seen.directory.stat
    assert not seen.sidecar.part
    looks.error = error
    return checks_file.one_writer(seen)


def test_a_list_of_files_that_hangs_is_told_as_any_look_that_does(tmp_path: Path) -> None:
    found = writers(tmp_path, HungError(errno.EIO, "it does not answer within 5 s"))
    assert (found.status, found.reason) == (CheckStatus.FAIL, "it does not answer within 5 s")
    assert found.todo.startswith("fix its file system")


@pytest.mark.parametrize(
    ("given", "status"), [((), CheckStatus.SKIP), (("--features-dir",), CheckStatus.FAIL)]
)
def test_a_list_of_files_that_is_refused_is_told_and_a_failure_where_it_was_named(
    tmp_path: Path, given: tuple[str, ...], status: CheckStatus
) -> None:
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    found = writers(tmp_path, refused, *given)
    assert found.status is status
    assert found.reason.startswith(f"{tmp_path}: permission denied")


def test_files_beyond_those_that_are_looked_at_are_told(tmp_path: Path) -> None:
    for number in range(MOST_FILES):
        (tmp_path / f"{number:04}.txt").write_text("a=b\n")
    assert checks_file.one_writer(visit(tmp_path, TimedCalls())).status is CheckStatus.OK
    (tmp_path / "last").write_text(OTHER)
    found = checks_file.one_writer(visit(tmp_path, TimedCalls()))
    assert found.status is CheckStatus.SKIP
    assert found.reason.startswith(f"of {MOST_FILES + 1} files only the first {MOST_FILES} were")
    (tmp_path / "0000.txt").write_text(OTHER)
    found = checks_file.one_writer(visit(tmp_path, TimedCalls()))
    assert found.status is CheckStatus.FAIL
    assert "is in 0000.txt, too" in found.reason


def test_a_file_of_others_that_is_no_file_of_links_is_no_second_writer(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(f"{DEFAULT_NAMESPACE}/xe-links-of-mine=1\n")
    assert checks_file.one_writer(visit(tmp_path, TimedCalls())).status is CheckStatus.OK
