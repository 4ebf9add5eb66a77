"""Standard streams that may be closed, full, or without a reader."""

import os
import sys
from io import FileIO, TextIOWrapper
from typing import TextIO

from xelink.topology.text import printable, printable_lines


def open_missing_streams() -> None:
    """Replace each closed standard stream by one that fails.

    Otherwise the next opened file would get its number, and output would go into that file.
    """
    if sys.stdin is None:
        sys.stdin = _failing(0, os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = _failing(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _failing(2, os.O_RDONLY)


def unbuffer_stderr() -> None:
    """Write standard error without a buffer.

    Buffered text that a full disk or a closed pipe rejected would be written again and again. The
    last attempt is at the end of Python, which would change the daemon's exit code to 120.
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


def discard_stdout() -> None:
    """Discard further output after its reader has ended, as with `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_stdout(text: str, *, styled: bool = False) -> None:
    """Write to standard output; a reader that has ended, such as `| head`, is no error.

    Control characters are escaped, unless the text is `styled` already.
    """
    try:
        sys.stdout.write(text if styled else printable_lines(text))
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()


def write_stderr(*lines: str) -> None:
    """Write lines to standard error; a failure is ignored, because it could not be reported.

    Line ends and control characters within a line are escaped.
    """
    try:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
