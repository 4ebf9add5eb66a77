"""A file that somebody else may write costs no more than its bound, in bytes and in time."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE
from xelink.daemon.files import TimedReader, read_file, read_up_to
from xelink.daemon.hanging_work import HungError


@given(st.binary(max_size=300_000), st.integers(1, 70_000))
def test_what_is_read_up_to_a_bound_is_the_beginning(content: bytes, step: int) -> None:
    left = memoryview(content)

    def read(size: int) -> bytes:
        nonlocal left
        chunk, left = bytes(left[: min(size, step)]), left[min(size, step) :]
        return chunk

    assert read_up_to(read, 100_000) == content[:100_000]


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_within_its_bound_is_read_whole(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * size)
    assert read_file(file, 100) == b"x" * size
    assert TimedReader(PATIENCE)(file, 100) == b"x" * size


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    (Path.mkdir, "Is a directory"),
    (lambda path: path.write_bytes(b"x" * 101), "more than 100 bytes"),
    (_huge, "more than 100 bytes"),
    (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    (lambda _: None, "No such file or directory"),
]


@pytest.mark.parametrize(("make", "why"), REFUSED)
@pytest.mark.parametrize("read", [read_file, TimedReader(PATIENCE)], ids=["at once", "aside"])
def test_what_is_no_file_within_its_bound_is_refused_in_one_line(
    tmp_path: Path, read: Callable[[Path, int], bytes], make: Callable[[Path], object], why: str
) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=re.escape(why)) as refused:
        read(tmp_path / "file", 100)
    assert refused.value.strerror == why


def test_a_file_system_that_does_not_answer_holds_one_thread_and_nobody_else() -> None:
    answers = threading.Event()
    asked: list[Path | str] = []

    def hang(path: Path | str | os.PathLike[str], _most: int) -> bytes:
        asked.append(os.fspath(path))
        assert answers.wait(PATIENCE)
        ended.set()
        return b"said"

    ended = threading.Event()
    read = TimedReader(0.05, hang)
    for _ in range(3):
        with pytest.raises(HungError) as hung:
            read("/dead/file", 100)
        assert hung.value.strerror == "not read within 0.05 s: its file system does not answer"
    assert asked == ["/dead/file"]
    answers.set()
    assert ended.wait(PATIENCE)
    assert TimedReader(PATIENCE, hang)("/dead/file", 100) == b"said"
