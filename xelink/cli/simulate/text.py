"""The report of `xelink simulate` for people: as text. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from xelink.cli.simulate.report import SimulationReport, Sums, Worse, sorted_counts
from xelink.cli.simulate.scenario import NodeShape, Scenario
from xelink.cli.simulate.simulation import OURS
from xelink.cli.tables import BAD, FAINT, GOOD, HEAD, Cell, TableRow, aligned, head

_MS = 1e-3


def page(
    title: str, scenario: Scenario | None, report: SimulationReport, *, times: bool
) -> list[Text]:
    """Write the report; `scenario` is None when each run has its own."""
    return [
        *_heading(title, scenario, report),
        Text(),
        *aligned(_table(report, times=times)),
        *_apart(_runs_table(report)),
        *_apart(_evens(report)),
        *_apart(_worse(report)),
    ]


def _apart(lines: Iterable[Text]) -> list[Text]:
    """Put an empty line before lines, if there are any."""
    found = list(lines)
    return [Text(), *found] if found else []


def _heading(title: str, scenario: Scenario | None, report: SimulationReport) -> Iterator[Text]:
    yield Text(title, HEAD)
    if scenario:
        if scenario.about:
            yield Text(scenario.about)
        for node in scenario.nodes:
            yield Text(f"  {node_line(node, scenario.shares)}")
    runs, first = len(report.seeds), report.seeds[0]
    seeds = f"seed {first}" if runs == 1 else f"{runs} runs, seeds {first} to {report.seeds[-1]}"
    summary = f"{seeds}: {report.pods} Pods, {report.several} of them ran with several GPUs"
    if report.linkable < report.several:
        summary += f" ({report.linkable} on nodes that can link so many)"
    yield Text(summary)
    if report.never_started:
        yield Text(f"{report.never_started} Pods never found enough free GPUs", BAD)


def node_line(node: NodeShape, shares: int = 1) -> str:
    """Return in a line what a node is."""
    several = f"{node.count} nodes, each: " if node.count > 1 else "1 node: "
    kind = {"mesh": "all linked", "ring": "linked in a ring", "none": "without links"}[node.wiring]
    if node.linked is not None:
        kind = f"{len(node.linked)} of {node.gpus * (node.gpus - 1) // 2} pairs linked"
    parts = [f"{several}{node.gpus} GPUs"]
    if len(node.parts) > 1:
        parts.append(f"in {len(node.parts)} islands ({' '.join(map(_numbers, node.parts))})")
    parts.append(kind)
    if node.lost:
        parts.append(f"lost {' '.join(node.lost)}")
    if node.narrow:
        parts.append("narrow " + " ".join(f"{pair}={width}" for pair, width in node.narrow.items()))
    if shares > 1:
        parts.append(f"{shares} shares of each GPU")
    return ", ".join(parts)


def _numbers(part: Sequence[int]) -> str:
    return ",".join(map(str, part))


def _table(report: SimulationReport, *, times: bool) -> Iterator[TableRow]:
    names = ["POLICY", "FULLY LINKED", "", "LANES", "", "BROKEN GROUPS"]
    yield head(*names, *(["DECISION: MEDIAN", "LONGEST"] if times else []))
    most = max(sums.linked for sums in report.sums.values())
    for kind, sums in report.sums.items():
        style = GOOD if sums.linked == most else ""
        row = [
            Cell(kind, HEAD if kind == OURS else ""),
            Cell(f"{sums.linked} of {report.several}", style),
            Cell(percent(sums.linked, report.several), style),
            Cell(f"{sums.lanes} of {report.lanes_possible}"),
            Cell(percent(sums.lanes, report.lanes_possible)),
            Cell(str(sums.broken)),
        ]
        yield [*row, *(_times(sums) if times else ())]


def _times(sums: Sums) -> list[Cell]:
    return [Cell(_duration(seconds), FAINT) for seconds in sums.times]


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < _MS else f"{seconds * 1e3:.1f} ms"


def percent(part: int, whole: int) -> str:
    """Return a share; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


def _runs_table(report: SimulationReport) -> list[Text]:
    if len(report.seeds) == 1:
        return []
    names = head("TOPOLOGY AGAINST", "BETTER", "EVEN", "WORSE", "PODS LINKED MORE")
    return aligned([names, *_runs(report)])


def _evens(report: SimulationReport) -> list[Text]:
    rows: list[TableRow] = [
        [kind, str(count), Cell(even.value, FAINT)]
        for kind in report.others
        for even, count in sorted_counts(report.even[kind])
    ]
    return aligned([head("EVEN WITH", "RUNS", "WHY"), *rows]) if rows else []


def _runs(report: SimulationReport) -> Iterator[TableRow]:
    for kind in report.others:
        worse = len(report.worse_than(kind))
        more = report.sums[OURS].linked - report.sums[kind].linked
        yield [
            kind,
            Cell(str(report.better[kind]), GOOD),
            str(sum(report.even[kind].values())),
            Cell(str(worse), BAD if worse else ""),
            f"{more:+d}",
        ]


def _worse(report: SimulationReport) -> Iterator[Text]:
    # Mostly several policies link the same Pod that `topology` does not: it is shown once.
    cases: dict[tuple[int, int], list[Worse]] = {}
    for worse in report.worse:
        cases.setdefault((worse.seed, worse.pod), []).append(worse)
    if not cases:
        return
    yield Text("where topology linked fewer Pods, and why the first of them was not linked", HEAD)
    if len(cases) > 1:
        reasons = Counter((case[0].why, case[0].criterion or "") for case in cases.values())
        yield from aligned(
            [str(count), f"{why}{criterion and f' ({criterion})'}"]
            for (why, criterion), count in sorted(
                reasons.items(), key=lambda item: (-item[1], item)
            )
        )
    for (seed, _), case in cases.items():
        yield Text()
        fewer = ", ".join(f"{worse.fewer} fewer than {worse.kind}" for worse in case)
        yield Text(f"seed {seed}, {fewer}: {case[0].why}", BAD)
        yield Text(f"  {case[0].explanation}")
