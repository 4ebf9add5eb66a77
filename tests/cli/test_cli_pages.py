"""The pages show what the tool prints; the picture is the tool's."""

import re
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pytest

from xelink.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cli() -> ModuleType:
    spec = spec_from_file_location("cli", ROOT / "tools" / "cli.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stale(wanted: Mapping[Path, bytes], root: Path) -> list[Path]:
    return [path for path, content in wanted.items() if (root / path).read_bytes() != content]


def test_the_inputs_of_the_examples_are_current(cli: ModuleType) -> None:
    assert _stale(cli.examples(ROOT), ROOT) == []


def test_the_pages_and_the_picture_are_what_the_commands_print(cli: ModuleType) -> None:
    wanted = cli.pages(ROOT)
    assert {Path("README.md"), Path("docs/cli.md"), Path("docs/topology.svg")} <= wanted.keys()
    assert _stale(wanted, ROOT) == []


def test_a_page_that_shows_something_else_is_stale(cli: ModuleType, tmp_path: Path) -> None:
    copytree(ROOT / "xelink" / "examples", tmp_path / "xelink" / "examples")
    copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("README.md", "docs/cli.md"):
        text = (ROOT / name).read_text()
        assert "8 lanes" in text
        (tmp_path / name).write_text(text.replace("The pair is linked: 8 lanes", "No idea"))
    assert set(_stale(cli.pages(tmp_path), tmp_path)) == {Path("README.md"), Path("docs/cli.md")}


def test_a_command_that_fails_is_an_error_and_no_page(cli: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cli.md").write_text("```console\n$ xelink show --features no/such\n```\n")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(cli.CommandError, match="no/such"):
        cli.pages(tmp_path)


def test_the_page_has_the_help_of_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"^## {command}$", page, re.MULTILINE), f"{command} is not in docs/cli.md"
