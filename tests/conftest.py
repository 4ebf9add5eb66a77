"""What all tests share."""

import gc
import os
import signal
import sys
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
