from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Card, ExcludedGpu, Exclusion, Inventory, Problem, scan
from xelink.inventory.links import UNREAD, NodeLinks, join, pair
from xelink.nfd.reader import FileState, Look, Reading, read
from xelink.simulators.node.sysfs import Damage, NodeTree, PciGpu
from xelink.topology.model import Gpu, Link, PortState, Tile, Topology
from xelink.topology.pci import PciAddress
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, node_labels, render

NS = DEFAULT_NAMESPACE
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
EXPIRY = NOW + timedelta(minutes=5)
FIRST, SECOND, THIRD, FOURTH = (f"0000:{bus}:00.0" for bus in ("29", "3a", "4d", "5c"))
ADDRESSES = (FIRST, SECOND, THIRD, FOURTH)


def reading(topology: Topology, *, whole: bool = True) -> Reading:
    said = Publication(topology, EXPIRY)
    content = render(said, NS)
    if not whole:
        found = node_labels(said, NS, summary=False)
        content = "".join(f"{name}={value}\n" for name, value in found.items()).encode()
    return read(Look((1,), content, NOW), NS, NOW)


def inventory(*addresses: str, tiles: int | None = 2, driver: str = "i915") -> Inventory:
    return Inventory(
        tuple(
            Card(f"card{number}", bdf, driver, 0x0BD5, tiles=tiles)
            for number, bdf in enumerate(addresses)
        )
    )


def topology(*links: Link, addresses: tuple[str, ...] = ADDRESSES) -> Topology:
    return Topology(links, tuple(Gpu(device, bdf) for device, bdf in enumerate(addresses)))


def link(one: int, other: int, lanes: int = 16, back: int = 16) -> Link:
    return Link.between(Tile(one, 0), Tile(other, 0), lanes, back)


# Through the id map


def test_links_are_joined_by_pci_address_and_never_by_index() -> None:
    # XPU Manager's ids run against PCI order, the cards' numbers against both
    gpus = (Gpu(7, FIRST), Gpu(3, SECOND, card="card9"), Gpu(0, THIRD))
    found = join(reading(Topology((link(3, 7), link(0, 3)), gpus)), inventory(SECOND, THIRD, FIRST))
    assert found.linked == {(FIRST, SECOND), (SECOND, THIRD)}
    assert found.state is FileState.IN_USE
    assert (found.not_on_bus, found.not_in_map, found.without_address) == ((), (), ())


@pytest.mark.parametrize(
    ("links", "lanes"),
    [
        pytest.param([link(0, 1)], 16, id="one link"),
        pytest.param([link(0, 1), Link(Tile(0, 1), Tile(1, 1), 8, 8)], 24, id="sum over tiles"),
        pytest.param([Link(Tile(0, 1), Tile(1, 0), 16, 4)], 4, id="the weaker direction"),
        pytest.param([Link(Tile(0, 1), Tile(1, 0), 16, 0)], 0, id="one direction only"),
        pytest.param([link(0, 1), Link(Tile(0, 1), Tile(1, 1), 0, 8)], 16, id="one of two"),
        pytest.param([Link(Tile(0, 0), Tile(0, 1), 16, 16)], None, id="within a GPU"),
        pytest.param([], None, id="none"),
    ],
)
def test_lanes_of_a_pair_are_those_of_the_weaker_direction_over_all_tiles(
    links: list[Link], lanes: int | None
) -> None:
    found = join(reading(topology(*links)), inventory(*ADDRESSES))
    assert found.lanes_between(FIRST, SECOND) == lanes
    assert found.lanes_between(SECOND, FIRST) == lanes
    assert found.linked == (set() if lanes is None else {(FIRST, SECOND)})


def test_gpus_that_only_one_side_knows_are_told_and_left_out() -> None:
    found = join(
        reading(topology(link(0, 1), link(1, 2), link(2, 3), addresses=(FIRST, SECOND, THIRD))),
        inventory(FIRST, SECOND, FOURTH),
    )
    assert found.linked == {(FIRST, SECOND)}
    assert found.not_on_bus == (THIRD,)
    assert found.not_in_map == (FOURTH,)
    assert found.without_address == (3,)
    assert found.usable


def test_a_gpu_that_is_withheld_or_broken_is_on_the_bus_all_the_same() -> None:
    node = replace(
        inventory(FIRST),
        excluded=(ExcludedGpu(SECOND, Exclusion.NO_DRIVER),),
        problems=(Problem("card2", "broken", THIRD), Problem("card3", "broken")),
    )
    found = join(reading(topology(link(0, 1), addresses=(FIRST, SECOND, THIRD))), node)
    assert found.not_on_bus == ()
    assert found.linked == {(FIRST, SECOND)}


@pytest.mark.parametrize(
    ("ports", "healthy"),
    [(PortState.HEALTHY, True), *((state, False) for state in list(PortState)[1:]), (None, None)],
)
def test_port_states_go_by_pci_address(
    ports: PortState | None,
    healthy: bool | None,  # noqa: FBT001  # a row of a table
) -> None:
    gpus = (Gpu(0, SECOND, ports=ports), Gpu(1, THIRD, ports=PortState.FAILED))
    found = join(reading(Topology(gpus=gpus)), inventory(FIRST, SECOND))
    assert found.ports_healthy(SECOND) is healthy
    assert found.ports_healthy(FIRST) is None
    assert THIRD not in found.ports


def test_a_real_node_is_joined_as_it_is_built(tmp_path: Path) -> None:
    node = NodeTree.eight_max_1550(tmp_path)
    found = scan(Roots.under(node.root))
    addresses = tuple(card.bdf for card in found.cards)
    mesh = [link(one, other, 8, 8) for one, other in combinations(range(8), 2)]
    for whole, state, lanes in ((True, FileState.IN_USE, 8), (False, FileState.INFERRED, 1)):
        joined = join(reading(topology(*mesh, addresses=addresses), whole=whole), found)
        assert joined.state is state
        assert joined.linked == {*combinations(addresses, 2)}
        assert {*joined.lanes.values()} == {lanes}


# By PCI order


def guess(node: Inventory, *links: Link) -> NodeLinks:
    return join(reading(topology(*links), whole=False), node)


def test_labels_alone_are_joined_by_pci_order_and_called_a_guess() -> None:
    found = guess(inventory(*ADDRESSES), link(0, 3), Link(Tile(0, 1), Tile(3, 1)), link(1, 2))
    assert found.state is FileState.INFERRED
    assert found.usable
    assert found.lanes == {(FIRST, FOURTH): 2, (SECOND, THIRD): 1}
    assert "PCI order" in found.reason


def test_pci_order_is_that_of_numbers() -> None:
    node = Inventory(
        tuple(Card(f"card{i}", bdf, "xe", 0x0BD5) for i, bdf in enumerate(("2000:01:00.0", FIRST))),
        (ExcludedGpu("10000:01:00.0", Exclusion.DENIED, "card7", "xe"),),
    )
    assert guess(node, link(0, 1), link(1, 2)).linked == {
        (FIRST, "2000:01:00.0"),
        ("2000:01:00.0", "10000:01:00.0"),
    }


def test_gpus_that_are_not_offered_still_have_ids() -> None:
    node = replace(
        inventory(SECOND, THIRD),
        excluded=(
            ExcludedGpu(FIRST, Exclusion.NOT_ALLOWED, "card0", "i915"),
            ExcludedGpu("0000:30:00.0", Exclusion.OTHER_DRIVER, None, "vfio-pci"),
            ExcludedGpu("0000:31:00.0", Exclusion.NO_CARD, None, "i915"),
        ),
    )
    assert guess(node, link(1, 2)).linked == {(SECOND, THIRD)}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        pytest.param(
            Inventory((*inventory(FIRST, SECOND).cards, *inventory(THIRD, driver="xe").cards)),
            "two drivers",
            id="two drivers",
        ),
        pytest.param(
            replace(
                inventory(SECOND, THIRD),
                excluded=(ExcludedGpu(FIRST, Exclusion.DENIED, "card9", "xe"),),
            ),
            "two drivers",
            id="two drivers, one withheld",
        ),
        pytest.param(inventory(FIRST), "but there are 1 here", id="too few"),
        pytest.param(Inventory(), "but there are 0 here", id="none"),
        pytest.param(inventory(*ADDRESSES, tiles=1), "tile 1.1", id="too few tiles"),
        pytest.param(
            replace(inventory(*ADDRESSES), problems=(Problem("card5", "broken"),)),
            "card5 cannot be read",
            id="one that cannot be read",
        ),
        pytest.param(
            replace(inventory(*ADDRESSES), problems=(Problem("card5", "broken", "0000:01:00.0"),)),
            "card5 cannot be read",
            id="one of no driver that is known",
        ),
    ],
)
def test_what_is_ambiguous_is_not_guessed(node: Inventory, reason: str) -> None:
    found = guess(node, Link(Tile(0, 0), Tile(1, 1)))
    assert found.state is FileState.AMBIGUOUS
    assert reason in found.reason
    assert not found.usable
    assert not found.lanes


def test_a_problem_of_a_card_that_is_known_leaves_the_order_as_it_is() -> None:
    node = replace(inventory(FIRST, SECOND), problems=(Problem("card0", "no NUMA", FIRST),))
    assert guess(node, link(0, 1)).state is FileState.INFERRED


def test_tiles_that_nobody_tells_are_no_contradiction() -> None:
    node = inventory(FIRST, SECOND, tiles=None)
    assert guess(node, Link(Tile(0, 1), Tile(1, 1))).state is FileState.INFERRED


def test_without_links_there_is_nothing_to_guess() -> None:
    mixed = Inventory((*inventory(FIRST).cards, *inventory(SECOND, driver="xe").cards))
    found = guess(mixed)
    assert found.state is FileState.IN_USE
    assert not found.lanes


# Without a file that may be used


@pytest.mark.parametrize("state", [state for state in FileState if state is not FileState.IN_USE])
def test_no_usable_file_is_no_links_with_state_and_reason(state: FileState) -> None:
    found = join(Reading(state, "because", None, EXPIRY, NOW), inventory(*ADDRESSES))
    assert (found.state, found.reason, dict(found.lanes)) == (state, "because", {})
    assert found.usable == (state is FileState.INFERRED)
    assert (found.expiry, found.published) == (EXPIRY, NOW)


def test_no_fabric_data_is_not_no_links() -> None:
    content = render(Publication(None, EXPIRY), NS)
    found = join(read(Look((1,), content, NOW), NS, NOW), inventory(*ADDRESSES))
    assert found.state is FileState.NO_FABRIC_DATA
    assert not found.usable


def test_before_the_first_look_nothing_is_known() -> None:
    assert not UNREAD.usable
    assert UNREAD.age(NOW) is None


def test_a_renewal_is_no_news_of_the_gpus() -> None:
    before = reading(topology(link(0, 1)))
    renewed = replace(before, expiry=EXPIRY + timedelta(1), published=NOW + timedelta(1))
    node = inventory(*ADDRESSES)
    assert join(before, node) == join(renewed, node)
    assert join(renewed, node).age(NOW + timedelta(1, seconds=5)) == timedelta(seconds=5)
    assert join(renewed, node).age(NOW) == timedelta(0)


# Any file on any node


@given(
    published=strategies.topologies,
    buses=st.lists(st.integers(0, 255), unique=True, max_size=12),
    whole=st.booleans(),
)
def test_every_pair_is_two_gpus_of_this_node(
    published: Topology,
    buses: list[int],
    whole: bool,  # noqa: FBT001  # hypothesis gives it by name
) -> None:
    node = inventory(*(f"0000:{bus:02x}:00.0" for bus in sorted(buses)), tiles=None)
    here = {card.bdf for card in node.cards}
    found = join(reading(published, whole=whole), node)
    for (one, other), lanes in found.lanes.items():
        assert one < other
        assert {one, other} <= here
        assert lanes >= 0
        assert found.lanes_between(other, one) == lanes
    if whole:
        mapped = {gpu.bdf for gpu in published.gpus}
        assert {*found.not_on_bus} == mapped - here
        assert {*found.not_in_map} == here - mapped
        total = sum(
            item.width
            for item in published.links
            if {
                published.by_id[end.device].bdf
                for end in item.ends
                if end.device in published.by_id
            }
            <= here
            and all(end.device in published.by_id for end in item.ends)
            and item.a.device != item.b.device
        )
        assert sum(found.lanes.values()) == total
    elif found.state is FileState.INFERRED:
        pairs = [item for item in published.links if item.a.device != item.b.device]
        assert sum(found.lanes.values()) == len(pairs)


@given(st.permutations(["0000:29:00.0", "00002000:01:00.0", "10000:01:00.0"]))
def test_a_pair_is_in_the_order_of_the_bus_whatever_its_spelling(every: list[str]) -> None:
    one, other, third = every
    assert pair(one, other) == pair(other, one) == tuple(sorted(map(PciAddress, (one, other))))
    assert len({pair(one, other), pair(other, third), pair(one, third)}) == 3


def test_an_id_map_whose_domains_have_eight_digits_joins_the_bus() -> None:
    published = reading(topology(link(0, 1)))
    long = render(Publication(topology(link(0, 1)), EXPIRY), NS).replace(b"0000:", b"00000000:")
    assert b"00000000:29:00.0" in long
    found = join(read(Look((1,), long, NOW), NS, NOW), inventory(*ADDRESSES))
    assert found == join(published, inventory(*ADDRESSES))
    assert found.linked == {(FIRST, SECOND)}
    assert found.not_on_bus == ()


def test_a_damaged_card_makes_a_guess_impossible_until_it_is_repaired(tmp_path: Path) -> None:
    node = NodeTree(tmp_path)
    for number, bdf in enumerate(ADDRESSES):
        node.add(PciGpu(bdf, number))
    roots = Roots.under(node.root)
    assert guess(scan(roots), link(0, 1)).state is FileState.INFERRED
    node.damage(FIRST, "vendor", Damage.NONSENSE)
    assert guess(scan(roots), link(0, 1)).state is FileState.AMBIGUOUS
    node.repair(FIRST)
    assert guess(scan(roots), link(0, 1)).state is FileState.INFERRED
