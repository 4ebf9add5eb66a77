"""What the bus says of Xe Links: ids are ranks, or nothing is certain."""

from pathlib import Path

import pytest

from xelink.iaf.source import BusError
from xelink.inventory.devfs import Roots
from xelink.inventory.fabric_bus import FabricBus
from xelink.simulators.node import Damage, TreeBlueprint


def test_ids_are_ranks_of_addresses_whatever_the_cards_are_called(tmp_path: Path) -> None:
    TreeBlueprint(gpus=3, igpu=True, cards="reversed").build(tmp_path)
    node = FabricBus(Roots.under(tmp_path)).node()
    assert node.has_fabric
    assert [one.gpu.id for one in node.gpus] == [0, 1, 2, 3]
    assert [one.gpu.bdf for one in node.gpus] == sorted(one.gpu.bdf for one in node.gpus)
    assert [one.tiles for one in node.gpus][1:] == [2, 2, 2]


@pytest.mark.parametrize(
    ("model", "driver", "there"),
    [("max-1550", "i915", True), ("max-1550", "xe", False), ("flex-170", "i915", False)],
)
def test_a_fabric_is_there_where_the_driver_has_made_one(
    tmp_path: Path, model: str, driver: str, *, there: bool
) -> None:
    TreeBlueprint(gpus=2, model=model, driver=driver).build(tmp_path)
    bus = FabricBus(Roots.under(tmp_path))
    assert bus.has_fabric() is there
    assert bus.node().has_fabric is there


def test_a_gpu_that_cannot_be_read_makes_no_id_certain_and_nothing_is_remembered(
    tmp_path: Path,
) -> None:
    tree = TreeBlueprint(gpus=2, igpu=True).build(tmp_path)
    bus = FabricBus(Roots.under(tmp_path))
    whole = bus.node()
    tree.damage("0000:00:02.0", "device", Damage.NONSENSE)
    fresh = FabricBus(Roots.under(tmp_path))
    with pytest.raises(BusError, match="card0 cannot be read"):
        fresh.node()
    tree.repair("0000:00:02.0")
    assert fresh.node() == whole


def test_without_a_sysfs_nothing_is_certain(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="no sysfs at"):
        FabricBus(Roots.under(tmp_path / "nothing")).node()
