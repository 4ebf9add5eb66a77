"""`xelink`: the tool for people.

Each command is a module with `add`, its part of the command line, and `run`, which gives the exit
code. Only the module of the command that was called is imported, so that each starts quickly.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from service.stdout import forget_stdout
from xelink.outcome import FAILED, INTERRUPTED, OK, FailedError

COMMANDS = ("show", "explain", "simulate", "doctor", "demo", "completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    called = next((word for word in arguments if word in COMMANDS), None)
    modules = load([called] if called else COMMANDS)
    options = command_line(modules).parse_args(arguments)
    try:
        code = modules[options.command].run(options)
        sys.stdout.flush()
    except FailedError as error:
        sys.stderr.write(f"xelink {options.command}: {error}\n")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads on, as with `| head`
        forget_stdout()
        return OK
    except OSError as error:  # what is read is minded where it is read: this is what is printed
        forget_stdout()
        sys.stderr.write(f"xelink {options.command}: cannot print: {error.strerror or error}\n")
        return FAILED
    return int(code)


def load(names: Iterable[str]) -> Mapping[str, ModuleType]:
    """Import the modules of commands."""
    return {name: import_module(f"xelink.{name}") for name in names}


def command_line(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """Make the parser of these commands."""
    parser = argparse.ArgumentParser(
        prog="xelink",
        description="Xe Link topology of Kubernetes nodes: see it, ask why, try it.",
        epilog="exit codes: 0 fine, 1 it failed (one line says why), 2 wrong call; each command's"
        " -h tells of more",
    )
    parser.add_argument("--version", action="version", version=f"xelink {version('xelink')}")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for module in modules.values():
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
