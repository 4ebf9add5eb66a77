"""`xelink`: the tool for people.

Each command is a module with `add`, its part of the command line, and `run`, which returns the exit
code. Only the module of the called command is imported, so that each starts quickly and a missing
library affects no other command.
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
from xelink.daemon.stdio import discard_stdout, open_missing_streams, write_stderr
from xelink.daemon.version import VERSION

COMMANDS: Mapping[str, str] = {
    "show": "see the topology of a node, or the nodes of a cluster",
    "explain": "see which GPUs a Pod would get, and why",
    "simulate": "see what each policy gets for Pods that come and go",
    "fabric": "print what the kernel driver of Xe Links replies, frame by frame",
    "doctor": "check a node, and say what is wrong and what to do",
    "demo": "watch a simulated node's topology become labels, and Pods get linked GPUs",
    "completion": "print what bash, zsh or fish needs to complete xelink's command line",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    open_missing_streams()
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
        write_stderr(f"{program}: {error}")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # of a command that prints in steps, as with `| head`
        discard_stdout()
    except OSError as error:  # of printing; errors of reading are handled before
        discard_stdout()
        write_stderr(f"{program}: cannot print: {error.strerror or error}")
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
        raise FailedError(f"cannot be loaded: {error}: reinstall xelink") from error


class _Parser(Parser):
    def __init__(self, **named: Any) -> None:  # noqa: ANN401 - what argparse takes, in each Python
        super().__init__(**{"formatter_class": HelpFormatter, **named})
        self.color = False  # which Python has from 3.14 on


class _Command(_Parser):
    """The parser of a command, which rejects unknown arguments itself.

    argparse leaves that to the main parser, which shows its own usage and names no command.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - it has two signatures there
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def command_line(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """Return the parser, with all options of these commands and only the names of the others."""
    parser = _Parser(
        prog="xelink",
        description="Show, explain and diagnose the Xe Link topology of Kubernetes nodes.",
        epilog="exit codes: 0 success, 1 failure (with one line on why), 2 wrong call; see -h of"
        " each command for others",
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
