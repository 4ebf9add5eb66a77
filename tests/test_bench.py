"""Each benchmark runs, measures what it says, and writes what it prints; how fast is not asked."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
PARTS = {"phases", "ready", "report", "ticking"}  # what benchmarks import: no table of their own

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import report
from pathlib import Path
report.RESULTS = Path(sys.argv[2])
import NAME as bench
SHORTER
bench.main()
"""


@dataclass(frozen=True)
class Bench:
    """How to make a benchmark short, and of each of its tables the columns that a clock fills.

    No two rows of these are alike, unless nobody measures; ratios are columns over columns.
    """

    shorter: str
    measured: Mapping[str, tuple[str, ...]]
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)


SECONDS = ("a plain socket, ms", "one tick, ms", "more, ms")
BENCHES = {
    "allocator": Bench(
        "bench.SCRAPES = bench.PODS = 1; bench.SETTINGS = dict([*bench.SETTINGS.items()][:2])",
        {"allocator": ("sidecar, MB", "plugin, MB")},
    ),
    "driver": Bench("import tick; tick.TICKS = 3", {"driver": ("ms of processor",)}),
    "exposition": Bench(
        "bench.BODIES = bench.BODIES[:2]",
        {"exposition": ("parser, ms", "faster than it, first time", "nothing changed")},
    ),
    "idle": Bench(
        "bench.SECONDS = 0.5; bench.SETTLE = 0",
        {"idle": ("MB resident", "shared out", "anonymous")},
    ),
    "memory": Bench("bench.TICKS = bench.STEPS = 4", {"memory": ("MiB after",)}),
    "preference": Bench(
        "bench.SIZES = (4, 8); bench.REQUESTS_SMALL = 10; bench.NOISE_CALLS = 100",
        {"preference": ("median", "p99", "worst")},
    ),
    "publication": Bench("bench.PUBLICATIONS = 5", {"publication": ("ms",)}),
    "rpc": Bench(
        "bench.CALLS = 16; bench.ROUNDS = bench.WARM_UP = 1; bench.TOGETHER = 0",
        {"rpc": ("p50, ms", "p99, ms", "max, ms")},
    ),
    "start": Bench("bench.RUNS = 1", {"start": ("ms",)}),
    "tick": Bench(
        "bench.TICKS = 3",
        {"tick": SECONDS, "tick-phases": ("HTTP, µs", "HTTPS, µs")},
        {"times the socket": ("one tick, ms", "a plain socket, ms")},
    ),
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without Go: its client is built for a minute, and Python's does.
    path = os.pathsep.join(
        place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place) / "go").exists()
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(BENCH), *arguments],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(text: str) -> list[list[list[str]]]:
    """Read tables in Markdown: rows of cells, the titles first."""
    tables: list[list[list[str]]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            continue
        if line.startswith("| "):
            if lines[number + 1 : number + 2] and lines[number + 1].startswith("|---"):
                tables.append([])
            tables[-1].append(line.removeprefix("| ").removesuffix(" |").split(" | "))
    return tables


def test_there_is_no_other_benchmark() -> None:
    assert {path.stem for path in BENCH.glob("*.py")} == BENCHES.keys() | PARTS


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_measures_and_writes_what_it_prints(name: str, tmp_path: Path) -> None:
    bench = BENCHES[name]
    program = RUN.replace("NAME", name).replace("SHORTER", bench.shorter)
    done = run(program, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.iterdir()} == bench.measured.keys()
    shown = printed(done.stdout)
    assert len(shown) == len(bench.measured)
    for (table, columns), (titles, *rows) in zip(bench.measured.items(), shown, strict=True):
        said: dict[str, Any] = json.loads((tmp_path / f"{table}.json").read_text())
        assert said["python"] == platform.python_version()
        written: list[dict[str, Any]] = said["rows"]
        assert [[*row] for row in written] == [titles] * len(rows)
        assert len(rows) > 1
        for row, cells in zip(written, rows, strict=True):
            for value, cell in zip(row.values(), cells, strict=True):
                if isinstance(value, str):
                    assert cell == value
                else:
                    assert float(cell) == pytest.approx(
                        value, rel=0.01, abs=0.5 if value >= 100 else 0
                    )
        for column in columns:
            values = [row[column] for row in written]
            assert all(isinstance(value, int | float) and value >= 0 for value in values), column
            assert len({*values}) > 1, f"{column}: always {values[0]}"
        for column, (above, below) in bench.ratios.items():
            for row in written if column in titles else ():
                assert row[column] == pytest.approx(row[above] / row[below])


SPIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
def spin():
    until = time.process_time() + 0.002
    while time.process_time() < until:
        pass
"""


@pytest.mark.parametrize(
    "measure",
    [
        "import tick; tick.TICKS = 3; told = tick.processor_time(spin)",
        "import exposition; told = exposition.best(spin, 3)",
        "import preference; told = preference.timed(spin)[1]",
        "import start; told = start.python('import time; time.sleep(0.002)')",
        (
            "import phases, types; part = types.SimpleNamespace(spin=spin);"
            " told = phases.Phases({'it': ((part, 'spin'),)}).medians(lambda: part.spin(), 3)['it']"
        ),
    ],
    ids=lambda program: program.partition(";")[0],
)
def test_a_clock_tells_no_less_than_it_took(measure: str) -> None:
    done = run(f"{SPIN}\n{measure}\nprint(told)")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0.002
