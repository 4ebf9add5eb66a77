"""One table of a benchmark: Markdown for people, the same as JSON for programs.

Both say which Python was measured: memory and start differ from one to the next.
"""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Cell: TypeAlias = str | float | int
RESULTS = Path(__file__).parents[1] / "build" / "bench"


class Table:
    """Prints each row as soon as it is known, and keeps all of them in build/bench/NAME.json."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self._file = RESULTS / f"{name}.json"
        self._columns = columns
        self._rows: list[Sequence[Cell]] = []
        print(f"\nPython {platform.python_version()}:\n\n| {' | '.join(columns)} |")
        print(f"|{'---|' * len(columns)}", flush=True)

    def row(self, *cells: Cell) -> None:
        """Add one row; a number is printed with three digits that mean something."""
        self._rows.append(cells)
        print(f"| {' | '.join(map(_text, cells))} |", flush=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        table = [dict(zip(self._columns, row, strict=True)) for row in self._rows]
        measured = {"python": platform.python_version(), "rows": table}
        self._file.write_text(json.dumps(measured, indent=1) + "\n")


def _text(cell: Cell) -> str:
    if isinstance(cell, str | int):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"  # noqa: PLR2004 - three digits
