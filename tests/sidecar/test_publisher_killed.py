"""Killed with SIGKILL anywhere in a publication: the file is always there, whole and readable.

Run as a program, this module is the victim: it forks a publisher for each step of a publication,
which kills itself there, and judges what it left; or it publishes without an end.
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

import pytest

from sidecar import publisher as module
from sidecar.publisher import STAGE, Publisher

NAME = "xpum-sidecar-labels.txt"
CONTENTS = [bytes([letter]) * 30_000 + b"\n" for letter in b"AB"]
PATIENCE = 30.0
FEWEST_STEPS = 15
KILLS = 40


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

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def victim(how: str, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sidecar.test_publisher_killed", how, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / NAME
    Publisher(file, tmp_path).publish(CONTENTS[0])
    return file


@pytest.mark.parametrize("how", ["calls", "lines"])
def test_a_kill_at_any_step_of_a_publication_is_survived(file: Path, how: str) -> None:
    with Reader(file) as reader, victim(how, file) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert int(output) >= FEWEST_STEPS
    assert not reader.faults
    assert reader.looks


def test_a_kill_at_any_moment_is_survived(file: Path) -> None:
    chance = random.Random(17)  # noqa: S311 - moments, not secrets
    with Reader(file) as reader:
        for _ in range(KILLS):
            with victim("endless", file) as process:
                assert process.stdout
                assert process.stdout.readline() == "begun\n"
                select.select([], [], [], chance.uniform(0, 0.01))
                process.kill()
            assert process.returncode == -signal.SIGKILL
            judge(file)
    assert not reader.faults


def judge(file: Path) -> None:
    """Let a successor start after a kill: it finds a whole file, publishes, and leaves nothing."""
    publisher = Publisher(file, file.parent)
    before = publisher.read()
    assert before in CONTENTS
    publisher.prepare()
    assert os.listdir(file.parent / STAGE) == []
    after = CONTENTS[1] if before == CONTENTS[0] else CONTENTS[0]
    publisher.publish(after)
    assert publisher.read() == after
    assert sorted(os.listdir(file.parent)) == [STAGE, NAME]
    assert os.listdir(file.parent / STAGE) == []


# --- The victim ---


def endless(file: Path) -> None:
    publisher = Publisher(file, file.parent)
    publisher.prepare()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        for content in CONTENTS:
            publisher.publish(content)


def killed_everywhere(file: Path, arm: Callable[[Callable[[], None]], None]) -> int:
    """Kill a publication at its first step, its second, and so on; give how many there were."""
    step = 0
    while True:
        step += 1
        child = os.fork()
        if not child:
            arm(_countdown(step))
            Publisher(file, file.parent).publish(CONTENTS[step % 2])
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
        if event in ("c_call", "c_return") and frame.f_code.co_filename == module.__file__:
            tick()

    sys.setprofile(profile)


def at_lines(tick: Callable[[], None]) -> None:
    """Tick before each line of the publisher."""

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            tick()
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    how, path = sys.argv[1], Path(sys.argv[2])
    if how == "endless":
        endless(path)
    else:
        steps = killed_everywhere(path, at_calls if how == "calls" else at_lines)
        sys.stdout.write(f"{steps}\n")
