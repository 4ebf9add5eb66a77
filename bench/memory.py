"""What the sidecar holds on to: resident memory after many ticks, and whether it grows.

Ticks follow each other at once, each over a new connection, in a process of its own that imports
what the daemon imports. The slope is that of the second half of the ticks; descriptors and threads
must not change at all. While HTTPS is scraped, a new certificate of the same CA is put in the
server's place every hundred ticks. `TICKS=10000 python bench/memory.py` runs longer.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import linear_regression

from report import Table
from tick import simulator, ticking

from service.lean import leave_out

TICKS = int(os.environ.get("TICKS", "1000"))
STEPS = 20
LARGE = ("--gpus", "32", "--tiles", "1", "--wiring", "planes")

_RESIDENT = re.compile(r"VmRSS:\s+(\d+) kB")


def child(port: int, directory: Path, trust: Path | None) -> None:
    """Tick, and print resident MB, descriptors and threads after each step."""
    import sidecar.daemon  # noqa: F401, PLC0415 - all that the daemon holds, flags and page too

    work = ticking(port, trust, directory)
    for _ in range(STEPS):
        for _ in range(TICKS // STEPS):
            work()
        found = _RESIDENT.search(Path("/proc/self/status").read_text())
        memory = int(found[1]) / 1024 if found else 0.0
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        print(memory, descriptors, threading.active_count(), flush=True)
        sys.stdin.readline()


def run(port: int, directory: Path, site: "Site | None") -> list[tuple[float, int, int]]:
    """Run the child; let certificates rotate between its steps."""
    trust = str(site.trust) if site else ""
    steps = []
    with subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, __file__, str(port), str(directory), trust],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError(process)
        for line in process.stdout:
            memory, descriptors, threads = line.split()
            steps.append((float(memory), int(descriptors), int(threads)))
            if site:
                site.rotate()
            process.stdin.write("\n")
            process.stdin.flush()
    return steps


class Site:
    """A CA and a server's certificate that changes."""

    def __init__(self, directory: Path) -> None:
        """Write the first ones."""
        import trustme  # noqa: PLC0415 - not in the process whose memory is measured

        self._authority = trustme.CA()
        self.trust = directory / "ca.crt"
        self._pem = directory / "tls.pem"
        self._authority.cert_pem.write_to_path(str(self.trust))
        self.rotate()

    def rotate(self) -> None:
        """Put a new certificate, with a new key, in the place of the old one."""
        leaf = self._authority.issue_cert("127.0.0.1")
        new = self._pem.with_suffix(".new")
        new.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
        new.replace(self._pem)

    @property
    def options(self) -> tuple[str, ...]:
        """What makes the simulator use it."""
        return "--cert", str(self._pem), "--key", str(self._pem)


def main() -> None:
    """Print the table."""
    columns = ("scraped", "ticks", "MB after", "MB for 1,000 ticks more", "descriptors", "threads")
    table = Table("memory", columns)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        site = Site(place)
        for name, options, used in (
            ("660 KB, HTTP", (), None),
            ("660 KB, HTTPS, rotating", site.options, site),
            ("32 GPUs, HTTP", LARGE, None),
        ):
            with simulator(*options) as port:
                steps = run(port, place, used)
            half = range(STEPS // 2, STEPS)
            per_step = linear_regression(half, [steps[at][0] for at in half]).slope
            memory, descriptors, threads = steps[-1]
            constant = "constant" if {step[1:] for step in steps[1:]} == {steps[-1][1:]} else "NOT"
            table.row(
                *(name, TICKS, memory, per_step * STEPS / TICKS * 1000),
                *(f"{descriptors}, {constant}", f"{threads}, {constant}"),
            )


if __name__ == "__main__":
    if sys.argv[1:]:
        leave_out("rich", "click")
        child(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3] else None)
    else:
        main()
