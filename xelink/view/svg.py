"""A node as a picture: GPUs on a ring, with their tiles, and links as wide as their lanes. Pure.

Colors are classes, for light and dark pages. The picture refers to no script, font or file, so it
works in any page.
"""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from math import atan2, cos, degrees, inf, pi, sin
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from xelink.topology.model import Link, Tile
from xelink.topology.text import printable
from xelink.view.node_view import IdPair, Mark, NodeView

_STYLE = """
.xe-links text { fill: #1f2328;
  font: 13px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
.xe-links .title { font-size: 16px; font-weight: 600; }
.xe-links .name { font-weight: 600; }
.xe-links .faint { fill: #59636e; font-size: 12px; }
.xe-links .number { font-size: 11px; text-anchor: middle; }
.xe-links .sheet { fill: #ffffff; }
.xe-links .gpu { fill: #eaeef2; stroke: #8c959f; }
.xe-links .tile { fill: #ffffff; stroke: #59636e; }
.xe-links .link { fill: none; stroke: #0969da; stroke-opacity: .6; }
.xe-links .sound { stroke-opacity: .36; }
.xe-links .degraded { stroke: #bc4c00; stroke-opacity: 1; }
.xe-links .one-sided { stroke: #cf222e; stroke-opacity: 1; }
.xe-links .filtered { stroke: #6e7781; stroke-opacity: 1; }
.xe-links .lost { stroke: #cf222e; stroke-opacity: 1; }
@media (prefers-color-scheme: dark) {
.xe-links text { fill: #e6edf3; }
.xe-links .faint { fill: #9198a1; }
.xe-links .sheet { fill: #0d1117; }
.xe-links .gpu { fill: #212830; stroke: #656c76; }
.xe-links .tile { fill: #0d1117; stroke: #9198a1; }
.xe-links .link { stroke: #58a6ff; stroke-opacity: .7; }
.xe-links .sound { stroke-opacity: .42; }
.xe-links .degraded { stroke: #f0883e; stroke-opacity: 1; }
.xe-links .one-sided { stroke: #ff7b72; stroke-opacity: 1; }
.xe-links .filtered { stroke: #9198a1; stroke-opacity: 1; }
.xe-links .lost { stroke: #ff7b72; stroke-opacity: 1; }
}
"""

_TILE = 12.0
_RIM = _TILE + 7
_TEXT = 15.0
_STEP = 32.0
_LABELS = 120.0
_TOP = 96.0
_LINE = 22.0
_MARGIN = 72.0  # for the names above and below the ring
_BEND = 0.42
_ASIDE = 0.3
_NARROWEST = 0.9
_FAULTY = 2.6
_MOST_WIDTHS = 5

# How wide the widest link is drawn if there are at most so many; found by trying
_WIDEST = ((16, 6.0), (40, 4.0), (90, 2.6), (inf, 1.5))


class _Style(NamedTuple):
    """How a line is drawn, and its meaning in the legend."""

    name: str
    dashes: str
    meaning: str


# The first mark of a link decides, the worst is drawn last
_STYLES: Mapping[Mark | None, _Style] = {
    None: _Style("", "", "lanes of the weaker direction"),
    Mark.FILTERED: _Style("filtered", "2 4", "not published"),
    Mark.DEGRADED: _Style("degraded", "8 5", "degraded: fewer lanes than most"),
    Mark.ONE_SIDED: _Style("one-sided", "3 4", "one-sided: reported by one tile only"),
}
_LOST = _Style("lost", "1 7", "where the other pairs have some")


class _Point(NamedTuple):
    x: float
    y: float


@dataclass(frozen=True)
class _Ring:
    """The positions of everything."""

    node: NodeView

    @cached_property
    def radius(self) -> float:
        return {0: 0.0, 1: 40.0, 2: 150.0, 3: 150.0, 4: 165.0}.get(
            count := len(self.node.devices), max(190.0, 19.0 * count)
        )

    @cached_property
    def width(self) -> float:
        return max(560.0, 2 * (self.radius + _LABELS + 40))

    @cached_property
    def center(self) -> _Point:
        side_by_side = len(self.node.devices) == 2  # noqa: PLR2004 - two: nothing is above them
        above = 0.0 if side_by_side else self.radius
        return _Point(self.width / 2, _TOP + above + _MARGIN)

    @property
    def bottom(self) -> float:
        lowest = max((self.gpu(device).y for device in self.node.devices), default=0.0)
        return lowest + _MARGIN

    def direction(self, device: int) -> _Point:
        """Direction of a GPU from the center; the first one is on top."""
        count = len(self.node.devices)
        turn = self.node.devices.index(device) / count
        angle = 2 * pi * turn - (pi if count == 2 else pi / 2)  # noqa: PLR2004 - side by side
        return _Point(cos(angle), sin(angle))

    def gpu(self, device: int) -> _Point:
        to = self.direction(device)
        return _Point(self.center.x + self.radius * to.x, self.center.y + self.radius * to.y)

    def along(self, device: int) -> _Point:
        """Direction in which the tiles of a GPU are lined up: downwards, or to the right.

        Tiles of opposite GPUs are thus in the same order, and their links do not cross.
        """
        to = self.direction(device)
        x, y = -to.y, to.x
        back = y < -1e-9 or (abs(y) <= 1e-9 and x < 0)  # noqa: PLR2004 - rounding
        return _Point(-x, -y) if back else _Point(x, y)

    @cached_property
    def tiles(self) -> Mapping[Tile, _Point]:
        found = {}
        for device in self.node.devices:
            own = [tile for tile in self.node.tiles if tile.device == device]
            middle, along = self.gpu(device), self.along(device)
            for at, tile in enumerate(own):
                off = (at - (len(own) - 1) / 2) * _STEP
                found[tile] = _Point(middle.x + off * along.x, middle.y + off * along.y)
        return found

    @cached_property
    def widest(self) -> int:
        return max((_lanes(link) for link in self.node.links), default=1) or 1

    def stroke(self, lanes: int) -> float:
        """Width for so many lanes; the more links there are, the thinner they are."""
        most = next(width for count, width in _WIDEST if len(self.node.links) <= count)
        return max(_NARROWEST, most * lanes / self.widest)


def svg(node: NodeView) -> str:
    """Return the picture as XML."""
    ring = _Ring(node)
    legend = list(_legend(ring))
    height = ring.bottom + 14 + _LINE * len(legend) if node.devices else _TOP - 16
    size = {"width": f"{ring.width:.0f}", "height": f"{height:.0f}"}
    root = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {ring.width:.0f} {height:.0f}",
        role="img",
        attrib={"class": "xe-links", **size, "aria-labelledby": "title desc"},
    )
    _text(SubElement(root, "title", id="title"), f"Xe Links of {node.title}")
    _text(SubElement(root, "desc", id="desc"), _described(node))
    SubElement(root, "style").text = _STYLE
    SubElement(root, "rect", attrib={"class": "sheet", **size, "rx": "8"})
    _text(SubElement(root, "text", x="24", y="34", attrib={"class": "title"}), node.title)
    _text(SubElement(root, "text", x="24", y="56", attrib={"class": "faint"}), _described(node))
    order = [None, Mark.FILTERED, Mark.DEGRADED, Mark.ONE_SIDED]
    for link in sorted(node.links, key=lambda link: order.index(_mark(node, link))):
        _draw_link(root, ring, link)
    for pair in node.lost:
        _draw_lost(root, ring, pair)
    for device in node.devices:
        _draw_gpu(root, ring, device)
    for at, (lanes, style, text) in enumerate(legend):
        _draw_legend(root, ring, ring.bottom + _LINE * at, lanes, style, text)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _described(node: NodeView) -> str:
    if not node.topology:
        return f"{node.state.value}: {node.reason}"
    text = f"{_count(node.devices, 'GPU')}, {_count(node.topology.links, 'link')}"
    text += f", {node.linked_pairs} of {node.pairs} pairs linked"
    text += f", {_count(node.marks, 'link')} with a fault" if node.marks else ""
    without = "any" if node.every_link else "a published one"
    return f"{text}, {_count(node.lost, 'pair')} without {without}" if node.lost else text


def _count(them: Sized, name: str) -> str:
    return f"{len(them)} {name}{'' if len(them) == 1 else 's'}"


def _mark(node: NodeView, link: Link) -> Mark | None:
    marks = node.marks.get(link, ())
    return next((mark for mark in _STYLES if mark in marks), None)


def _lanes(link: Link) -> int:
    """Return the lanes to draw: if one direction is unknown, those of the other."""
    return link.width or max(link.lanes, link.lanes_back)


def _draw_link(root: Element, ring: _Ring, link: Link) -> None:
    style = _STYLES[_mark(ring.node, link)]
    one, other = (ring.tiles[end] for end in link.ends)
    path = _path(ring, one, other, bent=link.a.device != link.b.device)
    line = SubElement(root, "path", d=path, attrib=_stroke(ring, _lanes(link), style))
    text = str(link)
    if not ring.node.labels_only:
        text += f": {link.lanes} lanes" + (
            "" if link.lanes == link.lanes_back else f", {link.lanes_back} back"
        )
    marks = ring.node.marks.get(link, ())
    _text(SubElement(line, "title"), ", ".join([text, *(mark.value for mark in marks)]))


def _draw_lost(root: Element, ring: _Ring, pair: IdPair) -> None:
    path = _path(ring, *map(ring.gpu, pair))
    line = SubElement(root, "path", d=path, attrib=_stroke(ring, 0, _LOST))
    _text(SubElement(line, "title"), f"GPU{pair[0]} to GPU{pair[1]}: {ring.node.no_link}")


def _path(ring: _Ring, one: _Point, other: _Point, *, bent: bool = True) -> str:
    alone = len(ring.node.devices) == 2  # noqa: PLR2004 - nothing is between them
    bend = _BEND if bent and not alone else 0.0
    middle = _Point((one.x + other.x) / 2, (one.y + other.y) / 2)
    pulled = _Point(
        middle.x + bend * (ring.center.x - middle.x), middle.y + bend * (ring.center.y - middle.y)
    )
    return f"M{one.x:.1f} {one.y:.1f}Q{pulled.x:.1f} {pulled.y:.1f} {other.x:.1f} {other.y:.1f}"


def _stroke(ring: _Ring, lanes: int, style: _Style) -> dict[str, str]:
    width = max(_FAULTY, ring.stroke(lanes)) if style.name else ring.stroke(lanes)
    # Among many good links, a faulty one is visible only if the others are paler.
    name = style.name or ("sound" if ring.node.marks or ring.node.lost else "")
    found = {"class": f"link {name}".strip(), "stroke-width": f"{width:.1f}"}
    return {**found, "stroke-dasharray": style.dashes} if style.dashes else found


def _draw_gpu(root: Element, ring: _Ring, device: int) -> None:
    middle, along = ring.gpu(device), ring.along(device)
    tiles = [tile for tile in ring.node.tiles if tile.device == device]
    half = (len(tiles) - 1) / 2 * _STEP + _RIM
    box = {"x": -half, "y": -_RIM, "width": 2 * half, "height": 2 * _RIM, "rx": _RIM}
    turned = (
        f"translate({middle.x:.1f} {middle.y:.1f}) rotate({degrees(atan2(along.y, along.x)):.1f})"
    )
    SubElement(
        root,
        "rect",
        transform=turned,
        attrib={"class": "gpu", **{name: f"{value:g}" for name, value in box.items()}},
    )
    for tile in tiles:
        at = ring.tiles[tile]
        place = {"cx": f"{at.x:.1f}", "cy": f"{at.y:.1f}", "r": f"{_TILE:g}"}
        SubElement(root, "circle", attrib={"class": "tile", **place})
        place = {"x": f"{at.x:.1f}", "y": f"{at.y + 4:.1f}", "class": "number"}
        _text(SubElement(root, "text", attrib=place), str(tile.subdevice))
    _draw_name(root, ring, device, half - _RIM)


def _draw_name(root: Element, ring: _Ring, device: int, arm: float) -> None:
    """Draw the name of a GPU outside of the ring; `arm` is how far its tiles reach."""
    gpu = ring.node.gpu(device)
    lines = [f"GPU{device}"]
    if gpu:
        lines[0] += f" {gpu.card}" if gpu.card else ""
        lines += [gpu.bdf, *([] if gpu.numa is None else [f"NUMA {gpu.numa}"])]
    middle, to, along = ring.gpu(device), ring.direction(device), ring.along(device)
    beside = abs(to.x) > _ASIDE
    reach = arm * abs(along.x if beside else along.y) + _RIM + 9
    side = 1 if to.x > 0 else -1
    height = _TEXT * (len(lines) - 1)
    if beside:
        x, y = middle.x + side * reach, middle.y + 4 - height / 2 + to.y * 12
    else:
        x, y = middle.x, middle.y + (reach + 9 if to.y > 0 else -reach - height)
    anchor = {1: "start", -1: "end"}[side] if beside else "middle"
    for at, line in enumerate(lines):
        place = {"x": f"{x:.1f}", "y": f"{y + _TEXT * at:.1f}", "text-anchor": anchor}
        name = "faint" if at else "name"
        _text(SubElement(root, "text", attrib={**place, "class": name}), line)


def _legend(ring: _Ring) -> Iterator[tuple[int, _Style, str]]:
    node = ring.node
    if not node.labels_only:
        sound = {_lanes(link) for link in node.links if _mark(node, link) is None}
        for lanes in sorted(sound, reverse=True)[:_MOST_WIDTHS]:
            yield lanes, _STYLES[None], f"{lanes} lanes"
    elif node.links:
        yield ring.widest, _STYLES[None], "link; lanes are not known"
    for mark, style in _STYLES.items():
        widths = [_lanes(link) for link in node.links if _mark(node, link) is mark]
        if mark and widths:
            yield max(widths), style, style.meaning
    if node.lost:
        text = f"{node.no_link}, {_LOST.meaning}"
        yield 0, _LOST, f"{text}; {node.or_else}" if node.or_else else text


def _draw_legend(
    root: Element, ring: _Ring, y: float, lanes: int, style: _Style, text: str
) -> None:
    line = f"M24 {y:.1f}H72"
    SubElement(root, "path", d=line, attrib=_stroke(ring, lanes, style))
    _text(SubElement(root, "text", x="84", y=f"{y + 4:.1f}", attrib={"class": "faint"}), text)


def _text(element: Element, text: str) -> None:
    # XML has no way to write control characters.
    element.text = printable(text)
