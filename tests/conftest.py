"""What all tests share."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Where nothing keeps bytecode, every worker and every program that a test starts compiles all anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from tests import skips  # noqa: E402 - it is compiled, too

# Nothing here is timed: a machine may be as slow as it likes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Our programs run as on a machine where nobody has set this: what a buffer keeps can fail later.
os.environ.pop("PYTHONUNBUFFERED", None)
# And where nobody ignores an interrupt, as a shell does for what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What is imported and collected stays: nothing looks for garbage among it, now or later.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every worker begin with its share of the tests that wait the longest, those of faults.

    Each gets a part of the list, as it is; what waits would be the last to end otherwise.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if "faults" in item.path.parts]
    rest = [item for item in items if "faults" not in item.path.parts]
    items[:] = [
        item
        for number in range(workers)
        for some in (
            long[number::workers],
            rest[len(rest) * number // workers : len(rest) * (number + 1) // workers],
        )
        for item in some
    ]


# sysfs and devfs are no disk either: trees like them are built in memory. On a disk they are a
# hundred thousand small files that a run writes, and that a later one deletes.
IN_MEMORY = {"cli", "inventory", "simulators"}
ROOM = 1 << 30
"""Bytes. More than all tests that run at the same time need."""


def memory() -> str | None:
    """Give a folder in memory with room, where everything can be done that can be on a disk."""
    folder = Path("/dev/shm")  # noqa: S108 - what is made there has a name of its own
    try:
        told = os.statvfs(folder)
    except OSError:
        return None
    # Only root can make a device node, and its tests open it.
    forbidden = os.ST_RDONLY | os.ST_NOEXEC | (0 if os.geteuid() else os.ST_NODEV)
    if told.f_flag & forbidden or told.f_bavail * told.f_frsize < ROOM:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


MEMORY = memory()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let temporary folders be where the tests of this folder have them.

    And let nobody be called within the collector: hypothesis is, once it has run, and what a signal
    raises just there, as our time limits do, is lost and told as a fault of the test.
    """
    gc.callbacks.clear()
    tempfile.tempdir = MEMORY if item.path.parent.name in IN_MEMORY else None


@pytest.fixture(scope="session", autouse=True)
def _disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let pytest have its own folder on the disk, wherever the first test has its."""
    here, tempfile.tempdir = tempfile.tempdir, None
    tmp_path_factory.getbasetemp()
    tempfile.tempdir = here


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give a folder in memory where that is to be; what is there is gone after the test."""
    if MEMORY is None or request.path.parent.name not in IN_MEMORY:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(
        prefix="xelink-", dir=MEMORY, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name, "test")  # which has a place beside it, too
        folder.mkdir()
        yield folder


def pytest_xdist_auto_num_workers() -> int:
    """Run three tests on each processor: most of a test's time is waiting for something."""
    return min(16, 3 * len(os.sched_getaffinity(0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which something was skipped that must not be."""
    allowed = os.environ.get(skips.VARIABLE)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if allowed and reporter and not is_worker and not skips.check(reporter, Path(allowed)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
