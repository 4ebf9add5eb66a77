"""A node as data for JSON and YAML. Pure."""

from collections.abc import Sequence
from typing import Any

from xelink.topology.model import Link
from xelink.topology.publication import links_hash
from xelink.view.node_view import NodeView


def nodes_facts(nodes: Sequence[NodeView]) -> dict[str, Any]:
    """Return every node; the same keys for every source, and null for missing values."""
    return {"nodes": [node_facts(node) for node in nodes]}


def node_facts(node: NodeView) -> dict[str, Any]:
    """Return all of one node. Lanes are per direction, groups are device ids."""
    topology = node.topology
    return {
        "name": node.name or None,
        "source": node.source,
        "state": node.state.value,
        "reason": node.reason or None,
        "gpus": [gpu_facts(node, device) for device in node.devices],
        "links": [_link_facts(node, link) for link in node.links],
        "pairs_with_fewer_links": [list(pair) for pair in node.thin],
        "pairs_that_lost_their_links": [list(pair) for pair in node.lost],
        "largest_group": len(node.largest.group) if topology else None,
        "largest_group_proven": node.largest.complete if topology else None,
        "groups": [list(group) for group in node.groups],
        "groups_complete": node.listed.complete,
        "hash": links_hash(topology.links) if topology else None,
        "remarks": list(node.remarks),
    }


def gpu_facts(node: NodeView, device: int) -> dict[str, Any]:
    """Return one GPU."""
    gpu = node.gpu(device)
    return {
        "id": device,
        "pci": gpu.bdf if gpu else None,
        "card": gpu.card if gpu else None,
        "uuid": gpu.uuid if gpu else None,
        "numa": gpu.numa if gpu else None,
        "ports": gpu.ports.value if gpu and gpu.ports else None,
        "tiles": [str(tile) for tile in node.tiles if tile.device == device],
    }


def _link_facts(node: NodeView, link: Link) -> dict[str, Any]:
    lanes = (None, None) if node.labels_only else (link.lanes, link.lanes_back)
    return {
        "tiles": [str(end) for end in link.ends],
        "lanes": lanes[0],
        "lanes_back": lanes[1],
        "published": link not in node.filtered,
        "why_not": node.filtered.get(link),
        "faults": [mark.value for mark in node.marks.get(link, ())],
    }
