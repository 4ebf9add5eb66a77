"""What the kernel driver costs as a source, beside a scrape: processor time of this process alone.

The simulated driver is a process of its own. A tick in which nothing changed asks for the routing
generation; a full look asks for every port. The scrape is one of XPU Manager's simulator over
HTTP.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from report import Table
from tick import processor_time, simulator
from ticking import ticking

from xelink.iaf.channel import simulator as driver_socket
from xelink.iaf.fabric import GpuOnBus
from xelink.iaf.source import DriverSource, Node
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.rules import Rules


def main() -> None:
    """Print the table."""
    table = Table("driver", ("8 GPUs of 2 tiles", "ms of processor", "times a scrape"))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with simulator() as port:
            scrape = processor_time(ticking(port, None, place))
        table.row("one tick with a scrape, nothing changed", scrape * 1000, 1)
        with served(place / "iaf.sock") as path:
            unchanged = processor_time(source(path, full_look_seconds=3600.0).observe)
            full = processor_time(source(path, full_look_seconds=0.0).observe)
        table.row("the driver, nothing changed", unchanged * 1000, unchanged / scrape)
        table.row("the driver, a full look", full * 1000, full / scrape)


def source(path: Path, full_look_seconds: float) -> DriverSource:
    """Return a source that asks a socket."""
    node = Blueprint().build()
    gpus = tuple(GpuOnBus(replace(gpu.entry(), uuid=None), gpu.tiles) for gpu in node.present)
    return DriverSource(
        driver_socket(path),
        lambda: Node(has_fabric=True, gpus=gpus),
        Rules(),
        seconds=30.0,
        sleep=time.sleep,
        monotonic=time.monotonic,
        full_look_seconds=full_look_seconds,
    )


@contextmanager
def served(path: Path) -> Iterator[Path]:
    """Serve the driver of 8 GPUs in another process."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "xelink.simulators.iaf", "--socket", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is None:
            raise AssertionError(process)
        try:
            process.stdout.readline()
            yield path
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
