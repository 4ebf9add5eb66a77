"""`xelink`: the tool for people."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from service.command import forget_stdout
from xelink import demo
from xelink.stage import StageError

OK = 0
FAILED = 1
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="xelink",
        description="Xe Link topology of Kubernetes nodes: see it, try it.",
        epilog="exit codes: 0 fine, 1 it failed (one line says why), 2 wrong call",
    )
    parser.add_argument("--version", action="version", version=f"xelink {version('xelink')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "demo",
        help="watch a simulated node's topology become labels, and Pods get linked GPUs",
        description="Watch the sidecar publish the topology of a simulated node and keep it"
        " through failures, and the device plugin give linked GPUs to Pods. Needs no GPU and no"
        " cluster, writes to a temporary directory only, and ends by itself in under a minute.",
    )
    parser.parse_args(arguments)
    try:
        demo.run(_say)
    except StageError as error:
        sys.stderr.write(f"xelink demo: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as with `| head`
        forget_stdout()
    return OK


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
