"""The rule of the house that import-linter cannot say: what is allowed, not what is forbidden."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOPOLOGY = sorted((Path(__file__).parents[1] / "topology").glob("*.py"))
PURE = {
    *("collections", "dataclasses", "datetime", "enum", "functools", "hashlib", "itertools"),
    *("json", "math", "re", "typing", "xml", "topology"),
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
    assert PURE - {"topology"} <= sys.stdlib_module_names


@pytest.mark.parametrize("daemon", ["sidecar", "device_plugin"])
def test_a_daemon_starts_without_what_only_the_tool_needs(daemon: str) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", daemon, "-print-config"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert {"structlog.dev", "pydantic.types"} <= imported
    assert not imported & {"rich.console", "click.core", "pygments.lexers", "shtab", "xelink"}
