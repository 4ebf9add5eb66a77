"""The processes of the demo: the daemons with their logs as events, and the simulators."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO, Any

from xelink.cli.exit_codes import FailedError

_TIMEOUT = 120.0
"""Seconds, for a busy machine."""


class DemoError(FailedError):
    """A program of the demo failed: the demo cannot run on this machine."""


class Daemon:
    """A daemon of ours and its log, a JSON object a line."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def wait_for(self, event: str, **facts: object) -> dict[str, Any]:
        """Return the next log entry with this event and these facts. Raises `DemoError`."""
        # The log ends when the process does, so killing the process ends the wait.
        watchdog = Timer(_TIMEOUT, self._process.kill)
        watchdog.start()
        last = ""
        try:
            for line in self._log:
                last = line
                entry: dict[str, Any] = json.loads(line)
                if event in entry["event"] and facts.items() <= entry.items():
                    return entry
        except ValueError:
            pass
        finally:
            watchdog.cancel()
        raise DemoError(f"{event!r} was not logged; the last line was: {last.strip() or 'nothing'}")

    def stop(self) -> int:
        """End it as kubelet does, and return the exit code. Raises `DemoError`."""
        self._process.terminate()
        try:
            return self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"a program did not end within {_TIMEOUT:g} s") from error


class XpuManager:
    """The simulated XPU Manager's control interface."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def control(self, call: str, **arguments: object) -> Mapping[str, Any]:
        """Change what is simulated, and return the state."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/control/{call}", json.dumps(arguments).encode()
        )
        with self._open(request, timeout=_TIMEOUT) as answer:
            state: Mapping[str, Any] = json.load(answer)
            return state


@contextmanager
def xpu_manager() -> Iterator[XpuManager]:
    """Run a simulated XPU Manager with 8 GPUs of 2 tiles."""
    with _started("xelink.simulators.xpu_manager", "--control", "--port=0") as process:
        line = process.stdout.readline() if process.stdout else ""
        port = line.rpartition(":")[2].partition("/")[0]
        if not port.isdigit():
            raise DemoError(f"the simulator of XPU Manager did not start: {line.strip()}")
        yield XpuManager(int(port))


@contextmanager
def sidecar(port: int, labels: Path) -> Iterator[Daemon]:
    """Run the sidecar against the XPU Manager on this port."""
    with _daemon(
        "sidecar",
        f"-xpum-port={port}",
        f"-tmp-dir-prefix={labels.parent}",
        f"-dst-file-path={labels}",
        "-startup-delay=0",
        "-interval=1",
    ) as daemon:
        yield daemon


@contextmanager
def device_plugin(node: Path, sockets: Path, labels: Path, policy: str) -> Iterator[Daemon]:
    """Run the device plugin on a simulated node, with the kubelet of that directory."""
    with _daemon(
        "device_plugin",
        f"-prefix={node}",
        f"-plugin-dir={sockets}",
        f"-label-file={labels}",
        f"-allocation-policy={policy}",
        "-cdi=false",
    ) as daemon:
        yield daemon


@contextmanager
def _daemon(module: str, *arguments: str) -> Iterator[Daemon]:
    with _started(module, *arguments, "-listen=", "-log-format=json") as process:
        if process.stderr is None:
            raise DemoError(f"{module} has no log")
        yield Daemon(process, process.stderr)


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603 - our own modules, an argument list
        [sys.executable, "-m", module, *arguments],
        # The caller's environment has settings for other daemons.
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
