"""The argument parser of the tool and the simulators: messages escape control characters."""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from xelink.daemon.stdio import write_stderr
from xelink.topology.text import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """Reads calls as argparse does."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)  # argparse would hide an error
        else:
            write_stderr(*message.rstrip("\n").split("\n"))

    def error(self, message: str) -> NoReturn:
        """Print one line with the error and the command for help, and exit with 2."""
        text = printable(message)  # it quotes arguments, which may have line ends
        self.exit(2, f"{self.prog}: {text}; see {self.prog} -h\n")
