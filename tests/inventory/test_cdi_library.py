"""What the library that runtimes resolve CDI devices with makes of our spec, and of a rival's."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.deployment.rendering import needs, tool
from tests.inventory.test_cdi import INTELS
from xelink.inventory import cdi
from xelink.inventory.by_path import ByPath
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Card, Inventory, scan
from xelink.simulators.node.sysfs import NodeTree

PROGRAM = "cdi-resolve"
CARD1, CARD2 = (f"{cdi.KIND}=card{number}" for number in (1, 2))

pytestmark = needs(PROGRAM)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    found = scan(Roots.under(NodeTree.eight_max_1550(tmp_path / "node").root))
    return replace(found, cards=tuple(map(_on_null, found.cards)))


def _on_null(card: Card) -> Card:
    """Put its nodes where there is a character device: the library looks at each."""
    return replace(card, nodes=tuple(replace(node, host_path="/dev/null") for node in card.nodes))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "cdi").mkdir()
    return tmp_path / "cdi"


def resolve(directory: Path, *names: str) -> subprocess.CompletedProcess[str]:
    program = tool(PROGRAM)
    assert program
    return subprocess.run(
        [program, str(directory), *names], capture_output=True, text=True, check=False
    )


def devices(directory: Path, *names: str) -> list[str]:
    """Name the device nodes that a container is given."""
    done = resolve(directory, *names)
    assert done.returncode == 0, done.stderr
    return [device["path"] for device in json.loads(done.stdout)["linux"]["devices"]]


@pytest.fixture
def rival(directory: Path) -> Path:
    """Leave behind what Intel's plugin does."""
    path = directory / "intel.cdi.k8s.io-gpu-card1.yaml"
    path.write_text(INTELS.replace("hostPath: /dev/dri/card1", "hostPath: /dev/null"))
    return path


def test_the_library_resolves_our_spec(directory: Path, inventory: Inventory) -> None:
    cdi.refresh(directory, inventory, ByPath.NONE)
    assert devices(directory, CARD1) == ["/dev/dri/card1", "/dev/dri/renderD128"]
    assert len(devices(directory, CARD1, CARD2)) == 4


def test_the_library_resolves_neither_of_two_specs_of_one_device(
    directory: Path, inventory: Inventory, rival: Path
) -> None:
    """Why ours goes: else this test is about nothing."""
    spec = cdi.spec(inventory, ByPath.NONE)
    (directory / cdi.FILE_NAME).write_text(json.dumps(spec))
    done = resolve(directory, CARD1)
    assert done.returncode == 1
    assert done.stderr == f"unresolvable CDI devices {CARD1}\n"
    rival.unlink()
    assert devices(directory, CARD1)


def test_beside_a_rival_its_devices_still_resolve_and_ours_come_back_without_it(
    directory: Path, inventory: Inventory, rival: Path
) -> None:
    for _ in range(2):
        assert "card1" not in cdi.refresh(directory, inventory, ByPath.NONE).named
        assert devices(directory, CARD1) == ["/dev/dri/card1"]
    rival.unlink()
    assert "card1" in cdi.refresh(directory, inventory, ByPath.NONE).named
    assert devices(directory, CARD1) == ["/dev/dri/card1", "/dev/dri/renderD128"]


def test_a_rival_that_comes_after_ours_takes_no_device_from_a_container(
    directory: Path, inventory: Inventory, rival: Path
) -> None:
    text = rival.read_text()
    rival.unlink()
    cdi.refresh(directory, inventory, ByPath.NONE)
    rival.write_text(text)
    assert resolve(directory, CARD1).returncode == 1
    cdi.refresh(directory, inventory, ByPath.NONE)
    assert devices(directory, CARD1)


def test_beside_a_rival_of_one_card_every_card_resolves(
    directory: Path, inventory: Inventory, rival: Path
) -> None:
    """Pods that kubelet has recorded with the names of the others can start again."""
    cdi.refresh(directory, inventory, ByPath.NONE)
    names = [cdi.qualified_name(card) for card in inventory.cards]
    assert len(devices(directory, *names)) == 15
    rival.rename(rival.with_suffix(".json"))  # in which the library reads YAML, too
    cdi.refresh(directory, inventory, ByPath.NONE)
    assert len(devices(directory, *names)) == 15


@pytest.mark.parametrize("solidus", ["/", r"\u002f"], ids=["plain", "escaped"])
def test_beside_a_rival_in_json_every_card_resolves(
    directory: Path, inventory: Inventory, solidus: str
) -> None:
    (directory / "theirs.json").write_text(of_the_first(inventory, solidus))
    cdi.refresh(directory, inventory, ByPath.NONE)
    assert len(devices(directory, *map(cdi.qualified_name, inventory.cards))) == 16


def of_the_first(inventory: Inventory, solidus: str) -> str:
    theirs = replace(inventory, cards=inventory.cards[:1])
    return json.dumps(cdi.spec(theirs, ByPath.NONE)).replace("/gpu", f"{solidus}gpu")


def test_what_json_escapes_and_this_library_cannot_read_keeps_its_card_unnamed(
    directory: Path, inventory: Inventory
) -> None:
    """It is valid JSON, and another version may read it: the others go on in either case."""
    (directory / "theirs.json").write_text(of_the_first(inventory, r"\/"))
    named = cdi.refresh(directory, inventory, ByPath.NONE).named
    assert CARD1 not in {f"{cdi.KIND}={name}" for name in named}
    assert len(devices(directory, *(f"{cdi.KIND}={name}" for name in named))) == 14


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(INTELS.replace("name: card1", "name: card9"), id="another card"),
        pytest.param(INTELS.replace("io/gpu", "io/gpu-mei"), id="another class"),
        pytest.param(INTELS.replace("intel.cdi", "vendor.intel.cdi"), id="another vendor"),
        pytest.param(
            INTELS.replace("kind: intel.cdi.k8s.io/gpu", "kind: a.com/b # intel.cdi.k8s.io/gpu"),
            id="our kind in a comment",
        ),
        pytest.param(
            INTELS.replace(
                "containerEdits: {}", "annotations:\n  kind: intel.cdi.k8s.io/gpu", 1
            ).replace("\nkind: intel.cdi.k8s.io/gpu", "\nkind: a.com/b"),
            id="our kind in an annotation",
        ),
    ],
)
def test_the_library_resolves_ours_beside_what_we_take_for_no_rival(
    directory: Path, inventory: Inventory, text: str
) -> None:
    (directory / "other.yaml").write_text(text)
    cdi.refresh(directory, inventory, ByPath.NONE)
    assert len(devices(directory, *map(cdi.qualified_name, inventory.cards))) == 16
