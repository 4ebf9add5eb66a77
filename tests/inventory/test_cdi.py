import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xelink.inventory import cdi
from xelink.inventory.by_path import ByPath
from xelink.inventory.cdi import KIND
from xelink.inventory.cdi_rivals import defined
from xelink.inventory.devfs import DeviceNode, Mount, Roots
from xelink.inventory.gpus import Card, Inventory, scan
from xelink.simulators.node.sysfs import NodeTree

FIRST = "0000:29:00.0"
EVERY = frozenset(f"card{number}" for number in range(1, 9))
HOST = "/var/lib/tree"  # where the host has the simulated tree


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    return NodeTree.eight_max_1550(tmp_path / "node")


@pytest.fixture
def inventory(node: NodeTree) -> Inventory:
    return scan(Roots.under(node.root, HOST))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run/cdi"


def read(directory: Path) -> Any:  # noqa: ANN401  # JSON
    return json.loads((directory / cdi.FILE_NAME).read_text())


def written(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced; to read it changes another time."""
    told = path.stat()
    return told.st_ino, told.st_mode, told.st_size, told.st_mtime_ns, told.st_ctime_ns


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
    assert not cdi.refresh(directory, Inventory(), ByPath.SINGLE).changed
    assert not directory.exists()


def test_the_file_appears_whole_and_readable(directory: Path, inventory: Inventory) -> None:
    standing = cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert standing == (EVERY, "", True)
    assert [path.name for path in directory.iterdir()] == ["intel.cdi.k8s.io-gpu.json"]
    assert stat.S_IMODE((directory / cdi.FILE_NAME).stat().st_mode) == 0o644
    assert_valid(read(directory))


def test_the_file_is_left_alone_until_it_differs(directory: Path, inventory: Inventory) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    before = written(directory / cdi.FILE_NAME)
    assert cdi.refresh(directory, inventory, ByPath.SINGLE) == (EVERY, "", False)
    assert written(directory / cdi.FILE_NAME) == before
    fewer = replace(inventory, cards=inventory.cards[1:])
    assert cdi.refresh(directory, fewer, ByPath.SINGLE) == (EVERY - {"card1"}, "", True)
    assert "card1" not in [device["name"] for device in read(directory)["devices"]]
    assert cdi.refresh(directory, fewer, ByPath.NONE).changed


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
    assert cdi.refresh(directory, swapped, ByPath.SINGLE).changed
    assert (directory / cdi.FILE_NAME).stat().st_size == before
    edits = {device["name"]: device["containerEdits"] for device in read(directory)["devices"]}
    assert edits["card2"]["mounts"][0]["hostPath"].endswith(f"pci-{FIRST}-card")


def test_health_that_comes_and_goes_rewrites_nothing(
    directory: Path, node: NodeTree, inventory: Inventory
) -> None:
    cdi.refresh(directory, inventory, ByPath.NONE)
    node.lose_node(FIRST)
    sick = scan(Roots.under(node.root, HOST))
    assert not sick.cards[0].healthy
    assert not cdi.refresh(directory, sick, ByPath.NONE).changed


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
    assert cdi.refresh(directory, inventory, ByPath.SINGLE).changed
    assert not path.is_symlink()
    assert path.read_bytes() == whole
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_last_card_takes_the_file_with_it(directory: Path, inventory: Inventory) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert cdi.refresh(directory, Inventory(), ByPath.SINGLE) == (frozenset(), "", True)
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


def test_what_a_killed_writer_left_goes_with_the_file(
    directory: Path, inventory: Inventory
) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    (directory / ".intel.cdi.k8s.io-gpu.json.abc123").write_text("half")
    assert cdi.remove(directory)
    assert not [*directory.iterdir()]


def test_a_directory_that_cannot_be_is_an_error(tmp_path: Path, inventory: Inventory) -> None:
    (tmp_path / "file").write_text("")
    standing = cdi.refresh(tmp_path / "file/cdi", inventory, ByPath.SINGLE)
    assert not standing.named
    assert standing.error.startswith(f"cannot write {tmp_path}/file/cdi/{cdi.FILE_NAME}: ")
    with pytest.raises(cdi.CdiError, match="cannot remove"):
        cdi.remove(tmp_path / "file/cdi")


def test_a_failed_write_leaves_what_stood_and_nothing_else(
    directory: Path, inventory: Inventory
) -> None:
    (directory / cdi.FILE_NAME / "occupied").mkdir(parents=True)
    standing = cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert not standing.named
    assert standing.error.endswith("Is a directory")
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


JSON = '{"kind": "intel.cdi.k8s.io/gpu", "devices": [{"name":"card8"}, {"name":"card1"}]}'
VENDORS = "kind: vendor.com/gpu\ndevices:\n- name: card1\n"


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("intel.cdi.k8s.io-gpu-card1.yaml", INTELS, {"card1"}),
        (
            "two.yaml",
            INTELS.replace("name: card1", "name: card1\n- name: card3"),
            {"card1", "card3"},
        ),
        (
            "quotes.yaml",
            "'kind' : \"intel.cdi.k8s.io/gpu\"\ndevices: [\n-  'name':  'card1' # 1\n",
            {"card1"},
        ),
        ("windows.yaml", INTELS.replace("\n", "\r\n"), {"card1"}),
        ("returns.yaml", INTELS.replace("\n", "\r"), {"card1"}),
        ("remarks.yaml", INTELS.replace("o/gpu\n", "o/gpu # ours\n"), {"card1"}),
        ("end.yaml", INTELS.rstrip(), {"card1"}),
        ("old.json", JSON, {"card1", "card8"}),
        (
            "escaped.json",
            JSON.replace("/gpu", r"\/gpu").replace("card8", r"\u0063ard8"),
            {"card1", "card8"},
        ),
        ("json.yaml", JSON, {"card1", "card8"}),
        ("yaml.json", INTELS, {"card1"}),
        ("other.yaml", INTELS.replace("name: card1", "name: card9"), set()),
        ("longer.yaml", INTELS.replace("name: card1", "name: card12"), set()),
        ("number.yaml", INTELS.replace("name: card1", "name: card1#2"), set()),
        ("mei.yaml", INTELS.replace("io/gpu", "io/gpu-mei"), set()),
        ("vendor.yaml", INTELS.replace("intel.cdi", "vendor.intel.cdi"), set()),
        (
            "comment.yaml",
            f"# not kind: intel.cdi.k8s.io/gpu\n#kind: intel.cdi.k8s.io/gpu\n{VENDORS}",
            set(),
        ),
        ("note.yaml", f"annotations:\n  kind: intel.cdi.k8s.io/gpu\n{VENDORS}", set()),
        ("words.yaml", INTELS.replace("name: card1", "name: gpu # was card1"), set()),
        ("key.yaml", INTELS.replace("name: card1", "hostname: card1"), set()),
        ("vendor.json", JSON.replace("intel.cdi.k8s.io", "vendor.com"), set()),
        (
            "note.json",
            JSON.replace("kind", "for").replace("{", '{"kind": "a.b/c", ', 1),
            set(),
        ),
        (
            "edits.json",
            JSON.replace("name", "env").replace("card8", "name: card1"),
            set(),
        ),
        (
            "odd.json",
            '{"kind": "intel.cdi.k8s.io/gpu", "devices": [7, {"name": 8}, {}, {"name": null}]}',
            set(),
        ),
        ("object.json", '{"kind": "intel.cdi.k8s.io/gpu", "devices": {"name": "card1"}}', set()),
        ("list.json", f"[{JSON}]", set()),
        ("deep.json", "[" * 500_000, set()),
        ("digits.json", '{"kind": %s}' % ("9" * 100_000), set()),
        ("binary.json", "\0" * 1000, set()),
        ("note.txt", INTELS, set()),
        ("empty.yaml", "", set()),
    ],
    ids=lambda value: (
        value if isinstance(value, str) and value.count(".") and len(value) < 40 else ""
    ),
)
def test_a_rival_is_a_spec_of_our_kind_that_defines_some_of_our_cards(
    directory: Path, inventory: Inventory, name: str, text: str, found: set[str]
) -> None:
    directory.mkdir(parents=True)
    (directory / name).write_bytes(text.encode())
    assert cdi.rivals(directory, inventory) == ((name,) if found else (), frozenset(found), ())


@given(
    st.dictionaries(
        st.sampled_from(["kind", "devices", "name", "x"]),
        st.recursive(
            st.sampled_from([KIND, "card1", 1, None]),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from(["kind", "name"]), inner)
            ),
        ),
    )
)
def test_whatever_json_says_is_looked_through(content: dict[str, Any]) -> None:
    found = defined(json.dumps(content).encode(), KIND)
    assert found <= {KIND, "card1"}
    assert not found or content["kind"] == KIND


@given(
    st.lists(st.from_regex(r"[a-z][a-z0-9_.:-]{0,20}", fullmatch=True), min_size=1, unique=True),
    st.integers(0, 1),
    st.sampled_from([None, '"', "'"]),
)
def test_what_a_program_writes_in_yaml_is_found(
    names: list[str],
    order: int,
    quotes: str | None,
) -> None:
    spec = {"kind": KIND, "devices": [{"containerEdits": {}, "name": name} for name in names]}
    text = yaml.safe_dump(spec, sort_keys=order == 1, default_style=quotes)
    assert {*names} <= defined(text.encode(), KIND)


@pytest.mark.parametrize(
    "part", [b"name:", b"name: 'a", b" - ", b"kind: ", b"name: a #", b"\t", b"name: a ", b"\r"]
)
def test_a_long_text_is_looked_through_in_linear_steps(part: bytes) -> None:
    """A quadratic search of this would take hours."""
    text = b"kind: intel.cdi.k8s.io/gpu\n" + part * ((1 << 20) // len(part))
    assert defined(text, KIND) <= {"a"}


def test_what_cannot_be_read_is_no_rival_and_what_is_endless_is_read_to_a_bound(
    directory: Path, inventory: Inventory
) -> None:
    assert cdi.rivals(directory, inventory) == ((), frozenset(), ())
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    (directory / "directory.json").mkdir()
    (directory / "dangling.json").symlink_to("nowhere")
    os.mkfifo(directory / "pipe.json")
    (directory / "endless.json").symlink_to("/dev/zero")
    (directory / "long.json").write_text(JSON + " " * ((1 << 20) - len(JSON)))
    with (directory / "huge.json").open("w") as huge:
        huge.truncate(1 << 40)
    found = cdi.rivals(directory, inventory)
    assert found == (("long.json",), frozenset({"card1", "card8"}), ("huge.json",))


def test_beside_a_file_too_long_to_be_looked_through_ours_stays_and_nothing_is_named(
    directory: Path, inventory: Inventory
) -> None:
    """Pods that have our names start again if it is harmless; new ones start whatever it is."""
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    before = written(directory / cdi.FILE_NAME)
    (directory / "huge.yaml").write_text("#" * (1 << 20) + "\n")
    standing = cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert (standing.named, standing.changed) == (frozenset(), False)
    assert standing.error == (
        "longer than 1048576 bytes, so that they may define the same devices:"
        f" {directory}/huge.yaml"
    )
    assert written(directory / cdi.FILE_NAME) == before


def test_ours_leaves_out_what_a_rival_defines_and_keeps_the_rest(
    directory: Path, inventory: Inventory
) -> None:
    """Of a device that two specs define a runtime takes neither; one in no spec it has not."""
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    rival = directory / "intel.cdi.k8s.io-gpu-card1.yaml"
    rival.write_text(INTELS)
    for first in (True, False):
        named, trouble, changed = cdi.refresh(directory, inventory, ByPath.SINGLE)
        assert (named, changed) == (EVERY - {"card1"}, first)
        assert trouble == (
            "other specs define the same devices (card1), so that ours leaves these out: stop what"
            f" wrote them, then rm {rival}"
        )
        assert_valid(read(directory))
        assert {device["name"] for device in read(directory)["devices"]} == named
    rival.unlink()
    assert cdi.refresh(directory, inventory, ByPath.SINGLE) == (EVERY, "", True)
    assert len(read(directory)["devices"]) == 8


def leave_every_card(directory: Path) -> list[Path]:
    """Leave what Intel's plugin does once it has allocated each."""
    paths = [directory / f"intel.cdi.k8s.io-gpu-card{number}.yaml" for number in range(1, 9)]
    for number, path in enumerate(paths, start=1):
        path.write_text(INTELS.replace("card1", f"card{number}"))
    return paths


def test_beside_rivals_of_every_card_no_spec_is_written_and_ours_goes(
    directory: Path, inventory: Inventory
) -> None:
    cdi.refresh(directory, inventory, ByPath.SINGLE)
    paths = leave_every_card(directory)
    for first in (True, False):
        standing = cdi.refresh(directory, inventory, ByPath.SINGLE)
        assert (standing.named, standing.changed) == (frozenset(), first)
        assert sorted(directory.iterdir()) == paths
    paths[0].unlink()
    assert cdi.refresh(directory, inventory, ByPath.SINGLE).named == {"card1"}


@pytest.mark.parametrize("every", [True, False], ids=["cannot remove", "cannot write"])
def test_where_ours_cannot_be_changed_both_that_and_the_rivals_are_told(
    directory: Path, inventory: Inventory, *, every: bool
) -> None:
    (directory / cdi.FILE_NAME / "occupied").mkdir(parents=True)
    paths = leave_every_card(directory)
    for path in paths[1:] if not every else []:
        path.unlink()
    named, trouble, _ = cdi.refresh(directory, inventory, ByPath.SINGLE)
    assert not named
    verb = "remove" if every else "write"
    assert trouble.startswith(f"cannot {verb} {directory}/{cdi.FILE_NAME}: Is a directory; other")
    assert str(paths[0]) in trouble


def test_a_node_without_cards_has_no_rival(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "left.yaml").write_text(INTELS)
    (directory / "huge.yaml").write_text("#" * (1 << 21))
    assert cdi.refresh(directory, Inventory(), ByPath.SINGLE) == (frozenset(), "", False)


def test_the_remedy_is_one_line_of_a_bounded_length(directory: Path, inventory: Inventory) -> None:
    directory.mkdir(parents=True)
    for number in range(20):
        (directory / f"a b\x1b[0m{number:02}.yaml").write_text(INTELS)
    said = cdi.refresh(directory, inventory, ByPath.SINGLE).error
    assert said.isprintable()
    assert said.count(".yaml'") == 16
    assert said.endswith(" (and 4 more)")
