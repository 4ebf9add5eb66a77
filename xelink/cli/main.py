"""`xelink`: the tool for people.

Each command is a module with `add`, its part of the command line, and `run`, which gives the exit
code. Only the module of the command that was called is imported, so that each starts quickly, and
what one lacks stops no other.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from xelink.cli.exit_codes import FAILED, INTERRUPTED, OK, FailedError
from xelink.cli.helptext import HelpFormatter
from xelink.daemon.argument_parser import Parser
from xelink.daemon.stdio import complain, forget_stdout, stand_in
from xelink.daemon.version import VERSION

COMMANDS: Mapping[str, str] = {
    "show": "see the topology of a node, or the nodes of a cluster",
    "explain": "see which GPUs a Pod would get, and why",
    "simulate": "see what each policy gets for Pods that come and go",
    "doctor": "check a node, and say what is wrong and what to do",
    "demo": "watch a simulated node's topology become labels, and Pods get linked GPUs",
    "completion": "print what bash, zsh or fish needs to complete xelink's command line",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give the exit code."""
    stand_in()
    arguments = sys.argv[1:] if arguments is None else arguments
    called = next((word for word in arguments if word in COMMANDS), None)
    program = f"xelink {called}" if called else "xelink"
    code = OK
    try:
        try:
            code = _run(called, arguments)
        finally:
            sys.stdout.flush()
    except FailedError as error:
        complain(f"{program}: {error}")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # of what tells bit by bit, as with `| head`
        forget_stdout()
    except OSError as error:  # what is read is minded where it is read: this is what is printed
        forget_stdout()
        complain(f"{program}: cannot print: {error.strerror or error}")
        return FAILED
    return code


def _run(called: str | None, arguments: Sequence[str]) -> int:
    modules = load([called] if called else [])
    options = command_line(modules).parse_args(arguments)
    return int(modules[options.command].run(options))


def load(names: Iterable[str]) -> Mapping[str, ModuleType]:
    """Import the modules of commands. Raises `FailedError`."""
    try:
        return {name: import_module(f"xelink.cli.{name}.command") for name in names}
    except ImportError as error:
        raise FailedError(f"cannot be loaded: {error}: install xelink anew") from error


class _Parser(Parser):
    def __init__(self, **named: Any) -> None:  # noqa: ANN401 - what argparse takes, in each Python
        super().__init__(**{"formatter_class": HelpFormatter, **named})
        self.color = False  # which Python has from 3.14 on


class _Command(_Parser):
    """The parser of a command, which refuses itself what it does not know.

    argparse leaves that to the parser of all commands, which names none and shows its own usage.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - it has two signatures there
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def command_line(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """Make the parser: of these commands all, of the others their names."""
    parser = _Parser(
        prog="xelink",
        description="Xe Link topology of Kubernetes nodes: see it, ask why, try it.",
        epilog="exit codes: 0 fine, 1 it failed (one line says why), 2 wrong call; each command's"
        " -h tells of more",
    )
    parser.add_argument("--version", action="version", version=f"xelink {VERSION}")
    commands = parser.add_subparsers(
        title="commands",
        dest="command",
        required=True,
        metavar="COMMAND",
        parser_class=_Command,
    )
    for name, summary in COMMANDS.items():
        if name in modules:
            modules[name].add(commands, summary)
        else:
            commands.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
