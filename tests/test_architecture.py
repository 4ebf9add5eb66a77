"""What import-linter cannot say of the architecture: what is allowed, not what is forbidden."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGES = ("xelink", "sidecar", "device_plugin")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PURE_PACKAGES = {"topology", "view", "preference"}
# What may be imported where nothing is read, waited for or written.
STANDARD = {
    *("bisect", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools"),
    *("hashlib", "heapq", "html", "importlib", "itertools", "json", "math", "operator", "random"),
    *("re", "statistics", "string", "struct", "types", "typing", "xml"),
}


def imported(path: Path) -> set[str]:
    """Give the names of the modules that a module imports, for more than its types."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


def is_pure(path: Path) -> bool:
    """Tell whether a module says of itself that it is pure, or its package does."""
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    own = path.relative_to(ROOT).parts
    return bool(re.search(r"\bpure\b", told, re.IGNORECASE)) or own[1] in PURE_PACKAGES


PURE = [path for path in MODULES if is_pure(path)]


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_calls_itself_pure_has_no_clock_file_socket_logger_or_library(path: Path) -> None:
    """Whoever reads "Pure" in a module relies on it: nothing is believed for a list's sake."""
    names = {name for name in imported(path) if name.partition(".")[0] not in STANDARD}
    names -= {"rich.text"}  # texts with their styles: values, which something else prints
    assert {name.partition(".")[0] for name in names} <= set(PACKAGES)
    assert not {name for name in names if name.startswith(("xelink.daemon", "xelink.api"))}
    assert sys.stdlib_module_names >= STANDARD


def test_the_pure_packages_say_so() -> None:
    for package in PURE_PACKAGES:
        told = ast.get_docstring(ast.parse((ROOT / "xelink" / package / "__init__.py").read_text()))
        assert re.search(r"\bpure\b", told or "", re.IGNORECASE)


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.name == "__init__.py" and "simulators" not in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_to_import_a_package_loads_nothing_of_it(path: Path) -> None:
    """A daemon that uses one module of a package pays for no other."""
    own = ".".join(path.parent.relative_to(ROOT).parts)
    assert not {name for name in imported(path) if name.startswith(own)}


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


@pytest.mark.parametrize("path", PACKAGES)
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


PAGE = (ROOT / "docs" / "architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def test_the_page_shows_the_rows_and_names_the_contracts() -> None:
    layers, *_ = (each["layers"] for each in CONTRACTS["contracts"] if each["type"] == "layers")
    figure = PAGE.partition("```text\n")[2].partition("```")[0]
    assert [line.split() for line in figure.splitlines()] == [row.split(" | ") for row in layers]
    listed = re.findall(r"^- (.+)$", PAGE.partition("## Contracts")[2], re.MULTILINE)
    assert listed == [each["name"] for each in CONTRACTS["contracts"]]


def test_the_page_has_a_paragraph_for_each_package() -> None:
    packages = {path.parent.name for path in (ROOT / "xelink").glob("*/__init__.py")}
    told = re.findall(r"^\*\*`([\w/]+)`\*\*", PAGE, re.MULTILINE)
    assert {*told} == {f"xelink/{name}" for name in packages} | {"sidecar", "device_plugin"}


def test_each_file_that_the_page_names_is_there() -> None:
    """One without a folder is in that of the paragraph, or of the file named before it."""
    missing = []
    for paragraph in PAGE.split("\n\n"):
        folders = [
            ROOT / name
            for name in re.findall(r"`((?:xelink/\w+|sidecar|device_plugin))`", paragraph)
        ]
        for name in re.findall(r"`([\w/]+\.py)`", paragraph):
            if "/" in name:
                folders.append((ROOT / name).parent)
            if not any((folder / name).is_file() for folder in [ROOT, *folders]):
                missing.append(name)
    assert missing == []


def public_names(path: Path) -> set[str]:
    """Return the classes and type aliases that a module defines, without private ones."""
    names = {
        node.name
        if isinstance(node, ast.ClassDef)
        else ast.unparse(node.target)
        if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation)
        else "_"
        for node in ast.parse(path.read_text()).body
    }
    return {name for name in names if not name.startswith("_")}


def test_a_public_type_has_a_name_of_its_own() -> None:
    """One name has one meaning: a reader need not look up where it came from."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            for name in public_names(path):
                homes.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
    assert len(homes) > 300
