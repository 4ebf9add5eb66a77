"""What all tests share."""

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


def pytest_xdist_auto_num_workers() -> int:
    """Run two tests on each processor: half of a test's time is waiting for something."""
    return min(16, 2 * len(os.sched_getaffinity(0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which something was skipped that must not be."""
    allowed = os.environ.get(skips.VARIABLE)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if allowed and reporter and not is_worker and not skips.check(reporter, Path(allowed)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
