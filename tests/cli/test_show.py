"""`xelink show`: what is shown of each source, and the exit codes."""

import json
import os
import pty
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import EXAMPLES, Xelink, labels, topology
from tests.data import BODIES, needs_data
from tests.patience import PATIENCE
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.labels import decode, parse_links
from xelink.topology.model import Topology
from xelink.topology.publication import links_hash

MESH = Blueprint(gpus=8).build()


def test_a_body_is_shown_as_a_matrix_with_the_facts_of_each_gpu(xelink: Xelink) -> None:
    said = xelink("show", "--metrics", xelink.body(Blueprint(gpus=2, cards="reversed").build()))
    assert said.code == 0
    assert "2 GPUs, 2 links, all pairs linked" in said.out
    assert "GPU0  X     XL8   card2  0000:29:00.0  0     healthy" in said.out
    assert "GPU1  XL8   X     card1  0000:3a:00.0  1     healthy" in said.out


def test_body_feature_file_and_node_labels_of_one_node_tell_the_same_links(xelink: Xelink) -> None:
    worn = MESH.cut("0.0-1.0").degrade(4, 2, "2.0-3.0")
    published = topology(worn)
    sources = (
        ("--metrics", xelink.body(worn)),
        ("--features", xelink.features(published)),
        ("--node-json", xelink.nodes(gpu=labels(published))),
    )
    told = []
    for option, path in sources:
        said = xelink("show", option, path, "--output", "json")
        assert said.code == 0
        (node,) = json.loads(said.out)["nodes"]
        told.append((node["hash"], node["groups"], [link["tiles"] for link in node["links"]]))
    assert told[0] == told[1] == told[2]
    assert told[0][0] == links_hash(published.links)


def test_labels_alone_say_what_they_cannot_know(xelink: Xelink) -> None:
    path = xelink.nodes(gpu=labels(topology(Blueprint(gpus=4, wiring="pairs").build())))
    said = xelink("show", "--node-json", path)
    assert "from labels alone: lanes, PCI addresses, cards and NUMA nodes are not known" in said.out
    assert " XL  linked; lanes are not known" in said.out.splitlines()
    said = xelink("show", "--node-json", path, "--output", "json")
    (node,) = json.loads(said.out)["nodes"]
    assert {link["lanes"] for link in node["links"]} == {None}
    assert {gpu["pci"] for gpu in node["gpus"]} == {None}


def test_links_that_would_not_be_published_are_told_with_the_reason(xelink: Xelink) -> None:
    body = xelink.body(MESH.degrade(2, 2, "0.0-1.0"))
    said = xelink("show", "--metrics", body)
    assert "55 links, all pairs linked; 1 link not published" in said.out
    assert "0.0-1.0  GPU0 card1  GPU1 card2  2      2     degraded, not published: " in said.out
    assert "1 link not published" not in xelink("show", "--metrics", body, "--lane-count", "2").out


def test_one_tile_gpus_need_the_flag_and_are_shown_all_the_same(xelink: Xelink) -> None:
    body = xelink.body(Blueprint(gpus=4, tiles=1).build())
    said = xelink("show", "--metrics", body)
    assert said.code == 3
    assert "no links; 6 links not published" in said.out
    assert "xl4" in said.out
    said = xelink("show", "--metrics", body, "--allow-subdeviceless-links")
    assert said.code == 0
    assert "XL4" in said.out


def test_a_pair_that_lost_all_its_links_is_listed_and_marked(xelink: Xelink) -> None:
    node = Blueprint(gpus=4).build().cut("0.0-2.0", "0.1-2.1", "1.0-3.0")
    body = xelink.body(node)
    said = xelink("show", "--metrics", body)
    assert "\nFewer than 2 links:\n  GPU1 GPU3: 1\n" in said.out
    assert "\nNo link, where the other pairs have some:\n  GPU0 GPU2\n" in said.out
    features = xelink("show", "--features", xelink.features(topology(node)))
    assert (
        "\nNo published link, where the other pairs have some (or fewer lanes than -lane-count):\n"
        "  GPU0 GPU2\n"
    ) in features.out
    row = next(line for line in said.out.splitlines() if line.startswith("GPU0"))
    assert row.split()[3] == "NODE!" or row.split()[3] == "SYS!"
    (facts,) = json.loads(xelink("show", "--metrics", body, "--output=json").out)["nodes"]
    assert facts["pairs_with_fewer_links"] == [[1, 3]]
    assert facts["pairs_that_lost_their_links"] == [[0, 2]]


def test_one_sided_and_degraded_links_are_marked(xelink: Xelink) -> None:
    node = MESH.one_direction("0.0-1.0").degrade(4, 2, "2.0-3.0")
    said = xelink("show", "--metrics", xelink.body(node), "--view", "links")
    rows = {line.split()[0]: line.rsplit("  ", 1)[-1].strip() for line in said.out.splitlines()[3:]}
    assert rows["0.0-1.0"] == "one-sided"
    assert rows["2.0-3.0"] == "degraded"
    assert set(rows.values()) == {"ok", "one-sided", "degraded"}
    assert len(rows) == 56


def test_exit_codes_tell_links_from_none_and_from_unknown(xelink: Xelink) -> None:
    for node, code in (
        (MESH, 0),
        (Blueprint(gpus=4, wiring="none").build(), 3),
        (Blueprint(gpus=33, tiles=1).build(), 4),  # too many tiles: 200 without topology
    ):
        assert xelink("show", "--metrics", xelink.body(node)).code == code
    assert xelink("show", "--features", xelink.features(None)).code == 4
    assert xelink("show", "--features", str(xelink.directory / "absent")).code == 1
    assert xelink("show", "--lane-count=4").code == 2


def test_groups_that_are_not_all_are_told_as_such(xelink: Xelink) -> None:
    links = "_".join(f"{a}.0-{b}.0" for a, b in combinations(range(48), 2) if a // 3 != b // 3)
    path = xelink.nodes(gpu=labels(Topology(parse_links(links))))
    for more in ((), ("--view", "groups")):
        said = xelink("show", "--node-json", path, *more)
        assert "largest group 16" in said.out
        assert "not all groups: there are too many" in said.out
    (node,) = json.loads(xelink("show", "--node-json", path, "--output", "json").out)["nodes"]
    assert (len(node["groups"]), node["groups_complete"]) == (1000, False)
    assert (node["largest_group"], node["largest_group_proven"]) == (16, True)


def test_of_several_nodes_the_best_one_counts(xelink: Xelink) -> None:
    mesh, none = labels(topology(MESH)), labels(topology(Blueprint(wiring="none").build()))
    assert xelink("show", "--node-json", xelink.nodes(a=none, b=mesh, c={})).code == 0
    assert xelink("show", "--node-json", xelink.nodes(a=none, c={})).code == 3
    assert xelink("show", "--node-json", xelink.nodes(a={}, c=labels(None))).code == 4


def test_a_cluster_is_a_table_in_the_order_given(xelink: Xelink) -> None:
    mesh = topology(MESH)
    said = xelink("show", "--node-json", xelink.nodes(zeta=labels(mesh), alpha={}))
    lines = said.out.splitlines()
    assert lines[0].split() == ["NODE", "STATE", "GPUS", "LINKS", "GROUP", "HASH"]
    assert lines[1].split() == ["zeta", "links", "8", "56", "8", links_hash(mesh.links)]
    assert lines[2].startswith("alpha  unknown")
    assert "no label gpu.intel.com/xe-links" in lines[2]


def test_one_node_of_a_cluster_can_be_chosen(xelink: Xelink) -> None:
    path = xelink.nodes(a=labels(topology(MESH)), b={})
    assert xelink("show", "--node-json", path, "--node", "a").out.startswith("a: 8 GPUs, 56 links")
    said = xelink("show", "--node-json", path, "--node", "c")
    assert said.code == 1
    assert "no node 'c' in it" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--output", "svg"), id="picture of a cluster"),
        pytest.param(("--output", "dot"), id="graph of a cluster"),
        pytest.param(("--view", "links"), id="view of a cluster"),
        pytest.param(("--node", "a", "--output", "json", "--view", "links"), id="view of JSON"),
        pytest.param(("--lane-count", "4"), id="lane count of labels"),
        pytest.param(("--cert", "ca.crt"), id="certificate without URL"),
        pytest.param(("--features", "x"), id="two sources"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    xelink: Xelink, arguments: tuple[str, ...]
) -> None:
    said = xelink("show", "--node-json", xelink.nodes(a={}, b={}), *arguments)
    assert said.code == 2
    assert said.out == ""


@pytest.mark.parametrize("view", ["matrix", "tiles", "links", "groups"])
@pytest.mark.parametrize("name", ["mesh", "ring", "pairs", "none"])
def test_every_view_shows_every_wiring(xelink: Xelink, view: str, name: str) -> None:
    body = xelink.body(Blueprint(gpus=4, wiring=name).build())
    said = xelink("show", "--metrics", body, "--view", view)
    assert said.code == (3 if name == "none" else 0)
    assert not any(line != line.rstrip() for line in said.out.splitlines())


def test_yaml_and_json_are_the_same_data(xelink: Xelink) -> None:
    path = str(EXAMPLES / "eight.txt")
    as_json = xelink("show", "--features", path, "--output", "json").out
    as_yaml = xelink("show", "--features", path, "--output", "yaml").out
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


def test_standard_input_is_a_source_too() -> None:
    body = (EXAMPLES / "four.prom").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "xelink", "show", "--metrics", "-"],
        input=body,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"standard input: 4 GPUs, 11 links")


def test_who_stops_reading_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "xelink", "show", "--features", str(EXAMPLES / "eight.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0


def _on_a_terminal(**env: str) -> bytes:
    """Run on a pseudo terminal; give what it shows."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "xelink", "show", "--features", str(EXAMPLES / "eight.txt")]
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        command, stdout=writer, stderr=writer, env={**plain, "TERM": "xterm", **env}
    ) as process:
        os.close(writer)
        shown = b""
        try:
            while part := os.read(reader, 4096):
                shown += part
        except OSError:  # the other side is closed: the end, on Linux
            pass
        finally:
            os.close(reader)
        assert process.wait(PATIENCE) == 0
    return shown


def test_colors_are_for_terminals_and_no_color_is_honored(xelink: Xelink) -> None:
    piped = xelink("show", "--features", str(EXAMPLES / "eight.txt")).out
    assert "\x1b" not in piped
    assert b"\x1b[32mXL8" in _on_a_terminal()
    shown = _on_a_terminal(NO_COLOR="1")
    assert b"\x1b[3" not in shown


@needs_data
@pytest.mark.parametrize("path", sorted(BODIES.glob("*.prom")), ids=lambda path: path.stem)
@pytest.mark.parametrize("flag", [None, "--allow-subdeviceless-links"])
def test_real_bodies_are_shown_with_the_links_that_the_reference_publishes(
    xelink: Xelink, path: Path, flag: str | None
) -> None:
    reference = json.loads((BODIES / "reference_labels.json").read_text())
    lines = reference[f"{path.name}|subdeviceless" if flag else path.name]
    wanted = decode(dict(line.split("=") for line in lines), "gpu.intel.com")
    said = xelink("show", "--metrics", str(path), "--output", "json", *([flag] if flag else []))
    (node,) = json.loads(said.out)["nodes"]
    shown = [tuple(link["tiles"]) for link in node["links"] if link["published"]]
    assert shown == [tuple(map(str, link.ends)) for link in wanted]
    unknown = path.stem.startswith("u_")  # where the reference publishes that there are none
    assert said.code == (4 if unknown else 0 if wanted else 3)
