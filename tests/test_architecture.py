"""The rule of the house that import-linter cannot say: what is allowed, not what is forbidden."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
TOPOLOGY = sorted((ROOT / "xelink" / "topology").glob("*.py"))
PURE = {
    *("collections", "dataclasses", "datetime", "enum", "functools", "hashlib", "itertools"),
    *("json", "math", "re", "typing", "xml", "xelink"),
}


@pytest.mark.parametrize("path", TOPOLOGY, ids=lambda path: path.name)
def test_the_language_of_the_house_uses_pure_parts_of_the_standard_library_only(
    path: Path,
) -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= PURE
    assert PURE - {"xelink"} <= sys.stdlib_module_names


@pytest.mark.parametrize("daemon", ["sidecar", "device_plugin"])
def test_a_daemon_starts_without_what_only_the_tool_needs(daemon: str) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", daemon, "-print-config"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert {"structlog.dev", "pydantic.types"} <= imported
    assert not imported & {"rich.console", "click.core", "pygments.lexers", "shtab", "xelink.cli"}


@pytest.mark.parametrize("path", ["xelink", "sidecar", "device_plugin"])
def test_no_program_asks_for_metadata_of_a_package_that_may_not_be_installed(path: str) -> None:
    """After `make demo` it is not: what runs is the checkout."""
    asks = [
        file for file in (ROOT / path).rglob("*.py") if "importlib.metadata" in file.read_text()
    ]
    assert asks == []


TESTS = [
    path
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if "e2e" not in path.parts and path.name != "patience.py"
]
CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}


def takes_too_long(test: ast.Compare) -> bool:
    """Tell whether an assertion says that something takes less than so many seconds."""
    elapsed = [
        node
        for node in ast.walk(test)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and isinstance(node.left, ast.Call)
        and isinstance(node.left.func, ast.Attribute)
        and node.left.func.attr in CLOCKS
    ]
    bounds = [*zip(test.ops, test.comparators, strict=True)]
    return bool(elapsed) and any(
        isinstance(operator, ast.Lt | ast.LtE)
        and not (isinstance(bound, ast.Name) and bound.id == "PATIENCE")
        and not isinstance(bound, ast.BinOp)
        for operator, bound in bounds
    )


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_no_verdict_hangs_on_how_fast_a_machine_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    compared = [
        node
        for asserted in ast.walk(tree)
        if isinstance(asserted, ast.Assert)
        for node in ast.walk(asserted)
        if isinstance(node, ast.Compare)
    ]
    assert [node.lineno for node in compared if takes_too_long(node)] == []
    patience = [
        keyword.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr, getattr(node.func.value, "id", "")) == ("run", "subprocess")
        for keyword in node.keywords
        if keyword.arg == "timeout" and isinstance(keyword.value, ast.Constant)
    ]
    assert patience == [], "PATIENCE, whatever is waited for"
