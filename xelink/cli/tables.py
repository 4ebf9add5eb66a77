"""Aligned columns, with colors on a terminal and without elsewhere."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from xelink.daemon.stdio import write_stdout
from xelink.topology.text import printable

GAP = 2
FAINT = "dim"
HEAD = "bold"
GOOD = "green"
BAD = "yellow"
WORST = "red"


class Cell(NamedTuple):
    """A text and its style on a terminal."""

    text: str
    style: str = ""


TableRow: TypeAlias = Sequence[Cell | str]


def aligned(rows: Iterable[TableRow], indent: int = 0) -> list[Text]:
    """Return rows with columns aligned to the left, without trailing blanks."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths: dict[int, int] = {}
    for row in cells:
        for at, cell in enumerate(row):
            widths[at] = max(widths.get(at, 0), cell_len(cell.text))
    return [_line(row, widths, indent) for row in cells]


def _cell(given: Cell | str) -> Cell:
    cell = Cell(given) if isinstance(given, str) else given
    return cell._replace(text=printable(cell.text))


def head(*names: str) -> list[Cell]:
    """Return the first row of a table."""
    return [Cell(name, HEAD) for name in names]


def _line(row: Sequence[Cell], widths: dict[int, int], indent: int) -> Text:
    line = Text(" " * indent)
    for at, cell in enumerate(row):
        line.append(cell.text, cell.style)
        line.append(" " * (widths[at] - cell_len(cell.text) + GAP))
    line.rstrip()
    return line


def plain(lines: Iterable[Text | str]) -> str:
    """Return lines joined, without colors."""
    return "\n".join(line.plain if isinstance(line, Text) else line for line in lines)


def show(lines: Iterable[Text | str]) -> None:
    """Print lines; with colors if standard output is a terminal and NO_COLOR is not set."""
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for line in lines:
            console.print(_clean(line), soft_wrap=True)
    # Not with the console's own output: it would end the process if the reader has ended.
    write_stdout(captured.get(), styled=True)


def _clean(line: Text | str) -> Text | str:
    """Escape control characters, except those of our own styles."""
    if isinstance(line, str):
        return printable(line)
    return line if line.plain.isprintable() else Text(printable(line.plain))
