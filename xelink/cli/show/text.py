"""The text of `xelink show`: one node in four views, or a table of a cluster. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.text import Text

from xelink.cli.show.matrix import gpu_lines, tile_lines
from xelink.cli.tables import BAD, FAINT, GOOD, HEAD, Cell, aligned, head
from xelink.topology.model import Link
from xelink.topology.publication import links_hash
from xelink.view.node_view import Mark, NodeState, NodeView

_MOST_SHOWN = 8
_LINK_HEAD = head("LINK", "GPU", "GPU", "LANES", "BACK", "STATE")


def node_page(node: NodeView, view: str) -> list[Text]:
    """Return the page of one node."""
    lines = [Text(node.title, HEAD).append(f": {_summary(node)}", "not bold")]
    if node.topology:
        lines += [Text(), *VIEWS[view](node)]
    if node.remarks:
        lines += [Text(), *(Text(remark, BAD) for remark in node.remarks)]
    return lines


def cluster_page(nodes: Sequence[NodeView]) -> list[Text]:
    """Return a table of many nodes, in the given order."""
    rows: list[Sequence[Cell | str]] = [head("NODE", "STATE", "GPUS", "LINKS", "GROUP", "HASH", "")]
    for node in nodes:
        facts = ["-", "-", "-", "-"]
        if node.topology:
            links = node.topology.links
            group = node.largest.size_text
            gpus = len(node.devices) if not node.labels_only else len(node.topology.neighbors)
            facts = [str(gpus), str(len(links)), group, links_hash(links)]
        style = GOOD if node.state is NodeState.LINKS else BAD
        rows.append([node.title, Cell(node.state.value, style), *facts, Cell(node.reason, FAINT)])
    return aligned(rows)


def _summary(node: NodeView) -> str:
    if not node.topology:
        return f"{node.state.value}: {node.reason}"
    gpus = _count(len(node.devices), "GPU")
    if node.topology.links:
        all_linked = node.linked_pairs == node.pairs
        linked = "all pairs linked" if all_linked else f"{node.linked_pairs} of {node.pairs} pairs"
        more = "" if all_linked else f" linked, largest group {node.largest.size_text}"
        text = f"{gpus}, {_count(len(node.topology.links), 'link')}, {linked}{more}"
    else:
        text = f"{gpus or 'no GPU is known'}, no links" if node.devices else "no links"
    filtered = len(node.filtered)
    return f"{text}; {_count(filtered, 'link')} not published" if filtered else text


def _matrix_view(node: NodeView) -> list[Text]:
    if not node.devices:
        return []
    lines = gpu_lines(node)
    if node.linked_pairs != node.pairs and node.groups:
        lines += [Text(), Text("All linked to each other:", HEAD)]
        lines += [Text(f"  {_names(group)}") for group in node.groups[:_MOST_SHOWN]]
        lines += _more(len(node.groups), "groups")
        lines += _not_all(node)
    if node.marks:
        lines += [Text(), Text("Links to check:", HEAD)]
        rows = [_link_row(node, link) for link in list(node.marks)[:_MOST_SHOWN]]
        lines += aligned([_LINK_HEAD, *rows], indent=2)
        lines += _more(len(node.marks), "links")
    if node.thin:
        lines += [Text(), Text(f"Fewer than {_count(node.usual_links, 'link')}:", HEAD)]
        lines += [
            Text(f"  {_names(pair)}: {len(node.between[pair])}") for pair in node.thin[:_MOST_SHOWN]
        ]
        lines += _more(len(node.thin), "links")
    if node.lost:
        without = node.no_link.capitalize()
        title = f"{without}, where the other pairs have some{_in_brackets(node.or_else)}:"
        lines += [Text(), Text(title, HEAD)]
        lines += [Text(f"  {_names(pair)}") for pair in node.lost[:_MOST_SHOWN]]
        if len(node.lost) > _MOST_SHOWN:
            lines += [Text(f"  and {len(node.lost) - _MOST_SHOWN} more: --output json", FAINT)]
    return lines


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _more(count: int, view: str) -> Iterator[Text]:
    if count > _MOST_SHOWN:
        yield Text(f"  and {count - _MOST_SHOWN} more: --view {view}", FAINT)


def _not_all(node: NodeView) -> Iterator[Text]:
    if not node.listed.complete:
        yield Text("  not all groups: there are too many", BAD)


def _links_view(node: NodeView) -> list[Text]:
    return aligned([_LINK_HEAD, *(_link_row(node, link) for link in node.links)])


def _link_row(node: NodeView, link: Link) -> list[Cell]:
    marks = node.marks.get(link, ())
    state = ", ".join(
        f"not published: {node.filtered[link]}" if mark is Mark.FILTERED else mark.value
        for mark in marks
    )
    lanes = ("?", "?") if node.labels_only else (str(link.lanes), str(link.lanes_back))
    return [
        Cell(str(link), HEAD),
        *(Cell(_gpu_name(node, end.device)) for end in link.ends),
        *map(Cell, lanes),
        Cell(state or ("?" if node.labels_only else "ok"), BAD if marks else GOOD),
    ]


def _groups_view(node: NodeView) -> list[Text]:
    if not node.groups:
        return [Text("no published link joins two GPUs")]
    rows: list[Sequence[Cell | str]] = [head("SIZE", "WEAKEST PAIR", "LANES", "GPUS")]
    for group in node.groups:
        widths = [
            node.gpus_connected(one, other).lanes for one in group for other in group if one < other
        ]
        known = [width for width in widths if width is not None]
        lanes = (f"{min(known)} lanes", str(sum(known))) if known else ("?", "?")
        rows.append([str(len(group)), *lanes, _names(group)])
    return [*aligned(rows), *_not_all(node)]


def _gpu_name(node: NodeView, device: int) -> str:
    gpu = node.gpu(device)
    return f"GPU{device} {gpu.card or gpu.bdf}" if gpu else f"GPU{device}"


def _names(group: Sequence[int]) -> str:
    return " ".join(f"GPU{device}" for device in group)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


VIEWS: Mapping[str, Callable[[NodeView], list[Text]]] = {
    "matrix": _matrix_view,
    "tiles": lambda node: tile_lines(node) if node.tiles else [],
    "links": _links_view,
    "groups": _groups_view,
}
