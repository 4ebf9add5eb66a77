"""`xelink explain`: which GPUs a Pod would get, and why."""

import argparse
import time
from functools import partial
from pathlib import Path

from shtab import DIRECTORY

from xelink.cli import sources
from xelink.cli.exit_codes import OK, UNKNOWN, WrongCallError
from xelink.cli.explain.choice import Wanted, choose
from xelink.cli.explain.text import choice_facts, describe
from xelink.cli.helptext import HelpFormatter
from xelink.cli.show.command import json_text, yaml_text
from xelink.cli.tables import show
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.inventory import sysfs
from xelink.preference.policies import POLICIES, AllocationPolicy
from xelink.view.node_view import NodeView

_EXAMPLES = """\
examples:
  which 4 GPUs a Pod would get on this node, and why:
    xelink explain --want 4
  with two GPUs in use, and one that the Pod has already:
    xelink explain --want 2 --have card3 --used card1,card2 --url http://127.0.0.1:29999
  each GPU shared by 4 containers, one of them all used, one share of another:
    xelink explain --want 2 --share 4 --used card1,card2-0 --features FILE
  what another policy would do, as JSON:
    xelink explain --want 4 --policy packed --output json --features FILE

exit codes: 0 the Pod would get this, 1 the source cannot be read, 2 wrong call (a GPU that is not
there, more than are free), 4 nothing is known of the node's GPUs.
"""

_MOST_SHARES = 1000


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explain",
        help=summary,
        description="See which GPUs xelink-device-plugin would prefer for a Pod: the set, the"
        " criterion that decided, how the others are worse, and what is left for the next Pod. GPUs"
        " are named by card (card3), XPU Manager's id (3, GPU3) or PCI address.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    natural = partial(sources.number, least=1)
    parser.add_argument(
        "--want",
        type=partial(natural, most=10**6),
        required=True,
        metavar="K",
        help="devices that the Pod asks for, with those of --have",
    )
    parser.add_argument(
        "--have",
        type=_names,
        default=(),
        metavar="LIST",
        help="GPUs that it has already (kubelet: must include)",
    )
    parser.add_argument(
        "--used", type=_names, default=(), metavar="LIST", help="GPUs that other Pods use"
    )
    parser.add_argument(
        "--share",
        type=partial(natural, most=_MOST_SHARES),
        default=1,
        metavar="N",
        help="containers that may use one GPU, as -shared-dev-num; a share is card3-0 (default 1)",
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="topology",
        help="as -allocation-policy of the plugin (default topology)",
    )
    parser.add_argument(
        "--allocation-timeout",
        type=partial(natural, most=5000),
        default=50,
        metavar="MS",
        help="milliseconds to look for the best set beyond 16 GPUs (default 50)",
    )
    parser.add_argument(
        "--output", choices=("text", "json", "yaml"), default="text", help="form (default text)"
    )
    parser.add_argument(
        "--sysfs",
        type=Path,
        metavar="DIR",
        help="sysfs of the node of the source, to know its PCIe switches; without a source, that of"
        " this node",
    ).complete = DIRECTORY  # type: ignore[attr-defined]  # where shtab looks for it
    sources.add(parser)


def run(options: argparse.Namespace) -> int:
    """Explain. Raises `FailedError`."""
    here = sources.is_this_node(options)
    node = _only(sources.load(options))
    if node.topology is None:
        write_stderr(f"xelink explain: {node.title}: {node.state.value}: {node.reason}")
        return UNKNOWN
    wanted = Wanted(
        size=options.want,
        have=options.have,
        used=options.used,
        shares=options.share,
        policy=AllocationPolicy(options.policy),
        timeout=options.allocation_timeout / 1000,
    )
    choice = choose(node, wanted, time.monotonic, _bridges(options, node, here=here))
    if options.output == "text":
        show(describe(choice))
    else:
        write = {"json": json_text, "yaml": yaml_text}[options.output]
        write_stdout(write(choice_facts(choice)))
    return OK


def _bridges(
    options: argparse.Namespace, node: NodeView, *, here: bool
) -> dict[str, tuple[str, ...]]:
    """Return the PCIe bridges above each GPU, as far as there is a sysfs to read."""
    root = options.sysfs
    if root is None:
        if not here:
            return {}
        root = (options.prefix or Path("/")) / "sys"
    gpus = node.topology.gpus if node.topology else ()
    return {gpu.bdf: sysfs.bridges(f"{root}/bus/pci/devices/{gpu.bdf}") for gpu in gpus}


def _only(nodes: tuple[NodeView, ...]) -> NodeView:
    if len(nodes) != 1:
        raise WrongCallError(f"{len(nodes)} nodes are given: choose one with --node")
    return nodes[0]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like card0,card1")
    return names
