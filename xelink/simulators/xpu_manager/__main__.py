"""`python -m xelink.simulators.xpu_manager`: serve the metrics of a node that is not there."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from xelink.daemon.argument_parser import Parser
from xelink.daemon.files import read_file
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.simulators.xpu_manager.blueprint import CARDS, WIRINGS, Blueprint
from xelink.simulators.xpu_manager.faults import MISBEHAVIOURS, REFUSE
from xelink.simulators.xpu_manager.gpu import MODELS
from xelink.simulators.xpu_manager.node import SimulatedNode
from xelink.simulators.xpu_manager.server import Serving, Simulator

_MOST_PASSWORD = 4096  # bytes

_EXAMPLES = """\
examples:
  8 GPUs of 2 tiles, each plane meshed, on port 29999:
    %(prog)s
  4 single-tile GPUs:
    %(prog)s --gpus 4 --tiles 1 --lanes 8
  a blade with crossed planes, cards in another order than ids:
    %(prog)s --gpus 6 --wiring planes --cards shuffled
  an integrated GPU takes id 0, and nobody has id 3:
    %(prog)s --igpu --id-gap 3
  GPUs without Xe Link:
    %(prog)s --gpus 8 --tiles 1 --model flex-170
  HTTPS with credentials and the real sleeps before each 401:
    %(prog)s --cert tls.crt --key tls.key --password-file secret --auth-sleep 2
  any free port, and a control to break things while it runs:
    %(prog)s --port 0 --port-file /run/port --control
    curl localhost:29999/control/help
    curl localhost:29999/control/cut -d '{"links": ["0.0-1.0"]}'
    curl localhost:29999/control/misbehave -d '{"name": "hang", "seconds": 60}'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        node, serving = _node(flags), _serving(flags)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with _signals() as wanted:
        try:
            simulator = Simulator(node, serving).start()
        except (OSError, OverflowError) as error:
            write_stderr(f"{parser.prog}: cannot serve: {error}")
            return 1
        try:
            if flags.misbehave:
                simulator.misbehave(flags.misbehave)
            if flags.port_file:
                _write_whole(flags.port_file, f"{simulator.port}\n")
            write_stdout(f"simulating {_summary(node)} at {simulator.url}\n")
            signal.sigwait(wanted)
        finally:
            simulator.close()
    return 0


@contextmanager
def _signals() -> Iterator[set[signal.Signals]]:
    """Block the signals that end us, in every thread to come, so that `sigwait` gets them."""
    ending = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield ending
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parser() -> argparse.ArgumentParser:
    names = sorted((*MISBEHAVIOURS, REFUSE))
    parser = Parser(
        prog="python -m xelink.simulators.xpu_manager",
        description="Serve the metrics of a simulated node as XPU Manager's exporter does.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    node = parser.add_argument_group("the node")
    node.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs (default 8)")
    node.add_argument("--tiles", type=int, default=2, metavar="N", help="tiles each (default 2)")
    node.add_argument("--wiring", choices=WIRINGS, default="mesh", help="links (default mesh)")
    node.add_argument("--lanes", type=int, default=4, metavar="N", help="per link (default 4)")
    node.add_argument("--igpu", action="store_true", help="an integrated GPU takes id 0")
    node.add_argument(
        "--id-gap", type=int, action="append", default=[], metavar="ID", help="an id nobody gets"
    )
    node.add_argument("--cards", choices=CARDS, default="ordered", help="cardN against ids")
    node.add_argument("--model", choices=MODELS, help="default max-1550; max-1100 with one tile")
    node.add_argument(
        "--numa-nodes", type=int, default=2, metavar="N", help="0: unknown (default 2)"
    )
    node.add_argument("--node-name", default="node-gpu-01", metavar="NAME")

    teller = parser.add_argument_group("how the exporter reports it")
    teller.add_argument("--no-host-network", action="store_true", help="sees no Xe Link at all")
    teller.add_argument("--topology-fails", action="store_true", help="200 without topology")
    teller.add_argument("--spelling", default="lane_count", metavar="LABEL", help="or lan_count")
    teller.add_argument("--generation", type=int, choices=(1, 2), default=1, help="XPU Manager's")
    teller.add_argument("--cold", action="store_true", help="as at the first scrape")

    server = parser.add_argument_group("the server")
    server.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help=":: for every one, of both families (default 127.0.0.1)",
    )
    server.add_argument("--port", type=int, default=29999, help="0: any (default 29999)")
    server.add_argument("--port-file", type=Path, metavar="FILE", help="write the port there")
    server.add_argument(
        "--cert", type=Path, metavar="FILE", help="serve HTTPS; read per connection"
    )
    server.add_argument("--key", type=Path, metavar="FILE")
    server.add_argument("--username", default="xpumadmin", metavar="NAME")
    server.add_argument("--password-file", type=Path, metavar="FILE", help="ask for credentials")
    server.add_argument(
        "--auth-sleep",
        type=float,
        default=0.05,
        metavar="S",
        help="before the first 401, doubled for each more up to 128 times; the real one is 2 "
        "(default 0.05)",
    )
    server.add_argument("--latency", type=float, default=0.0, metavar="S", help="of each answer")
    server.add_argument("--control", action="store_true", help="serve /control to change all this")
    server.add_argument(
        "--misbehave",
        metavar="NAME",
        choices=names,
        help=f"from the start: {', '.join(names)}",
    )
    return parser


def _node(flags: argparse.Namespace) -> SimulatedNode:
    built = Blueprint(
        gpus=flags.gpus,
        tiles=flags.tiles,
        wiring=flags.wiring,
        lanes=flags.lanes,
        igpu=flags.igpu,
        id_gaps=tuple(flags.id_gap),
        cards=flags.cards,
        model=flags.model,
        numa_nodes=flags.numa_nodes,
        name=flags.node_name,
    ).build()
    return replace(
        built,
        host_network=not flags.no_host_network,
        topology_fails=flags.topology_fails,
        spelling=flags.spelling,
        generation=flags.generation,
        cold=flags.cold,
    )


def _serving(flags: argparse.Namespace) -> Serving:
    return Serving(
        bind=flags.bind,
        port=flags.port,
        cert=flags.cert,
        key=flags.key,
        username=flags.username,
        password=_password(flags.password_file) if flags.password_file else None,
        auth_sleep=flags.auth_sleep,
        latency=flags.latency,
        control=flags.control,
    )


def _password(file: Path) -> str:
    return read_file(file, _MOST_PASSWORD).decode().rstrip("\r\n")


def _summary(node: SimulatedNode) -> str:
    return f"{len(node.present)} GPUs with {len(node.topology.links)} links"


def _write_whole(path: Path, text: str) -> None:
    """Let whoever waits for the file never see a part of it."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
