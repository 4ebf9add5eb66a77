"""`xelink fabric dump`: every request to the driver and every reply, in hex."""

import argparse
from pathlib import Path

from shtab import DIRECTORY

from xelink.cli import driver
from xelink.cli.exit_codes import OK, UNKNOWN, FailedError
from xelink.cli.helptext import HelpFormatter
from xelink.cli.sources import seconds
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.iaf.dump import write
from xelink.topology.observation import Unknown

_EXAMPLES = """\
examples:
  send us what your hardware replies:
    xelink fabric dump > fabric.txt
  see the links that a dump proves, on any machine:
    xelink show --frames fabric.txt

A dump has the PCI addresses of the GPUs, the GUIDs of their tiles, and the versions of kernel and
driver. It has no other names. It must be made on the host's network (hostNetwork: true).

exit codes: 0 the driver replied, 1 the bus cannot be read, 2 wrong call, 4 the driver gave no
usable reply (the dump has what came).
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "fabric",
        help=summary,
        description="Ask the kernel driver of Xe Links, and print every request and reply in hex.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "action", choices=("dump",), nargs="?", default="dump", help="what is done (default dump)"
    )
    prefix = parser.add_argument(
        "--prefix",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="directory with the node's / (default /)",
    )
    prefix.complete = DIRECTORY  # type: ignore[attr-defined]  # where shtab looks for it
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=driver.TIMEOUT,
        metavar="S",
        help=f"seconds for the whole look (default {driver.TIMEOUT:g})",
    )
    driver.add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the dump; return the exit code. Raises `FailedError`."""
    try:
        dump, observation = driver.recorded(options.prefix, options.driver_socket, options.timeout)
    except OSError as error:
        raise FailedError(f"--prefix {options.prefix}: {error}") from error
    write_stdout(write(dump))
    if isinstance(observation, Unknown):
        write_stderr(f"xelink fabric: {observation.reason}: {observation.detail}")
        return UNKNOWN
    return OK
