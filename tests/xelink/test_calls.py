"""Wrong calls: which parser refuses them, and with whose usage."""

import pytest

from tests.xelink.commands import Xelink
from xelink.__main__ import COMMANDS

NEEDED = {"explain": ["--want=2"], "completion": ["bash"], "simulate": ["mesh"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_refused_by_its_command_with_its_own_usage(
    xelink: Xelink, command: str
) -> None:
    said = xelink(command, *NEEDED.get(command, ()), "--bogus")
    assert (said.code, said.out) == (2, "")
    lines = said.err.splitlines()
    assert lines[0].startswith(f"usage: xelink {command} ")
    assert lines[-1] == f"xelink {command}: error: unrecognized arguments: --bogus"


def test_an_unknown_option_before_the_command_is_refused_by_xelink(xelink: Xelink) -> None:
    said = xelink("--bogus", "show")
    assert said.code == 2
    assert said.err.splitlines()[0].startswith("usage: xelink [-h]")
    assert said.err.splitlines()[-1] == "xelink: error: unrecognized arguments: --bogus"
