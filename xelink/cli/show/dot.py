"""A node as a graph for Graphviz: GPUs as boxes around their tiles, links as edges. Pure."""

from collections.abc import Iterator

from xelink.topology.model import Link, Tile
from xelink.topology.text import printable
from xelink.view.node_view import Mark, NodeView

_THINNEST = 1.0
_PER_LANE = 0.5


def dot(node: NodeView) -> str:
    """Return the graph. Edges are as wide as their lanes, and dashed if something is wrong."""
    return "\n".join(_lines(node)) + "\n"


def _lines(node: NodeView) -> Iterator[str]:
    yield "graph xelink {"
    yield f"  label={_quoted(node.title)}; labelloc=t; layout=fdp; overlap=false; splines=true;"
    yield '  node [shape=circle, fontname="sans-serif"]; edge [fontname="sans-serif"];'
    for device in node.devices:
        gpu = node.gpu(device)
        label = [f"GPU{device}", *([gpu.card or "", gpu.bdf] if gpu else [])]
        yield f"  subgraph cluster_gpu{device} {{"
        yield f"    label={_quoted(' '.join(label))};"
        for tile in node.tiles:
            if tile.device == device:
                yield f"    {_quoted(str(tile))};"
        yield "  }"
    for link in node.links:
        one, other = map(str, link.ends)
        yield f"  {_quoted(one)} -- {_quoted(other)} [{', '.join(_attributes(node, link))}];"
    for pair in node.lost:
        one, other = (_quoted(str(_first_tile(node, device))) for device in pair)
        yield f'  {one} -- {other} [style=dashed, color=red, label="{node.no_link}"];'
    yield "}"


def _first_tile(node: NodeView, device: int) -> Tile:
    return next(tile for tile in node.tiles if tile.device == device)


def _attributes(node: NodeView, link: Link) -> Iterator[str]:
    marks = node.marks.get(link, ())
    if not node.labels_only:
        yield f"penwidth={_THINNEST + _PER_LANE * link.width:g}"
        lanes = (
            f"{link.lanes}" if link.lanes == link.lanes_back else f"{link.lanes}/{link.lanes_back}"
        )
        yield f"tooltip={_quoted(f'{link}: {lanes} lanes')}"
    if marks:
        yield f"style={'dotted' if Mark.FILTERED in marks else 'dashed'}"
        yield f"label={_quoted(', '.join(mark.value for mark in marks))}"


def _quoted(text: str) -> str:
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
