import os
import stat
import tempfile
from pathlib import Path

import pytest

from xelink.simulators.node.sysfs import Damage, NodeTree, PciGpu


def paths(root: Path) -> dict[str, str]:
    """Every entry below the root: what it is, and where it leads or what it says."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "/"
        else:
            found[name] = path.read_text()
    return found


def test_a_gpu_stands_where_the_kernel_puts_it(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    node.add(PciGpu("0000:29:00.0", 1, numa=1, render=128, control=64, mei=(0,)))
    found = paths(tmp_path)
    device = "sys/devices/pci0000:29/0000:29:00.0"
    expected = {
        "sys/class/drm/card1": "-> ../../devices/pci0000:29/0000:29:00.0/drm/card1",
        "sys/class/drm/renderD128": "-> ../../devices/pci0000:29/0000:29:00.0/drm/renderD128",
        "sys/class/drm/controlD64": "-> ../../devices/pci0000:29/0000:29:00.0/drm/controlD64",
        "sys/bus/pci/devices/0000:29:00.0": "-> ../../../devices/pci0000:29/0000:29:00.0",
        "sys/bus/pci/drivers/i915/0000:29:00.0": "-> ../../../../devices/pci0000:29/0000:29:00.0",
        f"{device}/vendor": "0x8086\n",
        f"{device}/device": "0x0bd5\n",
        f"{device}/class": "0x038000\n",
        f"{device}/numa_node": "1\n",
        f"{device}/driver": "-> ../../../bus/pci/drivers/i915",
        f"{device}/drm/card1/device": "-> ../../../0000:29:00.0",
        f"{device}/drm/card1/gt/gt1": "/",
        f"{device}/i915.mei-gscfi.0/mei/mei0": "/",
        "dev/dri/card1": "",
        "dev/dri/renderD128": "",
        "dev/dri/by-path/pci-0000:29:00.0-card": "-> ../card1",
        "dev/dri/by-path/pci-0000:29:00.0-render": "-> ../renderD128",
        "dev/mei0": "",
    }
    assert found | expected == found
    assert "dev/dri/controlD64" not in found


def test_every_link_of_a_node_leads_somewhere(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    node.enable_vfs("0000:29:00.0", 12)
    dangling = [path for path in tmp_path.rglob("*") if path.is_symlink() and not path.exists()]
    assert not dangling


def test_taking_a_gpu_out_leaves_nothing_of_it(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    before = paths(tmp_path)
    node.add(PciGpu("0001:01:00.0", 9, driver="xe", render=140, mei=(9,), totalvfs=4))
    node.enable_vfs("0001:01:00.0", 4, driver="xe")
    node.remove("0001:01:00.0")
    left = {name for name, what in paths(tmp_path).items() if what != "/"}
    assert left == {name for name, what in before.items() if what != "/"}


@pytest.mark.parametrize("driver", ["vfio-pci", None])
def test_a_driver_without_drm_takes_the_card_away_and_back(
    tmp_path: Path, driver: str | None
) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    before = paths(tmp_path)
    node.rebind("0000:29:00.0", driver)
    assert not (tmp_path / "sys/class/drm/card1").is_symlink()
    assert not (tmp_path / "dev/dri/card1").exists()
    assert not (tmp_path / "dev/mei0").exists()
    node.rebind("0000:29:00.0", "i915")
    after = paths(tmp_path)
    assert after | before == after


def test_rebinding_to_xe_tells_tiles_as_xe_does(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    node.rebind("0000:29:00.0", "xe")
    device = node.device("0000:29:00.0")
    assert (device / "driver").readlink().name == "xe"
    assert (device / "tile1").is_dir()
    assert not (device / "drm/card1/gt").exists()


def test_vfs_fill_functions_then_devices(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    node.enable_vfs("0000:29:00.0", 9)
    device = node.device("0000:29:00.0")
    assert [gpu.bdf for gpu in node.vfs("0000:29:00.0")] == [
        *(f"0000:29:00.{function}" for function in range(1, 8)),
        "0000:29:01.0",
        "0000:29:01.1",
    ]
    assert (device / "sriov_numvfs").read_text() == "9\n"
    assert (device / "virtfn8").resolve() == node.device("0000:29:01.1").resolve()
    assert (node.device("0000:29:01.1") / "physfn").resolve() == device.resolve()
    node.disable_vfs("0000:29:00.0")
    assert not node.vfs("0000:29:00.0")
    assert (device / "sriov_numvfs").read_text() == "0\n"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    with pytest.raises(ValueError, match="already"):
        node.add(PciGpu("0000:29:00.0", 30))
    with pytest.raises(ValueError, match="card1"):
        node.add(PciGpu("0000:30:00.0", 1))
    with pytest.raises(ValueError, match="PCI address"):
        PciGpu("29:00.0", 1)
    with pytest.raises(ValueError, match="63"):
        node.enable_vfs("0000:29:00.0", 64)
    with pytest.raises(KeyError):
        node.rebind("0000:30:00.0", "xe")


@pytest.mark.parametrize("damage", Damage, ids=lambda damage: damage.value)
def test_all_damage_can_be_mended(tmp_path: Path, damage: Damage) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    before = paths(tmp_path)
    for name in ("vendor", "driver", "drm/card1/device", "drm"):
        node.damage("0000:29:00.0", name, damage)
    node.repair("0000:29:00.0")
    assert paths(tmp_path) == before


def test_device_nodes_are_lost_and_come_back(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    node.lose_node("0000:29:00.0")
    node.lose_node("0000:29:00.0", "renderD128")
    assert not (tmp_path / "dev/dri/card1").exists()
    node.repair("0000:29:00.0")
    assert (tmp_path / "dev/dri/card1").exists()
    assert (tmp_path / "dev/dri/renderD128").exists()


def can_make_devices() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        try:
            os.mknod(f"{directory}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not can_make_devices(), reason="takes CAP_MKNOD")
def test_device_nodes_can_be_real_ones_that_open(tmp_path: Path) -> None:
    NodeTree.eight_max_1550(tmp_path, character_devices=True)
    for name in ("dri/card1", "dri/renderD128", "mei0"):
        path = tmp_path / "dev" / name
        assert stat.S_ISCHR(path.stat().st_mode)
        assert path.stat().st_rdev == os.makedev(1, 3)


def test_a_node_without_udev_has_no_by_path(tmp_path: Path) -> None:
    NodeTree(tmp_path, by_path=False).add(PciGpu("0000:29:00.0", 1))
    assert not (tmp_path / "dev/dri/by-path").exists()
