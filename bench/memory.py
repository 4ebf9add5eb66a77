"""What the sidecar holds on to: resident memory after many ticks, and whether it grows.

Ticks follow each other at once, each over a new connection, in a process of its own that imports
what the daemon imports, and nothing else. The slope is that of the second half of the ticks;
descriptors and threads must not change at all. While HTTPS is scraped, a new certificate of the
same CA is put in the server's place twenty times. `TICKS=10000 python bench/memory.py` runs longer.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING, NamedTuple

from exposition import padded
from ready import ready
from report import Table
from tick import simulator

from xelink.simulators.xpu_manager import Blueprint, render

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

TICKS = int(os.environ.get("TICKS", "1000"))
STEPS = 20
LARGE = ("--gpus", "32", "--tiles", "1", "--wiring", "planes")


class Step(NamedTuple):
    """What the child holds: MiB in memory, of these in files, descriptors and threads."""

    resident: float
    files: float
    descriptors: int
    threads: int


def run(port: int, directory: Path, site: "Site | None") -> list[Step]:
    """Let another process tick; let certificates rotate between its steps."""
    trust = str(site.trust) if site else ""
    program = Path(__file__).with_name("ticking.py")
    steps = []
    with subprocess.Popen(  # noqa: S603 - a program of ours
        [sys.executable, program, str(port), str(directory), trust, str(TICKS // STEPS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError(process)
        for _ in range(STEPS):
            process.stdin.write("\n")
            process.stdin.flush()
            resident, files, descriptors, threads = map(int, process.stdout.readline().split())
            steps.append(Step(resident / 1024, files / 1024, descriptors, threads))
            if site:
                site.rotate()
        process.stdin.close()
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
    columns = (
        *("scraped", "ticks", "MiB after", "of it files", "MiB for 1,000 ticks more"),
        *("descriptors", "threads"),
    )
    table = Table("memory", columns)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        site = Site(place)
        body = render(Blueprint(gpus=8, tiles=2).build())
        ways: tuple[tuple[str, AbstractContextManager[int], Site | None], ...] = (
            ("660 KB, HTTP", simulator(), None),
            ("660 KB, HTTPS, rotating", simulator(*site.options), site),
            ("32 GPUs, 2.7 MB, HTTP", simulator(*LARGE), None),
            ("10 MB, HTTP", ready(padded(body, 10 << 20)), None),
        )
        for name, server, used in ways:
            with server as port:
                steps = run(port, place, used)
            half = range(STEPS // 2, STEPS)
            per_step = linear_regression(half, [steps[at].resident for at in half]).slope
            last = steps[-1]
            constant = "constant" if {step[2:] for step in steps[1:]} == {last[2:]} else "NOT"
            table.row(
                *(name, TICKS, last.resident, last.files, per_step * STEPS / TICKS * 1000),
                *(f"{last.descriptors}, {constant}", f"{last.threads}, {constant}"),
            )


if __name__ == "__main__":
    main()
