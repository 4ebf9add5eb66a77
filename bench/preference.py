"""How long a preference takes, how often it is proven, and how often a greedy choice is worse.

Requests are random (every third one finds the whole node free), of every size, the same in every
run. After a warm-up each is asked once, and every call counts, whatever else the machine did: how
much that is says the noise floor, an empty call timed the same way in the same run. Beyond 16 GPUs
the time limit is the default of 50 ms. "greedy worse" is how often a greedy choice is worse, "its
lanes" how many of the lanes it has that there could be.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from math import ceil
from typing import TypeVar

from report import Table

from xelink.preference.bitmask import members
from xelink.preference.criteria import score
from xelink.preference.fabric import Fabric, Free, GpuFacts
from xelink.preference.shares import Preferences, prepare
from xelink.preference.subset_table import EXACT_LIMIT

Answer = TypeVar("Answer")
Pairs = dict[tuple[int, int], int]
SIZES = (4, 8, 12, 16, 24, 32, 64)
LANES = 16
REQUESTS_SMALL = 500
REQUESTS_LARGE = 100
WARM_UP = 50
NOISE_CALLS = 20_000
LIMIT = 0.05


def mesh(n: int, _rng: random.Random) -> Pairs:
    """Link every GPU to every other."""
    return dict.fromkeys(combinations(range(n), 2), LANES)


def ring(n: int, _rng: random.Random) -> Pairs:
    """Link every GPU to the next."""
    return {(i, (i + 1) % n): LANES for i in range(n)}


def groups(n: int, _rng: random.Random) -> Pairs:
    """Link every GPU to the others of its group of eight (of four on small nodes)."""
    size = 8 if n > EXACT_LIMIT else 4
    return {(i, j): LANES for i, j in combinations(range(n), 2) if i // size == j // size}


def planes(n: int, _rng: random.Random) -> Pairs:
    """Put most cards on two planes, and one of four on one plane only."""
    on = [3 if i % 4 else 1 + i // 4 % 2 for i in range(n)]
    return {
        (i, j): LANES // 2 * (on[i] & on[j]).bit_count()
        for i, j in combinations(range(n), 2)
        if on[i] & on[j]
    }


def degraded(n: int, rng: random.Random) -> Pairs:
    """Take three links from a mesh, and half the lanes from three more."""
    pairs = mesh(n, rng)
    lost, weak = rng.sample(list(pairs), 6)[::2], rng.sample(list(pairs), 3)
    pairs |= dict.fromkeys(weak, LANES // 2)
    return {pair: width for pair, width in pairs.items() if pair not in lost}


def irregular(n: int, rng: random.Random) -> Pairs:
    """Link half of the pairs, with random lanes."""
    return {p: rng.choice((4, 8, 12, 16)) for p in mesh(n, rng) if rng.random() < 1 / 2}


def greedy(fabric: Fabric, available: int, must: int, size: int) -> int:
    """Start from the widest pair, then add the GPU with the most lanes to those taken."""
    lanes, chosen = fabric.lanes, must
    if not chosen and size > 1:
        pairs = combinations(members(available), 2)
        one, other = max(pairs, key=lambda pair: lanes[pair[0]][pair[1]])
        chosen = 1 << one | 1 << other
    while chosen.bit_count() < size:
        inside = list(members(chosen))
        free = members(available & ~chosen)
        chosen |= 1 << max(free, key=lambda i: sum(max(0, lanes[i][j]) for j in inside))
    return chosen


def measure(table: Table, shape: Callable[[int, random.Random], Pairs], n: int) -> None:
    """Ask one node and write one row of the table."""
    rng = random.Random(n)  # noqa: S311 - the same requests in every run
    gpus = [GpuFacts(f"card{i}", f"0000:{i:02x}:00.0", i * 2 // n, True) for i in range(n)]  # noqa: FBT003 - healthy ports
    bdf = [gpu.bdf for gpu in gpus]
    lanes = {(bdf[i], bdf[j]): width for (i, j), width in shape(n, rng).items()}
    prepare(gpus, lanes, clock=time.monotonic)  # what is the same for all nodes of n GPUs
    start = time.perf_counter()
    preferences = prepare(gpus, lanes, clock=time.monotonic, timeout=LIMIT)
    prepared = time.perf_counter() - start
    took, proven, missed, ratios = ask(preferences, rng)
    lanes_share = percent(sum(ratios) / len(ratios)) if ratios else ""
    shares = percent(proven / len(took)), percent(missed / len(took)), lanes_share
    table.row(shape.__name__, n, prepared * 1e3, *parts(took), *shares)


def ask(preferences: Preferences, rng: random.Random) -> tuple[list[float], int, int, list[float]]:
    """Return seconds per request, the proven, those with a worse greedy choice, and its lanes."""
    fabric, names = preferences.fabric, list(preferences.bits)
    small = len(names) <= EXACT_LIMIT
    took, proven, missed, ratios = [], 0, 0, []
    requests = [
        request(names, number, rng) for number in range(REQUESTS_SMALL if small else REQUESTS_LARGE)
    ]
    for number in range(WARM_UP if small else 1):
        timed(partial(preferences.prefer, names, [], 1 + number % len(names)))
    # One after the other: what the benchmark does itself is not to cool them down.
    answers = [timed(partial(preferences.prefer, *asked)) for asked in requests]
    for (available, must, size), (answer, seconds) in zip(requests, answers, strict=True):
        took.append(seconds)
        proven += answer.proven
        read = preferences.read(available, must, size)
        other = greedy(fabric, read.gpus, read.must, size)
        ours, theirs = score(fabric, answer.gpus, Free(0)), score(fabric, other, Free(0))
        # up to NUMA: a greedy choice ignores what is left
        missed += theirs[:6] < ours[:6]
        if ours.lanes:
            ratios.append(theirs.lanes / ours.lanes)
    return took, proven, missed, ratios


def request(names: list[str], number: int, rng: random.Random) -> tuple[list[str], list[str], int]:
    """Make a request: what is available, what must be included, how many."""
    whole = number % 3 == 0
    available = names if whole else rng.sample(names, rng.randint(1, len(names)))
    size = rng.randint(1, len(available))
    return available, rng.sample(available, rng.choice((0, 0, 0, 1, 2)) % (size + 1)), size


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    """Call once: the answer and the seconds it took."""
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start


def empty() -> None:
    """Do nothing: what takes time here is the machine and the measurement."""


def parts(took: list[float]) -> list[float]:
    """Return the median, the 99th percentile and the worst of single calls, in ms."""
    took = sorted(took)
    return [took[ceil(len(took) * part) - 1] * 1e3 for part in (0.5, 0.99, 1)]


def percent(share: float) -> str:
    """Write a share."""
    return f"{share:.0%}"


def main() -> None:
    """Print the table."""
    print(f"Times in ms; the limit beyond {EXACT_LIMIT} GPUs is {LIMIT * 1e3:.0f} ms.")
    columns = ("links", "GPUs", "prepare", "median", "p99", "worst")
    table = Table("preference", (*columns, "proven", "greedy worse", "its lanes"))
    for _ in range(WARM_UP):
        timed(empty)
    noise = parts([timed(empty)[1] for _ in range(NOISE_CALLS)])
    table.row("an empty call", 0, 0, *noise, "", "", "")
    for shape in (mesh, ring, groups, planes, degraded, irregular):
        for n in SIZES:
            measure(table, shape, n)


if __name__ == "__main__":
    main()
