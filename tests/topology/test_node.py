"""What a node's links are called: connections, marks, groups."""

from itertools import combinations

import pytest
from hypothesis import given

from sidecar.classification import Rules
from sidecar.rows import Connection as Told
from sidecar.simulator import Blueprint, SimulatedNode, render
from sidecar.simulator.blueprint import WIRINGS
from tests.data import BODIES, needs_data
from tests.strategies import topologies
from tests.xelink.commands import reading, topology
from topology.groups import largest_group
from topology.model import Gpu, Link, Tile, Topology
from topology.node import Mark, Node
from xelink.readings import of_rows

_KINDS = {
    Told.XE_LINK: "XL",
    Told.XE_LINK_MDF: "XL/MDF",
    Told.MDF: "MDF",
    Told.NODE: "NODE",
    Told.SYS: "SYS",
}
_REAL = [
    *("a_8x2_mesh", "b_4x2_mesh", "c_2x1_subdeviceless", "d_8flex_nolinks", "e_8x2_degraded"),
    *("f_8_ring", "g_4x1_subdeviceless", "h_6x2_aurora", "k_8x2_no_hostnetwork"),
]


def _agrees(body: bytes) -> None:
    rows = reading(body)
    node = of_rows(rows, Rules(), "")
    for row in rows.rows:
        if row.connection is not Told.SELF:
            kind = node.tiles_connected(row.local, row.remote).kind
            assert kind.replace("xl", "XL") == _KINDS[row.connection]


@needs_data
@pytest.mark.parametrize("name", _REAL)
def test_tiles_are_connected_as_xpu_manager_says(name: str) -> None:
    _agrees((BODIES / f"{name}.prom").read_bytes())


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(Blueprint(gpus=8).build(), id="mesh"),
        pytest.param(Blueprint(gpus=8, wiring="ring").build(), id="ring"),
        pytest.param(Blueprint(gpus=6, wiring="planes").build(), id="planes"),
        pytest.param(Blueprint(gpus=4, tiles=1).build(), id="one tile"),
        pytest.param(Blueprint(gpus=4).build().cut(), id="all cut"),
    ],
)
def test_tiles_are_connected_as_the_simulated_xpu_manager_says(node: SimulatedNode) -> None:
    _agrees(render(node))


def test_a_pair_has_the_lanes_that_the_plugin_would_count() -> None:
    node = Node.of(topology(Blueprint(gpus=4).build().degrade(4, 2, "0.0-1.0")))
    assert str(node.gpus_connected(0, 1)) == "XL6!"
    assert node.gpus_connected(1, 0) == node.gpus_connected(0, 1)
    assert str(node.gpus_connected(2, 3)) == "XL8"


def test_a_link_that_one_tile_tells_of_is_one_sided() -> None:
    node = Node.of(topology(Blueprint(gpus=3).build().one_direction("0.0-1.0")))
    assert {str(link): marks for link, marks in node.marks.items()} == {
        "0.0-1.0": (Mark.ONE_SIDED,)
    }


def test_a_link_with_fewer_lanes_than_most_is_degraded_in_either_direction() -> None:
    node = Blueprint(gpus=4, lanes=8).build().degrade(8, 4, "0.0-1.0").degrade(4, 4, "2.0-3.0")
    assert {str(link): marks for link, marks in Node.of(topology(node)).marks.items()} == {
        "0.0-1.0": (Mark.DEGRADED,),
        "2.0-3.0": (Mark.DEGRADED,),
    }


def test_where_as_many_links_have_fewer_lanes_as_more_the_more_are_usual() -> None:
    links = [Link(Tile(0, 0), Tile(gpu, 0), lanes, lanes) for gpu, lanes in ((1, 4), (2, 8))]
    assert Node.of(Topology(tuple(links))).marks == {links[0]: (Mark.DEGRADED,)}


def test_a_gpu_that_only_the_id_map_knows_counts_as_one_tile() -> None:
    gpus = (Gpu(0, "0000:10:00.0"), Gpu(3, "0000:13:00.0"))
    node = Node.of(Topology((Link(Tile(0, 0), Tile(0, 1), 4, 4),), gpus))
    assert node.tiles == (Tile(0, 0), Tile(0, 1), Tile(3, 0))
    assert node.devices == (0, 3)
    assert node.pairs == 1


def test_a_sound_node_has_no_marks() -> None:
    for wiring in ("mesh", "ring", "planes", "pairs"):
        node = Node.of(topology(Blueprint(gpus=8, wiring=wiring).build()))
        assert not node.marks
        assert not node.thin


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_no_pair_of_a_sound_node_has_lost_its_links(wiring: str, tiles: int) -> None:
    for gpus in range(1, 17):
        seen = topology(Blueprint(gpus=gpus, wiring=wiring, tiles=tiles).build())
        assert Node.of(seen).lost == (), (gpus, seen)


def _cut(gpus: int, *pairs: tuple[int, int], wiring: str = "mesh") -> Node:
    """Cut every link of these pairs; the ports of their GPUs are told, too."""
    node = Blueprint(gpus=gpus, wiring=wiring).build()
    links = [link for link in node.links if (link.a.device, link.b.device) in pairs]
    return Node.of(topology(node.cut(*links)))


@pytest.mark.parametrize(
    ("node", "lost"),
    [
        pytest.param(_cut(8, (0, 1)), ((0, 1),), id="one of a mesh"),
        pytest.param(_cut(8, (0, 1), (2, 3), (4, 5)), ((0, 1), (2, 3), (4, 5)), id="three"),
        pytest.param(_cut(6, (1, 4), wiring="planes"), ((1, 4),), id="one of the planes"),
        pytest.param(_cut(3, (0, 2)), ((0, 2),), id="one of three GPUs"),
        pytest.param(
            _cut(5, (0, 4), (1, 4), (2, 4), (3, 4)),
            ((0, 4), (1, 4), (2, 4), (3, 4)),
            id="all of one GPU, whose ports are still told",
        ),
        pytest.param(_cut(8, (0, 7), wiring="ring"), ((0, 7),), id="one of a ring"),
        pytest.param(_cut(8, (2, 3), wiring="ring"), ((2, 3),), id="another one of a ring"),
        pytest.param(_cut(8, (0, 1), (4, 5), wiring="ring"), (), id="of two chains, who knows"),
        pytest.param(_cut(2, (0, 1)), (), id="of the only pair, who knows"),
        pytest.param(_cut(4, (0, 1), wiring="pairs"), (), id="of bridged pairs, who knows"),
        pytest.param(_cut(4, (0, 2), (1, 3)), (), id="two of four: as a ring is"),
    ],
)
def test_a_pair_that_lost_all_its_links_is_known_by_those_of_the_others(
    node: Node, lost: tuple[tuple[int, int], ...]
) -> None:
    assert node.lost == lost
    for one, other in lost:
        assert str(node.gpus_connected(one, other)).endswith("!")
        assert str(node.tiles_connected(Tile(other, 0), Tile(one, 0))).endswith("!")


def test_a_pair_that_lost_a_link_is_thin() -> None:
    assert Node.of(topology(Blueprint(gpus=4).build().cut("1.0-2.0"))).thin == ((1, 2),)


def test_a_link_inside_a_gpu_joins_no_pair() -> None:
    node = Node.of(Topology((Link(Tile(0, 0), Tile(0, 1), 4, 4),)))
    assert not node.between
    assert str(node.tiles_connected(Tile(0, 0), Tile(0, 1))) == "XL4"
    assert node.groups == ()


@given(topologies)
def test_groups_are_linked_throughout_and_none_could_be_larger(topology: Topology) -> None:
    node = Node.of(topology)
    neighbors = topology.neighbors
    for group in node.groups:
        assert all(other in neighbors[one] for one, other in combinations(group, 2))
        assert not any(set(group) <= others for others in neighbors.values())
    assert node.listed.complete
    assert node.largest == largest_group(neighbors)
    assert len(node.groups[0] if node.groups else ()) == len(node.largest.group)
    assert {gpu for group in node.groups for gpu in group} == set(neighbors)


def test_a_topology_made_to_have_countless_groups_holds_nobody_up() -> None:
    # 3**16 groups: sixteen threes, each GPU linked to all but those of its three
    gpus = range(48)
    links = [
        Link(Tile(a, 0), Tile(b, 0), 4, 4) for a, b in combinations(gpus, 2) if a // 3 != b // 3
    ]
    listed = Node.of(Topology(tuple(links))).listed
    assert len(listed.groups) == 1000
    assert not listed.complete
