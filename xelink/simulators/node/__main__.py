"""`python -m xelink.simulators.node`: make the sysfs and devfs of a simulated node."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xelink.daemon.argument_parser import Parser
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.simulators.node import tree
from xelink.simulators.node.blueprint import CARDS, DRIVERS, MODELS, TreeBlueprint
from xelink.simulators.node.sysfs import NodeTree

_EXAMPLES = """\
examples:
  8 Max 1550 GPUs, for a plugin that is started with -prefix /tmp/node:
    %(prog)s --root /tmp/node
  the node whose links `python -m xelink.simulators.xpu_manager --gpus 4 --cards reversed` reports:
    %(prog)s --root /tmp/node --gpus 4 --cards reversed
  devices that a container can open (as root; they are /dev/null):
    %(prog)s --root /var/lib/node --device-nodes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tree; return the exit code."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        blueprint = TreeBlueprint(
            gpus=flags.gpus,
            tiles=flags.tiles,
            igpu=flags.igpu,
            cards=flags.cards,
            model=flags.model,
            numa_nodes=flags.numa_nodes,
            driver=flags.driver,
            gpus_per_switch=flags.gpus_per_switch,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        node = tree.put(blueprint, flags.root, device_nodes=flags.device_nodes)
    except tree.TreeError as error:
        write_stderr(f"{parser.prog}: {error}")
        return 1
    write_stdout(f"{_summary(blueprint, node, device_nodes=flags.device_nodes)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m xelink.simulators.node",
        description="Make the sysfs and devfs of a simulated node in a directory, for a device"
        " plugin that is started with that directory as its -prefix. A tree that was made there"
        " before is replaced.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="where sys and dev are made"
    )
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs (default 8)")
    parser.add_argument("--tiles", type=int, default=2, metavar="N", help="tiles each (default 2)")
    parser.add_argument("--igpu", action="store_true", help="an integrated GPU is card0")
    parser.add_argument("--cards", choices=CARDS, default="ordered", help="cardN against PCI order")
    parser.add_argument("--model", choices=MODELS, help="default max-1550; max-1100 with one tile")
    parser.add_argument(
        "--numa-nodes", type=int, default=2, metavar="N", help="0: unknown (default 2)"
    )
    parser.add_argument("--driver", choices=DRIVERS, default="i915", help="default i915")
    parser.add_argument(
        "--gpus-per-switch",
        type=int,
        default=0,
        metavar="N",
        help="GPUs behind one PCIe switch (default 0: each on a host bridge of its own)",
    )
    parser.add_argument(
        "--device-nodes",
        action="store_true",
        help="make real character devices, which a container can open (takes CAP_MKNOD)",
    )
    return parser


def _summary(blueprint: TreeBlueprint, node: NodeTree, *, device_nodes: bool) -> str:
    nodes = sum(len(gpu.minors) + len(gpu.mei) for gpu in node.gpus)
    what = "device nodes" if device_nodes else "plain files as device nodes"
    return (
        f"made {blueprint.gpus} GPUs{' and an integrated one' if blueprint.igpu else ''}"
        f" ({blueprint.made}, tiles={blueprint.tiles}, {blueprint.driver})"
        f" with {nodes} {what} in {node.root}"
    )


if __name__ == "__main__":
    sys.exit(main())
