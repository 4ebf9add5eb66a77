"""What one tick of the sidecar costs: connect, fetch, classify, nothing changed.

XPU Manager's simulator serves 660 KB as a process of its own. Each tick makes a new connection, as
at the default interval: the real server keeps one open for 2 s. What is measured is processor time
of this process alone, user and system, so that what else the machine does matters less; the median
of many ticks. The floor is the same answer read from a plain socket into one buffer.

The second table says where the time goes; measuring that takes some, too. Ticks come far apart:
most of what they run and read is in no cache of the processor any more, here as on a node.
"""

import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from statistics import median

from phases import Phases
from report import Table
from ticking import ticking

from sidecar.loop import Sidecar
from sidecar.telemetry import Telemetry
from xelink.nfd.bounded_writer import BoundedPublisher
from xelink.xpu_manager import transport
from xelink.xpu_manager.exposition import ExpositionReader
from xelink.xpu_manager.line_filter import LineFilter
from xelink.xpu_manager.scrape import Scraper
from xelink.xpu_manager.tls import TlsContext

TICKS = 300
PHASES: Mapping[str, tuple[tuple[object, str], ...]] = {
    "connect, with the handshake": ((transport.Transport, "_connected"),),
    "send": ((transport, "_send"),),
    "head of the answer": ((HTTPConnection, "getresponse"),),
    "body, from the kernel or decrypted": ((HTTPResponse, "read"),),
    "find the topology's lines": ((LineFilter, "feed"), (ExpositionReader, "read")),
    "httpx, tenacity, the time limit": ((Scraper, "scrape"),),
    "TLS files and certificate": ((TlsContext, "context"), (Scraper, "_note_certificate")),
    "hang up": ((HTTPConnection, "close"),),
    "evaluate": ((Sidecar, "_evaluate"),),
    "who owns the file, and its content": (
        (BoundedPublisher, "other_writer"),
        (BoundedPublisher, "read"),
    ),
    "metrics": ((Telemetry, "observed"), (Telemetry, "source")),
    "the loop itself": ((Sidecar, "tick"),),
}
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def main() -> None:
    """Print the table."""
    import trustme  # noqa: PLC0415 - who measures memory imports this module, and not that one

    columns = ("over", "a plain socket, ms", "one tick, ms", "times the socket", "more, ms")
    table = Table("tick", columns)
    spent: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        authority = trustme.CA()
        leaf = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(place / "ca.crt"))
        leaf.cert_chain_pems[0].write_to_path(str(place / "tls.crt"))
        leaf.private_key_pem.write_to_path(str(place / "tls.key"))
        https = ("--cert", str(place / "tls.crt"), "--key", str(place / "tls.key"))
        ways: tuple[tuple[str, tuple[str, ...], Path | None], ...] = (
            ("HTTP", (), None),
            ("HTTPS", https, place / "ca.crt"),
        )
        for name, options, trust in ways:
            with simulator(*options) as port:
                lowest = processor_time(floor(port, trust))
                tick = processor_time(ticking(port, trust, place))
                table.row(name, lowest * 1000, tick * 1000, tick / lowest, (tick - lowest) * 1000)
        phases = Phases(PHASES)
        for name, options, trust in ways:
            with simulator(*options) as port:
                spent[name] = phases.medians(ticking(port, trust, place), TICKS)
    table = Table("tick-phases", ("phase", *(f"{name}, µs" for name in spent)))
    for phase in PHASES:
        table.row(phase, *(round(found.get(phase, 0) * 1e6) for found in spent.values()))


@contextmanager
def simulator(*options: str) -> Iterator[int]:
    """Serve the metrics of 8 GPUs in another process; give the port."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "xelink.simulators.xpu_manager", "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is None:
            raise AssertionError(process)
        try:
            yield int(process.stdout.readline().rpartition(":")[2].split("/")[0])
        finally:
            process.terminate()


def processor_time(work: Callable[[], object]) -> float:
    """Return the median processor time of a call, in seconds."""
    for _ in range(10):
        work()
    times = []
    for _ in range(TICKS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return median(times)


def floor(port: int, trust: Path | None) -> Callable[[], object]:
    """Read the answer into one buffer and look at nothing."""
    context = ssl.create_default_context(cafile=str(trust)) if trust else None
    buffer = bytearray(1 << 16)

    def work() -> None:
        with ExitStack() as cleanup:
            connection = cleanup.enter_context(socket.create_connection(("127.0.0.1", port)))
            if context:
                connection = cleanup.enter_context(
                    context.wrap_socket(connection, server_hostname="127.0.0.1")
                )
            connection.sendall(REQUEST)
            while connection.recv_into(buffer):
                pass

    return work


if __name__ == "__main__":
    main()
