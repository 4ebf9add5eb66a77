import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin import cdi
from device_plugin.devfs import DeviceNode, Mount, Roots
from device_plugin.devices import Card, Inventory, scan
from device_plugin.offers import ByPath
from device_plugin.simulator.node import Node

FIRST = "0000:29:00.0"
HOST = "/var/lib/tree"  # where the host has the simulated tree


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.eight_max_1550(tmp_path / "node")


@pytest.fixture
def inventory(node: Node) -> Inventory:
    return scan(Roots.under(node.root, HOST))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run/cdi"


def read(directory: Path) -> Any:  # noqa: ANN401  # JSON
    return json.loads((directory / cdi.FILE_NAME).read_text())


def assert_valid(spec: dict[str, Any]) -> None:
    """Check what the JSON schema and the text of CDI 0.5.0 demand of what we use."""
    assert spec.keys() == {"cdiVersion", "kind", "devices"}
    assert spec["cdiVersion"] == "0.5.0"
    vendor, _, class_ = spec["kind"].partition("/")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", vendor)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", class_)
    names = [device["name"] for device in spec["devices"]]
    assert names
    assert len(names) == len({*names})
    for device in spec["devices"]:
        assert device.keys() == {"name", "containerEdits"}
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]", device["name"])
        edits = device["containerEdits"]
        assert "deviceNodes" in edits
        assert edits.keys() <= {"deviceNodes", "mounts"}
        for entry in edits["deviceNodes"]:
            assert entry.keys() == {"path", "hostPath", "permissions"}
            assert entry["path"].startswith("/dev/")
            assert entry["permissions"] == "rw"
        for entry in edits.get("mounts", []):
            assert entry.keys() == {"hostPath", "containerPath", "type", "options"}
            assert all(isinstance(option, str) for option in entry["options"])


def test_a_gpu_is_a_cdi_device_with_its_nodes_and_links(inventory: Inventory) -> None:
    spec = cdi.spec(inventory, ByPath.SINGLE)
    assert spec is not None
    assert_valid(spec)
    dri = f"{HOST}/dev/dri"
    assert spec["devices"][0] == {
        "name": "card1",
        "containerEdits": {
            "deviceNodes": [
                {"path": "/dev/dri/card1", "hostPath": f"{dri}/card1", "permissions": "rw"},
                {
                    "path": "/dev/dri/renderD128",
                    "hostPath": f"{dri}/renderD128",
                    "permissions": "rw",
                },
            ],
            "mounts": [
                {
                    "hostPath": f"{dri}/by-path/pci-{FIRST}-{kind}",
                    "containerPath": f"/dev/dri/by-path/pci-{FIRST}-{kind}",
                    "type": "none",
                    "options": ["bind", "ro"],
                }
                for kind in ("card", "render")
            ],
        },
    }
    assert len(spec["devices"]) == 8


def test_a_card_is_named_as_in_its_spec(inventory: Inventory) -> None:
    assert cdi.qualified_name(inventory.cards[0]) == "intel.cdi.k8s.io/gpu=card1"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ByPath.SINGLE, [f"/dev/dri/by-path/pci-{FIRST}-{kind}" for kind in ("card", "render")]),
        (ByPath.NONE, []),
        (ByPath.ALL, ["/dev/dri/by-path"]),
    ],
)
def test_mounts_follow_the_by_path_mode(
    inventory: Inventory, mode: ByPath, expected: list[str]
) -> None:
    spec = cdi.spec(inventory, mode)
    assert spec is not None
    assert_valid(spec)
    edits = spec["devices"][0]["containerEdits"]
    assert [mount["containerPath"] for mount in edits.get("mounts", [])] == expected


@given(
    numbers=st.lists(st.integers(0, 999_999), unique=True, min_size=1, max_size=5),
    minors=st.integers(0, 3),
    mode=st.sampled_from(ByPath),
)
def test_every_inventory_with_cards_is_a_valid_spec(
    numbers: list[int], minors: int, mode: ByPath
) -> None:
    cards = tuple(
        Card(
            f"card{number}",
            f"0000:{index:02x}:00.0",
            "xe",
            0x56C0,
            nodes=tuple(
                DeviceNode(f"/dev/dri/renderD{minor}", f"/dev/dri/renderD{minor}")
                for minor in range(minors)
            ),
            by_path=(Mount("/dev/dri/by-path/a", "/dev/dri/by-path/a"),),
        )
        for index, number in enumerate(numbers)
    )
    spec = cdi.spec(Inventory(cards), mode)
    assert spec is not None
    assert_valid(json.loads(json.dumps(spec)))


def test_no_cards_are_no_spec(directory: Path) -> None:
    assert cdi.spec(Inventory(), ByPath.SINGLE) is None
    assert not cdi.refresh(directory, Inventory(), ByPath.SINGLE)
    assert not directory.exists()


def test_the_file_appears_whole_and_readable(directory: Path, inventory: Inventory) -> None:
    assert cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert [path.name for path in directory.iterdir()] == ["intel.cdi.k8s.io-gpu.json"]
    assert stat.S_IMODE((directory / cdi.FILE_NAME).stat().st_mode) == 0o644
    assert_valid(read(directory))


def test_the_file_is_left_alone_until_it_differs(directory: Path, inventory: Inventory) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    before = (directory / cdi.FILE_NAME).stat()
    assert not cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert (directory / cdi.FILE_NAME).stat() == before
    fewer = replace(inventory, cards=inventory.cards[1:])
    assert cdi.refresh(directory, fewer, ByPath.SINGLE)
    assert "card1" not in [device["name"] for device in read(directory)["devices"]]
    assert cdi.refresh(directory, fewer, ByPath.NONE)


def test_cards_that_change_their_numbers_are_told_anew(
    directory: Path, inventory: Inventory
) -> None:
    """A name that leads to another GPU than it says would give a container that one."""
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    first, second, *others = inventory.cards
    swapped = replace(
        inventory,
        cards=(replace(first, name=second.name), replace(second, name=first.name), *others),
    )
    before = (directory / cdi.FILE_NAME).stat().st_size
    assert cdi.refresh(directory, swapped, ByPath.SINGLE)
    assert (directory / cdi.FILE_NAME).stat().st_size == before
    edits = {device["name"]: device["containerEdits"] for device in read(directory)["devices"]}
    assert edits["card2"]["mounts"][0]["hostPath"].endswith(f"pci-{FIRST}-card")


def test_health_that_comes_and_goes_rewrites_nothing(
    directory: Path, node: Node, inventory: Inventory
) -> None:
    cdi.refresh(directory, inventory, ByPath.NONE)
    node.lose_node(FIRST)
    sick = scan(Roots.under(node.root, HOST))
    assert not sick.cards[0].healthy
    assert not cdi.refresh(directory, sick, ByPath.NONE)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_text("{"), id="half a file"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"card1", b"card9")),
            id="as long as it was",
        ),
        pytest.param(lambda path: path.chmod(0o600), id="not readable by all"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(
            lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved"),
            id="a link",
        ),
    ],
)
def test_a_spoiled_file_is_written_again(
    directory: Path, inventory: Inventory, spoil: object
) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    path = directory / cdi.FILE_NAME
    whole = path.read_bytes()
    assert callable(spoil)
    spoil(path)
    assert cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert not path.is_symlink()
    assert path.read_bytes() == whole
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_last_card_takes_the_file_with_it(directory: Path, inventory: Inventory) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert cdi.refresh(directory, Inventory(), ByPath.SINGLE)
    assert not list(directory.iterdir())


def test_the_file_can_be_removed_once(directory: Path, inventory: Inventory) -> None:
    assert not cdi.remove(directory)
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert cdi.remove(directory)
    assert not cdi.remove(directory)


def test_what_a_killed_writer_left_is_swept(directory: Path, inventory: Inventory) -> None:
    directory.mkdir(parents=True)
    (directory / ".intel.cdi.k8s.io-gpu.json.abc123").write_text("half")
    (directory / "nvidia.com-gpu.json").write_text("{}")
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert {path.name for path in directory.iterdir()} == {cdi.FILE_NAME, "nvidia.com-gpu.json"}


def test_a_directory_that_cannot_be_is_an_error(tmp_path: Path, inventory: Inventory) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(cdi.CdiError, match="cannot write"):
        cdi.refresh(tmp_path / "file/cdi", inventory, ByPath.SINGLE)
    with pytest.raises(cdi.CdiError, match="cannot remove"):
        cdi.remove(tmp_path / "file/cdi")


def test_a_failed_write_leaves_what_stood_and_nothing_else(
    directory: Path, inventory: Inventory
) -> None:
    (directory / cdi.FILE_NAME / "occupied").mkdir(parents=True)
    with pytest.raises(cdi.CdiError, match="Is a directory"):
        cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert [path.name for path in directory.iterdir()] == [cdi.FILE_NAME]
    with pytest.raises(cdi.CdiError, match="cannot remove"):
        cdi.remove(directory)


INTELS = """---
cdiVersion: 0.5.0
containerEdits: {}
devices:
- containerEdits:
    deviceNodes:
    - hostPath: /dev/dri/card1
      path: /dev/dri/card1
      permissions: rw
  name: card1
kind: intel.cdi.k8s.io/gpu
"""  # as Intel's plugin writes it


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("intel.cdi.k8s.io-gpu-card1.yaml", INTELS, True),
        ("old.json", '{"kind": "intel.cdi.k8s.io/gpu", "devices": [{"name":"card8"}]}', True),
        ("flow.yaml", "{kind: intel.cdi.k8s.io/gpu, devices: [{name: 'card1'}]}", True),
        ("other.yaml", INTELS.replace("name: card1", "name: card9"), False),
        ("longer.yaml", INTELS.replace("name: card1", "name: card12"), False),
        ("mei.yaml", INTELS.replace("io/gpu", "io/gpu-mei"), False),
        ("vendor.yaml", INTELS.replace("intel.cdi", "vendor.intel.cdi"), False),
        ("vendor.json", '{"kind": "vendor.com/gpu", "devices": [{"name":"card1"}]}', False),
        ("note.txt", INTELS, False),
        ("empty.yaml", "", False),
    ],
)
def test_a_rival_is_a_spec_of_our_kind_that_names_one_of_our_cards(
    directory: Path, inventory: Inventory, name: str, text: str, *, found: bool
) -> None:
    directory.mkdir(parents=True)
    (directory / name).write_text(text)
    assert cdi.rivals(directory, inventory) == ((name,) if found else ())


def test_what_cannot_be_read_is_no_rival_and_what_is_endless_is_read_to_a_bound(
    directory: Path, inventory: Inventory
) -> None:
    assert cdi.rivals(directory, inventory) == ()
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    (directory / "directory.json").mkdir()
    (directory / "dangling.json").symlink_to("nowhere")
    os.mkfifo(directory / "pipe.json")
    (directory / "endless.json").symlink_to("/dev/zero")
    with (directory / "huge.json").open("w") as huge:
        huge.write("kind: intel.cdi.k8s.io/gpu\n")
        huge.truncate(1 << 40)
    assert cdi.rivals(directory, inventory) == ("huge.json",)


def test_beside_a_rival_no_spec_is_written_and_ours_goes(
    directory: Path, inventory: Inventory
) -> None:
    """Of a device that two specs define a runtime takes neither."""
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    rival = directory / "intel.cdi.k8s.io-gpu-card1.yaml"
    rival.write_text(INTELS)
    for _ in range(2):
        with pytest.raises(cdi.RivalError, match=f"then rm {re.escape(str(rival))}$"):
            cdi.refresh(directory, inventory, ByPath.SINGLE)
        assert [path.name for path in directory.iterdir()] == [rival.name]
    rival.unlink()
    assert cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert_valid(read(directory))


def test_a_node_without_cards_has_no_rival(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "left.yaml").write_text(INTELS)
    assert not cdi.refresh(directory, Inventory(), ByPath.SINGLE)


def test_the_remedy_is_one_line_of_a_bounded_length(directory: Path, inventory: Inventory) -> None:
    directory.mkdir(parents=True)
    for number in range(20):
        (directory / f"a b\x1b[0m{number:02}.yaml").write_text(INTELS)
    with pytest.raises(cdi.RivalError) as raised:
        cdi.refresh(directory, inventory, ByPath.SINGLE)
    said = str(raised.value)
    assert said.isprintable()
    assert said.count(".yaml'") == 16
    assert said.endswith(" (and 4 more)")
