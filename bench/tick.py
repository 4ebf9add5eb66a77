"""What one tick of the sidecar costs: connect, fetch, classify, nothing changed.

XPU Manager's simulator serves 660 KB as a process of its own. Each tick makes a new connection, as
at the default interval: the real server keeps one open for 2 s. What is measured is processor time
of this process alone, user and system, so that what else the machine does matters less; the median
of many ticks. The floor is the same answer read from a plain socket into one buffer.
"""

import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from report import Table

from service.logs import LogFormat, logger_to_stderr
from service.stopping import Stop
from sidecar.loop import Policy, Sidecar
from sidecar.publisher import Publisher
from sidecar.scrape import Scraper, Target
from sidecar.telemetry import Telemetry
from sidecar.trust import TrustFiles

TICKS = 300
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def main() -> None:
    """Print the table."""
    import trustme  # noqa: PLC0415 - who measures memory imports this module, and not that one

    table = Table("tick", ("over", "a plain socket, ms", "one tick, ms", "times the socket"))
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        authority = trustme.CA()
        leaf = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(place / "ca.crt"))
        leaf.cert_chain_pems[0].write_to_path(str(place / "tls.crt"))
        leaf.private_key_pem.write_to_path(str(place / "tls.key"))
        https = ("--cert", str(place / "tls.crt"), "--key", str(place / "tls.key"))
        for name, options, trust in (
            ("HTTP", (), None),
            ("HTTPS", https, place / "ca.crt"),
        ):
            with simulator(*options) as port:
                lowest = processor_time(floor(port, trust))
                tick = processor_time(ticking(port, trust, place))
                table.row(name, lowest * 1000, tick * 1000, tick / lowest)


@contextmanager
def simulator(*options: str) -> Iterator[int]:
    """Serve the metrics of 8 GPUs in another process; give the port."""
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "sidecar.simulator", "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is None:
            raise AssertionError(process)
        yield int(process.stdout.readline().rpartition(":")[2].split("/")[0])
        process.terminate()


def processor_time(work: Callable[[], object]) -> float:
    """Give the median processor time of a call, in seconds."""
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


def ticking(port: int, trust: Path | None, place: Path) -> Callable[[], object]:
    """Tick as the daemon does, each time over a new connection."""
    stop = Stop()
    stop.install()
    scraper = Scraper(
        Target(port, TrustFiles(trust) if trust else None),
        bounded=stop.bounded,
        sleep=time.sleep,
        monotonic=time.monotonic,
    )
    publisher = Publisher(place / f"features-{port}.txt", place)
    log = logger_to_stderr(LogFormat.TEXT, debug=False)
    sidecar = Sidecar(scraper, publisher, Policy(), Telemetry(), log)

    def work() -> None:
        scraper.hang_up()
        sidecar.tick(lambda: datetime.now(UTC), time.monotonic)

    return work


if __name__ == "__main__":
    main()
