"""How a daemon's command ends: whatever keeps it from its work is one line, never a traceback."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from xelink.daemon.command import CannotStartError, run_command


def cannot(*_: object) -> NoReturn:
    raise CannotStartError("the settings were not read within 60 s")


@pytest.mark.parametrize(
    ("read", "run"),
    [(cannot, lambda _: 0), (dict, cannot)],
    ids=["before the settings are read", "with settings"],
)
def test_what_cannot_start_says_why_in_one_line(
    capsys: pytest.CaptureFixture[str], read: Callable[..., Any], run: Callable[..., int]
) -> None:
    assert run_command("xelink-x", read, run) == 1
    assert capsys.readouterr().err == "xelink-x: the settings were not read within 60 s\n"


def test_an_exit_code_in_place_of_settings_ends_it() -> None:
    assert run_command("xelink-x", lambda: 2, cannot) == 2
