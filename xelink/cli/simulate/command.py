"""`xelink simulate`: Pods that come and go, under each policy of the plugin and a plain kubelet."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from shtab import FILE

from xelink.cli import sources
from xelink.cli.exit_codes import OK, FailedError, WrongCallError
from xelink.cli.helptext import HelpFormatter
from xelink.cli.show.command import json_text
from xelink.cli.show.matrix import lanes_between
from xelink.cli.simulate import random_scenarios
from xelink.cli.simulate.report import SimulationReport
from xelink.cli.simulate.scenario import (
    FILE_LIMIT,
    MOST_GPUS,
    Scenario,
    ScenarioError,
    parse,
    render,
)
from xelink.cli.simulate.simulation import simulate
from xelink.cli.simulate.svg import bars
from xelink.cli.simulate.text import page
from xelink.cli.sources import STDIN, number
from xelink.cli.tables import show
from xelink.daemon.stdio import write_stdout
from xelink.topology.text import printable

_SHIPPED = files("xelink") / "scenarios"
_YAML = ".yaml"
_MOST_RUNS = 100_000
_MOST_SEEDS = 1 << 32
_LONG = 20  # runs from which on a progress bar is worth a line

_MOST_NAME = 300  # characters
_EXAMPLES = """\
examples:
  the scenarios that are there:
    xelink simulate --list
  one of them, and one of your own:
    xelink simulate islands
    xelink simulate my-node.yaml
  a random scenario; a thousand of them in one report:
    xelink simulate --random 1
    xelink simulate --random 1 --runs 1000
  a picture, and what was drawn as a scenario to go on with:
    xelink simulate islands --output svg > islands.svg
    xelink simulate --random 7 --output scenario > seven.yaml

The format of a scenario is in docs/simulate.md. All figures but the times of decisions are
the same in every run; --no-times leaves these out.
exit codes: 0 it ran, 1 the scenario cannot be read, 2 wrong call
"""


class _Series(NamedTuple):
    """The scenarios to run; `only` is the one that all of them are, but for the seed."""

    title: str
    only: Scenario | None
    scenarios: Iterable[Scenario]
    runs: int


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "simulate",
        help=summary,
        description="See what each policy of xelink-device-plugin, and a kubelet without a"
        " preference, gives to the same Pods: how many are fully linked, with how many lanes, how"
        " many groups are broken on the way, and how long a decision takes.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "scenario",
        nargs="?",
        metavar="SCENARIO",
        help="a file, - for standard input, or the name of one that is there (see --list)",
    ).complete = FILE  # type: ignore[attr-defined]  # where shtab looks for it
    seed = partial(number, least=0, most=_MOST_SEEDS - 1)
    what.add_argument("--random", type=seed, metavar="SEED", help="draw random nodes and Pods")
    what.add_argument("--list", action="store_true", help="list the scenarios that are there")
    parser.add_argument(
        "--seed", type=seed, metavar="SEED", help="seed of SCENARIO, instead of the one in it"
    )
    parser.add_argument(
        "--runs",
        type=partial(number, least=1, most=_MOST_RUNS),
        metavar="N",
        help="run N times, with this seed and those that follow, in one report (default 1)",
    )
    parser.add_argument(
        "--output",
        choices=("text", "json", "svg", "scenario"),
        default="text",
        help="form; scenario: run nothing, write the scenario as YAML (default text)",
    )
    parser.add_argument("--no-times", action="store_true", help="leave out how long decisions took")


def run(options: argparse.Namespace) -> int:
    """Simulate. Raises `FailedError`."""
    _check(options)
    if options.list:
        show(_list())
        return OK
    series = _series(options)
    if options.output == "scenario":
        write_stdout("".join(map(render, series.scenarios)))
        return OK
    report = SimulationReport()
    for scenario in _watched(series):
        report.add(simulate(scenario, time.perf_counter))
    times = not options.no_times
    if options.output == "json":
        write_stdout(json_text({"title": series.title, **report.facts(times=times)}))
    elif options.output == "svg":
        write_stdout(bars(series.title, report))
    else:
        show(page(series.title, series.only, report, times=times))
    return OK


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored. Raises `WrongCallError`."""
    if options.list:
        given = (options.seed, options.runs, options.no_times or None)
        if any(option is not None for option in given) or options.output != "text":
            raise WrongCallError("--list goes alone")
    if options.no_times and options.output not in {"text", "json"}:
        raise WrongCallError(f"--no-times has no meaning with --output {options.output}")
    if options.runs is not None and options.output == "scenario":
        raise WrongCallError("--output scenario runs nothing: leave --runs out")


def _series(options: argparse.Namespace) -> _Series:
    runs = options.runs or 1
    first = options.random if options.random is not None else options.seed
    if options.random is not None:
        if options.seed is not None:
            raise WrongCallError("--seed goes with SCENARIO: --random has its own")
        scenarios = map(random_scenarios.scenario, _seeds(first, runs))
        only = random_scenarios.scenario(first) if runs == 1 else None
        return _Series(f"random {first}" if only else "random scenarios", only, scenarios, runs)
    scenario = _read(options.scenario)
    seeds = _seeds(scenario.seed if first is None else first, runs)
    changed = (scenario.model_copy(update={"seed": seed}) for seed in seeds)
    title = "standard input" if options.scenario == STDIN else Path(options.scenario).stem
    return _Series(title, scenario, changed, runs)


def _seeds(first: int, runs: int) -> range:
    if first + runs > _MOST_SEEDS:
        raise WrongCallError(f"{runs} seeds from {first} on are more than there are")
    return range(first, first + runs)


def _watched(series: _Series) -> Iterable[Scenario]:
    """Show a progress bar on a terminal, where a user would wait."""
    if series.runs < _LONG or not sys.stderr.isatty():
        return series.scenarios
    console = Console(stderr=True)
    return track(series.scenarios, "simulating", total=series.runs, console=console, transient=True)


def _read(name: str) -> Scenario:
    """Read a scenario: from standard input, a file, or one that is there. Raises `FailedError`."""
    try:
        return parse(_text(name), partial(_real_node, Path(name).parent))
    except ScenarioError as error:
        raise FailedError(f"{printable(name, _MOST_NAME)}: {error}") from error
    except UnicodeDecodeError as error:
        raise FailedError(f"{printable(name, _MOST_NAME)}: no text in UTF-8") from error


def _real_node(directory: Path, kind: str, name: str) -> dict[str, Any]:
    """Return the keys of a real node: its GPUs by PCI address, its links, its NUMA nodes.

    `directory` is the scenario's. Raises `ValueError`.
    """
    try:
        node = sources.read(kind, str(directory / name))
    except FailedError as error:
        raise ValueError(error) from error
    topology = node.topology
    if topology is None:
        raise ValueError(f"nothing is known of its links: {node.reason}")
    if len(node.devices) > MOST_GPUS:
        raise ValueError(f"{len(node.devices)} GPUs, and a scenario has {MOST_GPUS} at most")
    addresses = {gpu.id: gpu.bdf for gpu in topology.gpus}
    order = sorted(node.devices, key=lambda device: (addresses.get(device, ""), device))
    place = {device: number for number, device in enumerate(order)}
    numa = [gpu.numa if (gpu := node.gpu(device)) else None for device in order]
    linked = {
        tuple(sorted((place[one], place[other]))): sum(widths)
        for (one, other), widths in lanes_between(topology).items()
    }
    return {
        "gpus": len(order),
        "linked": {
            f"{one}-{other}": max(1, lanes) for (one, other), lanes in sorted(linked.items())
        },
        "numa": 1 if None in numa else numa,
    }


def _text(name: str) -> str:
    if name in _names():
        return (_SHIPPED / f"{name}{_YAML}").read_text(encoding="utf-8")
    try:
        if name == STDIN:
            content = sys.stdin.buffer.read(FILE_LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        known = f"; there are {', '.join(_names())}" if isinstance(error, FileNotFoundError) else ""
        raise FailedError(f"{printable(name, _MOST_NAME)}: {why}{known}") from error
    if len(content) > FILE_LIMIT:
        raise FailedError(f"{printable(name, _MOST_NAME)}: more than {FILE_LIMIT} bytes")
    return content.decode()


def _names() -> list[str]:
    """Name the scenarios that are there."""
    return sorted(
        entry.name.removesuffix(_YAML) for entry in _SHIPPED.iterdir() if entry.name.endswith(_YAML)
    )


def _list() -> Iterator[str]:
    width = max(map(len, _names()))
    for name in _names():
        yield f"{name:<{width}}  {_read(name).about}"
