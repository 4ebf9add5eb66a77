"""Real programs as processes: each with its log in a file, each waited for by what it shows."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TypeVar

PATIENCE = (
    180.0  # seconds until a condition that should hold soon is given up; no story measures it
)
_LOOK = 0.05
_TAIL = 15

T = TypeVar("T")


def until(
    true: Callable[[], T | None], what: str | Callable[[], str], patience: float = PATIENCE
) -> T:
    """Give the first true value of a condition that nobody tells of; raises `AssertionError`."""
    deadline = time.monotonic() + patience
    never = Event()
    while not (value := true()):
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {patience:.0f} s: {told}")
        never.wait(_LOOK)
    return value


def monotonic(instant: datetime) -> float:
    """Give an instant by the monotonic clock."""
    return time.monotonic() - (datetime.now(UTC) - instant).total_seconds()


class Program:
    """A program that runs until it is stopped; what it prints is in `log`, over all its lives."""

    def __init__(
        self,
        logs: Path,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._read_from = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Program":
        """Start it, once more if it ran before."""
        assert self.process is None, f"{self.name} runs already"
        self.log.touch()
        self._read_from = self.log.stat().st_size
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        return self

    def wait_for(self, text: str, patience: float = PATIENCE) -> str:
        """Give the next line of this life with this text."""

        def found() -> str | None:
            with self.log.open("rb") as log:
                log.seek(self._read_from)
                for line in log:
                    if not line.endswith(b"\n"):
                        break
                    self._read_from += len(line)
                    if text in (told := line.decode(errors="replace")):
                        return told.rstrip("\n")
            self.check()
            return None

        return until(found, lambda: f"{text!r} from {self.name}; {self.tail()}", patience)

    def said(self, text: str) -> int:
        """Count the lines with this text, over all its lives."""
        return sum(text in line for line in self.log.read_text(errors="replace").splitlines())

    def forget(self) -> None:
        """Wait, from now on, for what is yet to be said."""
        self._read_from = self.log.stat().st_size

    def tail(self) -> str:
        """Give the last lines of its log, for a person."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL:]
        return f"{self.log.name} ends with:\n" + "\n".join(lines)

    def check(self) -> None:
        """Raise `AssertionError` when it has ended by itself."""
        assert self.process, f"{self.name} was not started"
        assert self.process.poll() is None, f"{self.name} has ended; {self.tail()}"

    def stop(self, number: signal.Signals = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """End it with a signal, at last with SIGKILL; give its exit code. Twice is fine."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(
                f"{self.name} did not end by {number.name}; {self.tail()}"
            ) from None


def run(*command: str, stdin: str = "", patience: float = PATIENCE) -> str:
    """Run a command to its end; give what it printed. Raises `AssertionError`."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=patience, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip() or done.stdout}"
    return done.stdout
