"""The command line as a whole: commands, help, how it ends, how it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import Xelink
from tests.patience import PATIENCE
from xelink.cli.main import COMMANDS


def test_help_names_every_command_and_the_exit_codes(xelink: Xelink) -> None:
    said = xelink("-h")
    assert said.code == 0
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s", said.out, re.MULTILINE)
    assert "exit codes:" in said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(xelink: Xelink, command: str) -> None:
    said = xelink(command, "-h")
    assert said.code == 0
    assert said.out.startswith(f"usage: xelink {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes_and_is_no_wider_than_the_terminal(
    xelink: Xelink, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    told = xelink(command, "-h").out
    assert "\nexamples:\n" in told
    assert "\nexit codes: 0 " in told
    assert max(map(len, told.splitlines())) <= 100


def test_what_excludes_each_other_is_one_part_of_the_usage(
    xelink: Xelink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert xelink("simulate", "-h").out.startswith(
        "usage: xelink simulate [-h] (SCENARIO | --random SEED | --list) [--seed SEED]\n"
        "                       [--runs N] [--output {text,json,svg,scenario}]\n"
        "                       [--no-times]\n\n"
    )


def test_the_column_of_the_commands_is_as_wide_as_the_longest(
    xelink: Xelink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    told = xelink("-h").out
    for command, summary in COMMANDS.items():
        assert f"\n    {command:<10}  {summary}\n" in told


def test_help_has_no_colors_whatever_the_terminal_says(
    xelink: Xelink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for arguments in (("-h",), ("show", "-h"), ("show", "--nothing")):
        said = xelink(*arguments)
        assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("show", "--nothing"), ("demo", "more")])
def test_what_there_is_not_is_a_wrong_call(xelink: Xelink, arguments: tuple[str, ...]) -> None:
    said = xelink(*arguments)
    assert said.code == 2
    assert said.out == ""


def test_the_version_is_told(xelink: Xelink) -> None:
    assert xelink("--version").out.startswith("xelink ")


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys; from xelink.cli.main import main\n"
        "try: main(['demo', '-h'])\n"
        "except SystemExit: pass\n"
        "others = {'httpx', 'xelink.cli.show.command', 'xelink.cli.simulate.command'}\n"
        "print(*(others & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Give an environment in which what talks to XPU Manager cannot be imported."""
    (tmp_path / "httpx.py").write_text("raise ImportError('no httpx for this machine')\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("arguments", [("-h",), ("--version",), ("demo", "-h")])
def test_what_one_command_lacks_stops_no_other(
    broken: dict[str, str], arguments: tuple[str, ...]
) -> None:
    done = _called(broken, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_what_a_command_lacks_is_told_in_one_line(broken: dict[str, str]) -> None:
    done = _called(broken, "show", "-h")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "xelink show: cannot be loaded: no httpx for this machine: reinstall xelink\n"
    )


def _called(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xelink", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
