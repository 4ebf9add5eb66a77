"""Command lines of programs for people: what a message quotes of a call comes out printable."""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from xelink.daemon.stdio import complain
from xelink.topology.text import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """Reads calls as argparse does."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)  # argparse would hide that it cannot be printed
        else:
            complain(*message.rstrip("\n").split("\n"))

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong with the call and where to read on, and end with 2."""
        said = printable(message)  # it quotes the call, which may hold a line end
        self.exit(2, f"{self.prog}: {said}; see {self.prog} -h\n")
