"""Standard streams as a shell may leave them: closed, full, or with nobody at the other end."""

import os
import sys
from io import FileIO, TextIOWrapper
from typing import TextIO

from xelink.topology.text import printable, printable_lines


def stand_in() -> None:
    """Put a stream that fails in the place of each standard stream that is closed.

    Else the next file that is opened would get its number, and what is printed would go there.
    """
    if sys.stdin is None:
        sys.stdin = _failing(0, os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = _failing(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _failing(2, os.O_RDONLY)


def unbuffer_stderr() -> None:
    """Write what goes to standard error at once, or not at all.

    From a buffer, what a full disk or a reader that has gone did not take would be tried again and
    again, and at last by Python as it ends: with exit code 120, whatever the daemon's was.
    """
    sys.stderr = _unbuffered(2, closefd=False)


def _failing(number: int, direction: int) -> TextIO:
    """Open a stream that can only be used in the other direction."""
    opened = os.open(os.devnull, direction)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    else:
        os.set_inheritable(number, True)  # noqa: FBT003 - it has no name
    return _unbuffered(number)


def _unbuffered(number: int, *, closefd: bool = True) -> TextIO:
    raw = FileIO(number, "w" if number else "r", closefd=closefd)
    return TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def forget_stdout() -> None:
    """Go on where nobody reads any more what we print, as with `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str, *, styled: bool = False) -> None:
    """Write to standard output; whoever reads no further, as `| head`, has what was asked for.

    Lines come out printable, whatever they quote; but those that are `styled` already.
    """
    try:
        sys.stdout.write(text if styled else printable_lines(text))
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()


def complain(*lines: str) -> None:
    """Write lines to standard error, if that can be: there is nowhere else to say that it cannot.

    Each comes out as one line, and printable, whatever it quotes.
    """
    try:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
