"""Our programs as real processes, watched through their logs: no sleeping, no polling."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import TracebackType
from typing import Self

from tests.patience import PATIENCE


class Running:
    """A program of ours that runs; its log lines are events to wait for."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: dict[str, str] | None = None,
        before: tuple[str, ...] = (),
    ) -> None:
        """Run `python -m module`, started by the program `before` if there is one."""
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_for(self, text: str) -> str:
        """Give the next log line with this text."""
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}: {self.lines}")

    def forget(self) -> None:
        """Take what was logged up to now as heard."""
        with suppress(Empty):
            while (line := self._queue.get_nowait()) is not None:
                self.lines.append(line)
            self._queue.put(None)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end; give the exit code. What was logged is in `lines` then."""
        code = self.process.wait(patience)
        self._reader.join(PATIENCE)
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        self._queue.put(None)
        return code

    @property
    def output(self) -> str:
        """What it printed, once it has ended."""
        assert self.process.stdout
        return self.process.stdout.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()


def address(process: Running) -> str:
    """Wait until a daemon listens; give the URL of its probes."""
    match = re.search(r"listen=(\S+)", process.wait_for("event=started"))
    assert match
    return f"http://{match[1]}"


def get(url: str) -> tuple[int, str]:
    """Give status and text of an answer, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - our own address
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def mapped(process: Running, *parts: str) -> set[str]:
    """Give the files with one of these in their names that a process has mapped into its memory."""
    maps = Path(f"/proc/{process.process.pid}/maps").read_text()
    files = {words[5] for line in maps.splitlines() if len(words := line.split(maxsplit=5)) > 5}
    return {file for file in files for part in parts if part in file}


def children(process: Running) -> list[str]:
    """Give the processes that a process has started and that are still there."""
    pid = process.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@contextmanager
def running(module: str, *arguments: str, **env: str) -> Iterator[Running]:
    """Run `python -m module` while the block runs."""
    with Running(module, *arguments, env=env) as process:
        yield process
