"""What the demo says of its programs is what they do."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.commands import topology
from xelink.cli.demo import command as demo
from xelink.cli.demo import processes
from xelink.cli.demo.processes import Daemon, DemoError
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, render

EVENTS = (
    {"event": "links", "state": "in use"},
    {"event": "registered", "resource": "gpu.intel.com/i915"},
)
# Logs what is waited for, and ends with the code that it is given once it is told to.
DAEMON = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
print(*sys.argv[2:], sep="\\n", file=sys.stderr, flush=True)
signal.pause()
"""


@contextmanager
def ending(code: int, events: Sequence[dict[str, str]] = EVENTS) -> Iterator[Daemon]:
    """Run something that logs as a daemon does, and ends with this code."""
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(code), *map(json.dumps, events)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        daemon = Daemon(process, process.stderr)
        try:
            yield daemon
        finally:
            process.kill()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    shape = topology(Blueprint(gpus=8, tiles=2).build())
    path = tmp_path / "labels.txt"
    until = datetime.now(UTC) + timedelta(minutes=5, seconds=20)
    path.write_bytes(render(Publication(shape, until), DEFAULT_NAMESPACE))
    return path


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_that_is_told_is_that_of_the_sidecar(labels: Path, code: int) -> None:
    said: list[str] = []
    with ending(code) as daemon:
        daemon.wait_for("registered")  # it hears signals by now
        demo._the_sidecar_stops(said.append, daemon, labels)  # noqa: SLF001 - one step of the demo
    assert said[-1] == f"   exit code {code}, 56 links, which expire in 5 minutes unless renewed"


@pytest.mark.parametrize("events", [EVENTS, EVENTS[::-1]], ids=["links first", "links last"])
def test_a_plugin_that_ends_badly_ends_the_demo(
    labels: Path, monkeypatch: pytest.MonkeyPatch, events: Sequence[dict[str, str]]
) -> None:
    """Pods are given GPUs by a real plugin; what ends is another process."""
    real = processes.device_plugin

    @contextmanager
    def plugin(node: Path, sockets: Path, labels: Path, policy: str) -> Iterator[Daemon]:
        with real(node, sockets, labels, policy), ending(3, events) as daemon:
            yield daemon

    monkeypatch.setattr(processes, "device_plugin", plugin)
    shape = demo._topology(labels)  # noqa: SLF001 - as above
    with pytest.raises(DemoError, match="the device plugin did not end well"):
        demo._given(labels, shape, "topology")  # noqa: SLF001 - as above


def test_the_settings_of_who_starts_it_are_not_those_of_its_daemons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XELINK_SIDECAR_INTERVAL", "7")
    monkeypatch.setenv("ANOTHER", "8")
    tell = "import os; print(*map(os.environ.get, ['XELINK_SIDECAR_INTERVAL', 'ANOTHER']))"
    with processes._started("timeit", "-n1", "-r1", tell) as process:  # noqa: SLF001 - all are started so
        assert process.stdout
        assert process.stdout.readline() == "None 8\n"
        process.communicate()


def test_what_is_simulated_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as nobody, Simulator() as xpum:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert processes.XpuManager(xpum.port).control("cold")["node"]["cold"]
