"""Killed with SIGKILL anywhere in a publication: the file is always there, whole and readable.

Run as a program, this module is the victim: it forks a publisher for each step of a publication,
which is killed there, and judges what that left.
"""

import os
import random
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

import pytest

from tests.nfd.test_writer import names
from tests.patience import PATIENCE
from xelink.nfd import writer
from xelink.nfd.writer import STAGE, Publisher

if TYPE_CHECKING:
    from _typeshed import TraceFunction

NAME = "xpum-sidecar-labels.txt"
CONTENTS = [bytes([letter]) * 30_000 + b"\n" for letter in b"AB"]
FEWEST_KILLS = 50
MOMENTS = 200


class Reader:
    """Looks at the file again and again, as fast as it can, and notes all that is wrong."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.looks = 0
        self.faults: list[str] = []

    def _run(self) -> None:
        while not self._done.is_set():
            self.looks += 1
            try:
                with self._file.open("rb") as file:
                    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                    content = file.read()
            except OSError as error:
                self.faults.append(str(error))
                continue
            if mode != 0o644 or content not in CONTENTS:
                self.faults.append(f"{mode:o}, {len(content)} bytes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / NAME
    Publisher(file, tmp_path).publish(CONTENTS[0])
    return file


@pytest.mark.parametrize("how", ["calls", "lines", "moments"])
def test_a_kill_at_any_step_or_moment_is_survived(file: Path, how: str) -> None:
    with Reader(file) as reader:
        process = subprocess.run(
            [sys.executable, "-m", "tests.nfd.test_writer_killed", how, str(file)],
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert process.returncode == 0
    assert int(process.stdout) >= FEWEST_KILLS
    assert not reader.faults
    assert reader.looks


def judge(file: Path) -> None:
    """Let a successor start after a kill: it finds a whole file, publishes, and leaves nothing."""
    publisher = Publisher(file, file.parent)
    before = publisher.read()
    assert before in CONTENTS
    publisher.prepare()
    assert names(file.parent) == [STAGE, NAME]
    assert names(file.parent / STAGE) == []
    after = CONTENTS[1] if before == CONTENTS[0] else CONTENTS[0]
    publisher.publish(after)
    assert publisher.read() == after
    assert names(file.parent / STAGE) == []


# --- The victims ---


def killed_at_any_moment(file: Path) -> int:
    """Kill a publisher that does nothing else, at random; give how often."""
    chance = random.Random(17)  # noqa: S311 - moments, not secrets
    for _ in range(MOMENTS):
        child = os.fork()
        if not child:
            publisher = Publisher(file, file.parent)
            while True:
                for content in CONTENTS:
                    publisher.publish(content)
        select.select([], [], [], chance.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        judge(file)
    return MOMENTS


def killed_everywhere(file: Path, arm: Callable[[Callable[[], None]], None]) -> int:
    """Kill a publisher at its first step, its second, and so on; give how many there were."""
    step = 0
    while True:
        step += 1
        (file.parent / "xpumsidecar123456").mkdir()
        (file.parent / STAGE / f"{NAME}.{step:016x}").write_bytes(CONTENTS[0][:100])
        child = os.fork()
        if not child:
            arm(_countdown(step))
            publisher = Publisher(file, file.parent)
            publisher.prepare()
            publisher.publish(CONTENTS[step % 2])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        judge(file)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return step - 1
        assert os.WTERMSIG(status) == signal.SIGKILL


def _countdown(step: int) -> Callable[[], None]:
    left = step

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return tick


def at_calls(tick: Callable[[], None]) -> None:
    """Tick before and after each call that the publisher makes to what is not Python."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event in ("c_call", "c_return") and frame.f_code.co_filename == writer.__file__:
            tick()

    sys.setprofile(profile)


def at_lines(tick: Callable[[], None]) -> None:
    """Tick before each line of the publisher."""

    def trace(frame: FrameType, event: str, _: object) -> "TraceFunction | None":
        if frame.f_code.co_filename != writer.__file__:
            return None
        if event == "line":
            tick()
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    how, path = sys.argv[1], Path(sys.argv[2])
    if how == "moments":
        kills = killed_at_any_moment(path)
    else:
        kills = killed_everywhere(path, at_calls if how == "calls" else at_lines)
    sys.stdout.write(f"{kills}\n")
