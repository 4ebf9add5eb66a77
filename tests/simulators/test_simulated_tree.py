"""`python -m xelink.simulators.node`: a node's tree in a directory, as the flags say."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.simulators.test_node import can_make_devices, paths
from xelink.inventory import links
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import scan
from xelink.nfd import reader as labels
from xelink.nfd.reader import FileState
from xelink.simulators.node.__main__ import main
from xelink.simulators.node.blueprint import CARDS, MODELS, TreeBlueprint
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint
from xelink.simulators.xpu_manager.blueprint import CARDS as XPUM_CARDS
from xelink.simulators.xpu_manager.gpu import MODELS as XPUM_MODELS
from xelink.topology.publication import Publication, render

PROGRAM = "python -m xelink.simulators.node"
AS_NOBODY = """
import encodings.ascii, locale, os, sys
from xelink.simulators.node.__main__ import main
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def put(root: Path, *flags: str) -> int:
    return main(["--root", str(root), *flags])


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A directory that any user may write to, below directories that any user may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


# The node


def test_without_more_flags_it_is_the_node_of_eight_max_1550(tmp_path: Path) -> None:
    assert put(tmp_path / "made") == 0
    NodeTree.eight_max_1550(tmp_path / "known")
    made = {k: v for k, v in paths(tmp_path / "made").items() if not k.startswith(".")}
    assert made == paths(tmp_path / "known")


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize("igpu", [False, True], ids=["discrete", "and integrated"])
@pytest.mark.parametrize("numa", [0, 1, 2, 3])
@pytest.mark.parametrize("gpus", [0, 1, 4, 9])
def test_cards_addresses_and_numa_are_those_that_xpu_manager_tells(
    tmp_path: Path,
    gpus: int,
    numa: int,
    igpu: bool,  # noqa: FBT001 - a case
    cards: str,
) -> None:
    flags = [f"--gpus={gpus}", f"--numa-nodes={numa}", f"--cards={cards}"]
    assert put(tmp_path, *flags, *["--igpu"] * igpu) == 0
    told = Blueprint(gpus=gpus, numa_nodes=numa, igpu=igpu, cards=cards).build().gpus
    found = scan(Roots.under(tmp_path))
    assert found.problems == ()
    assert {(card.bdf, card.name, card.numa) for card in found.cards} == {
        (gpu.bdf, gpu.card, gpu.numa) for gpu in told
    }


@pytest.mark.parametrize(("per_switch", "switches"), [(0, 8), (1, 8), (2, 4), (3, 3), (4, 2)])
def test_so_many_gpus_are_behind_one_switch(tmp_path: Path, per_switch: int, switches: int) -> None:
    assert put(tmp_path, f"--gpus-per-switch={per_switch}") == 0
    cards = scan(Roots.under(tmp_path)).cards
    assert len({card.bridges[:2] for card in cards}) == switches
    assert len({card.bridges for card in cards}) == 8
    assert {len(card.bridges) for card in cards} == {4 if per_switch else 1}


def test_the_words_are_those_of_the_other_simulator() -> None:
    assert {model.key: model.device for model in XPUM_MODELS.values()} == MODELS
    assert CARDS.keys() == XPUM_CARDS.keys()


@pytest.mark.parametrize("driver", ["i915", "xe"])
@pytest.mark.parametrize(
    ("flags", "model", "tiles"),
    [
        ([], 0x0BD5, 2),
        (["--tiles=1"], 0x0BDA, 1),
        (["--tiles=1", "--model=max-1550"], 0x0BD5, 1),
        (["--tiles=1", "--model=flex-170"], 0x56C0, 1),
    ],
)
def test_model_tiles_and_driver_are_seen(
    tmp_path: Path, driver: str, flags: list[str], model: int, tiles: int
) -> None:
    assert put(tmp_path, f"--driver={driver}", *flags) == 0
    (kind,) = {(c.driver, c.device_id, c.tiles) for c in scan(Roots.under(tmp_path)).cards}
    assert kind == (driver, model, tiles)


@pytest.mark.parametrize("cards", CARDS)
def test_links_of_the_simulated_xpu_manager_join_to_its_cards(tmp_path: Path, cards: str) -> None:
    assert put(tmp_path / "node", "--gpus=4", f"--cards={cards}") == 0
    told = Blueprint(gpus=4, cards=cards, wiring="ring").build()
    now = datetime.now(UTC)
    file = tmp_path / "labels"
    file.write_bytes(
        render(Publication(told.topology, now + timedelta(hours=1)), labels_namespace := "x.io")
    )
    reading = labels.read(labels.look(file), labels_namespace, now)
    joined = links.join(reading, scan(Roots.under(tmp_path / "node")))
    assert joined.state is FileState.IN_USE
    assert len(joined.lanes) == 4
    assert (joined.not_on_bus, joined.not_in_map, joined.without_address) == ((), (), ())


# The tree


def test_it_says_in_one_line_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert put(tmp_path, "--gpus=4", "--driver=xe", "--igpu") == 0
    assert capsys.readouterr().out == (
        "made 4 GPUs and an integrated one (max-1550, tiles=2, xe)"
        f" with 14 plain files as device nodes in {tmp_path}\n"
    )


def test_again_it_replaces_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("somebody's")
    assert put(tmp_path) == 0
    assert put(tmp_path, "--gpus=2", "--cards=reversed") == 0
    once, other = paths(tmp_path), tmp_path / "labels"
    assert other.read_text() == "somebody's"
    assert [card.name for card in scan(Roots.under(tmp_path)).cards] == ["card2", "card1"]
    assert put(tmp_path, "--gpus=2", "--cards=reversed") == 0
    assert paths(tmp_path) == once


def test_what_a_killed_run_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    assert put(tmp_path) == 0
    clean = paths(tmp_path)
    (tmp_path / ".xelink-simulated-node.new/sys/class/drm").mkdir(parents=True)
    (tmp_path / "sys").rename(tmp_path / "lost")
    assert put(tmp_path) == 0
    (tmp_path / "lost").rename(tmp_path.with_name("lost"))
    assert paths(tmp_path) == clean


@pytest.mark.parametrize("name", ["sys", "dev"])
def test_what_it_did_not_make_is_left_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").touch()
    assert put(tmp_path) == 1
    assert capsys.readouterr().err == (
        f"{PROGRAM}: {tmp_path / name} was not made by this program: give an empty directory\n"
    )
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        name,
        f"{name}/precious",
    ]


def test_where_nothing_can_be_made_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert put(tmp_path / "file" / "node") == 1
    said = capsys.readouterr().err
    assert said == f"{PROGRAM}: cannot make {tmp_path / 'file' / 'node'}: Not a directory\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--gpus=-1"], "cannot be negative"),
        (["--tiles=0"], "nor tiles below 1"),
        (["--numa-nodes=-1"], "cannot be negative"),
        (["--gpus-per-switch=-1"], "cannot be negative"),
        (["--gpus=many"], "invalid int value"),
        (["--driver=nouveau"], "invalid choice"),
        (["--model=b580"], "invalid choice"),
        (["--cards=sorted"], "invalid choice"),
    ],
)
def test_what_no_node_can_be_is_a_wrong_call(
    tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        put(tmp_path / "node", *flags)
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    "wrong", [{"driver": "nouveau"}, {"model": "b580"}, {"cards": "sorted"}], ids=str
)
def test_a_blueprint_says_what_there_is(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"unknown .* '{next(iter(wrong.values()))}'; there are: "):
        TreeBlueprint(**wrong)  # type: ignore[arg-type]  # one text


# Device nodes


@pytest.mark.skipif(not can_make_devices(), reason="takes CAP_MKNOD")
def test_device_nodes_are_characters_that_anybody_can_open(open_root: Path) -> None:
    before = os.umask(0o077)
    try:
        assert put(open_root, "--device-nodes") == 0
    finally:
        os.umask(before)
    for name in ("dri/card1", "dri/renderD135", "mei0", "dri/by-path/pci-0000:29:00.0-card"):
        path = open_root / "dev" / name
        assert path.is_char_device(), name
        assert path.stat().st_mode & 0o777 == 0o666, name
        os.close(os.open(path, os.O_RDWR))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_the_right_to_make_device_nodes_the_tree_stays_as_it_was(open_root: Path) -> None:
    command = [sys.executable, "-c", AS_NOBODY, "--root", str(open_root)]
    # Without coverage, whose data another user may not write.
    env = {**os.environ, "COVERAGE_PROCESS_CONFIG": ""}

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("--gpus=2").returncode == 0
    before = paths(open_root)
    failed = run("--gpus=4", "--device-nodes")
    assert failed.returncode == 1
    assert failed.stderr == (
        f"{PROGRAM}: cannot make device nodes below {open_root}: Operation not permitted;"
        " this takes root with CAP_MKNOD, or leave out --device-nodes\n"
    )
    assert paths(open_root) == before
