"""What a node's links are called: connections, marks, groups."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.commands import reading, topology
from tests.data import BODIES, needs_data
from tests.strategies import topologies
from xelink.cli.readings import of_rows
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode, render
from xelink.simulators.xpu_manager.blueprint import WIRINGS
from xelink.topology.groups import largest_group
from xelink.topology.model import Gpu, Link, PortState, Tile, Topology
from xelink.topology.rules import Rules
from xelink.view.node_view import Mark, NodeView
from xelink.xpu_manager.rows import TileConnection as Told

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
    node = NodeView.of(topology(Blueprint(gpus=4).build().degrade(4, 2, "0.0-1.0")))
    assert str(node.gpus_connected(0, 1)) == "XL6!"
    assert node.gpus_connected(1, 0) == node.gpus_connected(0, 1)
    assert str(node.gpus_connected(2, 3)) == "XL8"


def test_a_link_that_one_tile_tells_of_is_one_sided() -> None:
    node = NodeView.of(topology(Blueprint(gpus=3).build().one_direction("0.0-1.0")))
    assert {str(link): marks for link, marks in node.marks.items()} == {
        "0.0-1.0": (Mark.ONE_SIDED,)
    }


def test_a_link_with_fewer_lanes_than_most_is_degraded_in_either_direction() -> None:
    node = Blueprint(gpus=4, lanes=8).build().degrade(8, 4, "0.0-1.0").degrade(4, 4, "2.0-3.0")
    assert {str(link): marks for link, marks in NodeView.of(topology(node)).marks.items()} == {
        "0.0-1.0": (Mark.DEGRADED,),
        "2.0-3.0": (Mark.DEGRADED,),
    }


def test_a_single_lane_less_is_degraded() -> None:
    node = Blueprint(gpus=4, lanes=4).build().degrade(4, 3, "0.0-1.0")
    assert {str(link): marks for link, marks in NodeView.of(topology(node)).marks.items()} == {
        "0.0-1.0": (Mark.DEGRADED,)
    }


def test_where_as_many_links_have_fewer_lanes_as_more_the_more_are_usual() -> None:
    links = [Link(Tile(0, 0), Tile(gpu, 0), lanes, lanes) for gpu, lanes in ((1, 4), (2, 8))]
    assert NodeView.of(Topology(tuple(links))).marks == {links[0]: (Mark.DEGRADED,)}


def test_a_gpu_that_only_the_id_map_knows_counts_as_one_tile() -> None:
    gpus = (Gpu(0, "0000:10:00.0"), Gpu(3, "0000:13:00.0"))
    node = NodeView.of(Topology((Link(Tile(0, 0), Tile(0, 1), 4, 4),), gpus))
    assert node.tiles == (Tile(0, 0), Tile(0, 1), Tile(3, 0))
    assert node.devices == (0, 3)
    assert node.pairs == 1


def test_a_sound_node_has_no_marks() -> None:
    for wiring in ("mesh", "ring", "planes", "pairs"):
        node = NodeView.of(topology(Blueprint(gpus=8, wiring=wiring).build()))
        assert not node.marks
        assert not node.thin


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_no_pair_of_a_sound_node_has_lost_its_links(wiring: str, tiles: int) -> None:
    for gpus in range(1, 17):
        seen = topology(Blueprint(gpus=gpus, wiring=wiring, tiles=tiles).build())
        assert NodeView.of(seen).lost == (), (gpus, seen)


def _cut(gpus: int, *pairs: tuple[int, int], wiring: str = "mesh") -> NodeView:
    """Cut every link of these pairs; the ports of their GPUs are told, too."""
    node = Blueprint(gpus=gpus, wiring=wiring).build()
    links = [link for link in node.links if (link.a.device, link.b.device) in pairs]
    return NodeView.of(topology(node.cut(*links)))


@pytest.mark.parametrize(
    ("cut", "lost"),
    [
        pytest.param(partial(_cut, 8, (0, 1)), ((0, 1),), id="one of a mesh"),
        pytest.param(
            partial(_cut, 8, (0, 1), (2, 3), (4, 5)), ((0, 1), (2, 3), (4, 5)), id="three"
        ),
        pytest.param(partial(_cut, 6, (1, 4), wiring="planes"), ((1, 4),), id="one of the planes"),
        pytest.param(partial(_cut, 3, (0, 2)), ((0, 2),), id="one of three GPUs"),
        pytest.param(
            partial(_cut, 5, (0, 4), (1, 4), (2, 4), (3, 4)),
            ((0, 4), (1, 4), (2, 4), (3, 4)),
            id="all of one GPU, whose ports are still told",
        ),
        pytest.param(partial(_cut, 8, (0, 7), wiring="ring"), ((0, 7),), id="one of a ring"),
        pytest.param(
            partial(_cut, 8, (2, 3), wiring="ring"), ((2, 3),), id="another one of a ring"
        ),
        pytest.param(
            partial(_cut, 8, (0, 1), (4, 5), wiring="ring"), (), id="of two chains, who knows"
        ),
        pytest.param(partial(_cut, 2, (0, 1)), (), id="of the only pair, who knows"),
        pytest.param(
            partial(_cut, 4, (0, 1), wiring="pairs"), (), id="of bridged pairs, who knows"
        ),
        pytest.param(partial(_cut, 4, (0, 2), (1, 3)), (), id="two of four: as a ring is"),
    ],
)
def test_a_pair_that_lost_all_its_links_is_known_by_those_of_the_others(
    cut: Callable[[], NodeView], lost: tuple[tuple[int, int], ...]
) -> None:
    node = cut()
    assert node.lost == lost
    for one, other in lost:
        assert str(node.gpus_connected(one, other)).endswith("!")
        assert str(node.tiles_connected(Tile(other, 0), Tile(one, 0))).endswith("!")


Pair = tuple[int, int]


def _ring(count: int) -> set[Pair]:
    return {(min(at, to), max(at, to)) for at in range(count) if (to := (at + 1) % count) != at}


def _mesh(count: int, first: int = 0) -> set[Pair]:
    return {*combinations(range(first, first + count), 2)}


def _sockets(sockets: int, gpus: int, counterparts: int) -> set[Pair]:
    """Link the GPUs of each socket, and the first of them to those of the other sockets."""
    starts = [socket * gpus for socket in range(sockets)]
    across = {(a + at, b + at) for at in range(counterparts) for a, b in combinations(starts, 2)}
    return across.union(*(_mesh(gpus, start) for start in starts))


def _of(pairs: set[Pair], *more: PortState | None, ports: PortState | None = None) -> NodeView:
    """Make a node of linked pairs whose GPUs have such ports; `more` are those of GPUs beside."""
    linked = dict.fromkeys(sorted({end for pair in pairs for end in pair}), ports)
    every = linked | dict(enumerate(more, len(linked)))
    gpus = tuple(Gpu(gpu, f"0000:{gpu:02x}:00.0", ports=state) for gpu, state in every.items())
    links = tuple(Link(Tile(one, 0), Tile(other, 0), 4, 4) for one, other in pairs)
    return replace(NodeView.of(Topology(links, gpus)), every_link=True)


SOUND: dict[str, set[Pair]] = {
    **{f"a ring of {count}": _ring(count) for count in range(3, 9)},
    **{f"a mesh of {count}": _mesh(count) for count in range(2, 9)},
    **{
        f"{sockets} sockets of {gpus}, {across} linked across": _sockets(sockets, gpus, across)
        for sockets in (2, 4)
        for gpus in (3, 4)
        for across in (0, 1, gpus)
    },
    "2 sockets of 2": _sockets(2, 2, 0),
    "2 sockets of 2, all linked across": _sockets(2, 2, 2),
    "a prism": _sockets(2, 3, 3),
    "a cube": _sockets(2, 4, 0) - {(0, 2), (1, 3), (4, 6), (5, 7)} | {(i, i + 4) for i in range(4)},
    "bridges of 2": _mesh(2) | _mesh(2, 2) | _mesh(2, 4),
    "bridges of 4": _mesh(4) | _mesh(4, 4),
    "bridges of 2 and of 4": _mesh(2) | _mesh(4, 2),
}


@pytest.mark.parametrize("ports", [None, PortState.HEALTHY, PortState.DEGRADED])
@pytest.mark.parametrize("shape", SOUND)
def test_no_pair_of_a_shape_that_exists_has_lost_its_links(
    shape: str, ports: PortState | None
) -> None:
    """Nor has a GPU beside it that was never linked, whatever is known of its ports."""
    for beside in (None, PortState.HEALTHY, PortState.DISABLED):
        for count in range(3):
            node = _of(SOUND[shape], *[beside] * count, ports=ports)
            assert node.lost == (), (beside, count)


@pytest.mark.parametrize("state", PortState)
def test_a_port_of_a_gpu_that_was_never_linked_says_nothing_where_those_of_others_are_sound(
    state: PortState,
) -> None:
    assert _of(_mesh(4), state, ports=PortState.HEALTHY).lost == ()
    assert _of(_mesh(6), state, state).lost == ()
    assert _of(_mesh(2), state, ports=PortState.FAILED).lost == ()
    assert _of(_mesh(2) | _mesh(2, 2), state, ports=PortState.FAILED).lost == ()


@pytest.mark.parametrize("count", range(4, 9))
def test_each_single_pair_that_a_mesh_lacks_is_lost(count: int) -> None:
    for pair in _mesh(count):
        assert _of(_mesh(count) - {pair}).lost == (pair,)


@pytest.mark.parametrize("count", range(3, 9))
def test_the_ends_of_each_ring_that_is_cut_are_lost(count: int) -> None:
    for pair in _ring(count):
        for beside in ([], [PortState.HEALTHY], [None]):
            assert _of(_ring(count) - {pair}, *beside).lost == (pair,)


def test_two_gpus_that_are_not_linked_as_all_others_are_across_sockets_lost_that_link() -> None:
    assert _of(_sockets(2, 4, 4) - {(3, 7)}).lost == ((3, 7),)
    assert _of(_sockets(2, 4, 4) - {(2, 3)}).lost == ((2, 3),)


@given(st.sets(st.sampled_from(sorted(_mesh(8))), max_size=28), st.sampled_from(PortState))
def test_what_is_lost_has_no_link_and_is_at_most_a_quarter_of_a_set(
    pairs: set[Pair], ports: PortState
) -> None:
    node = _of(pairs, ports=ports)
    assert not {*node.lost} & pairs
    assert 4 * len(node.lost) <= node.pairs or len(node.lost) == 1


@pytest.mark.parametrize("failed", [1, 2])
def test_gpus_that_lost_all_their_links_are_known_by_the_ports_of_all(failed: int) -> None:
    bad = PortState.FAILED
    lost = _mesh(6 + failed) - _mesh(6)
    assert {*_of(_mesh(6), *[bad] * failed, ports=bad).lost} == lost
    assert _of(_mesh(6), *[PortState.DISABLED] * failed, ports=bad).lost == ()


def test_a_ring_that_lost_a_gpu_is_no_cut_ring() -> None:
    chain = _ring(8) - {(6, 7), (0, 7)}
    assert _of(chain, PortState.FAILED).lost == ()


def test_where_links_may_be_unpublished_a_pair_with_healthy_ports_is_not_lost() -> None:
    """As where `-lane-count` leaves out some that have fewer lanes by their wiring."""
    few = {(0, 1), (2, 3), (4, 5)}
    filtered = replace(_of(_mesh(8) - few, ports=PortState.HEALTHY), every_link=False)
    assert filtered.lost == ()
    assert replace(filtered, every_link=True).lost == tuple(sorted(few))
    unknown = replace(_of(_mesh(8) - few), every_link=False)
    assert unknown.lost == tuple(sorted(few))
    assert (unknown.no_link, unknown.or_else) == (
        "no published link",
        "or fewer lanes than -lane-count",
    )


def test_a_pair_that_lost_a_link_is_thin() -> None:
    assert NodeView.of(topology(Blueprint(gpus=4).build().cut("1.0-2.0"))).thin == ((1, 2),)


def test_a_link_inside_a_gpu_joins_no_pair() -> None:
    node = NodeView.of(Topology((Link(Tile(0, 0), Tile(0, 1), 4, 4),)))
    assert not node.between
    assert str(node.tiles_connected(Tile(0, 0), Tile(0, 1))) == "XL4"
    assert node.groups == ()


@given(topologies)
def test_groups_are_linked_throughout_and_none_could_be_larger(topology: Topology) -> None:
    node = NodeView.of(topology)
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
    listed = NodeView.of(Topology(tuple(links))).listed
    assert len(listed.groups) == 1000
    assert not listed.complete
