"""The file system misbehaves: one clear line, what stands is whole, and the next tick heals.

One table, which `make soak` takes its mischief from, too. A row spoils the place where a sidecar
that runs publishes; meanwhile XPU Manager has something new, which cannot be published, or only
where it belongs: no link leads the daemon out of its directory.
"""

import ctypes
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import NamedTuple

import pytest

from tests.faults.rig import FILE, NS, Sidecar, arguments, sidecar, truth
from tests.faults.shim import LackingError, Shim
from tests.processes import Running, address, get
from xelink.simulators.xpu_manager import Simulator
from xelink.topology.publication import read

_RDONLY, _REMOUNT, _DETACH = 1, 32, 2
_SIZE = "size=256k,nr_inodes=40,mode=755"
_LIBC = ctypes.CDLL(None, use_errno=True)

TREASURE = b"not yours\n"
FAILED = 'xelink_sidecar_publications_total{outcome="failed"}'
DISK, SHIM = "disk", "shim"
LANES = 4  # rows are tried by so many sidecars at a time, as most of the time is spent waiting

# What rows need that not every machine has, and what it takes to have it
NEEDS = {"": "nothing", DISK: "a tmpfs, which only root can mount", SHIM: "a C compiler"}


class UnmountableError(Exception):
    """No tmpfs can be mounted here: what needs one is left out, saying why."""


def mount(path: Path, flags: int = 0) -> None:
    """Mount a small tmpfs, or change the one that is there."""
    if _LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, _SIZE.encode()):
        raise UnmountableError(os.strerror(ctypes.get_errno()))


@contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mount a small tmpfs while the block runs."""
    path.mkdir()
    mount(path)
    try:
        yield path
    finally:
        _LIBC.umount2(os.fsencode(path), _DETACH)


@dataclass
class Place:
    """Where a sidecar publishes: `features_d` on the small tmpfs `disk`, and treasure beside it."""

    disk: Path
    outside: Path
    shim: Shim | None = None

    @property
    def features_d(self) -> Path:
        return self.disk / "features.d"

    @property
    def file(self) -> Path:
        return self.features_d / FILE

    @property
    def stage(self) -> Path:
        return self.features_d / ".stage"

    @property
    def staged(self) -> list[str]:
        """What lies in our own stage, where it is one."""
        real = self.stage.is_dir() and not self.stage.is_symlink()
        found = self.stage.iterdir() if real else ()
        return [path.name for path in found if path.name != f"{FILE}.lock"]

    @property
    def treasure(self) -> Path:
        return self.outside / FILE

    def prepare(self) -> None:
        self.features_d.mkdir()
        self.outside.mkdir()
        self.treasure.write_bytes(TREASURE)

    def is_safe(self) -> None:
        """Nothing outside was read, written, made or removed, whatever led there."""
        assert [path.name for path in self.outside.iterdir()] == [FILE]
        assert self.treasure.read_bytes() == TREASURE


Spoil = Callable[[Place], AbstractContextManager[None]]
"""Spoils a place while a block runs; at its end the place is as it was, but for the file."""


@contextmanager
def full(place: Place) -> Iterator[None]:
    room = os.statvfs(place.disk).f_bavail * os.statvfs(place.disk).f_frsize
    ballast = place.disk / "ballast"
    ballast.write_bytes(b"x" * room)
    yield
    ballast.unlink()


@contextmanager
def without_inodes(place: Place) -> Iterator[None]:
    ballast = [place.disk / f"ballast{n}" for n in range(os.statvfs(place.disk).f_favail)]
    for path in ballast:
        path.touch()
    yield
    for path in ballast:
        path.unlink()


@contextmanager
def read_only(place: Place) -> Iterator[None]:
    mount(place.disk, _REMOUNT | _RDONLY)
    yield
    mount(place.disk, _REMOUNT)


def failing(call: str, number: int) -> Spoil:
    @contextmanager
    def spoil(place: Place) -> Iterator[None]:
        assert place.shim
        with place.shim.failing(call, number):
            yield

    return spoil


@contextmanager
def deleted(place: Place) -> Iterator[None]:
    shutil.rmtree(place.features_d)
    yield
    place.features_d.mkdir()


@contextmanager
def replaced(place: Place) -> Iterator[None]:
    aside = place.disk / "aside"
    place.features_d.rename(aside)
    place.features_d.mkdir()
    yield
    shutil.rmtree(aside)


@contextmanager
def unlinked(place: Place) -> Iterator[None]:
    place.file.unlink()
    yield


@contextmanager
def foreign(place: Place) -> Iterator[None]:
    place.file.write_text(f"{NS}/xe-links=9.0-9.1\n")
    yield


@contextmanager
def foreign_huge(place: Place) -> Iterator[None]:
    place.file.write_bytes(b"x" * 100_000)
    yield


@contextmanager
def directory(place: Place) -> Iterator[None]:
    place.file.unlink()
    place.file.mkdir()
    yield
    place.file.rmdir()


@contextmanager
def pipe(place: Place) -> Iterator[None]:
    place.file.unlink()
    os.mkfifo(place.file)
    yield


def linked(*, to: str) -> Spoil:
    @contextmanager
    def spoil(place: Place) -> Iterator[None]:
        target = {"treasure": place.treasure, "nothing": place.outside / "new", "self": place.file}
        place.file.unlink()
        place.file.symlink_to(target[to])
        yield

    return spoil


@contextmanager
def stage_linked(place: Place) -> Iterator[None]:
    shutil.rmtree(place.stage)
    place.stage.symlink_to(place.outside, target_is_directory=True)
    yield
    place.stage.unlink()


@contextmanager
def stage_file(place: Place) -> Iterator[None]:
    shutil.rmtree(place.stage)
    place.stage.touch()
    yield
    place.stage.unlink()


@contextmanager
def stage_gone(place: Place) -> Iterator[None]:
    shutil.rmtree(place.stage)
    yield


@contextmanager
def stage_strewn(place: Place) -> Iterator[None]:
    """Links with names like those of staged files, which lead to the treasure."""
    strewn = [place.stage / f"{FILE}.{n:016x}" for n in range(10)]
    for path in strewn:
        path.symlink_to(place.treasure)
    yield
    for path in strewn:
        path.unlink()


class Row(NamedTuple):
    """How to spoil the place, and what the log says: of a failure, or nothing but `published`."""

    spoil: Spoil
    says: str = ""
    stands: bool = True
    """The file that stood is still there, byte for byte, where publishing fails."""
    needs: str = ""
    """What not every machine has: a disk of its own, or the shim."""


TABLE: dict[str, Row] = {
    "full": Row(full, "the file system is full", needs=DISK),
    "no inodes": Row(without_inodes, "the file system is full", needs=DISK),
    "read-only": Row(read_only, "mount it read-write", needs=DISK),
    "EIO in open": Row(failing("open", errno.EIO), "Input/output error", needs=SHIM),
    "EIO in write": Row(failing("write", errno.EIO), "Input/output error", needs=SHIM),
    "EIO in fsync": Row(failing("fsync", errno.EIO), "Input/output error", needs=SHIM),
    "EIO in fsync of the directory": Row(
        failing("fsync-directory", errno.EIO), "Input/output error", stands=False, needs=SHIM
    ),
    "EIO in rename": Row(failing("rename", errno.EIO), "Input/output error", needs=SHIM),
    "quota in write": Row(failing("write", errno.EDQUOT), "Disk quota exceeded", needs=SHIM),
    "directory deleted": Row(deleted, "is it mounted", stands=False),
    "directory replaced": Row(replaced),
    "file deleted": Row(unlinked),
    "foreign file": Row(foreign),
    "foreign file, too large": Row(foreign_huge),
    "directory in its place": Row(
        directory, "there is a directory where the file should be", stands=False
    ),
    "pipe in its place": Row(pipe),
    "link to a file outside": Row(linked(to="treasure")),
    "link to nothing": Row(linked(to="nothing")),
    "link to itself": Row(linked(to="self")),
    "stage is a link outside": Row(stage_linked, "remove the file or link"),
    "stage is a file": Row(stage_file, "remove the file or link"),
    "stage deleted": Row(stage_gone),
    "stage strewn with links": Row(stage_strewn),
}


def hold(row: Row, place: Place, daemon: Sidecar, xpum: Simulator) -> None:
    """Hold one row against a sidecar that has published the truth."""
    before, failed = daemon.content(), daemon.metrics()[FAILED]
    with row.spoil(place):
        if row.says:
            daemon.lanes += 1
            xpum.node = truth(daemon.lanes)
            line = daemon.process.wait_for("labels not published")
            assert row.says in line, line
            assert daemon.metrics()[FAILED] > failed
            if row.stands:
                assert daemon.content() == before
                assert place.staged == []
        else:
            daemon.expects(xpum)
            assert not daemon.file.is_symlink()
        place.is_safe()
    if row.says:
        daemon.process.wait_for("labels can be published again")
        daemon.process.wait_for("labels published")
        daemon.is_true()
    else:
        daemon.expects(xpum)
    daemon.is_bounded()
    place.is_safe()


@contextmanager
def placed(folder: Path) -> Iterator[tuple[Place, set[str]]]:
    """Make a place with what can be had on this machine; say what is lacking."""
    folder.mkdir()
    with ExitStack() as cleanup:
        lacking: set[str] = set()
        disk = folder / "disk"
        try:
            cleanup.enter_context(mounted(disk))
        except UnmountableError:
            lacking.add(DISK)
        place = Place(disk, disk / "outside")
        place.prepare()
        try:
            place.shim = Shim(folder / "wrong", place.features_d)
        except LackingError:
            lacking.add(SHIM)
        yield place, lacking


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path / "place") as (place, _):
        yield place


def lane(names: list[str], folder: Path) -> None:
    """Hold rows one after the other."""
    with placed(folder) as (place, _), Simulator(truth(4)) as xpum:
        env = place.shim.environment if place.shim else {}
        with sidecar(xpum.port, place.features_d, env=env) as daemon:
            for name in names:
                try:
                    hold(TABLE[name], place, daemon, xpum)
                except Exception as error:
                    raise AssertionError(f"{name}: {error!r}; {daemon.process.lines}") from error


@pytest.mark.parametrize("needs", NEEDS, ids=[f"with {what}" for what in NEEDS.values()])
def test_every_fault_of_the_file_system_is_told_and_heals_and_leads_nowhere(
    tmp_path: Path, needs: str
) -> None:
    names = [name for name, row in TABLE.items() if row.needs == needs]
    with placed(tmp_path / "place") as (_, lacking):
        if needs in lacking:
            pytest.skip(f"these take {NEEDS[needs]}: {', '.join(names)}")
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [
            pool.submit(lane, names[number::LANES], tmp_path / str(number))
            for number in range(min(LANES, len(names)))
        ]
        for done in lanes:
            done.result()


def test_every_fault_of_the_file_system_is_tried_somewhere() -> None:
    assert {row.needs for row in TABLE.values()} == NEEDS.keys()


def test_labels_whose_removal_may_not_last_are_not_said_to_be_removed(place: Place) -> None:
    if place.shim is None:
        pytest.skip("needs a C compiler")
    flags = (*arguments(1, place.features_d), "-on-exit=remove")
    place.file.write_text(f"{NS}/xe-links=0.0-1.0\n")
    with Running("sidecar", *flags, env=dict(place.shim.environment)) as process:
        process.wait_for("no usable answer")
        with place.shim.failing("fsync-directory", errno.EIO):
            assert process.stop() == 0
    assert not place.file.exists()
    (line,) = [line for line in process.lines if "event=stopped" in line]
    assert 'labels="not certain"' in line
    assert "Input/output error" in line


def test_links_like_what_a_killed_sidecar_leaves_are_not_followed_at_the_start(
    place: Place,
) -> None:
    place.stage.mkdir()
    (place.stage / f"{FILE}.{0:016x}").symlink_to(place.treasure)
    (place.stage / f"{FILE}.{1:016x}").symlink_to(place.outside, target_is_directory=True)
    (place.features_d / "xpumsidecar123").symlink_to(place.outside, target_is_directory=True)
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, place.features_d) as daemon:
        daemon.expects(xpum)
    place.is_safe()


def test_a_stage_that_leads_outside_at_the_start_is_neither_cleared_nor_written(
    place: Place,
) -> None:
    """What lies there looks just like what a killed sidecar leaves."""
    kept = {path: path.write_bytes(TREASURE) for path in leftovers(place.outside)}
    place.stage.symlink_to(place.outside, target_is_directory=True)
    with (
        Simulator(truth(4)) as xpum,
        Running("sidecar", *arguments(xpum.port, place.features_d)) as process,
    ):
        line = process.wait_for("labels not published")
        assert "remove the file or link" in line
        assert {path for path in place.outside.iterdir() if path != place.treasure} == {*kept}
        assert all(path.read_bytes() == TREASURE for path in kept)
        assert not place.file.exists()
        place.stage.unlink()
        process.wait_for("labels published")
        assert read(place.file.read_bytes(), NS, datetime.now(UTC)).topology == truth(4).topology
        assert process.stop() == 0


def leftovers(folder: Path) -> list[Path]:
    return [folder / f"{FILE}.{number:016x}" for number in range(3)]


def test_a_file_that_cannot_be_read_back_is_told_and_holds_the_truth_all_the_same(
    place: Place,
) -> None:
    if place.shim is None:
        pytest.skip("needs a C compiler")
    with (
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, place.features_d, env=place.shim.environment) as daemon,
    ):
        with place.shim.failing("read", errno.EIO):
            daemon.lanes += 1
            xpum.node = truth(daemon.lanes)
            line = daemon.process.wait_for("labels not published")
            assert "not read: Input/output error" in line
            daemon.is_true()
            assert place.staged == []
        daemon.process.wait_for("labels can be published again")
        daemon.process.wait_for("labels published")
        daemon.expects(xpum)
        daemon.is_bounded()


def test_a_second_sidecar_stands_by_until_the_first_one_ends(place: Place) -> None:
    """Of other flags: each would find what the other wrote, and write its own again."""
    stop = threading.Event()
    wrong: list[str] = []
    contents: list[bytes] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                content = place.file.read_bytes()
                assert read(content, NS, datetime.now(UTC)).topology == truth(4).topology
                if content not in contents[-1:]:
                    contents.append(content)
            except (OSError, ValueError, AssertionError) as error:
                wrong.append(repr(error))

    flags = (*arguments(0, place.features_d)[1:], "-summary-labels=false", "-on-exit=remove")
    with (
        Simulator(truth(4)) as xpum,
        sidecar(xpum.port, place.features_d) as first,
        Running("sidecar", f"-xpum-port={xpum.port}", *flags) as second,
    ):
        reader = threading.Thread(target=watch)
        reader.start()
        url = address(second)
        line = second.wait_for("another sidecar publishes here: standing by")
        assert f"process {first.pid}" in line
        xpum.wait_for_request(xpum.requests + 6)
        assert get(f"{url}/readyz") == (
            200,
            f"standing by: {gethostname()} process {first.pid} publishes\n",
        )
        assert "xelink_sidecar_standing_by 1.0" in get(f"{url}/metrics")[1]
        assert first.metrics()["xelink_sidecar_standing_by"] == 0
        assert len(contents) == 1
        first.is_bounded()
        assert first.process.stop(signal.SIGKILL) == -signal.SIGKILL
        second.wait_for("the other sidecar has ended: publishing")
        second.wait_for("labels published")
        assert get(f"{url}/readyz") == (200, "ok\n")
        stop.set()
        reader.join()
        assert wrong == []
        assert len(contents) <= 2
        second.forget()
        with Running("sidecar", f"-xpum-port={xpum.port}", *flags, "-oneshot") as third:
            assert third.wait() == 5  # not published
        with Running("sidecar", f"-xpum-port={xpum.port}", *flags) as third:
            third.wait_for("standing by")
            assert third.stop() == 0
            assert "another sidecar" in third.lines[-1]
        assert place.file.exists()  # it was not the third's to remove
        assert second.stop() == 0
        assert not place.file.exists()
