"""`xelink completion`: what a shell needs to complete the command line."""

import argparse

import shtab

from xelink.cli import main as frame
from xelink.cli.exit_codes import OK
from xelink.cli.helptext import HelpFormatter
from xelink.daemon.stdio import write_stdout

_EXAMPLES = """\
examples:
  bash, for this shell, or for every one:
    source <(xelink completion bash)
    xelink completion bash > ~/.local/share/bash-completion/completions/xelink
  zsh, in a directory of its fpath:
    xelink completion zsh > ~/.zfunc/_xelink
  fish:
    xelink completion fish > ~/.config/fish/completions/xelink.fish

exit codes: 0 printed, 2 there is no completion for such a shell
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion",
        help=summary,
        description="Print a completion script.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose completion to print")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    parser = frame.command_line(frame.load(frame.COMMANDS))
    write_stdout(shtab.complete(parser, options.shell) + "\n")
    return OK
