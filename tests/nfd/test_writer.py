"""The feature file appears whole, readable, as one event; nobody leads the publisher astray."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xelink.nfd.writer import STAGE, Publisher, PublishError

OLD = b"gpu.intel.com/xe-links=\n"
NEW = b"# +expiry-time=2026-11-20T10:05:00Z\ngpu.intel.com/xe-links=0.0-1.0\n"
NAME = "xpum-sidecar-labels.txt"

# What NFD's watcher, fsnotify, asks the kernel for
_EVENTS = {
    0x002: "MODIFY",
    0x004: "ATTRIB",
    0x040: "MOVED_FROM",
    0x080: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
}
_HEADER = struct.Struct("iIII")


class Watch:
    """The events that a watcher of a directory is told, as (event, name)."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(directory), sum(_EVENTS)) >= 0

    def events(self) -> list[tuple[str, str]]:
        found = []
        try:
            data = os.read(self.descriptor, 65536)
        except BlockingIOError:
            return []
        while data:
            _, mask, _, length = _HEADER.unpack_from(data)
            name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0").decode()
            found += [(event, name) for bit, event in _EVENTS.items() if mask & bit]
            data = data[_HEADER.size + length :]
        return found


@contextmanager
def watched(directory: Path) -> Iterator[Watch]:
    watch = Watch(directory)
    try:
        yield watch
    finally:
        os.close(watch.descriptor)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    features = tmp_path / "features.d"
    features.mkdir()
    return features


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / NAME


@pytest.fixture
def publisher(file: Path) -> Publisher:
    return Publisher(file, file.parent)


def refusal(publisher: Publisher) -> str:
    with pytest.raises(PublishError) as caught:
        publisher.publish(NEW)
    text = str(caught.value)
    assert text.isprintable()
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_file_is_exact_and_readable_for_all_under_any_umask(
    publisher: Publisher, file: Path, mask: int
) -> None:
    with umask(mask):
        publisher.publish(OLD)
        publisher.publish(NEW)
    assert file.read_bytes() == publisher.read() == NEW
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_ISREG(file.lstat().st_mode)
    assert names(file.parent / STAGE) == []


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 10, b"x" * 65_536])
def test_any_content_is_published_as_it_is(publisher: Publisher, content: bytes) -> None:
    publisher.publish(content)
    assert publisher.read() == content


def test_a_publication_is_one_event_for_who_watches_the_directory(
    publisher: Publisher, folder: Path
) -> None:
    publisher.prepare()
    with watched(folder) as watch:
        for content in (OLD, NEW, OLD):
            publisher.publish(content)
            assert watch.events() == [("MOVED_TO", NAME)]
        publisher.read()
        publisher.prepare()
        assert watch.events() == []
        publisher.withdraw()
        assert watch.events() == [("DELETE", NAME), ("DELETE", STAGE)]
        publisher.withdraw()
        assert watch.events() == []


def test_a_failed_publication_is_no_event(publisher: Publisher, folder: Path, file: Path) -> None:
    file.mkdir()
    publisher.prepare()
    with watched(folder) as watch:
        refusal(publisher)
        assert watch.events() == []
    assert names(folder / STAGE) == []


def test_withdrawing_is_idempotent(publisher: Publisher, file: Path) -> None:
    publisher.publish(NEW)
    for _ in range(3):
        publisher.withdraw()
        assert publisher.read() is None
        assert not file.exists()
    publisher.publish(OLD)
    assert publisher.read() == OLD


def test_a_missing_directory_is_told_by_name_and_heals(tmp_path: Path) -> None:
    folder = tmp_path / "features.d"
    publisher = Publisher(folder / NAME, folder)
    assert publisher.prepare() == []
    told = f"{folder}: No such file or directory"
    assert refusal(publisher) == told
    with pytest.raises(PublishError, match="No such file") as caught:
        publisher.withdraw()
    assert caught.value.code == errno.ENOENT
    assert publisher.read() is None
    folder.mkdir()
    publisher.publish(NEW)
    assert publisher.read() == NEW


def test_a_stage_that_vanished_is_made_again(publisher: Publisher, folder: Path) -> None:
    publisher.publish(OLD)
    (folder / STAGE).rmdir()
    publisher.publish(NEW)
    assert publisher.read() == NEW


def test_a_directory_in_the_place_of_the_file_is_told(publisher: Publisher, file: Path) -> None:
    file.mkdir()
    (file / "precious").write_text("stays")
    assert publisher.read() is None
    told = f"{file}: Is a directory; there is a directory where the file should be"
    assert refusal(publisher) == told
    with pytest.raises(PublishError, match="there is a directory where the file should be"):
        publisher.withdraw()
    assert (file / "precious").read_text() == "stays"
    assert names(file.parent / STAGE) == []


def test_a_file_in_the_place_of_a_directory_is_told(folder: Path, file: Path) -> None:
    (folder / "plain").write_text("")
    hint = "Not a directory; remove the file or link where a directory should be"
    assert refusal(Publisher(folder / "plain" / NAME, folder)) == f"{folder / 'plain'}: {hint}"
    (folder / STAGE).write_text("")
    assert refusal(Publisher(file, folder)) == f"{folder / STAGE}: {hint}"


def test_a_link_in_the_place_of_the_file_is_replaced_and_its_target_untouched(
    publisher: Publisher, file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "shadow"
    target.write_bytes(OLD)
    file.symlink_to(target)
    assert publisher.read() is None
    publisher.publish(NEW)
    assert not file.is_symlink()
    assert publisher.read() == NEW
    assert target.read_bytes() == OLD
    file.unlink()
    file.symlink_to(target)
    publisher.withdraw()
    assert not file.is_symlink()
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("dangling", [False, True])
def test_a_stage_that_leads_elsewhere_is_never_followed(
    publisher: Publisher, folder: Path, file: Path, tmp_path: Path, *, dangling: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("stays")
    file.write_bytes(OLD)
    (folder / STAGE).symlink_to(elsewhere)
    assert publisher.prepare() == []
    assert refusal(publisher).startswith(f"{folder / STAGE}: Not a directory; remove the file or")
    assert dangling or names(elsewhere) == ["precious"]
    assert publisher.read() == OLD


def test_a_link_planted_in_the_stage_is_not_written_through(
    publisher: Publisher, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "passwd"
    target.write_bytes(OLD)
    publisher.prepare()
    (folder / STAGE / f"{NAME}.{os.getpid()}").symlink_to(target)
    publisher.publish(NEW)
    assert target.read_bytes() == OLD
    assert publisher.read() == NEW


def test_reading_neither_hangs_nor_swallows_what_is_no_feature_file(
    publisher: Publisher, file: Path
) -> None:
    os.mkfifo(file)
    assert publisher.read() is None
    publisher.publish(NEW)
    assert publisher.read() == NEW
    os.truncate(file, 1 << 40)  # sparse, and longer than any memory
    assert len(publisher.read() or b"") == 1 << 20
    publisher.publish(NEW)
    assert publisher.read() == NEW


def test_what_another_instance_is_writing_is_no_leftover(
    publisher: Publisher, folder: Path
) -> None:
    publisher.prepare()
    name = f"{NAME}.{17:016x}"
    with (folder / STAGE / name).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert publisher.prepare() == []
        publisher.publish(NEW)
        assert names(folder / STAGE) == [name]
    assert publisher.prepare() == [f"{STAGE}/{name}"]


def test_leftovers_are_removed_and_what_is_not_ours_is_not(
    publisher: Publisher, folder: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("stays")
    publisher.prepare()
    staged = f"{NAME}.{17:016x}"
    (folder / STAGE / staged).write_bytes(OLD)
    (folder / STAGE / f"{NAME}.{18:016x}").symlink_to(precious)
    (folder / STAGE / "of another tool").write_text("stays")
    (folder / "xpumsidecar123456").mkdir()
    (folder / "xpumsidecar123456" / "labels").write_bytes(OLD)
    (folder / "xpumsidecar123456" / "link").symlink_to(precious)
    (folder / "xpumsidecar-notes").mkdir()
    (folder / "xpumsidecar77").symlink_to(precious)
    (folder / "xpumsidecar88").write_text("a file")
    (folder / "xpumsidecar").mkdir()
    (folder / "nvidia.txt").write_text("stays")
    removed = publisher.prepare()
    assert removed == [f"{STAGE}/{staged}", "xpumsidecar123456"]
    assert names(folder) == [
        *(STAGE, "nvidia.txt", "xpumsidecar", "xpumsidecar-notes"),
        *("xpumsidecar77", "xpumsidecar88"),
    ]
    assert (precious / "file").read_text() == "stays"
    assert publisher.prepare() == []
