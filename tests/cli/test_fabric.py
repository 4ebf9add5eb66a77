"""`xelink fabric dump` and `show` of the driver, against a simulated one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from xelink.cli.main import main
from xelink.simulators.iaf import Behavior, SimulatedDriver
from xelink.simulators.node import TreeBlueprint as Tree
from xelink.simulators.xpu_manager import Blueprint

NODE = Blueprint(gpus=4).build()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[list[str]]:
    """Serve a driver; return how the tool is told of it."""
    Tree(gpus=4).build(tmp_path / "n")
    with SimulatedDriver(tmp_path / "s", Behavior(NODE)):
        yield ["--driver-socket", str(tmp_path / "s"), "--prefix", str(tmp_path / "n")]


def test_the_live_driver_and_its_dump_show_the_same(
    driver: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--driver", *driver]) == 0
    live = capsys.readouterr().out
    assert "4 GPUs, 12 links" in live
    assert main(["fabric", "dump", *driver]) == 0
    (tmp_path / "dump").write_text(capsys.readouterr().out)
    assert main(["show", "--frames", str(tmp_path / "dump")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1:] == live.splitlines()[1:]


def test_links_that_the_rules_filter_are_shown_as_that(
    driver: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--driver", "--lane-count", "5", "--view", "links", *driver]) == 3
    assert "fewer than 5 lanes" in capsys.readouterr().out


def test_without_a_driver_the_dump_has_the_bus_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Tree(gpus=2, model="flex-170").build(tmp_path)
    assert main(["fabric", "dump", "--prefix", str(tmp_path)]) == 4
    out, err = capsys.readouterr()
    assert out.count("# gpu ") == 2
    assert "> " not in out
    assert err.startswith("xelink fabric: no-driver: ")
    assert main(["show", "--driver", "--prefix", str(tmp_path)]) == 4


def test_where_there_is_no_bus_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fabric", "dump", "--prefix", str(tmp_path / "nothing")]) == 1
    assert "no sysfs at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "--frames", "{}"], "this looks like a feature file"),
        (["show", "--driver", "--label-namespace", "x"], "has no meaning with --driver"),
        (["show", "--driver-socket", "x"], "has no meaning with this node"),
    ],
)
def test_wrong_calls_are_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f"
    file.write_text("gpu.intel.com/xe-links=\n")
    assert main([argument.format(file) for argument in arguments]) in {1, 2}
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
