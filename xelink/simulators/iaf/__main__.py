"""`python -m xelink.simulators.iaf`: answer for the Xe Link driver of a node that is not there."""

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

from xelink.daemon.argument_parser import Parser
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.simulators.iaf.driver import Behavior, FrameFault, PortFault
from xelink.simulators.iaf.server import SimulatedDriver
from xelink.simulators.xpu_manager.blueprint import WIRINGS, Blueprint
from xelink.simulators.xpu_manager.gpu import MODELS
from xelink.topology.model import Tile

_EXAMPLES = """\
examples:
  8 GPUs of 2 tiles, each plane meshed:
    %(prog)s --socket /tmp/iaf.sock
  the first port of tile 0.0 is degraded, and 1.1's second one is off:
    %(prog)s --socket /tmp/iaf.sock --port 0.0/1=degraded --port 1.1/2=off
  a driver that has not finished to start:
    %(prog)s --socket /tmp/iaf.sock --result 5

The sidecar asks it with: -source driver -driver-socket /tmp/iaf.sock -prefix TREE
where TREE is made by: python -m xelink.simulators.node --root TREE
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        node = Blueprint(
            gpus=flags.gpus,
            tiles=flags.tiles,
            wiring=flags.wiring,
            lanes=flags.lanes,
            igpu=flags.igpu,
            model=flags.model,
        ).build()
        behavior = Behavior(
            node.cut(*flags.cut) if flags.cut else node,
            ports=dict(map(_port, flags.port)),
            frames=FrameFault(flags.frames) if flags.frames else None,
            result=flags.result,
            sweep=flags.sweep,
        )
    except ValueError as error:
        parser.error(str(error))
    ending = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        with SimulatedDriver(flags.socket, behavior):
            write_stdout(
                f"simulating the Xe Link driver of {len(node.present)} GPUs at {flags.socket}\n"
            )
            signal.sigwait(ending)
    except OSError as error:
        write_stderr(f"{parser.prog}: cannot serve: {error.strerror or error}")
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def _port(text: str) -> tuple[tuple[Tile, int], PortFault]:
    """Read `0.1/3=off`. Raises `ValueError`."""
    place, _, fault = text.partition("=")
    tile, _, number = place.partition("/")
    device, _, subdevice = tile.partition(".")
    if not all(part.isdecimal() for part in (device, subdevice, number)):
        raise ValueError(f"not a port and its fault: {text!r}; write it as 0.1/3=off")
    return (Tile(int(device), int(subdevice)), int(number)), PortFault(fault)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m xelink.simulators.iaf",
        description="Answer queries of the netlink family iaf_ze on a unix socket.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--socket", type=Path, required=True, metavar="PATH", help="where to answer"
    )
    node = parser.add_argument_group("the node")
    node.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs (default 8)")
    node.add_argument("--tiles", type=int, default=2, metavar="N", help="tiles each (default 2)")
    node.add_argument("--wiring", choices=WIRINGS, default="mesh", help="links (default mesh)")
    node.add_argument("--lanes", type=int, default=4, metavar="N", help="per link (default 4)")
    node.add_argument("--igpu", action="store_true", help="an integrated GPU takes id 0")
    node.add_argument("--model", choices=MODELS, help="default max-1550; max-1100 with one tile")
    node.add_argument("--cut", action="append", default=[], metavar="LINK", help="such as 0.0-1.0")
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--port",
        action="append",
        default=[],
        metavar="TILE/PORT=FAULT",
        help=f"a faulty port: {', '.join(fault.value for fault in PortFault)}",
    )
    faults.add_argument("--result", type=int, default=0, metavar="CODE", help="of every query")
    faults.add_argument("--sweep", action="store_true", help="the routing is never settled")
    faults.add_argument("--frames", choices=[fault.value for fault in FrameFault], help="replies")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
