"""How fast the topology is read, against prometheus_client's parser and against the floor.

Every figure is a ratio of medians from this one run: absolute times of a shared machine mean
little.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families

from sidecar.exposition import Reader
from sidecar.sieve import Sieve
from sidecar.simulator import Blueprint, render

_CHUNK = 1 << 16


def timed(work: Callable[[], object], runs: int) -> float:
    """Give the median time of some runs, in milliseconds."""
    times = []
    for _ in range(runs):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return median(times) * 1000


def sieved(body: bytes) -> Sieve:
    """Stream a body through a sieve."""
    sieve = Sieve()
    for start in range(0, len(body), _CHUNK):
        sieve.feed(body[start : start + _CHUNK])
    return sieve


def main() -> None:
    """Print the table."""
    print("| body | parser | cold | times faster | unchanged | times faster | floor (rfind) |")
    print("|---|---|---|---|---|---|---|")
    for gpus in (2, 8, 16):
        body = render(Blueprint(gpus=gpus, tiles=2).build())
        text = body.decode()
        warm = Reader()
        warm.read(sieved(body))

        def parse(text: str = text) -> None:
            list(text_string_to_metric_families(text))

        def cold(body: bytes = body) -> None:
            Reader().read(sieved(body))

        def unchanged(body: bytes = body, warm: Reader = warm) -> None:
            warm.read(sieved(body))

        def floor(body: bytes = body) -> None:
            body.rfind(b"no such row")

        parser, first, again = timed(parse, 3), timed(cold, 50), timed(unchanged, 50)
        print(
            f"| {len(body) // 1000} KB | {parser:.1f} ms | {first:.2f} ms | {parser / first:.0f} |"
            f" {again:.3f} ms | {parser / again:.0f} | {timed(floor, 50):.3f} ms |"
        )


if __name__ == "__main__":
    main()
