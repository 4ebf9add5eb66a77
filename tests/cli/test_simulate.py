"""`xelink simulate`: what a person sees of it."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.commands import Xelink, topology
from xelink.cli.simulate.scenario import parse
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology import publication
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication

DOCS = Path(__file__).parents[2] / "docs" / "simulate.md"
SHIPPED = sorted(
    entry.name.removesuffix(".yaml")
    for entry in (files("xelink") / "scenarios").iterdir()
    if entry.name.endswith(".yaml")
)
SMALL = """
about: Four GPUs in pairs.
nodes: [{gpus: 4, islands: 2}]
pods:
  - {gpus: 1}
  - {gpus: 2, at: 1, for: 5}
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_topology_is_never_worse_on_a_scenario_that_is_there(xelink: Xelink, name: str) -> None:
    said = xelink("simulate", name, "--output", "json", "--no-times")
    assert (said.code, said.err) == (0, "")
    told = json.loads(said.out)
    linked = {kind: found["fully_linked"] for kind, found in told["policies"].items()}
    assert linked["topology"] == max(linked.values())
    assert [against["worse"] for against in told["topology_against"].values()] == [[]] * 4


def test_a_scenario_of_ones_own_is_read_from_a_file(xelink: Xelink) -> None:
    said = xelink("simulate", xelink.file("pairs.yaml", SMALL), "--no-times")
    assert said == (
        0,
        """\
pairs
Four GPUs in pairs.
  1 node: 4 GPUs, in 2 islands (0,1 2,3), all linked
seed 1: 2 Pods, 1 of them ran with several GPUs

POLICY    FULLY LINKED          LANES           BROKEN GROUPS
topology  1 of 1        100.0%  8 of 8  100.0%  0
balanced  0 of 1        0.0%    0 of 8  0.0%    0
packed    0 of 1        0.0%    0 of 8  0.0%    0
none      0 of 1        0.0%    0 of 8  0.0%    0
kubelet   0 of 1        0.0%    0 of 8  0.0%    0
""",
        "",
    )


@pytest.mark.parametrize("output", ["text", "json", "svg", "scenario"])
def test_the_same_call_says_the_same(xelink: Xelink, output: str) -> None:
    times = ["--no-times"] if output in {"text", "json"} else []
    calls = [xelink("simulate", "--random", "5", "--output", output, *times) for _ in range(2)]
    assert calls[0].code == 0
    assert calls[0] == calls[1]


def test_times_are_told_unless_they_are_left_out(xelink: Xelink) -> None:
    path = xelink.file("pairs.yaml", SMALL)
    assert "DECISION: MEDIAN" in xelink("simulate", path).out
    told = json.loads(xelink("simulate", path, "--output", "json").out)
    for found in told["policies"].values():
        assert 0 < found["decision_seconds"]["median"] <= found["decision_seconds"]["longest"]


@pytest.mark.parametrize("kind", ["metrics", "features"])
def test_a_scenario_takes_a_real_node_which_can_lose_links(xelink: Xelink, kind: str) -> None:
    node = Blueprint(gpus=4, wiring="mesh", lanes=8, cards="shuffled").build().cut("0.0-1.0")
    file = xelink.body(node) if kind == "metrics" else xelink.features(topology(node))
    mine = xelink.file(
        "mine.yaml", f"nodes: [{{{kind}: {Path(file).name}, lost: [2-3]}}]\npods: [{{gpus: 4}}]\n"
    )
    assert "4 GPUs, 6 of 6 pairs linked, lost 2-3" in xelink("simulate", mine).out
    written = xelink("simulate", mine, "--output=scenario").out
    (shape,) = parse(written).nodes
    assert shape.numa_nodes == tuple(gpu.numa for gpu in node.topology.gpus)
    assert shape.links == {(0, 1): 8, (0, 2): 16, (0, 3): 16, (1, 2): 16, (1, 3): 16}


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("metrics: nowhere.prom", "nodes.0.metrics: --metrics "),
        ("features: 7", "nodes.0.features: not the name of a file"),
        ("features: labels.txt, gpus: 2", "nodes.0.features: it says all of the node but count"),
        ("features: labels.txt, numa: 1", "nodes.0.features: it says all of the node but count"),
        ("features: labels.txt, linked: {}", "nodes.0.features: it says all of the node but"),
        ("features: labels.txt, lost: [0-3]", "nodes.0: GPUs 0-3 have no link to begin with"),
        ("features: silent.txt", "nodes.0.features: nothing is known of its links: "),
        ("features: many.txt", "nodes.0.features: 20 GPUs, and a scenario has 16 at most"),
    ],
)
def test_a_real_node_that_cannot_be_taken_is_refused_in_one_line(
    xelink: Xelink, node: str, why: str
) -> None:
    xelink.file("silent.txt", publication.render(Publication(None), DEFAULT_NAMESPACE))
    many = Blueprint(gpus=20, wiring="ring").build().topology
    xelink.file("many.txt", publication.render(Publication(many), DEFAULT_NAMESPACE))
    xelink.features(Blueprint(gpus=3, wiring="mesh").build().topology)
    mine = xelink.file("mine.yaml", f"nodes: [{{{node}}}]\npods: [{{gpus: 1}}]\n")
    said = xelink("simulate", mine)
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert f"mine.yaml: {why}" in said.err


def test_what_was_drawn_can_be_written_and_run_again(xelink: Xelink) -> None:
    drawn = xelink("simulate", "--random", "5", "--output", "scenario").out
    again = xelink("simulate", xelink.file("drawn.yaml", drawn), "--no-times").out
    at_once = xelink("simulate", "--random", "5", "--no-times").out
    assert again.splitlines()[1:] == at_once.splitlines()[1:]


def test_a_seed_in_place_of_the_scenario_s_own_draws_other_pods(xelink: Xelink) -> None:
    told = {xelink("simulate", "ring", "--seed", seed, "--no-times").out for seed in "123"}
    assert len(told) == 3


def test_where_topology_links_fewer_pods_the_report_says_why(xelink: Xelink) -> None:
    said = xelink("simulate", "--random", "1", "--runs", "60", "--output", "json")
    told = json.loads(said.out)
    losses = [loss for found in told["topology_against"].values() for loss in found["worse"]]
    assert losses
    loss = losses[0]
    text = xelink("simulate", "--random", str(loss["seed"]), "--no-times").out
    assert f"seed {loss['seed']}, " in text
    assert loss["why"] in text
    assert re.search(r"minute \d+: pod-\d+ \(\d GPUs", text)


def test_runs_are_summed_up_by_better_even_and_worse(xelink: Xelink) -> None:
    runs = json.loads(xelink("simulate", "ring", "--runs", "3", "--output", "json").out)
    single = [
        json.loads(xelink("simulate", "ring", "--seed", seed, "--output", "json").out)
        for seed in "123"
    ]
    for kind, found in runs["policies"].items():
        assert found["fully_linked"] == sum(one["policies"][kind]["fully_linked"] for one in single)
    assert runs["seeds"] == {"first": 1, "runs": 3}
    assert runs["topology_against"]["none"]["better"] == 3


def test_the_picture_is_xml_with_a_bar_for_each_figure(xelink: Xelink) -> None:
    said = xelink("simulate", xelink.file("<&>.yaml", SMALL), "--output", "svg")
    root = ET.fromstring(said.out)  # noqa: S314 - our own output
    name = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{name}title") == "<&>"
    bars = [float(bar.attrib["width"]) for bar in root.iter(f"{name}rect")]
    # the sheet, two signs of the legend, then for each policy whole and part, twice
    assert bars[3:7] == [380, 380, 380, 380]
    assert bars[7:11] == [380, 0, 380, 0]
    assert "prefers-color-scheme: dark" in said.out


def test_the_list_names_every_scenario_with_what_it_is_about(xelink: Xelink) -> None:
    said = xelink("simulate", "--list")
    assert [line.split()[0] for line in said.out.splitlines()] == SHIPPED
    assert all(len(line.split()) > 3 for line in said.out.splitlines())


def test_the_last_seed_is_one_too(xelink: Xelink) -> None:
    said = xelink("simulate", "--random", "4294967295", "--runs", "1", "--output", "json")
    assert said.code == 0
    assert json.loads(said.out)["seeds"] == {"first": 4294967295, "runs": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nosuch"], 1, "nosuch: No such file or directory; there are cluster, "),
        (["/"], 1, "/: Is a directory"),
        (["a\0b"], 1, r"a\x00b: no name of a file"),
        (["--random", "1", "--seed", "2"], 2, "--seed goes with SCENARIO"),
        (["--random", "4294967295", "--runs", "2"], 2, "2 seeds from 4294967295 on are more"),
        (["--list", "--runs", "2"], 2, "--list goes alone"),
        (["ring", "--output", "svg", "--no-times"], 2, "--no-times has no meaning"),
        (["ring", "--output", "scenario", "--runs", "2"], 2, "--output scenario runs nothing"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    xelink: Xelink, arguments: list[str], code: int, message: str
) -> None:
    said = xelink("simulate", *arguments)
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"xelink simulate: {message}")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nodes: [{gpus: 4}]", "either pods or random must say which Pods come"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"#" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
    ids=["without Pods", "no text", "huge"],
)
def test_a_file_that_is_no_scenario_is_refused_in_one_line(
    xelink: Xelink, content: bytes, message: str
) -> None:
    path = xelink.file("bad.yaml", content)
    assert xelink("simulate", path) == (1, "", f"xelink simulate: {path}: {message}\n")


@pytest.mark.parametrize(("runs", "bar"), [("20", True), ("2", False)])
def test_long_runs_show_a_progress_bar_on_a_terminal(runs: str, bar: bool) -> None:  # noqa: FBT001 - a case of a table
    terminal, end = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        call = [sys.executable, "-m", "xelink", "simulate", "islands", "--runs", runs]
        env = {**os.environ, "TERM": "xterm"}  # one that can go back in a line
        process = subprocess.run(call, stdout=subprocess.PIPE, stderr=end, check=True, env=env)
        os.close(end)
        told = b""
        while chunk := _read(shown.fileno()):
            told += chunk
    assert (b"simulating" in told) is bar
    assert b"simulating" not in process.stdout


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # as Linux says that the other end is closed
        return b""


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (call, shown)
        for call, shown in re.findall(
            r"^\$ xelink (simulate .*)\n((?:.*\n)*?)```$", DOCS.read_text(), re.MULTILINE
        )
        if "--runs 1000" not in call  # that long one is checked with the generated files
    ],
)
def test_a_call_of_the_documentation_prints_what_is_shown(
    xelink: Xelink, call: str, shown: str
) -> None:
    command, _, cut = call.partition(" | head -n ")
    said = xelink(*shlex.split(command))
    lines = said.out.splitlines()[: int(cut) if cut else None]
    assert lines == shown.splitlines()
