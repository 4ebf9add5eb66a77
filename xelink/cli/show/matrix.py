"""The matrix of a node's GPUs or tiles: how each pair is connected. Pure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.text import Text

from xelink.cli.tables import BAD, FAINT, GOOD, HEAD, WORST, Cell, aligned, head, plain
from xelink.topology.model import PortState, Topology
from xelink.view.node_view import Interconnect, NodeView

T = TypeVar("T")

_SELF = "X"

_MEANING = {
    "XL": "linked, with the lanes of the weaker direction, all links of the two together",
    "XL ": "linked; lanes are not known",
    "XL!": "linked; the lanes of one direction are not known",
    "xl": "Xe Links that are not published",
    "XL/MDF": "linked over the other tile of a GPU",
    "MDF": "tiles of one GPU",
    "NODE": "not linked, same NUMA node",
    "SYS": "not linked, other NUMA node",
    "?": "not linked; NUMA nodes are not known",
    "!": "a link is degraded or one-sided, or there are fewer than between most pairs, or none",
}


def matrix(topology: Topology) -> str:
    """Return a topology's GPUs and lanes as plain text."""
    node = NodeView.of(topology)
    rows, _ = _square(node.devices, _gpu_name, node.gpus_connected)
    return plain(aligned(rows))


def lanes_between(topology: Topology) -> dict[tuple[int, int], list[int]]:
    """Return the lanes of each link by the device ids that it joins, lower id first."""
    between = NodeView.of(topology).between
    return {pair: [link.width for link in links] for pair, links in between.items()}


def gpu_lines(node: NodeView) -> list[Text]:
    """Return the matrix of GPUs with card, PCI address, NUMA node and ports, and a legend."""
    rows, used = _square(node.devices, _gpu_name, node.gpus_connected)
    facts = [head("CARD", "PCI ADDRESS", "NUMA", "PORTS"), *(_facts(node, d) for d in node.devices)]
    if any(node.gpu(device) for device in node.devices):
        rows = [[*row, *fact] for row, fact in zip(rows, facts, strict=True)]
    return [*aligned(rows), Text(), *_legend(used)]


def tile_lines(node: NodeView) -> list[Text]:
    """Return the matrix of tiles, and a legend."""
    rows, used = _square(node.tiles, str, node.tiles_connected)
    return [*aligned(rows), Text(), *_legend(used)]


def gpu_cells(node: NodeView, device: int) -> list[Cell]:
    """Return GPU, card, PCI address and NUMA node for a row of a table."""
    return [Cell(_gpu_name(device), HEAD), *_facts(node, device)[:3]]


def _square(
    ends: Sequence[T], name: Callable[[T], str], connected: Callable[[T, T], Interconnect]
) -> tuple[list[list[Cell]], list[Interconnect]]:
    cells = [[None if a == b else connected(a, b) for b in ends] for a in ends]
    rows = [
        [Cell(name(end), HEAD), *(_cell(connection) for connection in row)]
        for end, row in zip(ends, cells, strict=True)
    ]
    used = [connection for row in cells for connection in row if connection]
    return [head("", *map(name, ends)), *rows], used


def _cell(connection: Interconnect | None) -> Cell:
    if connection is None:
        return Cell(_SELF, FAINT)
    if connection.kind == "XL":
        return Cell(str(connection), BAD if connection.marked else GOOD)
    return Cell(str(connection), BAD if connection.marked else FAINT)


def _legend(used: Sequence[Interconnect]) -> list[Text]:
    kinds = {connection.kind for connection in used}
    if "XL" in kinds and all(connection.lanes is None for connection in used):
        kinds = kinds - {"XL"} | {"XL "}
    if any(connection.kind == "XL" and connection.lanes == 0 for connection in used):
        kinds.add("XL!")
    if any(connection.marked for connection in used):
        kinds.add("!")
    return aligned(
        ([Cell(sign.rstrip(), HEAD), text] for sign, text in _MEANING.items() if sign in kinds),
        indent=1,
    )


def _gpu_name(device: int) -> str:
    return f"GPU{device}"


def _facts(node: NodeView, device: int) -> list[Cell]:
    gpu = node.gpu(device)
    if gpu is None:
        return [Cell("?")] * 4
    ports = gpu.ports.value if gpu.ports else "?"
    style = {PortState.HEALTHY: GOOD, PortState.DEGRADED: BAD, None: ""}.get(gpu.ports, WORST)
    numa = "?" if gpu.numa is None else str(gpu.numa)
    return [Cell(gpu.card or "?"), Cell(gpu.bdf), Cell(numa), Cell(ports, style)]
