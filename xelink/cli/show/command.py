"""`xelink show`: the topology of a node, or of a cluster."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from xelink.cli import sources
from xelink.cli.exit_codes import NO_LINKS, OK, UNKNOWN, WrongCallError
from xelink.cli.helptext import HelpFormatter
from xelink.cli.json_facts import nodes_facts
from xelink.cli.show.dot import dot
from xelink.cli.show.text import VIEWS, cluster_page, node_page
from xelink.cli.tables import show
from xelink.daemon.stdio import write_stdout
from xelink.daemon.version import versioned
from xelink.view.node_view import NodeState, NodeView
from xelink.view.svg import svg

_EXAMPLES = """\
examples:
  this node:
    xelink show
  the node of a live XPU Manager:
    xelink show --url http://127.0.0.1:29999
  a saved answer; every link with its lanes:
    curl -s http://127.0.0.1:29999/metrics | xelink show --metrics - --view links
  a cluster in a table, and one node of it:
    kubectl get nodes -o json | xelink show --node-json -
    kubectl get nodes -o json | xelink show --node-json - --node NAME
  a picture, and a graph for Graphviz:
    xelink show --features FILE --output svg > topology.svg
    xelink show --features FILE --output dot | dot -Tpng > topology.png

exit codes: 0 there are links, 1 the source cannot be read, 2 wrong call, 3 there are no links,
4 the links are unknown (the output has the reason). Of several nodes the best one counts.
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help=summary,
        description="Show which GPUs are linked, and how well: as a matrix, tables, JSON, YAML, a"
        " graph or a picture.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--view",
        choices=VIEWS,
        help="what the text shows: GPUs (matrix), their tiles, every link, or the groups of GPUs"
        " that are all linked (default matrix)",
    )
    parser.add_argument(
        "--output", choices=("text", *_OUTPUTS), default="text", help="form (default text)"
    )
    sources.add(parser)


def run(options: argparse.Namespace) -> int:
    """Print the nodes; return an exit code for their links. Raises `FailedError`."""
    if options.view and options.output != "text":
        raise WrongCallError(f"--view has no meaning with --output {options.output}")
    nodes = sources.load(options)
    if options.output != "text":
        write_stdout(_OUTPUTS[options.output](nodes))
    elif len(nodes) == 1:
        show(node_page(nodes[0], options.view or "matrix"))
    elif options.view:
        raise WrongCallError("--view shows one node: choose it with --node")
    else:
        show(cluster_page(nodes))
    return min(map(exit_code, nodes))


def exit_code(node: NodeView) -> int:
    """Return the exit code for the state of a node's links."""
    return {NodeState.LINKS: OK, NodeState.NONE: NO_LINKS}.get(node.state, UNKNOWN)


def json_text(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON, with the version of their form."""
    return f"{json.dumps(versioned(facts), indent=2)}\n"


def yaml_text(facts: Mapping[str, Any]) -> str:
    """Return facts as YAML, with the version of their form."""
    # By way of JSON: YAML knows plain text only, and a PCI address is a kind of text of its own.
    return yaml.safe_dump(json.loads(json_text(facts)), sort_keys=False, allow_unicode=True)


def _only(nodes: Sequence[NodeView]) -> NodeView:
    if len(nodes) != 1:
        raise WrongCallError("a picture shows one node: choose it with --node")
    return nodes[0]


_OUTPUTS: Mapping[str, Callable[[Sequence[NodeView]], str]] = {
    "json": lambda nodes: json_text(nodes_facts(nodes)),
    "yaml": lambda nodes: yaml_text(nodes_facts(nodes)),
    "dot": lambda nodes: dot(_only(nodes)),
    "svg": lambda nodes: svg(_only(nodes)),
}
