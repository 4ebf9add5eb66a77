"""A node from what a source says: rows, a feature file, or the labels of kubectl's nodes. Pure.

All of it is read by the daemons' own parts, so that what is shown is what they see.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from xelink.topology import labels, nfd_format, publication
from xelink.topology.model import Link, excess
from xelink.topology.observation import NoFabricData, ObservedLinks, Unknown
from xelink.topology.rules import Rules
from xelink.topology.text import printable
from xelink.view.node_view import Node, State
from xelink.xpu_manager.classification import answered, classify
from xelink.xpu_manager.exposition import Exposition

_REASON_LIMIT = 300
_LABELS_ONLY = (
    "from labels alone: lanes, PCI addresses, cards and NUMA nodes are not known, nor GPUs without"
    " a link"
)


def of_rows(reading: Exposition, rules: Rules, source: str, *, live: bool = False) -> Node:
    """Say what a scrape proves; Xe Links that the rules hold back are told beside the others.

    `live` says that a port answered this, and no file has it.
    """
    seen = classify(reading, rules)
    seen = answered(seen) if live else seen
    if isinstance(seen, NoFabricData):
        return Node(source, reason=f"{seen.result.value}: {seen.detail}")
    if isinstance(seen, Unknown):
        return Node(source, reason=f"{seen.reason}: {seen.detail}")
    remarks = []
    if seen.unread:
        remarks.append(f"{seen.unread} rows could not be understood: links may be missing here")
    if seen.ambiguous:
        ids = " ".join(map(str, sorted(seen.ambiguous)))
        remarks.append(f"rows disagree on the PCI address of these device ids: {ids}")
    if seen.contradicting:
        remarks.append(
            f"rows of {len(seen.contradicting)} directions contradict each other: a cut link may"
            " still be told, as XPU Manager before 1.2.16 does"
        )
    node = Node.of(seen.topology, source)
    if silent := {*node.devices} - {row.local.device for row in reading.rows}:
        ids = " ".join(f"GPU{device}" for device in sorted(silent))
        remarks.append(f"no rows of {ids} itself: one answer may lack some, ask for another")
    held_back = _held_back(reading, seen, rules)
    return _of_a_node(replace(node, every_link=True, held_back=held_back, remarks=tuple(remarks)))


def _of_a_node(node: Node) -> Node:
    """Take no more GPUs for one node than any can have: they come from nowhere real."""
    problem = excess(node.tiles)
    return Node(node.source, reason=problem) if problem else node


def _held_back(reading: Exposition, seen: ObservedLinks, rules: Rules) -> dict[Link, str]:
    every = classify(reading, Rules(min(1, rules.lane_count), allow_subdeviceless_links=True))
    # Gentler rules do not make a scrape worse.
    found = every.topology.links if isinstance(every, ObservedLinks) else ()
    published = seen.topology.by_ends
    return {
        link: f"fewer than {rules.lane_count} lanes"
        if max(link.lanes, link.lanes_back) < rules.lane_count
        else "of a one-tile GPU, without --allow-subdeviceless-links"
        for link in found
        if link.ends not in published
    }


def of_file(content: bytes, namespace: str, source: str, now: datetime) -> Node:
    """Say what a feature file publishes at the instant `now`; all of it or nothing."""
    try:
        said = publication.read(content, namespace, now)
    except publication.UnusableError as error:
        # NFD's own rules may have told more of a file that says nothing.
        problems = nfd_format.parse(content, now).problems
        return Node(source, reason=line("; ".join((str(error), *problems))))
    if said.topology is None:
        reason = "XPU Manager there tells nothing of Xe Links"
        return Node(source, state=State.NO_FABRIC_DATA, reason=reason)
    remarks = (_LABELS_ONLY,) if said.topology.links and not said.whole else ()
    node = Node.of(said.topology, source)
    return _of_a_node(replace(node, labels_only=not said.whole, remarks=remarks))


def of_labels(found: Mapping[str, str], namespace: str, source: str, now: datetime) -> Node:
    """Read a node's labels as the file that they came from: the same rules, the same refusals."""
    own = {name: value for name, value in found.items() if labels.own(name, namespace)}
    for name, value in own.items():
        if problem := nfd_format.label_problem(name, value):
            return Node(source, reason=line(problem))
    content = "".join(f"{name}={value}\n" for name, value in own.items())
    return of_file(content.encode(), namespace, source, now)


def labels_by_node(given: object) -> list[tuple[str, Mapping[str, str]]]:
    """Give names and labels of what `kubectl get node -o json` printed.

    Raises `ValueError` for what kubectl does not print.
    """
    match given:
        case {"kind": "List" | "NodeList", "items": list(items)}:
            return list(map(_name_and_labels, items))
        case {"kind": "Node"}:
            return [_name_and_labels(given)]
    raise ValueError("neither a Node nor a List of them")


def _name_and_labels(entry: object) -> tuple[str, Mapping[str, str]]:
    match entry:
        case {"kind": "Node", "metadata": {"name": str(name), **metadata}} if name:
            found = metadata.get("labels") or {}
            if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
                return line(name), found
            raise ValueError(f"the labels of node {line(name)} are no labels")
    raise ValueError("an item is no Node, or has no name")


def line(text: str) -> str:
    """Make a text fit for one line, whatever it quotes."""
    return printable(text, _REASON_LIMIT)
