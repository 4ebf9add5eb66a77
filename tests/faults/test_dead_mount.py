"""The feature file lies on a file system that does not answer: the sidecar goes on, and says so.

As with a server of NFS that is gone, or a disk that is: whoever asks for anything there is held,
whatever signals come, until it answers again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.rig import FILE, Sidecar, arguments, sidecar, truth
from tests.faults.shim import LackingError, Shim
from tests.patience import PATIENCE
from tests.processes import Running, get
from xelink.simulators.xpu_manager import Simulator

HUNG = 'xelink_sidecar_publications_total{outcome="hung"}'
WHY = f"/features.d/{FILE}: not done within 5 s: its file system does not answer"


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    features_d = tmp_path / "features.d"
    features_d.mkdir()
    try:
        return Shim(tmp_path / "wrong", features_d)
    except LackingError as error:
        pytest.skip(str(error))


@contextmanager
def beside_a_dead_mount(shim: Shim, tmp_path: Path, call: str = "hang") -> Iterator[Sidecar]:
    with (
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, tmp_path / "features.d", env=shim.environment) as daemon,
    ):
        xpum.node = truth(5)  # there is something to be written
        with shim.failing(call, 1):
            line = daemon.process.wait_for("labels not published")
            assert "error" in line
            assert WHY in line
            yield daemon


@pytest.mark.parametrize("call", ["hang", "hang-fsync"])
def test_the_loop_goes_on_beside_a_dead_mount_and_says_what_is_wrong(
    shim: Shim, tmp_path: Path, call: str
) -> None:
    with beside_a_dead_mount(shim, tmp_path, call) as daemon:
        daemon.wait_for_scrapes(lambda more: more["links"] >= 3)
        assert get(f"{daemon.url}/healthz") == (200, "ok\n")
        code, text = get(f"{daemon.url}/readyz")
        assert code == 503
        assert text.startswith("not published: ")
        assert text.endswith(f"{WHY}\n")
        assert daemon.metrics()[HUNG] >= 2
        assert len([line for line in daemon.process.lines if "labels not published" in line]) == 1
        daemon.is_bounded()


# At its beginning, and in the midst of it
@pytest.mark.parametrize("call", ["hang", "hang-look", "hang-fsync", "hang-rename"])
def test_what_could_not_be_written_is_written_once_the_mount_answers(
    shim: Shim, tmp_path: Path, call: str
) -> None:
    with (
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, tmp_path / "features.d", env=shim.environment) as daemon,
    ):
        xpum.node = truth(5)
        with shim.failing(call, 1):
            daemon.process.wait_for("labels not published")
            xpum.node = truth(6)  # what hung was of the truth before
            daemon.wait_for_scrapes(lambda more: more["links"] >= 2)
        daemon.process.wait_for("labels can be published again")
        daemon.lanes = 6
        until = time.monotonic() + PATIENCE
        while get(f"{daemon.url}/readyz") != (200, "ok\n"):
            assert time.monotonic() < until
            daemon.wait_for_scrapes(lambda more: more["links"] >= 1)
        daemon.is_true()
        assert not [line for line in daemon.process.lines if "changed by somebody else" in line]
        assert [*(tmp_path / "features.d/.stage").iterdir()] == [
            tmp_path / "features.d/.stage" / f"{FILE}.lock"
        ]


def test_it_ends_while_the_mount_is_dead(shim: Shim, tmp_path: Path) -> None:
    with beside_a_dead_mount(shim, tmp_path) as daemon:
        assert daemon.process.stop() == 0
        assert "stopped" in daemon.process.lines[-1]
        assert 'labels="not certain"' in daemon.process.lines[-1]
        assert WHY in daemon.process.lines[-1]


def test_its_page_and_its_metrics_answer_while_the_mount_is_dead(
    shim: Shim, tmp_path: Path
) -> None:
    with beside_a_dead_mount(shim, tmp_path) as daemon:
        code, text = get(f"{daemon.url}/status.json")
        assert code == 200
        assert WHY in text
        code, text = get(f"{daemon.url}/")
        assert code == 200
        assert "Nothing is published" not in text


def test_it_starts_beside_a_dead_mount_and_knows_later_what_stood_there(
    shim: Shim, tmp_path: Path
) -> None:
    features_d = tmp_path / "features.d"
    with Simulator(truth(4)) as xpum:
        with sidecar(xpum.port, features_d):
            pass
        env = dict(shim.environment)
        flags = arguments(xpum.port, features_d)
        with shim.failing("hang", 1), Running("sidecar", *flags, env=env) as late:
            late.wait_for("labels not published")
            late.wait_for("scrape result changed")
            assert not [line for line in late.lines if "resuming from" in line]
            shim.say("hang", 0)
            late.wait_for("resuming from the existing feature file")
            assert late.stop() == 0


def test_once_is_a_failure_where_the_mount_is_dead(shim: Shim, tmp_path: Path) -> None:
    flags = arguments(1, tmp_path / "features.d")
    env = dict(shim.environment)
    with (
        Simulator(truth(4)) as xpum,
        shim.failing("hang", 1),
        Running("sidecar", *flags, f"-xpum-port={xpum.port}", "-oneshot", env=env) as once,
    ):
        assert once.wait(2 * PATIENCE) == 5
        assert WHY in "\n".join(once.lines)
