"""What is generated is current, and a check that finds something stale fails."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("docs/sidecar.md", "docs/device-plugin.md")

# The tables alone: what takes longer has tests of its own (the demo, the stubs, the tool's pages).
TABLES = """
import sys
from pathlib import Path
import generate
tables = [generator for generator in generate.GENERATORS if generator.name == "tables"]
sys.exit(generate.main(sys.argv[2:], Path(sys.argv[1]), tables))
"""
WHOLE = """
import inspect
import generate
made = [generator.generate for generator in generate.GENERATORS]
print(*(f"{function.__module__}.{function.__name__}" for function in made))
print(inspect.signature(generate.main).parameters["generators"].default is generate.GENERATORS)
"""


def tools(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program where the modules of tools/ are."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def test_the_tables_of_flags_and_metrics_are_current() -> None:
    done = tools(TABLES, str(ROOT), "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("page", "row", "other"),
    [
        ("docs/sidecar.md", "| `-lane-count N` | `4` |", "| `-lane-count N` | `8` |"),
        ("docs/device-plugin.md", "`resource`, `health` |", "`resource`, `state` |"),
    ],
    ids=["a default", "a label"],
)
def test_a_table_that_says_something_else_fails_the_check_and_is_mended(
    tree: Path, page: str, row: str, other: str
) -> None:
    text = (tree / page).read_text()
    assert text.count(row) == 1
    stale = text.replace(row, other)
    (tree / page).write_text(stale)
    done = tools(TABLES, str(tree), "--check")
    assert done.returncode == 1
    assert done.stderr == f"{page} is stale: run tools/generate.py (tables)\n"
    assert (tree / page).read_text() == stale, "a check changes nothing"
    assert tools(TABLES, str(tree)).stdout == f"{page}\n"
    assert (tree / page).read_text() == text
    assert tools(TABLES, str(tree), "--check").returncode == 0


@pytest.mark.parametrize("times", [0, 2])
def test_a_page_without_a_place_for_its_table_fails_the_check(tree: Path, times: int) -> None:
    path = tree / PAGES[0]
    (block,) = re.findall(r"<!-- flags -->.*<!-- /flags -->", path.read_text(), re.DOTALL)
    path.write_text(path.read_text().replace(block, "\n".join([block] * times)))
    done = tools(TABLES, str(tree), "--check")
    assert done.returncode == 1
    assert done.stderr == f"{PAGES[0]} has {times} blocks flags, not one\n"


def test_every_kind_of_generated_file_is_made_and_checked() -> None:
    made, whole = tools(WHOLE).stdout.splitlines()
    assert made.split() == [
        "generate.stubs",
        "readme.tables",
        "readme.outputs",
        "cli.examples",
        "cli.pages",
    ]
    assert whole == "True"


def test_every_marked_block_of_a_page_is_one_that_is_generated() -> None:
    marked = {
        name
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for name in re.findall(r"^<!-- /(\S+) -->$", page.read_text(), re.MULTILINE)
    }
    source = (ROOT / "tools" / "readme.py").read_text()
    assert marked
    assert marked == {name for name in marked if f'"{name}": _' in source}


def test_make_check_checks_all_that_is_written_by_rule() -> None:
    done = subprocess.run(
        ["/usr/bin/make", "--dry-run", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    for command in (
        "ruff format --check .",
        "ruff check .",
        "mypy",
        "lint-imports",
        "python tools/generate.py --check",
    ):
        assert any(line.endswith(f"bin/{command}") for line in said), command
