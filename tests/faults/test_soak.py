"""`make soak` runs: some seconds of it, and its table. What is wrong it sees, and fails."""

import importlib
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.rig import NS, Footprint, truth
from tests.patience import PATIENCE
from xelink.simulators.kubelet.admission import AdmissionError
from xelink.topology.publication import Publication, render

ROOT = Path(__file__).parents[2]
VIOLATED = """
import contextlib, sys
sys.path[:0] = ["tools", "."]
import soak
@contextlib.contextmanager
def running(folder, chance):
    raise soak.ViolationError("no label is wrong", "as told")
    yield
soak.Node.running = running
sys.exit(soak.main(["--minutes=0.001"]))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"COVERAGE_PROCESS_CONFIG": "", "PATH": "/usr/bin:/bin"},
        timeout=4 * PATIENCE,  # it starts and kills daemons, and fuzzes
        check=False,
    )


def test_a_short_soak_ends_well_with_its_table() -> None:
    done = run("tools/soak.py", "--minutes=0.1", "--seed=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^no label is wrong +[1-9]\d* +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^no input breaks a reader +7 +0$", done.stdout, re.MULTILINE)


def test_a_violation_ends_it_badly_and_is_in_the_table() -> None:
    done = run("-c", VIOLATED)
    assert done.returncode == 1
    assert done.stderr.startswith("violated: no label is wrong: as told\n")
    assert re.search(r"^no label is wrong +\d+ +1$", done.stdout, re.MULTILINE)
    assert len(re.findall(r" 1$", done.stdout, re.MULTILINE)) == 1


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a program, without types here
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("soak")


def published(path: Path, lanes: int = 4, life: float = 60, mode: int = 0o644) -> None:
    until = datetime.now(UTC) + timedelta(seconds=life)
    path.write_bytes(render(Publication(truth(lanes).topology, until), NS))
    path.chmod(mode)


READS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the truth": (published, ""),
    "another topology": (lambda path: published(path, lanes=5), "no label is wrong"),
    "no file": (lambda _: None, "no label is lost inside its expiry"),
    "an expired file": (
        lambda path: published(path, life=-1),
        "no label is lost inside its expiry",
    ),
    "half a file": (
        lambda path: path.write_text(f"{NS}/xe-links=0.0-1.0Z\n"),
        "no label is lost inside its expiry",
    ),
    "a file that others cannot read": (
        lambda path: published(path, mode=0o600),
        "the file is readable",
    ),
}


@pytest.mark.parametrize("what", READS)
def test_what_nfd_would_read_is_held_against_the_truth(
    soak: Any,  # noqa: ANN401 - as above
    tmp_path: Path,
    what: str,
) -> None:
    prepare, invariant = READS[what]
    path = tmp_path / "labels.txt"
    prepare(path)
    known = soak.Node.__init__.__globals__["Truth"](truth(4).topology)
    node = SimpleNamespace(truth=known, place=SimpleNamespace(file=path), content=path.read_bytes)
    run = soak.Soak(node, 1.0, random.Random(1))  # noqa: S311 - no secret
    if not invariant:
        run._read()  # noqa: SLF001 - one look of many
        assert run.account.reads == 1
        return
    with pytest.raises(soak.ViolationError) as violated:
        run._read()  # noqa: SLF001 - as above
    assert violated.value.invariant == invariant
    known.spoiled = 1
    run._read()  # noqa: SLF001 - as above
    assert run.account.reads == 1, "while a fault is at the file, nothing is claimed"


class Admits:
    """A kubelet that gives every Pod these devices, or none."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def run_pod(self, *_: object) -> object:
        if not self.ids:
            raise AdmissionError("no")
        response = SimpleNamespace(envs={"XELINK_LINKED": "all"})
        return SimpleNamespace(ids=self.ids, response=response)

    def delete_pod(self, _: str) -> None:
        """Forget it."""


@pytest.mark.parametrize(
    ("ids", "invariant"),
    [
        (("card2-0", "card7-0"), ""),
        (("card1-0", "card2-0"), "the best pair is preferred"),
        ((), "no admission fails"),
    ],
    ids=["the best", "others", "none"],
)
def test_each_pod_is_owed_the_best_pair(
    soak: Any,  # noqa: ANN401 - as above
    ids: tuple[str, ...],
    invariant: str,
) -> None:
    known = SimpleNamespace(spoils=0, spoiled=0)
    node = SimpleNamespace(
        truth=known, kubelet=Admits(*ids), admitting=threading.Lock(), has_links=lambda: True
    )
    run = soak.Soak(node, 1.0, random.Random(1))  # noqa: S311 - no secret
    if not invariant:
        run._admit()  # noqa: SLF001 - one Pod of many
        assert run.account.pods == 1
        return
    with pytest.raises(soak.ViolationError) as violated:
        run._admit()  # noqa: SLF001 - as above
    assert violated.value.invariant == invariant


def test_what_a_daemon_takes_is_held_against_what_it_took_when_it_was_warm(
    soak: Any,  # noqa: ANN401 - as above
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = Footprint(1 << 20, 1 << 20, 10, 2)
    process = SimpleNamespace(process=SimpleNamespace(pid=1))
    node = SimpleNamespace(sidecar=process, plugin=process)
    account = soak.Account()
    look = soak._Measured(node, account).look  # noqa: SLF001 - one look of many
    monkeypatch.setattr(soak, "footprint", lambda _: taken)
    look()
    assert account.measured == 0, "not warm yet"
    monkeypatch.setattr(soak, "_WARM", -1.0)
    look()
    assert account.measured == 2
    taken = taken._replace(descriptors=10 + 9)
    with pytest.raises(soak.ViolationError, match="what a daemon takes is bounded"):
        look()
