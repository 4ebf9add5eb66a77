"""The main job, end to end, on this machine: no GPU, no cluster, under a minute.

XPU Manager is simulated; the sidecar is the real one, a process with its own file, exactly as it
runs in a Pod.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import IO, Any

from topology.features import parse
from topology.publication import DEFAULT_NAMESPACE, read
from xelink.matrix import matrix

Say = Callable[[str], object]

_PATIENCE = 30.0
_LABELS_SHOWN = 2
_CUT = "0.0-1.0"


class DemoError(Exception):
    """The demo did not get as far as it should: something on this machine is in its way."""


def run(say: Say) -> None:
    """Tell the story. Raises `DemoError`."""
    with tempfile.TemporaryDirectory(prefix="xelink-demo-") as name, ExitStack() as cleanup:
        directory = Path(name)
        features_d = directory / "features.d"
        features_d.mkdir()
        labels = features_d / "xpum-sidecar-labels.txt"

        say("xelink demo: a simulated XPU Manager with 8 GPUs x 2 tiles; the rest is real.")
        xpum = cleanup.enter_context(_xpu_manager())
        sidecar = cleanup.enter_context(_sidecar(xpum.port, features_d, labels))

        say("\n1. The sidecar scrapes XPU Manager and publishes what NFD turns into node labels:\n")
        sidecar.wait_for("labels published")
        say(_published(labels))
        say("\n   (0.0-1.0 is GPU 0, tile 0 to GPU 1, tile 0.) Lanes between the GPUs:\n")
        say(_indented(_picture(labels)))

        say(f"\n2. The Xe Link {_CUT} is cut. One scrape proves no loss, two in a row do:\n")
        xpum.control("cut", links=[_CUT])
        sidecar.wait_for("a loss waits for confirmation")
        say(f"   after one scrape  {_count(labels)} links, {_CUT} waits for confirmation")
        sidecar.wait_for("labels published")
        say(f"   after two         {_count(labels)} links; ! marks what lost a link\n")
        say(_indented(_picture(labels)))

        say("\n3. XPU Manager breaks. Failure is not absence: the labels stay.\n")
        for failure, text in (
            ("daemon-down", "answers 500"),
            ("reset", "resets the connection"),
            ("empty", "answers nothing"),
        ):
            xpum.control("misbehave", name=failure)
            reason = sidecar.wait_for("no usable answer", failure)["reason"]
            say(f"   XPU Manager {text:<22} -> unknown ({reason}), {_count(labels)} links stay")
            xpum.control("heal")
            sidecar.wait_for("XPU Manager seen")

        say("\n4. XPU Manager and the link are healed. A gain counts at once:\n")
        xpum.control("reset")
        sidecar.wait_for("labels published")
        say(f"   after one scrape  {_count(labels)} links")

        say("\n5. The sidecar is stopped, as in a rollout. The labels stay until they expire:\n")
        code = sidecar.stop()
        left = _minutes_left(labels)
        say(f"   exit code {code}, {_count(labels)} links, gone in {left} minutes unless renewed")
        say("\nThat is all. On a real node: see the README.")


class _Process:
    """A program of ours and its log, a JSON object a line."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def wait_for(self, event: str, detail: str = "") -> dict[str, Any]:
        """Give the next log entry with this event. Raises `DemoError`."""
        # The log ends when the process does: the timer turns waiting for ever into an end.
        watchdog = Timer(_PATIENCE, self._process.kill)
        watchdog.start()
        lines: list[str] = []
        try:
            for line in self._log:
                lines.append(line)
                entry: dict[str, Any] = json.loads(line)
                if event in entry["event"]:
                    return entry
        except ValueError:
            pass
        finally:
            watchdog.cancel()
        said = lines[-1].strip() if lines else "nothing"
        raise DemoError(f"the sidecar ended before {event!r} {detail}; it said last: {said}")

    def stop(self) -> int:
        """End it as kubelet does; give the exit code."""
        self._process.terminate()
        return self._process.wait(_PATIENCE)


class _XpuManager:
    """The simulator's control."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def control(self, call: str, **arguments: object) -> None:
        """Change what is simulated."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/control/{call}", json.dumps(arguments).encode()
        )
        with self._open(request, timeout=_PATIENCE):
            pass


@contextmanager
def _xpu_manager() -> Iterator[_XpuManager]:
    with _started("sidecar.simulator", "--control", "--port=0") as process:
        line = process.stdout.readline() if process.stdout else ""
        port = line.rpartition(":")[2].partition("/")[0]
        if not port.isdigit():
            raise DemoError(f"the simulator of XPU Manager did not start: {line.strip()}")
        yield _XpuManager(int(port))


@contextmanager
def _sidecar(port: int, features_d: Path, labels: Path) -> Iterator[_Process]:
    with _started(
        "sidecar",
        f"-xpum-port={port}",
        f"-tmp-dir-prefix={features_d}",
        f"-dst-file-path={labels}",
        "-startup-delay=0",
        "-interval=1",
        "-listen=",
        "-log-format=json",
    ) as process:
        if process.stderr is None:
            raise DemoError("the sidecar has no log")
        yield _Process(process, process.stderr)


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603 - our own modules, an argument list
        [sys.executable, "-m", module, *arguments],
        # The caller's own settings are for his sidecar, not for this one.
        env={name: value for name, value in os.environ.items() if "XELINK_" not in name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _published(labels: Path) -> str:
    found = parse(labels.read_bytes(), datetime.now(UTC)).labels
    links = [f"{name}={value}" for name, value in found.items() if "." not in name.split("/")[1]]
    more = len(links) - _LABELS_SHOWN
    rest = [f"{name}={value}" for name, value in found.items() if "." in name.split("/")[1]]
    lines = [*links[:_LABELS_SHOWN], f"... {more} more labels of links", *rest]
    return _indented("\n".join(lines))


def _picture(labels: Path) -> str:
    standing = read(labels.read_bytes(), DEFAULT_NAMESPACE, datetime.now(UTC))
    if standing.topology is None:
        raise DemoError("the feature file has no topology")
    return matrix(standing.topology)


def _count(labels: Path) -> str:
    found = parse(labels.read_bytes(), datetime.now(UTC)).labels
    return found[f"{DEFAULT_NAMESPACE}/xe-links.count"]


def _minutes_left(labels: Path) -> int:
    expiry = parse(labels.read_bytes(), datetime.now(UTC)).expiry
    return round((expiry - datetime.now(UTC)).total_seconds() / 60) if expiry else 0


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
