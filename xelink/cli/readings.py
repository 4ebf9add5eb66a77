"""A node from a source: rows, a feature file, or the labels of kubectl's nodes. Pure.

Every source is read with the daemons' own code, so that the tool shows what they see.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from xelink.topology import labels, nfd_format, publication
from xelink.topology.model import Link, excess
from xelink.topology.observation import NoFabricData, Observation, ObservedLinks, Unknown
from xelink.topology.rules import Rules
from xelink.topology.text import printable
from xelink.view.node_view import NodeState, NodeView
from xelink.xpu_manager.classification import answered, classify
from xelink.xpu_manager.exposition import Exposition

_REASON_LIMIT = 300
_LABELS_ONLY = (
    "from labels alone: lanes, PCI addresses, cards and NUMA nodes are not known, nor GPUs without"
    " a link"
)


def of_rows(reading: Exposition, rules: Rules, source: str, *, live: bool = False) -> NodeView:
    """Return the node of a scrape, with the Xe Links that the rules filter.

    `live` means that a port answered this, and that it is not from a file.
    """
    seen = classify(reading, rules)
    seen = answered(seen) if live else seen
    if isinstance(seen, NoFabricData):
        return NodeView(source, reason=f"{seen.result.value}: {seen.detail}")
    if isinstance(seen, Unknown):
        return NodeView(source, reason=f"{seen.reason}: {seen.detail}")
    remarks = []
    if seen.unread:
        remarks.append(f"{seen.unread} rows could not be parsed: links may be missing here")
    if seen.ambiguous:
        ids = " ".join(map(str, sorted(seen.ambiguous)))
        remarks.append(f"rows disagree on the PCI address of these device ids: {ids}")
    if seen.contradicting:
        remarks.append(
            f"rows of {len(seen.contradicting)} directions contradict each other: a link that is"
            " down may still be reported, as by XPU Manager before 1.2.16"
        )
    node = NodeView.of(seen.topology, source)
    if silent := {*node.devices} - {row.local.device for row in reading.rows}:
        ids = " ".join(f"GPU{device}" for device in sorted(silent))
        remarks.append(f"no rows of {ids} itself: one answer may lack some, get another one")
    filtered = _filtered(classify(reading, _loosest(rules)), seen, rules)
    return _of_a_node(replace(node, every_link=True, filtered=filtered, remarks=tuple(remarks)))


def _of_a_node(node: NodeView) -> NodeView:
    """Reject a node with more GPUs than any real node has."""
    problem = excess(node.tiles)
    return NodeView(node.source, reason=problem) if problem else node


def of_observations(look: Callable[[Rules], Observation], rules: Rules, source: str) -> NodeView:
    """Return the node of a source that is observed under some rules, with what these filter."""
    seen = look(rules)
    if isinstance(seen, NoFabricData):
        return NodeView(source, reason=f"{seen.result.value}: {seen.detail}")
    if isinstance(seen, Unknown):
        return NodeView(source, reason=line(f"{seen.reason}: {seen.detail}"))
    node = NodeView.of(seen.topology, source)
    filtered = _filtered(look(_loosest(rules)), seen, rules)
    return _of_a_node(replace(node, every_link=True, filtered=filtered))


def _loosest(rules: Rules) -> Rules:
    return Rules(min(1, rules.lane_count), allow_subdeviceless_links=True)


def _filtered(every: Observation, seen: ObservedLinks, rules: Rules) -> dict[Link, str]:
    # Looser rules do not make an observation worse.
    found = every.topology.links if isinstance(every, ObservedLinks) else ()
    published = seen.topology.by_ends
    return {
        link: f"fewer than {rules.lane_count} lanes"
        if max(link.lanes, link.lanes_back) < rules.lane_count
        else "of a one-tile GPU, without --allow-subdeviceless-links"
        for link in found
        if link.ends not in published
    }


def of_file(content: bytes, namespace: str, source: str, now: datetime) -> NodeView:
    """Return the node of a feature file at the instant `now`; all of it or nothing."""
    try:
        said = publication.read(content, namespace, now)
    except publication.UnusableError as error:
        # The problems that NFD would report may say more.
        problems = nfd_format.parse(content, now).problems
        return NodeView(source, reason=line("; ".join((str(error), *problems))))
    if said.topology is None:
        reason = "XPU Manager there reports no Xe Link data"
        return NodeView(source, state=NodeState.NO_FABRIC_DATA, reason=reason)
    remarks = (_LABELS_ONLY,) if said.topology.links and not said.whole else ()
    node = NodeView.of(said.topology, source)
    return _of_a_node(replace(node, labels_only=not said.whole, remarks=remarks))


def of_labels(found: Mapping[str, str], namespace: str, source: str, now: datetime) -> NodeView:
    """Read a node's labels by the rules of the file that they came from."""
    own = {name: value for name, value in found.items() if labels.own(name, namespace)}
    for name, value in own.items():
        if problem := nfd_format.label_problem(name, value):
            return NodeView(source, reason=line(problem))
    content = "".join(f"{name}={value}\n" for name, value in own.items())
    return of_file(content.encode(), namespace, source, now)


def labels_by_node(given: object) -> list[tuple[str, Mapping[str, str]]]:
    """Return names and labels from the output of `kubectl get node -o json`.

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
            raise ValueError(f"the labels of node {line(name)} are not texts")
    raise ValueError("an item is no Node, or has no name")


def line(text: str) -> str:
    """Return a text that fits on one line, whatever it quotes."""
    return printable(text, _REASON_LIMIT)
