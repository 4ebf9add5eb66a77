"""Full, read-only, foreign and forbidden places: one clear line, and what stood still stands."""

import ctypes
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nfd.test_writer import NAME, NEW, OLD, names, refusal
from xelink.nfd.writer import STAGE, Publisher, PublishError

_RDONLY, _REMOUNT, _DETACH = 1, 32, 2
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


def mount(path: Path, flags: int = 0, options: str = "size=64k,nr_inodes=8,mode=755") -> None:
    if LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options.encode()):
        reason = os.strerror(ctypes.get_errno())
        pytest.skip(f"a tmpfs cannot be mounted here: {reason}")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "features.d"
    place.mkdir()
    mount(place)
    try:
        yield place
    finally:
        LIBC.umount2(os.fsencode(place), _DETACH)


def test_another_file_system_is_told_and_nothing_stays_there(tmp_path: Path, tmpfs: Path) -> None:
    (tmpfs / NAME).write_bytes(OLD)
    publisher = Publisher(tmpfs / NAME, tmp_path)
    assert refusal(publisher) == f"{tmpfs / NAME}: Invalid cross-device link"
    assert publisher.read() == OLD
    assert names(tmp_path / STAGE) == []


@pytest.mark.parametrize("prepared", [False, True])
def test_a_read_only_mount_is_told_and_heals(tmpfs: Path, *, prepared: bool) -> None:
    publisher = Publisher(tmpfs / NAME, tmpfs)
    (tmpfs / NAME).write_bytes(OLD)
    if prepared:
        publisher.prepare()
    mount(tmpfs, _REMOUNT | _RDONLY)
    assert publisher.prepare() == []
    place = tmpfs / (NAME if prepared else STAGE)
    assert refusal(publisher) == f"{place}: Read-only file system; mount it read-write"
    assert publisher.read() == OLD
    mount(tmpfs, _REMOUNT)
    publisher.publish(NEW)
    assert publisher.read() == NEW


def test_a_full_disk_is_told_and_heals(tmpfs: Path) -> None:
    publisher = Publisher(tmpfs / NAME, tmpfs)
    publisher.publish(OLD)
    room = os.statvfs(tmpfs).f_bavail * os.statvfs(tmpfs).f_frsize
    (tmpfs / "ballast").write_bytes(b"x" * room)
    told = f"{tmpfs / NAME}: No space left on device; the file system is full"
    for _ in range(3):
        assert refusal(publisher) == told
        assert publisher.read() == OLD
        assert names(tmpfs / STAGE) == []
    (tmpfs / "ballast").unlink()
    publisher.publish(NEW)
    assert publisher.read() == NEW


def test_a_disk_that_fills_in_the_midst_of_the_file_keeps_the_old_one(tmpfs: Path) -> None:
    publisher = Publisher(tmpfs / NAME, tmpfs)
    publisher.publish(OLD)
    page = os.statvfs(tmpfs).f_frsize
    room = os.statvfs(tmpfs).f_bavail * page
    (tmpfs / "ballast").write_bytes(b"x" * (room - 2 * page))
    with pytest.raises(PublishError, match="the file system is full"):
        publisher.publish(b"x" * 8 * page)
    assert publisher.read() == OLD
    assert names(tmpfs / STAGE) == []


def test_a_disk_without_inodes_is_told(tmpfs: Path) -> None:
    publisher = Publisher(tmpfs / NAME, tmpfs)
    publisher.publish(OLD)
    for number in range(os.statvfs(tmpfs).f_favail):
        (tmpfs / f"ballast{number}").touch()
    assert refusal(publisher).endswith("No space left on device; the file system is full")
    assert publisher.read() == OLD


@contextmanager
def being(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can reach, unlike those of pytest."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@as_root
def test_a_forbidden_directory_is_told_and_what_stands_can_be_read(public: Path) -> None:
    publisher = Publisher(public / NAME, public)
    publisher.publish(OLD)
    with being(NOBODY):
        told = refusal(publisher)
        assert publisher.read() == OLD
        assert publisher.prepare() == []
    assert told == f"{public / NAME}: Permission denied; this user may not write there"
    assert names(public) == [STAGE, NAME]


@as_root
def test_a_file_of_somebody_else_is_replaced_where_the_directory_allows_it(public: Path) -> None:
    publisher = Publisher(public / NAME, public)
    (public / NAME).write_bytes(OLD)
    (public / NAME).chmod(0o600)
    os.chown(public, NOBODY, NOBODY)
    with being(NOBODY):
        assert publisher.read() is None
        publisher.publish(NEW)
        assert publisher.read() == NEW
    assert (public / NAME).stat().st_uid == NOBODY
    assert stat.S_IMODE((public / NAME).stat().st_mode) == 0o644


@as_root
def test_a_file_of_somebody_else_stays_where_the_directory_is_sticky(public: Path) -> None:
    publisher = Publisher(public / NAME, public)
    (public / NAME).write_bytes(OLD)
    public.chmod(0o1777)
    with being(NOBODY):
        told = refusal(publisher)
        assert names(public / STAGE) == []
        assert publisher.read() == OLD
    assert told == f"{public / NAME}: Operation not permitted; this user may not write there"


@as_root
def test_what_we_publish_can_be_read_by_the_user_of_nfd(public: Path) -> None:
    before = os.umask(0o077)
    try:
        Publisher(public / NAME, public).publish(NEW)
    finally:
        os.umask(before)
    with being(NOBODY):
        assert (public / NAME).read_bytes() == NEW
