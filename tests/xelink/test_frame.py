"""The command line as a whole: commands, help, how it ends, how it starts."""

import re
import subprocess
import sys

import pytest

from tests.xelink.commands import Xelink
from xelink.__main__ import COMMANDS


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


@pytest.mark.parametrize("command", ["show", "explain", "completion"])
def test_help_has_examples(xelink: Xelink, command: str) -> None:
    assert "\nexamples:\n" in xelink(command, "-h").out


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("show", "--nothing"), ("demo", "more")])
def test_what_there_is_not_is_a_wrong_call(xelink: Xelink, arguments: tuple[str, ...]) -> None:
    said = xelink(*arguments)
    assert said.code == 2
    assert said.out == ""


def test_the_version_is_told(xelink: Xelink) -> None:
    assert xelink("--version").out.startswith("xelink ")


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys; from xelink.__main__ import main\n"
        "try: main(['demo', '-h'])\n"
        "except SystemExit: pass\n"
        "print(*({'httpx', 'xelink.show', 'xelink.simulate'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
