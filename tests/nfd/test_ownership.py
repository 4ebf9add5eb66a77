"""One feature file has one writer: the next one takes over when it ends, however it ends."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xelink.nfd.ownership import Ownership
from xelink.nfd.writer import Publisher

NAME = "labels.txt"
LOCK = f"{NAME}.lock"
WHO = f"{socket.gethostname()} process {os.getpid()}"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Ownership, Ownership]]:
    owners = Ownership(tmp_path, NAME), Ownership(tmp_path, NAME)
    yield owners
    for owner in owners:
        owner.release()


def test_the_first_one_owns_it_until_it_lets_go(pair: tuple[Ownership, Ownership]) -> None:
    first, second = pair
    for _ in range(3):
        assert first.other() is None
        assert second.other() == WHO
    first.release()
    assert second.other() is None
    assert first.other() == WHO


def test_another_file_has_another_owner(tmp_path: Path) -> None:
    owners = [Ownership(tmp_path, name) for name in ("one", "other")]
    assert [owner.other() for owner in owners] == [None, None]
    for owner in owners:
        owner.release()


def test_nobody_else_can_lock_it(tmp_path: Path, pair: tuple[Ownership, Ownership]) -> None:
    before = os.umask(0)
    try:
        assert pair[0].other() is None
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == 0o600


def test_a_lock_that_was_removed_is_made_again(
    tmp_path: Path, pair: tuple[Ownership, Ownership]
) -> None:
    first, second = pair
    assert first.other() is None
    (tmp_path / LOCK).unlink()
    assert second.other() is None
    assert first.other() == WHO  # there are not two that own it
    assert second.other() is None


class Overtaken(Ownership):
    """An owner whose file is replaced, once, when it has just opened it to write who it is."""

    THEIRS = "another process 1"

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name)
        self.path = directory / f"{name}.lock"
        self.locked: int | None = None

    def _open(self, flags: int) -> int:
        if flags & os.O_WRONLY and self.locked is None:
            self.path.unlink()
            self.path.write_text(f"{self.THEIRS}\n")
            self.locked = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self.locked, fcntl.LOCK_EX)
        return super()._open(flags)


def test_a_lock_whose_file_was_replaced_meanwhile_is_none(tmp_path: Path) -> None:
    owner = Overtaken(tmp_path, NAME)
    assert owner.other() == Overtaken.THEIRS  # and their name was not written over
    assert owner.locked is not None
    os.close(owner.locked)
    assert owner.other() is None


def test_what_is_removed_is_ones_own(tmp_path: Path, pair: tuple[Ownership, Ownership]) -> None:
    first, second = pair
    assert first.other() is None
    (tmp_path / LOCK).unlink()
    assert second.other() is None
    first.remove()
    assert (tmp_path / LOCK).exists()
    second.remove()
    assert not (tmp_path / LOCK).exists()


def test_of_a_longer_name_that_stood_there_nothing_stays(
    tmp_path: Path, pair: tuple[Ownership, Ownership]
) -> None:
    (tmp_path / LOCK).write_text(f"{'n' * 100} process 1\n")
    assert [owner.other() for owner in pair] == [None, WHO]


def test_who_is_killed_owns_nothing(tmp_path: Path, pair: tuple[Ownership, Ownership]) -> None:
    code = (
        "import sys; from pathlib import Path; from xelink.nfd.ownership import Ownership\n"
        "owner = Ownership(Path(sys.argv[1]), sys.argv[2])\n"
        "print(owner.other(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "None\n"
        assert pair[0].other() == f"{socket.gethostname()} process {process.pid}"
        process.kill()
    assert pair[0].other() is None


INSTEAD: list[Callable[[Path], object]] = [
    os.mkfifo,
    Path.mkdir,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.parent.rmdir(),
]


@pytest.mark.parametrize("make", INSTEAD, ids=["pipe", "directory", "link", "nothing"])
def test_where_there_can_be_no_lock_everybody_writes(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    (tmp_path / "stage").mkdir()
    make(tmp_path / "stage" / LOCK)
    owners = [Ownership(tmp_path / "stage", NAME) for _ in range(2)]
    assert [owner.other() for owner in owners] == [None, None]
    for owner in owners:
        owner.release()


def test_what_is_withdrawn_leaves_nothing_behind(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / NAME, tmp_path)
    publisher.prepare()
    assert publisher.other_writer() is None
    publisher.publish(b"x\n")
    publisher.withdraw()
    publisher.close()
    assert [*tmp_path.iterdir()] == []
