"""Pictures and graphs: every GPU, tile and link is in them, and they are well formed."""

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations
from math import dist
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.commands import EXAMPLES, Xelink, topology
from tests.patience import PATIENCE
from tests.strategies import topologies
from xelink.cli.show.dot import dot
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.model import Topology
from xelink.view.node_view import NodeView
from xelink.view.svg import svg

_SVG = "{http://www.w3.org/2000/svg}"

pictures = settings(deadline=None, max_examples=60)
sizes = pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 16])


def _parsed(text: str) -> Element:
    return fromstring(text)  # noqa: S314 - our own picture


def _of_class(root: Element, name: str) -> list[Element]:
    return [part for part in root.iter() if name in part.get("class", "").split()]


def _node(gpus: int) -> NodeView:
    return NodeView.of(topology(Blueprint(gpus=gpus).build()), "a node")


@sizes
def test_every_gpu_tile_and_link_is_drawn(gpus: int) -> None:
    root = _parsed(svg(_node(gpus)))
    assert len(_of_class(root, "gpu")) == gpus
    assert len(_of_class(root, "tile")) == 2 * gpus
    links = [path for path in _of_class(root, "link") if path.find(f"{_SVG}title") is not None]
    assert len(links) == gpus * (gpus - 1)


@sizes
def test_nothing_overlaps_and_nothing_is_cut_off(gpus: int) -> None:
    root = _parsed(svg(_node(gpus)))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    tiles = [(float(t.get("cx", 0)), float(t.get("cy", 0))) for t in _of_class(root, "tile")]
    assert all(dist(one, other) > 24 for one, other in combinations(tiles, 2))
    lines: list[tuple[float, float, float, float]] = []
    for text in root.iter(f"{_SVG}text"):
        length = 8 * len(text.text or "")
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        left = x - {"end": length, "middle": length / 2}.get(text.get("text-anchor", ""), 0)
        if text.get("class") != "number":
            assert left >= 0
            assert left + length <= width
            assert 12 <= y <= height
            lines.append((left, left + length, y - 11, y + 3))
    for a, b in combinations(lines, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
    for x, y in tiles:
        for left, right, top, bottom in lines:
            assert not (left < x < right and top < y < bottom)


def test_links_are_as_wide_as_their_lanes() -> None:
    node = Blueprint(gpus=3, lanes=16).build().degrade(8, 8, "0.0-1.0").degrade(4, 4, "1.1-2.1")
    root = _parsed(svg(NodeView.of(topology(node))))
    widths = {}
    for path in _of_class(root, "link"):
        title = path.find(f"{_SVG}title")
        if title is not None and title.text:
            widths[title.text.partition(":")[0]] = float(path.get("stroke-width", 0))
    assert widths["0.1-1.1"] > widths["0.0-1.0"] > widths["1.1-2.1"]


def test_degraded_and_one_sided_links_are_dashed_and_explained(xelink: Xelink) -> None:
    path = str(EXAMPLES / "eight.txt")
    root = _parsed(xelink("show", "--features", path, "--output", "svg").out)
    for name, link in (("degraded", "2.0-3.0: 4 lanes, 2 back"), ("one-sided", "4.1-7.1: 4 lanes")):
        drawn = _of_class(root, name)
        assert all(path.get("stroke-dasharray") for path in drawn)
        titles = [title.text or "" for path in drawn for title in path.iter(f"{_SVG}title")]
        assert [title.startswith(link) for title in titles] == [True]
        assert any((text.text or "").startswith(name) for text in root.iter(f"{_SVG}text"))
    sound = _of_class(root, "sound")
    assert len(sound) == 51 + 1  # and the legend's
    assert not any(path.get("stroke-dasharray") for path in sound)


def test_a_one_sided_link_is_as_wide_as_the_side_that_is_told_and_lies_above_the_others() -> None:
    node = Blueprint(gpus=3, lanes=16).build().one_direction("0.0-1.0")
    root = _parsed(svg(NodeView.of(topology(node))))
    drawn = [path for path in _of_class(root, "link") if path.find(f"{_SVG}title") is not None]
    assert len({path.get("stroke-width") for path in drawn}) == 1
    assert "one-sided" in str(drawn[-1].get("class"))
    assert all("sound" in str(path.get("class")) for path in drawn[:-1])


@pytest.mark.parametrize(
    ("every_link", "what", "more", "counted"),
    [
        pytest.param(True, "no link", "", "any", id="every link is known"),
        pytest.param(
            False,
            "no published link",
            "; or fewer lanes than -lane-count",
            "a published one",
            id="published ones are known",
        ),
    ],
)
def test_a_pair_that_lost_all_its_links_is_drawn_and_explained(
    what: str, more: str, counted: str, *, every_link: bool
) -> None:
    found = NodeView.of(topology(Blueprint(gpus=4).build().cut("0.0-2.0", "0.1-2.1")))
    node = replace(found, every_link=every_link)
    root = _parsed(svg(node))
    drawn, legend = _of_class(root, "lost")
    assert len(_of_class(root, "sound")) == len(node.links) + 1, "the others step back"
    assert [title.text for title in drawn.iter(f"{_SVG}title")] == [f"GPU0 to GPU2: {what}"]
    assert legend.get("stroke-dasharray") == drawn.get("stroke-dasharray")
    texts = [text.text or "" for text in root.iter(f"{_SVG}text")]
    assert f"{what}, where the other pairs have some{more}" in texts
    assert any(text.endswith(f"5 of 6 pairs linked, 1 pair without {counted}") for text in texts)
    assert f'"0.0" -- "2.0" [style=dashed, color=red, label="{what}"];' in dot(node)


def test_control_characters_are_escapes_in_the_picture() -> None:
    root = _parsed(svg(NodeView("a\x1b[31mb\0c\u2028d")))
    assert r"a\x1b[31mb\x00c\u2028d" in [text.text for text in root.iter(f"{_SVG}text")]


def test_a_picture_is_for_light_and_dark_and_for_screen_readers() -> None:
    text = svg(_node(4))
    assert "@media (prefers-color-scheme: dark)" in text
    root = _parsed(text)
    named = [root.find(f"{_SVG}{name}") for name in ("title", "desc")]
    assert [part is not None and part.get("id") for part in named] == ["title", "desc"]
    assert root.get("aria-labelledby") == "title desc"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")", text)
    used = set(" ".join(part.get("class", "") for part in root.iter()).split())
    style = root.findtext(f"{_SVG}style") or ""
    assert used - {"number"} <= set(re.findall(r"\.([a-z-]+) ", style))


@pictures
@given(shape=topologies, name=st.text(max_size=30))
def test_any_topology_under_any_name_is_well_formed(shape: Topology, name: str) -> None:
    node = NodeView.of(shape, name)
    root = _parsed(svg(node))
    links = [path for path in _of_class(root, "link") if path.find(f"{_SVG}title") is not None]
    assert len(links) == len(shape.links) + len(node.lost)
    assert dot(node).count(" -- ") == len(shape.links) + len(node.lost)


def test_what_is_unknown_is_said_in_the_picture() -> None:
    root = _parsed(svg(NodeView("somewhere", reason="it is down")))
    assert "unknown: it is down" in [text.text for text in root.iter(f"{_SVG}text")]


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz' dot is not installed")
@settings(deadline=None, max_examples=10)
@given(shape=topologies, name=st.text(max_size=30))
def test_graphviz_reads_the_graph(shape: Topology, name: str) -> None:
    text = dot(NodeView.of(shape, name))
    command = ["dot", "-Kneato", "-Tcanon"]
    subprocess.run(command, input=text.encode(), capture_output=True, check=True, timeout=PATIENCE)


@pytest.mark.skipif(not shutil.which("rsvg-convert"), reason="rsvg-convert is not installed")
@sizes
def test_a_renderer_reads_the_picture(gpus: int) -> None:
    png = subprocess.run(
        ["rsvg-convert"],  # noqa: S607 - wherever it is
        input=svg(_node(gpus)).encode(),
        capture_output=True,
        check=True,
    )
    assert png.stdout.startswith(b"\x89PNG")
