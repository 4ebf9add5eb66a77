"""How long kubelet waits for an answer: whole RPCs of the plugin's process, over its own socket.

The plugin runs as a process of its own on a simulated node of eight GPUs, the callers are one or
four processes more, each with a connection of its own. What an RPC costs that carries next to
nothing (GetDevicePluginOptions) is the floor; the other rows are ratios to it from the same run,
as absolute times of a shared machine mean little. Requests take turns, so that whatever else the
machine does falls on all of them alike. Prints one Markdown table.
"""

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import grpc

from device_plugin.api import deviceplugin_pb2 as pb
from device_plugin.api.deviceplugin_pb2_grpc import DevicePluginStub
from device_plugin.simulator.node import Node
from sidecar.simulator import Blueprint
from topology.publication import DEFAULT_NAMESPACE, Publication, render

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


def prefer(stub: DevicePluginStub, size: int) -> None:
    """Ask which GPUs of a free node a Pod had best get."""
    request = pb.PreferredAllocationRequest()
    request.container_requests.add(available_deviceIDs=IDS, allocation_size=size)
    answer = stub.GetPreferredAllocation(request)
    if len(answer.container_responses[0].deviceIDs) != size:
        raise AssertionError(answer)


def allocate(stub: DevicePluginStub) -> None:
    """Take two GPUs."""
    request = pb.AllocateRequest()
    request.container_requests.add(devices_ids=IDS[:2])
    stub.Allocate(request)


REQUESTS: dict[str, Callable[[DevicePluginStub], object]] = {
    "floor": lambda stub: stub.GetDevicePluginOptions(pb.Empty()),
    "prefer 2": lambda stub: prefer(stub, 2),
    "prefer 4": lambda stub: prefer(stub, 4),
    "allocate 2": allocate,
}


@cache
def dial(address: str) -> DevicePluginStub:
    """Connect once in each caller's process."""
    return DevicePluginStub(grpc.insecure_channel(address))


def call(address: str, name: str, calls: int, begin: float) -> list[float]:
    """Warm up, wait for the others, and give the seconds that each call took."""
    stub, request, took = dial(address), REQUESTS[name], []
    for _ in range(WARM_UP):
        request(stub)
    time.sleep(max(0.0, begin - time.monotonic()))
    for _ in range(calls):
        start = time.perf_counter()
        request(stub)
        took.append(time.perf_counter() - start)
    return took


def measure(
    callers: ProcessPoolExecutor, number: int, address: str, name: str, calls: int
) -> list[float]:
    """Let so many callers make calls at the same time."""
    begin = time.monotonic() + TOGETHER
    running = [callers.submit(call, address, name, calls // number, begin) for _ in range(number)]
    return [seconds for one in running for seconds in one.result()]


@contextmanager
def plugin(directory: Path, wiring: str) -> Iterator[str]:
    """Run a plugin on a node of eight GPUs that are linked like this; give its address."""
    root = directory / wiring
    Node.eight_max_1550(root)
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


def cells(took: list[float], floor: list[float]) -> Iterator[str]:
    """Write p50, p99 and maximum, and how often each is the floor's."""
    for part in (0.5, 0.99, 1):
        ours, least = (sorted(times)[int((len(times) - 1) * part)] for times in (took, floor))
        yield f"{ours * 1e3:.2f}"
        yield f"{ours / least:.1f}"


def main() -> None:
    """Print the table."""
    print("| request | links | callers | p50, ms | /floor | p99, ms | /floor | max, ms | /floor |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    # Not pytest's or the user's own: the path of a socket has 107 bytes at most.
    with (
        tempfile.TemporaryDirectory(prefix="x", dir="/tmp") as name,
        plugin(Path(name), "mesh") as mesh,
        plugin(Path(name), "ring") as ring,
        ProcessPoolExecutor(max(CALLERS), get_context("spawn")) as callers,
    ):
        addresses = {"mesh": mesh, "ring": ring}
        for number in CALLERS:
            took: dict[tuple[str, str], list[float]] = {row: [] for row in ROWS}
            for _ in range(ROUNDS):
                for request, links in ROWS:
                    took[request, links] += measure(
                        callers, number, addresses[links], request, CALLS // ROUNDS
                    )
            for (request, links), times in took.items():
                figures = " | ".join(cells(times, took["floor", "mesh"]))
                print(f"| {request} | {links} | {number} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
