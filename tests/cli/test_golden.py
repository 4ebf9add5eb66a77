"""What `xelink show` tells of every real body, as it was read and found right by a person.

To rewrite the files of `golden/` after a change that is meant:

    XELINK_GOLDEN=rewrite .venv/bin/pytest tests/cli/test_golden.py

Each test whose file is rewritten fails and names it: read its difference before it is committed.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import chdir
from itertools import combinations
from pathlib import Path

import pytest

from tests.cli.commands import Xelink
from tests.data import BODIES, needs_data

GOLDEN = Path(__file__).parent / "golden"
VIEWS = ("matrix", "tiles", "links", "groups")
AS_JSON = ("e_8x2_degraded", "f_8_ring", "h_6x2_aurora", "t_8x2_mesh_partial_by_race")
ONE_TILE = ("c_2x1_subdeviceless", "g_4x1_subdeviceless")

# What rows and exposition say of themselves, read here without a part of the product.
LABEL = re.compile(r'(\w+)="([^"]*)"')
CONNECTIONS = {"0.0": "X", "1.0": "XL", "2.0": "XL/MDF", "3.0": "SYS", "4.0": "NODE", "5.0": "MDF"}

pytestmark = needs_data
bodies = pytest.mark.parametrize("name", sorted(path.stem for path in BODIES.glob("*.prom")))


def transcript(xelink: Xelink, name: str) -> str:
    """Show a body in every view, as on a terminal in the directory of the bodies."""
    command = f"show --metrics {name}.prom"
    commands = [f"{command} --view {view}" for view in VIEWS]
    if name in ONE_TILE:
        commands.append(f"{command} --allow-subdeviceless-links")
    return "\n".join(_shown(xelink, line) for line in commands)


def _shown(xelink: Xelink, line: str) -> str:
    with chdir(BODIES):
        said = xelink(*shlex.split(line))
    assert said.err == ""
    return f"$ xelink {line}; echo $?\n{said.out}{said.code}\n"


def compare(path: Path, shown: str) -> None:
    """Compare with a golden file, or rewrite it, where that is asked for, and fail all the same."""
    stands = path.read_text() if path.exists() else ""
    if os.environ.get("XELINK_GOLDEN") == "rewrite" and shown != stands:
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown)
        pytest.fail(f"{path.name} is rewritten: read its difference, then run this again")
    assert shown == stands


@bodies
def test_a_body_is_shown_as_it_was_found_right(xelink: Xelink, name: str) -> None:
    compare(GOLDEN / f"{name}.txt", transcript(xelink, name))


@pytest.mark.parametrize("name", AS_JSON)
def test_programs_are_told_what_was_found_right(xelink: Xelink, name: str) -> None:
    with chdir(BODIES):
        said = xelink("show", "--metrics", f"{name}.prom", "--output", "json")
    compare(GOLDEN / f"{name}.json", said.out)


def test_there_is_a_golden_file_for_every_body_and_no_other() -> None:
    wanted = {f"{path.stem}.txt" for path in BODIES.glob("*.prom")}
    assert {path.name for path in GOLDEN.iterdir()} == wanted | {f"{name}.json" for name in AS_JSON}


def _rows(name: str) -> Iterator[tuple[dict[str, str], str]]:
    """Return labels and value of each row."""
    for line in (BODIES / f"{name}.prom").read_text().splitlines():
        if line.startswith("xpum_topology_link{"):
            yield dict(LABEL.findall(line)), line.rpartition(" ")[2]


def _ends(row: dict[str, str]) -> tuple[str, str]:
    return (
        f"{row['local_device_id']}.{row['local_subdevice_id']}",
        f"{row['remote_device_id']}.{row['remote_subdevice_id']}",
    )


def _part(name: str, view: str) -> list[list[str]]:
    """Return the words of the lines of the first table that a golden file has of a view."""
    text = (GOLDEN / f"{name}.txt").read_text()
    shown = text.partition(f"--view {view}; echo $?\n")[2].partition("$ xelink")[0]
    _, _, table = shown.partition("\n\n")
    lines = table.partition("\n\n")[0].splitlines()
    return [line.split() for line in lines if " " in line]  # and not the exit code alone


@bodies
def test_every_cell_between_tiles_is_what_its_row_says(name: str) -> None:
    rows = {_ends(row): CONNECTIONS[value] for row, value in _rows(name)}
    cells = {}
    if rows:
        (tiles, *lines) = _part(name, "tiles")
        for tile, *told in lines:
            kinds = (re.sub(r"^(xl|XL)\d*$", "XL", cell.rstrip("!")) for cell in told)
            cells.update({(tile, other): kind for other, kind in zip(tiles, kinds, strict=True)})
    assert {ends: cells.get(ends) for ends in rows} == rows


@bodies
def test_every_link_has_the_lanes_that_its_rows_say(name: str) -> None:
    lanes = {
        _ends(row): row.get("lane_count", row.get("lan_count", ""))
        for row, value in _rows(name)
        if value == "1.0"
    }
    wanted = {tuple(sorted(ends)) for ends in lanes}
    shown = {}
    for line in _part(name, "links")[1:]:
        there, back = [word for word in line if word.isdecimal()][:2]
        shown[tuple(line[0].split("-"))] = there, back
    assert shown == {
        (one, other): (lanes.get((one, other), "0"), lanes.get((other, one), "0"))
        for one, other in wanted
    }


@bodies
def test_every_gpu_has_the_card_address_and_numa_node_of_its_rows(name: str) -> None:
    wanted = {
        f"GPU{row['local_device_id']}": [row["dev_file"], row["pci_bdf"], row["local_numa_index"]]
        for row, _ in _rows(name)
    }
    (_, *lines) = _part(name, "matrix") or [[]]
    shown = {line[0]: line[-4:-1] for line in lines}
    assert {gpu: shown.get(gpu) for gpu in wanted} == wanted
    assert all(shown[gpu] == ["?"] * 3 for gpu in shown.keys() - wanted.keys())


@bodies
def test_every_group_is_all_linked_and_no_larger_one_has_it(name: str) -> None:
    lines = (" ".join(line) for line in _part(name, "links")[1:])
    pairs = {
        frozenset(re.findall(r"GPU\d+", line)) for line in lines if "not published" not in line
    }
    gpus = sorted(frozenset().union(*pairs))
    linked = {
        frozenset(some)
        for size in range(2, len(gpus) + 1)
        for some in combinations(gpus, size)
        if all(frozenset(pair) in pairs for pair in combinations(some, 2))
    }
    wanted = {group for group in linked if not any(group < other for other in linked)}
    shown = [
        frozenset(word for word in line if word[:3] == "GPU") for line in _part(name, "groups")
    ]
    assert {group for group in shown if len(group) > 1} == wanted


def test_the_ring_is_a_ring() -> None:
    (_, *lines) = _part("f_8_ring", "matrix")
    linked = {
        gpu: {other for other, cell in enumerate(cells[:8]) if cell.startswith("XL")}
        for gpu, (_, *cells) in enumerate(lines)
    }
    assert linked == {gpu: {(gpu - 1) % 8, (gpu + 1) % 8} for gpu in range(8)}


def test_the_cards_of_the_aurora_body_are_not_in_the_order_of_its_gpus() -> None:
    facts = json.loads((GOLDEN / "h_6x2_aurora.json").read_text())
    (node,) = facts["nodes"]
    assert [gpu["card"] for gpu in node["gpus"]] == [
        *("card1", "card0", "card2", "card5", "card4", "card3")
    ]
