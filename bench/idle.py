"""What the daemons cost a node where nothing happens: processor time, in percent of one core.

Each runs at its default intervals for `SECONDS=40`: the plugin on a simulated node of eight GPUs
with a stream of a simulated kubelet, the sidecar with a simulated XPU Manager. It reads the clock
of the whole process, with threads that have ended. The simulators are other processes. Wake-ups are
how often its threads began to run again. Memory is resident memory, the part of it that other
processes share, and the part that is not backed by a file. A Python that only serves gRPC, without
a method, is the lower bound of the plugin.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from allocator import RESOURCE, started, started_as, wait_for
from report import Table

from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, render

if TYPE_CHECKING:
    from subprocess import Popen

SECONDS = float(os.environ.get("SECONDS", "40"))
SETTLE = 3.0

# What prints a line to tell that it is up.
_EMPTY = """
import asyncio, sys, grpc
async def main():
    server = grpc.aio.server()
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    print("up now", flush=True)
    await server.wait_for_termination()
asyncio.run(main())
"""


def used(process: "Popen[str]") -> float:
    """Return the processor seconds of a process."""
    # Linux' number of the clock of another process, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime(~process.pid << 3 | 2)


def woken(process: "Popen[str]") -> int:
    """Count how often the threads that there are gave up the processor to wait."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{process.pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def memory(process: "Popen[str]") -> Iterator[float]:
    """Return MB: resident, of it our share, of it anonymous."""
    told = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    for name in ("Rss", "Pss", "Anonymous"):
        found = re.search(rf"^{name}:\s+(\d+) kB", told, re.MULTILINE)
        yield int(found[1]) * 1024 / 1e6 if found else 0.0


@contextmanager
def plugin(place: Path) -> Iterator["Popen[str]"]:
    """Run a plugin with an open stream of kubelet."""
    NodeTree.eight_max_1550(place / "n")
    links = Blueprint(gpus=8, tiles=2, wiring="mesh").build().topology
    published = Publication(links, datetime.now(UTC) + timedelta(hours=1))
    (place / "labels").write_bytes(render(published, DEFAULT_NAMESPACE))
    with (
        Kubelet(place / "k") as kubelet,
        started(
            *("device_plugin", f"-prefix={place}/n", f"-plugin-dir={kubelet.directory}"),
            *(f"-label-file={place}/labels", f"-cdi-dir={place}/c", "-listen=127.0.0.1:0"),
        ) as process,
    ):
        kubelet.wait_for_allocatable(RESOURCE, 8)
        yield process


@contextmanager
def sidecar(place: Path) -> Iterator["Popen[str]"]:
    """Run a sidecar that has published."""
    with started("xelink.simulators.xpu_manager", "--port=0") as simulator:
        port = wait_for(simulator, "http://127.0.0.1:").partition("/")[0]
        with started(
            *("sidecar", f"-xpum-port={port}", f"-tmp-dir-prefix={place}", "-startup-delay=0"),
            *(f"-dst-file-path={place}/published", "-listen=127.0.0.1:0"),
        ) as process:
            wait_for(process, "labels published")
            yield process


@contextmanager
def empty(place: Path) -> Iterator["Popen[str]"]:
    """Run a gRPC server without a method."""
    with started_as(["-c", _EMPTY, str(place / "empty.sock")]) as process:
        wait_for(process, "up")
        yield process


def main() -> None:
    """Print the table."""
    print(f"{SECONDS:g} s")
    columns = (
        "daemon",
        "% of a core",
        "wake-ups a second",
        "MB resident",
        "shared out",
        "anonymous",
    )
    table = Table("idle", columns)
    # Not the user's own place for temporary files: the path of a socket has 107 bytes at most.
    with (
        tempfile.TemporaryDirectory(prefix="x", dir="/tmp") as place,
        plugin(Path(place)) as one,
        sidecar(Path(place)) as other,
        empty(Path(place)) as floor,
    ):
        time.sleep(SETTLE)
        daemons = {"plugin": one, "an empty gRPC server": floor, "sidecar": other}
        before = {name: (used(process), woken(process)) for name, process in daemons.items()}
        began = time.monotonic()
        time.sleep(SECONDS)
        took = time.monotonic() - began
        for name, process in daemons.items():
            seconds, wakes = before[name]
            busy = (used(process) - seconds) / took * 100
            table.row(name, busy, (woken(process) - wakes) / took, *memory(process))


if __name__ == "__main__":
    main()
