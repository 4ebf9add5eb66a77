"""How long kubelet waits for an answer: whole RPCs of the plugin's process, over its own socket.

The plugin runs as a process of its own on a simulated node of eight GPUs. The callers, one or four
with a connection each, are a Go program where there is `go` (`rpcclient/`), as kubelet is one, and
else Python processes, whose own work takes longer than ours. What an RPC costs that carries next to
nothing (GetDevicePluginOptions) is the floor; the other rows are ratios to it from the same run,
as absolute times of a shared machine mean little. One row is a Go server that answers everything
with nothing: what a plugin in Go would take at least. Requests take turns, so that whatever else
the machine does falls on all of them alike.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeAlias

import grpc
from report import Table

from xelink.api import deviceplugin_pb2 as pb
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, render

GPUS = 8
IDS = [f"card{number}-0" for number in range(1, GPUS + 1)]
CALLERS = (1, 4)
CALLS = 2000  # of every row, by all callers together
ROUNDS = 4
WARM_UP = 50
TOGETHER = 0.1  # seconds in which all callers warm up before they begin at once
ROWS = (
    ("floor", "mesh"),
    ("prefer 2", "mesh"),
    ("prefer 4", "mesh"),
    ("prefer 2", "ring"),
    ("prefer 4", "ring"),
    ("allocate 2", "mesh"),
)
GO_ROW = ("floor", "a Go server")


class Request(NamedTuple):
    """One RPC: its method, and its message as it is sent."""

    method: str
    message: bytes


def prefer(size: int) -> Request:
    """Ask which GPUs of a free node a Pod had best get."""
    request = pb.PreferredAllocationRequest()
    request.container_requests.add(available_deviceIDs=IDS, allocation_size=size)
    return Request("/v1beta1.DevicePlugin/GetPreferredAllocation", request.SerializeToString())


def allocate() -> Request:
    """Take two GPUs."""
    request = pb.AllocateRequest()
    request.container_requests.add(devices_ids=IDS[:2])
    return Request("/v1beta1.DevicePlugin/Allocate", request.SerializeToString())


REQUESTS = {
    "floor": Request("/v1beta1.DevicePlugin/GetDevicePluginOptions", b""),
    "prefer 2": prefer(2),
    "prefer 4": prefer(4),
    "allocate 2": allocate(),
}

Measure: TypeAlias = Callable[[int, str, Request, int], list[float]]
"""Lets so many callers make so many calls together, and gives the seconds that each call took."""


@cache
def dial(address: str) -> grpc.Channel:
    """Connect once in each caller's process."""
    return grpc.insecure_channel(address)


def call(address: str, request: Request, calls: int, begin: float, warm_up: int) -> list[float]:
    """Warm up, wait for the others, and give the seconds that each call took."""
    once, took = (
        partial(dial(address).unary_unary(request.method, bytes, bytes), request.message),
        [],
    )
    for _ in range(warm_up):
        once()
    time.sleep(max(0.0, begin - time.monotonic()))
    for _ in range(calls):
        start = time.perf_counter()
        once()
        took.append(time.perf_counter() - start)
    return took


@contextmanager
def python_callers() -> Iterator[Measure]:
    """Start a process for each caller."""
    with ProcessPoolExecutor(max(CALLERS), get_context("spawn")) as callers:

        def measure(number: int, address: str, request: Request, calls: int) -> list[float]:
            begin = time.monotonic() + TOGETHER
            each = calls // number
            running = [
                callers.submit(call, address, request, each, begin, WARM_UP) for _ in range(number)
            ]
            return [seconds for one in running for seconds in one.result()]

        yield measure


@contextmanager
def go_callers(program: Path) -> Iterator[Measure]:
    """Start the Go program, which is all callers."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        orders, answers = process.stdin, process.stdout
        if orders is None or answers is None:
            raise AssertionError(program)

        def measure(number: int, address: str, request: Request, calls: int) -> list[float]:
            order = {
                "address": address,
                "method": request.method,
                "request": base64.b64encode(request.message).decode(),
                "callers": number,
                "calls": calls // number,
                "warmUp": WARM_UP,
            }
            print(json.dumps(order), file=orders, flush=True)
            took: list[float] = json.loads(answers.readline() or "[]")
            if not took:
                raise AssertionError("the Go client has failed")
            return took

        try:
            yield measure
        finally:
            orders.close()


def go_client(directory: Path) -> Path | str:
    """Build the Go client; a text says why there is none."""
    go = shutil.which("go")
    if go is None:
        return "there is no go on PATH"
    program = directory / "rpcclient"
    built = subprocess.run(  # noqa: S603 - an argument list
        [go, "build", "-C", Path(__file__).parent / "rpcclient", "-o", program, "."],
        env={**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    why = (built.stderr.splitlines() or [""])[-1]
    return f"go build failed: {why}" if built.returncode else program


@contextmanager
def go_server(program: Path, directory: Path) -> Iterator[str]:
    """Run the Go program as a server that answers with nothing; give its address."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [program, directory / "go.sock"], stdout=subprocess.PIPE, text=True
    ) as process:
        if not (process.stdout and process.stdout.readline()):
            raise AssertionError(program)
        try:
            yield f"unix:{directory}/go.sock"
        finally:
            process.terminate()


@contextmanager
def plugin(directory: Path, wiring: str) -> Iterator[str]:
    """Run a plugin on a node of eight GPUs that are linked like this; give its address."""
    root = directory / wiring
    NodeTree.eight_max_1550(root)
    links = Blueprint(gpus=GPUS, tiles=2, wiring=wiring).build().topology
    expiry = datetime.now(UTC) + timedelta(hours=1)
    (root / "labels").write_bytes(render(Publication(links, expiry), DEFAULT_NAMESPACE))
    arguments = [
        f"-prefix={root}",
        f"-plugin-dir={root}",
        f"-label-file={root / 'labels'}",
        f"-cdi-dir={root / 'cdi'}",
        "-listen=",
    ]
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "device_plugin", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        if process.stderr is None:
            raise AssertionError(arguments)
        try:
            seen = ""
            while "event=serving" not in seen or 'state="in use"' not in seen:
                if not (line := process.stderr.readline()):
                    raise AssertionError(seen)
                seen += line
            # Somebody reads the log, as a node's does.
            Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            yield f"unix:{root}/gpu.intel.com-i915.sock"
        finally:
            process.terminate()
            process.wait()


def cells(took: list[float], floor: list[float]) -> Iterator[float]:
    """Return p50, p99 and maximum in ms, and how often each is the floor's."""
    for part in (0.5, 0.99, 1):
        ours, least = (sorted(times)[int((len(times) - 1) * part)] for times in (took, floor))
        yield ours * 1e3
        yield ours / least


def main() -> None:
    """Print the table."""
    # Not pytest's or the user's own: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x", dir="/tmp") as name:
        client = go_client(Path(name))
        go: AbstractContextManager[str | None] = nullcontext()
        if isinstance(client, Path):
            print("Client: Go, as kubelet.")
            callers, go = go_callers(client), go_server(client, Path(name))
        else:
            print(f"Client: Python, slower than kubelet's ({client}).")
            callers = python_callers()
        times = (f"{part}{what}" for part in ("p50", "p99", "max") for what in (", ms", "/floor"))
        table = Table("rpc", ("request", "links", "callers", *times))
        with (
            plugin(Path(name), "mesh") as mesh,
            plugin(Path(name), "ring") as ring,
            go as other,
            callers as ask,
        ):
            addresses = {"mesh": mesh, "ring": ring} | ({GO_ROW[1]: other} if other else {})
            for number in CALLERS:
                rows(table, ask, number, addresses)


def rows(table: Table, measure: Measure, number: int, addresses: dict[str, str]) -> None:
    """Write a row for each request of so many callers."""
    asked = [row for row in (*ROWS, GO_ROW) if row[1] in addresses]
    took: dict[tuple[str, str], list[float]] = {row: [] for row in asked}
    for _ in range(ROUNDS):
        for name, links in asked:
            took[name, links] += measure(number, addresses[links], REQUESTS[name], CALLS // ROUNDS)
    for (name, links), times in took.items():
        table.row(name, links, number, *cells(times, took["floor", "mesh"]))


if __name__ == "__main__":
    main()
