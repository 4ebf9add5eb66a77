"""How fast the topology is read, against prometheus_client's parser and against the floor.

Every figure is a ratio of the best of some runs, all from this one run: absolute times of a shared
machine mean little. "Filtered" is the same parser on the wanted lines only, found by a loop over
all lines. The floor is one `bytes.rfind` over the body: nothing that looks at all of it is faster.
"""

import tracemalloc
from collections.abc import Callable
from functools import partial
from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families
from report import Table

from xelink.simulators.xpu_manager import Blueprint, render
from xelink.xpu_manager.exposition import ExpositionReader

CHUNK = 1 << 16
FAMILIES = ("xpum_topology_link", "xpum_xelink_port_status")
BODIES = (
    ("2 x 2", Blueprint(gpus=2, tiles=2), 0),
    ("8 x 2", Blueprint(gpus=8, tiles=2), 0),
    ("8 x 2, more of the rest", Blueprint(gpus=8, tiles=2), 1 << 20),
    ("16 x 2", Blueprint(gpus=16, tiles=2), 0),
    ("8 x 2, much more of the rest", Blueprint(gpus=8, tiles=2), 10 << 20),
)


def best(work: Callable[[], object], runs: int) -> float:
    """Return the shortest time of some runs, in seconds."""
    times = []
    for _ in range(runs):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return min(times)


def padded(body: bytes, size: int) -> bytes:
    """Repeat what sorts before the topology, until the body is so long."""
    before = body.rindex(b"\n", 0, body.index(b"\nxpum_topology_link{")) + 1
    start = body.index(b"\nxpum_") + 1
    rest = body[start:before]
    return body[:start] + rest * max(0, -(-(size - len(body)) // len(rest))) + body[start:]


def read(chunks: list[bytes], reader: ExpositionReader | None = None) -> object:
    """Read a body that comes in chunks; without a reader for the first time."""
    reader = reader or ExpositionReader()
    lines = reader.line_filter()
    for chunk in chunks:
        lines.feed(chunk)
    return reader.read(lines)


def peak(chunks: list[bytes]) -> float:
    """Return the most memory that reading took, in KB, beside the body itself."""
    tracemalloc.start()
    read(chunks)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 1000


def parsed(text: str) -> object:
    """Parse every line."""
    return list(text_string_to_metric_families(text))


def filtered(text: str) -> object:
    """Parse the wanted lines only."""
    wanted = "\n".join(line for line in text.split("\n") if line.startswith(FAMILIES)) + "\n"
    return parsed(wanted)


def main() -> None:
    """Print the table: how many times faster we are."""
    table = Table(
        "exposition",
        (
            *("node", "KB", "parser, ms", "faster than it, first time", "nothing changed"),
            *("faster than filtered, first time", "slower than the floor, nothing changed"),
            "most memory, KB",
        ),
    )
    for name, blueprint, size in BODIES:
        body = padded(render(blueprint.build()), size)
        text = body.decode()
        chunks = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
        warm = ExpositionReader()
        read(chunks, warm)
        parser = best(partial(parsed, text), 3)
        sifted = best(partial(filtered, text), 5)
        first = best(partial(read, chunks), 100)
        again = best(partial(read, chunks, warm), 200)
        floor = best(partial(body.rfind, b"no such row"), 200)
        table.row(
            *(name, len(body) // 1000, parser * 1000, parser / first, parser / again),
            *(sifted / first, again / floor, peak(chunks)),
        )


if __name__ == "__main__":
    main()
