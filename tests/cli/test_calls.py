"""Wrong calls: which parser refuses them, in one line that names whose -h to read."""

import pytest

from tests.cli.commands import Xelink
from xelink.cli.main import COMMANDS

NEEDED = {"explain": ["--want=2"], "completion": ["bash"], "simulate": ["mesh"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_refused_by_its_command_in_one_line(
    xelink: Xelink, command: str
) -> None:
    said = xelink(command, *NEEDED.get(command, ()), "--bogus")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"xelink {command}: unrecognized arguments: --bogus; see xelink {command} -h\n"
    )


def test_an_unknown_option_before_the_command_is_refused_by_xelink(xelink: Xelink) -> None:
    said = xelink("--bogus", "show")
    assert (said.code, said.out) == (2, "")
    assert said.err == "xelink: unrecognized arguments: --bogus; see xelink -h\n"


def test_a_wrong_value_is_one_line(xelink: Xelink) -> None:
    said = xelink("show", "--output", "picture")
    assert (said.code, said.out) == (2, "")
    [line] = said.err.splitlines()
    assert line.startswith("xelink show: argument --output: invalid choice: 'picture'")
    assert line.endswith("; see xelink show -h")
