import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_plugin.resources import Device, Monitoring, ResourceOptions, devices
from xelink.inventory import devfs, sysfs
from xelink.inventory.by_path import ByPath, mounts
from xelink.inventory.devfs import DeviceNode, Mount, Roots
from xelink.inventory.gpus import (
    Card,
    DriState,
    ExcludedGpu,
    Exclusion,
    Inventory,
    Problem,
    ScanError,
    fingerprint,
    scan,
)
from xelink.simulators.node.sysfs import Damage, NodeTree, PciGpu

FIRST = "0000:29:00.0"
SECOND = "0000:3a:00.0"


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    return NodeTree.eight_max_1550(tmp_path)


def look(
    node: NodeTree, allow: frozenset[int] = frozenset(), deny: frozenset[int] = frozenset()
) -> Inventory:
    return scan(Roots.under(node.root, node.root), allow, deny)


def cards(inventory: Inventory) -> list[str]:
    return [card.name for card in inventory.cards]


# The scan


def test_a_max_node_is_told_in_full(node: NodeTree) -> None:
    inventory = look(node)
    dri = f"{node.root}/dev/dri"
    assert inventory.cards[4] == Card(
        name="card5",
        bdf="0000:9a:00.0",
        driver="i915",
        device_id=0x0BD5,
        numa=1,
        tiles=2,
        bridges=("pci0000:9a",),
        nodes=(
            DeviceNode("/dev/dri/card5", f"{dri}/card5"),
            DeviceNode("/dev/dri/renderD132", f"{dri}/renderD132"),
        ),
        by_path=(
            Mount("/dev/dri/by-path/pci-0000:9a:00.0-card", f"{dri}/by-path/pci-0000:9a:00.0-card"),
            Mount(
                "/dev/dri/by-path/pci-0000:9a:00.0-render",
                f"{dri}/by-path/pci-0000:9a:00.0-render",
            ),
        ),
        mei=(DeviceNode("/dev/mei4", f"{node.root}/dev/mei4"),),
    )
    assert cards(inventory) == [f"card{number}" for number in range(1, 9)]
    assert [card.numa for card in inventory.cards] == [0] * 4 + [1] * 4
    assert {card.model for card in inventory.cards} == {"Data Center GPU Max 1550"}
    assert all(card.healthy and not card.is_vf for card in inventory.cards)
    assert not inventory.excluded
    assert not inventory.problems


def test_equal_nodes_are_equal_values(node: NodeTree) -> None:
    assert look(node) == look(node)
    assert hash(look(node)) == hash(look(node))


def test_cards_are_in_the_order_of_pci_addresses_read_as_numbers(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    for number, bdf in enumerate(
        ("10000:01:00.0", "2000:01:00.0", "0000:ab:00.0", "0000:0c:01.0", "0000:0c:00.1")
    ):
        node.add(PciGpu(bdf, number))
    assert cards(look(node)) == ["card4", "card3", "card2", "card1", "card0"]


def test_no_driver_loaded_is_a_node_without_gpus(tmp_path: Path) -> None:
    assert look(NodeTree(tmp_path)) == Inventory()


def test_cards_of_others_are_none_of_ours(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu("0000:03:00.0", 0, driver="ast", vendor=0x1A03))
    virtual = tmp_path / "sys/devices/virtual/drm/card1"
    virtual.mkdir(parents=True)
    (tmp_path / "sys/class/drm/card1").symlink_to(virtual)
    platform = tmp_path / "sys/devices/platform/simple-framebuffer.0"
    (platform / "drm/card2").mkdir(parents=True)
    (platform / "drm/card2/device").symlink_to(platform)
    (tmp_path / "sys/class/drm/card2").symlink_to(platform / "drm/card2")
    (tmp_path / "sys/class/drm/card0-DP-1").mkdir()
    inventory = look(node)
    assert (inventory.cards, inventory.excluded, inventory.problems) == ((), (), ())


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda root: (root / "sys").rename(root / "gone"), id="no sysfs"),
        pytest.param(
            lambda root: (
                (root / "sys/class/drm").rename(root / "gone")
                and (root / "sys/class/drm").write_text("")
            ),
            id="the class is a file",
        ),
        pytest.param(
            lambda root: (
                (root / "sys/class/drm").rename(root / "gone")
                and (root / "sys/class/drm").symlink_to("nowhere")
            ),
            id="the class leads nowhere",
        ),
    ],
)
def test_a_node_that_cannot_be_looked_at_is_an_error(node: NodeTree, spoil: object) -> None:
    assert callable(spoil)
    spoil(node.root)
    with pytest.raises(ScanError, match="sys"):
        look(node)


def test_a_node_that_is_taken_away_during_a_scan_is_no_node_without_gpus(
    node: NodeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_part(*_: object) -> tuple[ExcludedGpu, ...]:
        (node.root / "sys").rename(node.root / "gone")
        return ()

    monkeypatch.setattr("xelink.inventory.gpus._without_card", last_part)
    with pytest.raises(ScanError, match="no sysfs"):
        look(node)


def test_control_nodes_are_skipped(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu(FIRST, 1, render=128, control=64))
    (tmp_path / "dev/dri/controlD64").touch()
    [card] = look(node).cards
    assert [entry.container_path for entry in card.nodes] == [
        "/dev/dri/card1",
        "/dev/dri/renderD128",
    ]


@pytest.mark.parametrize(
    ("driver", "device_id", "tiles", "expected"),
    [
        pytest.param("i915", 0x0BD5, 2, 2, id="a GT is a tile on the Max series"),
        pytest.param("i915", 0x56C0, 1, 1, id="one GT is one tile"),
        pytest.param("i915", 0x7D55, 2, None, id="a second GT of a client GPU may be media"),
        pytest.param("i915", 0x0BD5, 0, None, id="an old i915 tells no GTs"),
        pytest.param("xe", 0x0BD5, 2, 2, id="xe tells tiles"),
        pytest.param("xe", 0x7D55, 1, 1, id="xe tells tiles of any GPU"),
    ],
)
def test_tiles_are_told_only_for_certain(
    tmp_path: Path, driver: str, device_id: int, tiles: int, expected: int | None
) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu(FIRST, 1, driver=driver, device_id=device_id, tiles=tiles))
    [card] = look(node).cards
    assert card.tiles == expected


@pytest.mark.parametrize(
    ("text", "numa", "problems"),
    [
        pytest.param("1\n", 1, 0, id="known"),
        pytest.param("-1\n", None, 0, id="unknown to the kernel"),
        pytest.param(None, None, 0, id="no file"),
        pytest.param("4294967295\n", None, 1, id="no such node"),
        pytest.param("-2\n", None, 1, id="negative"),
        pytest.param("", None, 1, id="empty"),
    ],
)
def test_an_unknown_numa_node_never_keeps_a_card_back(
    node: NodeTree, text: str | None, numa: int | None, problems: int
) -> None:
    path = node.damage(FIRST, "numa_node", Damage.MISSING)
    if text is not None:
        path.write_text(text)
    inventory = look(node)
    assert inventory.cards[0].numa == numa
    assert len(inventory.cards) == 8
    assert [problem.name for problem in inventory.problems] == ["card1"] * problems


# What is not offered


@pytest.mark.parametrize(
    ("allow", "deny", "offered", "reason"),
    [
        pytest.param({0x0BD5}, set(), ["card1"], Exclusion.NOT_ALLOWED, id="allow"),
        pytest.param(set(), {0x56C0}, ["card1"], Exclusion.DENIED, id="deny"),
        pytest.param({0x56C0}, set(), ["card2"], Exclusion.NOT_ALLOWED, id="allow the other"),
    ],
)
def test_device_ids_are_allowed_and_denied(
    tmp_path: Path, allow: set[int], deny: set[int], offered: list[str], reason: Exclusion
) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu(FIRST, 1))
    node.add(PciGpu(SECOND, 2, device_id=0x56C0))
    inventory = look(node, frozenset(allow), frozenset(deny))
    assert cards(inventory) == offered
    assert [withheld.reason for withheld in inventory.excluded] == [reason]
    assert [card.name for card in inventory.monitored] == offered


@pytest.mark.parametrize(
    ("driver", "reason"),
    [("vfio-pci", Exclusion.OTHER_DRIVER), (None, Exclusion.NO_DRIVER)],
)
def test_a_gpu_without_our_driver_is_told_and_is_no_problem(
    node: NodeTree, driver: str | None, reason: Exclusion
) -> None:
    node.rebind(FIRST, driver)
    inventory = look(node)
    assert cards(inventory) == [f"card{number}" for number in range(2, 9)]
    assert inventory.excluded == (ExcludedGpu(FIRST, reason, None, driver),)
    assert not inventory.problems
    assert str(inventory.excluded[0]).startswith(f"GPU at {FIRST} is not advertised: ")


def test_a_card_of_another_driver_is_told_by_name(node: NodeTree) -> None:
    path = node.damage(FIRST, "driver", Damage.MISSING)
    path.symlink_to("../../../bus/pci/drivers/nouveau")
    [withheld] = look(node).excluded
    expected = f"card1 at {FIRST} is not advertised: its driver is not one of ours (nouveau)"
    assert str(withheld) == expected


def test_a_driver_that_made_no_card_is_told(node: NodeTree) -> None:
    (node.root / "sys/class/drm/card1").unlink()
    [withheld] = look(node).excluded
    assert (withheld.bdf, withheld.reason) == (FIRST, Exclusion.NO_CARD)


def test_a_function_that_could_not_be_told_is_asked_again(node: NodeTree) -> None:
    node.rebind(FIRST, None)
    path = node.damage(FIRST, "class", Damage.NONSENSE)
    assert look(node).excluded == ()
    path.write_text("0x038000\n")
    assert [withheld.bdf for withheld in look(node).excluded] == [FIRST]


def test_what_a_function_is_is_asked_once_while_the_same_ones_are_there(node: NodeTree) -> None:
    functions = node.root / "sys/bus/pci/devices"
    (functions / "0000:fe:00.0").mkdir()
    (functions / "0000:fe:00.0/class").write_text("0x020000\n")
    (functions / "0000:fe:00.0/vendor").write_text("0x8086\n")
    assert look(node).excluded == ()
    (functions / "0000:fe:00.0/class").unlink()
    (functions / "0000:fe:00.0/class").write_text("0x030000\n")
    assert look(node).excluded == (), "no such function changes in its place"
    (functions / "0000:ff:00.0").mkdir()
    assert [withheld.bdf for withheld in look(node).excluded] == ["0000:fe:00.0"]


def test_functions_that_come_and_go_are_asked(node: NodeTree) -> None:
    functions = node.root / "sys/bus/pci/devices"
    assert look(node).excluded == ()
    (functions / "0000:fe:00.0").mkdir()
    (functions / "0000:fe:00.0/class").write_text("0x030000\n")
    (functions / "0000:fe:00.0/vendor").write_text("0x8086\n")
    assert [withheld.bdf for withheld in look(node).excluded] == ["0000:fe:00.0"]
    (functions / "0000:fe:00.0").rename(functions / "0000:ff:00.0")
    assert [withheld.bdf for withheld in look(node).excluded] == ["0000:ff:00.0"]


def test_pci_functions_that_are_no_intel_gpus_are_not_mentioned(node: NodeTree) -> None:
    for bdf, vendor, kind in (
        ("0000:01:00.0", "0x8086", "0x020000"),
        ("0000:02:00.0", "0x10de", "0x030200"),
        ("0000:04:00.0", "garbage", "0x030200"),
        ("not-an-address", "0x8086", "0x030000"),
    ):
        device = node.root / "sys/bus/pci/devices" / bdf
        device.mkdir()
        (device / "vendor").write_text(vendor)
        (device / "class").write_text(kind)
    inventory = look(node)
    assert not inventory.excluded
    assert not inventory.problems


def test_vfs_stand_in_for_their_physical_function(node: NodeTree) -> None:
    node.enable_vfs(FIRST, 2)
    inventory = look(node)
    assert [card.bdf for card in inventory.cards][:3] == ["0000:29:00.1", "0000:29:00.2", SECOND]
    assert [card.physfn for card in inventory.cards][:3] == [FIRST, FIRST, None]
    assert [card.is_vf for card in inventory.cards][:3] == [True, True, False]
    [withheld] = inventory.excluded
    assert (withheld.bdf, withheld.reason) == (FIRST, Exclusion.VFS_ON)
    assert FIRST in [card.bdf for card in inventory.monitored]
    node.disable_vfs(FIRST)
    assert cards(look(node)) == [f"card{number}" for number in range(1, 9)]


def test_vfs_that_are_passed_through_are_not_offered(node: NodeTree) -> None:
    node.enable_vfs(FIRST, 2, driver="vfio-pci")
    inventory = look(node)
    assert cards(inventory) == [f"card{number}" for number in range(2, 9)]
    assert [withheld.reason for withheld in inventory.excluded] == [
        Exclusion.VFS_ON,
        Exclusion.OTHER_DRIVER,
        Exclusion.OTHER_DRIVER,
    ]


# What breaks


ESSENTIAL = ("vendor", "device", "driver", "sriov_numvfs", "drm", "drm/card1/device")
# (what, how) after which nothing is unclear: the file still says the same, SR-IOV is not there,
# the driver is none or another one, the card is not that of an Intel GPU
HARMLESS = {
    ("vendor", Damage.FILE),
    ("vendor", Damage.MISSING),
    ("device", Damage.FILE),
    ("sriov_numvfs", Damage.MISSING),
    ("driver", Damage.MISSING),
    ("driver", Damage.UNREADABLE),
    ("driver", Damage.DANGLING),
    ("driver", Damage.LOOP),
    ("drm/card1/device", Damage.MISSING),
    ("drm/card1/device", Damage.DIRECTORY),
}


@pytest.mark.parametrize("damage", Damage, ids=lambda damage: damage.value)
@pytest.mark.parametrize("name", ESSENTIAL)
def test_a_broken_card_is_a_problem_and_hides_no_other(
    node: NodeTree, name: str, damage: Damage
) -> None:
    before = look(node)
    node.damage(FIRST, name, damage)
    inventory = look(node)
    assert inventory.cards[-7:] == before.cards[1:]
    if (name, damage) not in HARMLESS:
        assert [problem.name for problem in inventory.problems] == ["card1"]
        assert cards(inventory) == [f"card{number}" for number in range(2, 9)]
        assert str(inventory.problems[0]).startswith("card1")
    node.repair(FIRST)
    assert look(node) == before


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        pytest.param("vendor", Damage.UNREADABLE, "vendor: Input/output error", id="unreadable"),
        pytest.param("vendor", Damage.DIRECTORY, "vendor: Is a directory", id="directory"),
        pytest.param("vendor", Damage.DANGLING, "vendor: leads nowhere", id="dangling"),
        pytest.param("vendor", Damage.NOT_TEXT, "vendor: not text", id="not text"),
        pytest.param("vendor", Damage.HUGE, "vendor: longer than any attribute", id="huge"),
        pytest.param("vendor", Damage.PIPE, "vendor: not a number, ''", id="pipe"),
        pytest.param(
            "vendor", Damage.NONSENSE, "vendor: not a number, '0xzz and more'", id="nonsense"
        ),
        pytest.param("driver", Damage.FILE, "driver: Invalid argument", id="no link"),
        pytest.param("drm", Damage.MISSING, "it leads to no device", id="no drm"),
        pytest.param("drm/card1/device", Damage.LOOP, "it leads to no device", id="loop"),
        pytest.param("drm/card1/device", Damage.DANGLING, "it leads to no device", id="no device"),
    ],
)
def test_a_problem_says_what_is_wrong(
    node: NodeTree, name: str, damage: Damage, message: str
) -> None:
    node.damage(FIRST, name, damage)
    assert [problem.message for problem in look(node).problems] == [message]


def test_a_card_whose_link_leads_nowhere_is_a_problem(node: NodeTree) -> None:
    link = node.root / "sys/class/drm/card1"
    link.unlink()
    link.symlink_to("../../devices/gone")
    assert look(node).problems == (Problem("card1", "it leads to no device"),)


def test_two_cards_are_never_one_gpu(node: NodeTree) -> None:
    link = node.damage(SECOND, "drm/card2/device", Damage.MISSING)
    link.symlink_to(node.device(FIRST))
    inventory = look(node)
    assert cards(inventory) == ["card1", *(f"card{number}" for number in range(3, 9))]
    assert [str(problem) for problem in inventory.problems] == [
        f"card2 at {FIRST}: it has the PCI address of card1"
    ]


def test_a_tree_without_links_tells_its_address_in_uevent(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    (device / "device").write_text("0x56c0\n")
    (device / "driver").symlink_to("../drivers/xe")
    roots = Roots.under(tmp_path)
    assert scan(roots).problems == (Problem("card0", "it has no PCI address"),)
    (device / "uevent").write_text("DRIVER=xe\nPCI_SLOT_NAME=0000:00:02.0\n")
    [problem] = scan(roots).problems
    assert str(problem) == "card0 at 0000:00:02.0: drm: No such file or directory"
    (device / "drm/card7").mkdir(parents=True)
    assert [problem.message for problem in scan(roots).problems] == [
        "its driver names no device node of it"
    ]
    (device / "drm/card0").mkdir()
    [card] = scan(roots).cards
    assert (card.bdf, card.driver, card.model) == ("0000:00:02.0", "xe", "Data Center GPU Flex 170")
    assert not card.healthy


SWITCH = ("0000:26:01.0", "0000:27:00.0")


def test_the_bridges_above_a_gpu_are_those_of_the_kernel_s_tree(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    for number, above in enumerate(((*SWITCH, "0000:28:00.0"), (*SWITCH, "0000:28:01.0"), ())):
        bdf = f"0000:{0x29 + number:02x}:00.0"
        node.add(PciGpu(bdf, number, render=128 + number, totalvfs=4, bridges=above))
    host = ("pci0000:26", *SWITCH)
    assert [card.bridges for card in look(node).cards] == [
        (*host, "0000:28:00.0"),
        (*host, "0000:28:01.0"),
        ("pci0000:2b",),
    ]
    node.enable_vfs("0000:29:00.0", 2)
    assert {card.bridges for card in look(node).cards if card.physfn} == {(*host, "0000:28:00.0")}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("platform/0000:29:00.0", id="no host bridge"),
        pytest.param("pci0000:29/a bridge/0000:29:00.0", id="what is no PCI address"),
        pytest.param("/".join(["pci0000:29", *["0000:29:01.0"] * 40, "0000:29:00.0"]), id="deep"),
    ],
)
def test_bridges_that_are_not_as_the_kernel_has_them_are_unknown(
    tmp_path: Path, place: str
) -> None:
    device = tmp_path / "sys/devices" / place
    device.mkdir(parents=True)
    assert sysfs.bridges(str(device)) == ()
    link = tmp_path / "loop"
    link.symlink_to("loop")
    assert sysfs.bridges(str(link)) == ()
    assert sysfs.bridges(str(tmp_path / "nothing")) == ()


def test_the_numa_node_of_a_bridge_counts_where_the_gpu_has_none(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    bridge = tmp_path / "sys/devices/pci0000:29/0000:29:01.0"
    for number, numa in enumerate((None, 1)):
        node.add(PciGpu(f"0000:{number:02x}:00.0", number, numa=numa, render=128 + number))
        below = bridge / f"0000:{number:02x}:00.0"
        below.parent.mkdir(parents=True, exist_ok=True)
        node.device(below.name).rename(below)
        for link in (
            tmp_path / f"sys/class/drm/card{number}",
            tmp_path / f"sys/class/drm/renderD{128 + number}",
            tmp_path / f"sys/bus/pci/devices/{below.name}",
        ):
            inside = below / "drm" / link.name if link.parent.name == "drm" else below
            link.unlink()
            link.symlink_to(inside)
        (below / "drm" / f"card{number}/device").unlink()
        (below / "drm" / f"card{number}/device").symlink_to(below)
    assert [card.numa for card in look(node).cards] == [None, 1]
    (bridge / "numa_node").write_text("-1\n")
    assert [card.numa for card in look(node).cards] == [None, 1]
    (bridge.parent / "numa_node").write_text("3\n")
    assert [card.numa for card in look(node).cards] == [3, 1]
    (bridge / "numa_node").write_text("2\n")
    assert [card.numa for card in look(node).cards] == [2, 1]
    (tmp_path / "sys/devices/numa_node").write_text("7\n")  # no device: of nobody
    (bridge / "numa_node").unlink()
    (bridge.parent / "numa_node").unlink()
    assert [card.numa for card in look(node).cards] == [None, 1]


TWO_SOCKETS = {0: "0-27,56-83", 1: "28-55,84-111", 2: ""}  # the third is memory only


@pytest.mark.parametrize(
    ("homes", "own", "above", "numa", "complaint"),
    [
        (TWO_SOCKETS, "28-55,84-111", None, 1, None),
        (TWO_SOCKETS, "84", None, 1, None),
        (TWO_SOCKETS, None, "0-27,56-83", 0, None),
        (TWO_SOCKETS, "0-111", "28-55,84-111", 1, None),
        (TWO_SOCKETS, "0-111", None, None, None),
        (TWO_SOCKETS, "", None, None, None),
        (TWO_SOCKETS, "500-600", None, None, None),
        ({0: "0-55"}, "0-55", None, None, None),
        ({}, "0-55", None, None, None),
        (TWO_SOCKETS, "0-9999", None, None, None),
        (TWO_SOCKETS, "ff,ff", None, None, "local_cpulist: not a list of CPUs, 'ff,ff'"),
        (TWO_SOCKETS, "ff,ff", "28-55", 1, None),
        ({**TWO_SOCKETS, 1: "all"}, "3", None, None, "cpulist: not a list of CPUs, 'all'"),
    ],
    ids=[
        "its own",
        "a part of them",
        "of the bridge",
        "its own are all",
        "all are no nearness",
        "no CPU",
        "CPUs of nobody",
        "one node",
        "no nodes",
        "beyond the last",
        "a mask",
        "a mask below a bridge that tells",
        "a broken node",
    ],
)
def test_the_cpus_near_a_gpu_tell_its_node_where_nothing_else_does(
    node: NodeTree,
    homes: dict[int, str],
    own: str | None,
    above: str | None,
    numa: int | None,
    complaint: str | None,
) -> None:
    device = node.device(FIRST)
    (device / "numa_node").write_text("-1\n")
    system = node.root / "sys/devices/system/node"
    for number, cpus in homes.items():
        (system / f"node{number}").mkdir(parents=True)
        (system / f"node{number}/cpulist").write_text(f"{cpus}\n")
    for place, near in ((device, own), (device.parent, above)):
        if near is not None:
            (place / "local_cpulist").write_text(f"{near}\n")
    inventory = look(node)
    assert inventory.cards[0].numa == numa
    assert [problem.message for problem in inventory.problems] == (
        [f"its NUMA node is unknown: {complaint}"] if complaint else []
    )


@pytest.mark.parametrize(
    ("numa", "complaint"),
    [("0xzz", "its NUMA node is unknown: numa_node: not a number, '0xzz'"), ("-1", None)],
    ids=["nonsense", "nothing"],
)
def test_a_bridge_that_tells_nothing_keeps_no_card_back(
    node: NodeTree, numa: str, complaint: str | None
) -> None:
    (node.device(FIRST) / "numa_node").write_text("-1\n")
    (node.device(FIRST).parent / "numa_node").write_text(f"{numa}\n")
    inventory = look(node)
    assert inventory.cards[0].numa is None
    assert [problem.message for problem in inventory.problems] == ([complaint] if complaint else [])


@pytest.mark.parametrize(
    ("lose", "complaint"),
    [
        pytest.param([], None, id="all there"),
        pytest.param(["card1"], "/dev/dri/card1 is not there", id="one"),
        pytest.param(
            ["card1", "renderD128"],
            "/dev/dri/card1, /dev/dri/renderD128 are not there",
            id="both",
        ),
    ],
)
def test_a_card_says_which_device_node_is_not_there(
    node: NodeTree, lose: list[str], complaint: str | None
) -> None:
    for minor in lose:
        node.lose_node(FIRST, minor)
    inventory = look(node)
    assert inventory.cards[0].complaint == complaint
    assert inventory.dri is DriState.FINE


def test_a_card_without_a_render_node_is_unhealthy(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu(FIRST, 1))
    (card,) = look(node).cards
    assert not card.healthy
    assert card.complaint == "it has no render node, which is what computes"


@contextmanager
def mounted(node: NodeTree, prefix: Path) -> Iterator[Roots]:
    """See the node's `/dev/dri` of now for ever, as a mount of it does."""
    dri = os.open(node.root / "dev/dri", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (prefix / "dev").mkdir(parents=True)
        (prefix / "dev/dri").symlink_to(f"/proc/{os.getpid()}/fd/{dri}")
        yield Roots(node.root / "sys", prefix / "dev")
    finally:
        os.close(dri)


def test_a_directory_of_before_a_reload_of_the_driver_is_told_from_an_empty_one(
    node: NodeTree, tmp_path: Path
) -> None:
    with mounted(node, tmp_path / "mounted") as roots:
        assert scan(roots).dri is DriState.FINE
        node.reload_driver()
        inventory = scan(roots)
        assert inventory.dri is DriState.GONE
        # In kind or LXC a new start of ours mounts the same directory again
        assert "or restart the node's container" in inventory.dri.value
        assert not any(card.healthy for card in inventory.cards)
    assert look(node).dri is DriState.FINE
    assert scan(Roots(node.root / "sys", tmp_path / "nothing")).dri is DriState.EMPTY


def test_a_node_without_a_driver_sees_nothing_amiss_in_a_directory_that_is_gone(
    node: NodeTree, tmp_path: Path
) -> None:
    with mounted(node, tmp_path / "mounted") as roots:
        node.reload_driver()
        for gpu in node.gpus:
            node.rebind(gpu.bdf, None)
        assert scan(roots).dri is DriState.FINE


@pytest.mark.parametrize("minor", ["card1", "renderD128"])
def test_a_card_whose_device_node_is_gone_is_unhealthy(node: NodeTree, minor: str) -> None:
    node.lose_node(FIRST, minor)
    first, *others = look(node).cards
    assert not first.healthy
    assert first.missing == (f"/dev/dri/{minor}",)
    assert len(first.nodes) == 2
    assert len(first.present_nodes) == 1
    assert all(card.healthy for card in others)
    node.repair(FIRST)
    assert look(node).cards[0].healthy


def test_a_directory_in_the_place_of_a_device_node_is_none(node: NodeTree) -> None:
    """A container runtime makes one where a mount's source is missing."""
    path = node.root / "dev/dri" / look(node).cards[0].name
    path.unlink()
    path.mkdir()
    assert look(node).cards[0].missing == (f"/dev/dri/{path.name}",)


def test_a_card_that_breaks_stays_known_as_unhealthy(node: NodeTree) -> None:
    before = look(node)
    node.damage(FIRST, "device", Damage.UNREADABLE)
    kept = look(node).keep_known(before)
    assert kept.cards[0] == replace(before.cards[0], broken=True)
    assert not kept.cards[0].healthy
    assert kept.cards[1:] == before.cards[1:]
    assert kept.monitored == before.monitored[1:]
    again = look(node).keep_known(kept)
    assert again == kept
    node.repair(FIRST)
    assert look(node).keep_known(kept) == before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda node: node.remove(FIRST), id="taken out"),
        pytest.param(lambda node: node.rebind(FIRST, "vfio-pci"), id="given away"),
        pytest.param(lambda node: node.enable_vfs(FIRST, 1), id="made of VFs"),
        pytest.param(lambda node: node.rebind(FIRST, "xe"), id="another driver"),
        pytest.param(lambda node: node.damage(FIRST, "numa_node", Damage.HUGE), id="still there"),
    ],
)
def test_only_a_card_that_cannot_be_read_is_remembered(node: NodeTree, change: object) -> None:
    before = look(node)
    assert callable(change)
    change(node)
    now = look(node)
    assert now.keep_known(before) == now


def test_another_gpu_under_the_name_of_a_broken_one_is_not_taken_for_it(node: NodeTree) -> None:
    before = look(node)
    node.remove(FIRST)
    node.add(PciGpu("0000:2b:00.0", 1, render=128))
    node.damage("0000:2b:00.0", "device", Damage.EMPTY)
    assert cards(look(node).keep_known(before)) == [f"card{number}" for number in range(2, 9)]


def test_a_gpu_that_has_another_name_by_now_is_not_remembered_by_its_old_one(
    node: NodeTree,
) -> None:
    before = look(node)
    first, *others = before.cards
    renamed = replace(first, name="card9")
    now = replace(
        before, cards=(renamed, *others), problems=(Problem(first.name, "cannot be read"),)
    )
    assert now.keep_known(before) == now


# By-path and MEI


def test_only_a_cards_own_two_links_are_mounted(node: NodeTree) -> None:
    by_path = node.root / "dev/dri/by-path"
    (by_path / f"pci-{FIRST}-platform-simple-framebuffer.0-card").symlink_to("../card1")
    (by_path / f"pci-{SECOND}-render").unlink()
    (by_path / f"pci-{SECOND}-render").symlink_to("../gone")
    inventory = look(node)
    assert [mount.container_path for card in inventory.cards[:2] for mount in card.by_path] == [
        f"/dev/dri/by-path/pci-{FIRST}-card",
        f"/dev/dri/by-path/pci-{FIRST}-render",
        f"/dev/dri/by-path/pci-{SECOND}-card",
    ]


def test_by_path_mounts_follow_the_mode(node: NodeTree) -> None:
    inventory = look(node)
    card = inventory.cards[0]
    assert mounts(card, inventory, ByPath.SINGLE) == card.by_path
    assert mounts(card, inventory, ByPath.NONE) == ()
    assert mounts(card, inventory, ByPath.ALL) == (
        Mount("/dev/dri/by-path", f"{node.root}/dev/dri/by-path", read_only=True),
    )


@pytest.mark.parametrize("mode", ByPath)
def test_a_node_without_by_path_mounts_nothing(tmp_path: Path, mode: ByPath) -> None:
    node = NodeTree(tmp_path, by_path=False)
    node.add(PciGpu(FIRST, 1))
    inventory = look(node)
    assert mounts(inventory.cards[0], inventory, mode) == ()


def test_mei_devices_are_those_of_the_gpu(node: NodeTree) -> None:
    (node.root / "dev/mei77").touch()
    (node.device(FIRST) / "i915.mei-gsc.77/mei/mei77").mkdir(parents=True)
    (node.device(FIRST) / "i915.mei-gsc.78/mei/mei78").mkdir(parents=True)
    (node.device(FIRST) / "i915.mei-gsc.79").mkdir()
    first, second, *_ = look(node).cards
    assert {entry.container_path for entry in first.mei} == {"/dev/mei0", "/dev/mei77"}
    assert {entry.container_path for entry in second.mei} == {"/dev/mei1"}


# The devices that kubelet counts


def test_management_engines_are_named_by_sysfs_where_the_hosts_dev_is_not_seen(
    node: NodeTree, tmp_path: Path
) -> None:
    """A container has `/dev/dri` of the host and the rest of its own, as in every overlay."""
    prefix = tmp_path / "container"
    (prefix / "dev").mkdir(parents=True)
    (prefix / "dev/dri").symlink_to(node.root / "dev/dri")
    (prefix / "sys").symlink_to(node.root / "sys")
    inventory = scan(Roots.under(prefix))
    assert inventory.cards[4].mei == (DeviceNode("/dev/mei4", "/dev/mei4"),)
    (monitor,) = devices(inventory, ResourceOptions(monitoring=Monitoring.SINGLE))[
        "gpu.intel.com/monitoring"
    ]
    assert {f"/dev/mei{number}" for number in range(8)} <= {
        entry.host_path for entry in monitor.nodes
    }


def test_engines_without_any_gpu_are_nothing_to_monitor(node: NodeTree, tmp_path: Path) -> None:
    inventory = scan(Roots(node.root / "sys", tmp_path / "nothing"))
    (monitor,) = devices(inventory, ResourceOptions(monitoring=Monitoring.SINGLE))[
        "gpu.intel.com/monitoring"
    ]
    assert [entry.container_path for entry in monitor.nodes] == [f"/dev/mei{n}" for n in range(8)]
    assert not monitor.healthy


def test_a_gpu_is_one_device_by_default(node: NodeTree) -> None:
    inventory = look(node)
    found = devices(inventory, ResourceOptions())
    assert list(found) == ["gpu.intel.com/i915"]
    first = inventory.cards[0]
    assert found["gpu.intel.com/i915"][0] == Device(
        "card1-0", nodes=first.nodes, mounts=first.by_path, numa=0, unit=first.bdf
    )
    assert [device.id for device in found["gpu.intel.com/i915"]] == [
        f"card{number}-0" for number in range(1, 9)
    ]


def test_shares_of_a_gpu_are_devices_with_the_same_nodes(node: NodeTree) -> None:
    node.lose_node(SECOND)
    found = devices(look(node), ResourceOptions(shared=3))["gpu.intel.com/i915"]
    assert [device.id for device in found][:4] == ["card1-0", "card1-1", "card1-2", "card2-0"]
    assert len(found) == 24
    assert found[0].nodes == found[2].nodes
    assert [device.id for device in found if not device.healthy] == [
        "card2-0",
        "card2-1",
        "card2-2",
    ]


def test_each_driver_has_its_resource(node: NodeTree) -> None:
    node.rebind(FIRST, "xe")
    found = devices(look(node), ResourceOptions())
    assert [device.id for device in found["gpu.intel.com/xe"]] == ["card1-0"]
    assert len(found["gpu.intel.com/i915"]) == 7


def test_a_gpu_is_shared_by_one_at_least() -> None:
    with pytest.raises(ValueError, match="0 containers"):
        ResourceOptions(shared=0)


@pytest.mark.parametrize("mode", [None, *Monitoring])
def test_no_gpus_are_no_resources(tmp_path: Path, mode: Monitoring | None) -> None:
    assert devices(look(NodeTree(tmp_path)), ResourceOptions(monitoring=mode)) == {}


def test_monitoring_is_one_device_with_every_node_and_mei(node: NodeTree) -> None:
    node.rebind(FIRST, "xe")
    found = devices(look(node), ResourceOptions(shared=5, monitoring=Monitoring.SINGLE))
    [device] = found["gpu.intel.com/monitoring"]
    assert (device.id, device.unit, device.healthy, device.numa) == ("all", "", True, None)
    assert {entry.container_path for entry in device.nodes} == {
        *(f"/dev/dri/card{number}" for number in range(1, 9)),
        *(f"/dev/dri/renderD{number}" for number in range(128, 136)),
        *(f"/dev/mei{number}" for number in range(8)),
    }
    assert device.mounts == ()


def test_split_monitoring_is_one_device_for_each_driver(node: NodeTree) -> None:
    node.rebind(FIRST, "xe")
    found = devices(look(node), ResourceOptions(monitoring=Monitoring.SPLIT))
    assert set(found) == {
        "gpu.intel.com/i915",
        "gpu.intel.com/i915_monitoring",
        "gpu.intel.com/xe",
        "gpu.intel.com/xe_monitoring",
    }
    [device] = found["gpu.intel.com/xe_monitoring"]
    assert [entry.container_path for entry in device.nodes] == [
        "/dev/dri/card1",
        "/dev/dri/renderD128",
        "/dev/mei0",
    ]


def test_monitoring_sees_the_physical_function_that_is_not_offered(node: NodeTree) -> None:
    node.enable_vfs(FIRST, 1)
    [device] = devices(look(node), ResourceOptions(monitoring=Monitoring.SINGLE))[
        "gpu.intel.com/monitoring"
    ]
    assert {"/dev/dri/card1", "/dev/mei0"} <= {entry.container_path for entry in device.nodes}


def test_a_lost_node_is_not_handed_to_the_monitor(node: NodeTree) -> None:
    node.lose_node(FIRST)
    [device] = devices(look(node), ResourceOptions(monitoring=Monitoring.SPLIT))[
        "gpu.intel.com/i915_monitoring"
    ]
    assert device.healthy
    assert "/dev/dri/card1" not in {entry.container_path for entry in device.nodes}


# Roots and the fingerprint


@pytest.mark.parametrize(
    ("prefix", "sysfs"),
    [("", "/sys"), ("/", "/sys"), ("/tmp/node", "/tmp/node/sys")],  # noqa: S108  # only a name
)
def test_a_prefix_is_put_before_what_is_read_and_not_before_what_the_host_calls_it(
    prefix: str, sysfs: str
) -> None:
    roots = Roots.under(prefix)
    assert str(roots.sysfs) == sysfs
    assert roots.devfs == Path(sysfs).with_name("dev")
    assert roots.host_devfs == Path("/dev")


@pytest.mark.parametrize(
    ("root", "dev"),
    [("/", "/dev"), ("/var/lib/tree", "/var/lib/tree/dev"), ("/var/tree/", "/var/tree/dev")],
)
def test_the_host_has_devices_below_the_device_root_and_the_container_where_they_belong(
    node: NodeTree, root: str, dev: str
) -> None:
    found = scan(Roots.under(node.root, root))
    card = found.cards[0]
    assert card.nodes[0] == DeviceNode("/dev/dri/card1", f"{dev}/dri/card1")
    by_path = f"dri/by-path/pci-{FIRST}-card"
    assert card.by_path[0] == Mount(f"/dev/{by_path}", f"{dev}/{by_path}")
    assert card.mei == (DeviceNode("/dev/mei0", f"{dev}/mei0"),)
    assert found.by_path == Mount("/dev/dri/by-path", f"{dev}/dri/by-path")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda node: node.remove(FIRST), id="a card goes"),
        pytest.param(lambda node: node.add(PciGpu("0001:01:00.0", 9)), id="a card comes"),
        pytest.param(lambda node: node.rebind(FIRST, "xe"), id="another driver"),
        pytest.param(lambda node: node.rebind(FIRST, None), id="no driver"),
        pytest.param(lambda node: node.enable_vfs(FIRST, 1, "vfio-pci"), id="VFs"),
        pytest.param(lambda node: node.lose_node(FIRST, "renderD128"), id="a lost node"),
        pytest.param(lambda node: node.renumber(FIRST, 20, 160), id="another number"),
        pytest.param(lambda node: node.damage(FIRST, "driver", Damage.FILE), id="damage"),
    ],
)
def test_the_fingerprint_changes_with_what_matters(node: NodeTree, change: object) -> None:
    roots = Roots.under(node.root)
    before = fingerprint(roots)
    assert fingerprint(roots) == before
    assert callable(change)
    change(node)
    assert fingerprint(roots) != before


def test_nothing_has_a_fingerprint_too(tmp_path: Path) -> None:
    assert fingerprint(Roots.under(tmp_path / "nowhere")) == ()


# Any node at all


@st.composite
def gpus(draw: st.DrawFn) -> list[PciGpu]:
    addresses = draw(
        st.lists(
            st.builds(
                "{:04x}:{:02x}:{:02x}.{}".format,
                st.sampled_from([0, 1, 0x10000]),
                st.integers(0, 255),
                st.integers(0, 31),
                st.integers(0, 7),
            ),
            max_size=6,
            unique=True,
        )
    )
    numbers = draw(st.permutations(range(len(addresses))))
    return [
        PciGpu(
            bdf,
            number,
            driver=draw(st.sampled_from(["i915", "xe", "vfio-pci", None])),
            device_id=draw(st.sampled_from([0x0BD5, 0x0BDA, 0x56C0])),
            vendor=draw(st.sampled_from([0x8086, 0x8086, 0x1A03])),
            numa=draw(st.none() | st.integers(0, 7)),
            tiles=draw(st.integers(1, 2)),
            render=draw(st.sampled_from([None, 128 + number])),
            control=draw(st.sampled_from([None, 64 + number])),
            mei=draw(st.sampled_from([(), (number,)])),
            totalvfs=draw(st.sampled_from([0, 4])),
            bridges=draw(st.sampled_from([(), ("0000:01:01.0", "0000:02:00.0", "0000:03:04.0")])),
        )
        for bdf, number in zip(addresses, numbers, strict=True)
    ]


DAMAGED = (
    *ESSENTIAL,
    "uevent",
    "class",
    "numa_node",
    "physfn",
    "subsystem",
    "tile0",
    "i915.mei-gscfi.0",
    "xe.mei-gscfi.1/mei",
    "drm/card0",
    "drm/card0/gt",
    "drm/renderD128",
)
ANY_NODE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@ANY_NODE
@given(built=gpus(), by_path=st.booleans())
def test_what_the_simulator_built_is_what_the_scan_finds(
    built: list[PciGpu],
    by_path: bool,  # noqa: FBT001  # hypothesis gives it by name
) -> None:
    with tempfile.TemporaryDirectory() as root:
        node = NodeTree(Path(root), by_path=by_path)
        for gpu in built:
            node.add(gpu)
        inventory = look(node)
        ours = [gpu for gpu in built if gpu.vendor == 0x8086]
        offered = {gpu.bdf: gpu for gpu in ours if gpu.driver in {"i915", "xe"}}
        assert {card.bdf for card in inventory.cards} == offered.keys()
        assert {gpu.bdf for gpu in inventory.excluded} == {gpu.bdf for gpu in ours} - offered.keys()
        assert not inventory.problems
        for card in inventory.cards:
            gpu = offered[card.bdf]
            assert (card.number, card.driver, card.device_id, card.numa) == (
                gpu.number,
                gpu.driver,
                gpu.device_id,
                gpu.numa,
            )
            assert card.bridges == (gpu.place.split("/")[0], *gpu.bridges)
            certain = gpu.driver == "xe" or gpu.device_id != 0x56C0 or gpu.tiles == 1
            assert card.tiles == (gpu.tiles if certain else None)
            assert {Path(entry.host_path).name for entry in card.nodes} == {*gpu.minors}
            assert len(card.by_path) == (len(gpu.minors) if by_path else 0)
            assert [entry.container_path for entry in card.mei] == [f"/dev/mei{n}" for n in gpu.mei]
            renders = gpu.render is not None
            assert card.complaint == (
                None if renders else "it has no render node, which is what computes"
            )
            assert all(Path(entry.host_path).exists() for entry in (*card.nodes, *card.mei))


@pytest.mark.parametrize("damage", Damage, ids=lambda damage: damage.value)
def test_each_damage_can_be_done_to_a_gpu_that_is_whole(tmp_path: Path, damage: Damage) -> None:
    """Else the next test would pass over it."""
    node = NodeTree(tmp_path)
    for number, name in enumerate(DAMAGED):
        bdf = f"0000:{number:02x}:00.0"
        node.add(PciGpu(bdf, number, render=128 + number))
        assert os.path.lexists(node.damage(bdf, name, damage)) is (damage is not Damage.MISSING)


@ANY_NODE
@given(
    built=gpus(),
    damages=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(DAMAGED), st.sampled_from(Damage)),
        max_size=6,
    ),
    spoiled=st.none() | st.sampled_from(["dev", "dev/dri", "dev/dri/by-path", "sys/bus/pci"]),
)
def test_no_node_is_too_broken_to_be_looked_at(
    built: list[PciGpu], damages: list[tuple[int, str, Damage]], spoiled: str | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        node = NodeTree(Path(root))
        for gpu in built:
            node.add(gpu)
        before = {card.bdf: card for card in look(node).cards}
        hurt, forged, done = set(), set(), set()
        for index, name, damage in damages:
            if built:
                bdf = built[index % len(built)].bdf
                hurt.add(bdf)
                if (name, damage) == ("vendor", Damage.FILE):
                    forged.add(bdf)  # the file says Intel, whosever GPU it was
                try:
                    node.damage(bdf, name, damage)
                except OSError:
                    assert bdf in done, "only earlier damage may be in the way"
                done.add(bdf)
        inventory = look(node)
        whole = {bdf: card for bdf, card in before.items() if bdf not in hurt}
        assert {card.bdf: card for card in inventory.cards} | whole == {
            card.bdf: card for card in inventory.cards
        }
        kept = {card.bdf for card in inventory.keep_known(Inventory()).cards}
        assert kept <= before.keys() | forged
        if spoiled and (node.root / spoiled).exists():
            (node.root / spoiled).rename(node.root / "gone")
            (node.root / spoiled).write_text("")
        devices(look(node), ResourceOptions(shared=2, monitoring=Monitoring.SPLIT))
        fingerprint(Roots.under(root))


def test_a_link_that_comes_by_path_is_a_sign_of_something_new(tmp_path: Path) -> None:
    links = tmp_path / "dev/dri/by-path"
    links.mkdir(parents=True)
    before = fingerprint(Roots.under(tmp_path))
    assert fingerprint(Roots.under(tmp_path)) == before
    (links / "pci-0000:29:00.0-card").touch()
    assert fingerprint(Roots.under(tmp_path)) != before


def test_a_directory_without_anything_in_it_is_not_gone(tmp_path: Path) -> None:
    (tmp_path / "dev/dri").mkdir(parents=True)
    assert not devfs.is_gone(Roots.under(tmp_path))
