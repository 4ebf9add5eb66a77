from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.debounce import Confirmed, LossKind, debounce
from tests.strategies import topologies
from xelink.topology.labels import links_text, parse_links
from xelink.topology.model import GPU_LIMIT, Gpu, Link, PortState, Tile, Topology
from xelink.topology.observation import ObservedLinks


def gpu(device: int, bus: int | None = None, **facts: object) -> Gpu:
    address = f"0000:{device + 16 if bus is None else bus:02x}:00.0"
    return Gpu(device, address, **facts)  # type: ignore[arg-type]  # facts of any type, by name


def saw(topology: Topology, *silent: str) -> ObservedLinks:
    """Make a scrape in which the rows of silent links could not be understood."""
    quiet = {link.ends for text in silent for link in parse_links(text)}
    quiet |= {(b, a) for a, b in quiet}
    pairs = frozenset((a, b) for a in topology.tiles for b in topology.tiles)
    return ObservedLinks(topology, pairs - quiet, unread=len(quiet))


def topology(links: str = "", gpus: Sequence[Gpu] = (), tiles: Sequence[Tile] = ()) -> Topology:
    return Topology(parse_links(links), tuple(gpus), tuple(tiles))


def run(first: Topology, *scrapes: Topology, confirmations: int = 2) -> list[str]:
    """Give the believed links after each of the scrapes that follow the first."""
    belief = debounce(None, saw(first), confirmations)
    texts = []
    for scrape in scrapes:
        belief = debounce(belief, saw(scrape), confirmations)
        texts.append(links_text(belief.topology.links))
    return texts


ALL = topology("0.0-1.0_0.0-2.0_1.0-2.0")
LESS = topology("0.0-1.0_0.0-2.0")
NONE = topology()


@pytest.mark.parametrize(
    ("scrapes", "believed"),
    [
        pytest.param([LESS], ["0.0-1.0_0.0-2.0_1.0-2.0"], id="one scrape proves no loss"),
        pytest.param([LESS, LESS], [links_text(ALL.links), links_text(LESS.links)], id="two do"),
        pytest.param([LESS, ALL, LESS], [links_text(ALL.links)] * 3, id="but only in a row"),
        pytest.param([NONE, NONE], [links_text(ALL.links), ""], id="no links is a loss, too"),
        pytest.param(
            [NONE, LESS],
            [links_text(ALL.links), links_text(LESS.links)],
            id="they must agree on each thing, not on all",
        ),
    ],
)
def test_a_loss_must_be_seen_in_scrapes_in_a_row(
    scrapes: list[Topology], believed: list[str]
) -> None:
    assert run(ALL, *scrapes) == believed


def test_a_gain_counts_at_once() -> None:
    assert run(LESS, ALL) == [links_text(ALL.links)]
    assert run(NONE, ALL, confirmations=5) == [links_text(ALL.links)]


def test_a_gain_and_a_loss_in_one_scrape_are_judged_apart() -> None:
    seen = topology("0.0-1.0_0.0-3.0")
    assert run(LESS, seen, seen) == ["0.0-1.0_0.0-2.0_0.0-3.0", "0.0-1.0_0.0-3.0"]


@pytest.mark.parametrize("confirmations", [1, 2, 3, 7])
def test_the_number_of_confirmations_is_as_asked(confirmations: int) -> None:
    believed = run(ALL, *[NONE] * confirmations, confirmations=confirmations)
    assert believed == [links_text(ALL.links)] * (confirmations - 1) + [""]


def test_a_gpu_whose_id_moved_is_a_new_truth_at_once() -> None:
    standing = Confirmed(topology("0.0-1.0_1.0-2.0", [gpu(0), gpu(1), gpu(2)]))
    shifted = topology("0.0-1.0", [gpu(0), gpu(1, bus=18)])
    belief = debounce(standing, saw(shifted), confirmations=5)
    assert belief.topology == shifted
    assert belief.moved == ("0000:12:00.0",)
    assert not belief.missing


def test_another_gpu_under_an_id_is_a_new_truth_at_once() -> None:
    standing = Confirmed(topology("0.0-1.0", [gpu(0), gpu(1)]))
    replaced = topology("", [gpu(0), gpu(1, bus=99)])
    assert debounce(standing, saw(replaced), 5).topology == replaced


def test_a_lost_gpu_and_its_tiles_wait_like_links() -> None:
    tiles = [Tile(0, 0), Tile(1, 0)]
    standing = Confirmed(topology("0.0-1.0", [gpu(0), gpu(1)]))
    thinner = topology("", [gpu(0)], tiles[:1])
    once = debounce(standing, saw(thinner), 2)
    assert once.topology == standing.topology
    assert {kind: once.pending(kind) for kind in LossKind} == {
        LossKind.LINK: 1,
        LossKind.TILE: 1,
        LossKind.GPU: 1,
        LossKind.LANES: 0,
        LossKind.PORTS: 0,
    }
    assert debounce(once, saw(thinner), 2).topology == thinner


def test_a_gpu_that_others_still_see_is_not_lost() -> None:
    standing = Confirmed(topology("0.0-1.0", [gpu(0), gpu(1, card="card2")]))
    belief = standing
    for _ in range(5):
        belief = debounce(belief, saw(topology("0.0-1.0", [gpu(0)])), 2)
        assert belief.topology.gpus == standing.topology.gpus


def test_lanes_fall_to_the_best_that_was_seen_while_they_were_fewer() -> None:
    def lanes(forth: int, back: int) -> Topology:
        return Topology((Link(Tile(0, 0), Tile(1, 0), forth, back),))

    belief = debounce(None, saw(lanes(16, 16)), 3)
    for seen, believed in [
        (lanes(8, 16), lanes(16, 16)),
        (lanes(12, 16), lanes(16, 16)),
        (lanes(4, 16), lanes(12, 16)),
        (lanes(20, 0), lanes(20, 16)),
    ]:
        belief = debounce(belief, saw(seen), 3)
        assert belief.topology == believed


def test_worse_ports_wait_and_ports_that_are_not_told_stay() -> None:
    def ports(state: PortState | None) -> Topology:
        return topology("", [gpu(0, ports=state)], [Tile(0, 0)])

    belief = debounce(None, saw(ports(PortState.HEALTHY)), 2)
    for seen, believed in [
        (PortState.FAILED, PortState.HEALTHY),
        (None, PortState.HEALTHY),
        (PortState.FAILED, PortState.FAILED),
        (None, PortState.FAILED),
        (PortState.HEALTHY, PortState.HEALTHY),
    ]:
        belief = debounce(belief, saw(ports(seen)), 2)
        assert belief.topology.gpus[0].ports is believed


def test_facts_that_one_scrape_does_not_tell_stay() -> None:
    standing = Confirmed(topology("", [gpu(0, card="card1", uuid="u", numa=1)], [Tile(0, 0)]))
    seen = topology("", [gpu(0, card="card3")], [Tile(0, 0)])
    assert debounce(standing, saw(seen), 2).topology.gpus == (
        gpu(0, card="card3", uuid="u", numa=1),
    )


TRIANGLE = topology("0.0-1.0_0.0-2.0_1.0-2.0")
CUT = topology("0.0-1.0_0.0-2.0")


def test_what_could_not_be_understood_is_not_lost() -> None:
    belief = Confirmed(TRIANGLE)
    for _ in range(5):
        belief = debounce(belief, saw(CUT, "1.0-2.0"), 2)
        assert belief.topology == TRIANGLE


def test_a_scrape_that_does_not_tell_neither_confirms_nor_forgets_a_loss() -> None:
    belief = Confirmed(TRIANGLE)
    for scrape in (saw(CUT), saw(CUT, "1.0-2.0")):
        belief = debounce(belief, scrape, 2)
        assert belief.topology == TRIANGLE
        assert belief.pending(LossKind.LINK) == 1
    assert debounce(belief, saw(CUT), 2).topology == CUT


@pytest.mark.parametrize("directions", ["forth", "back", "both"])
def test_a_cut_that_is_told_is_a_loss_whatever_else_could_not_be_understood(
    directions: str,
) -> None:
    pair = {"forth": (Tile(1, 0), Tile(2, 0)), "back": (Tile(2, 0), Tile(1, 0))}
    belief = Confirmed(TRIANGLE)
    for links in ("0.0-1.0_0.0-2.0_1.0-2.0", "0.0-1.0_0.0-2.0"):
        scrape = saw(topology("0.0-2.0", tiles=TRIANGLE.tiles), "0.0-1.0")
        if directions != "both":
            scrape = replace(
                scrape, reported=scrape.reported - {*pair.values()} | {pair[directions]}
            )
        belief = debounce(belief, scrape, 2)
        assert links_text(belief.topology.links) == links


def test_lanes_of_a_direction_that_is_told_are_lost_whatever_else_could_not_be_understood() -> None:
    def lanes(forth: int, back: int) -> Topology:
        return Topology((*parse_links("2.0-3.0"), Link(Tile(0, 0), Tile(1, 0), forth, back)))

    belief = Confirmed(lanes(16, 16))
    scrape = replace(saw(lanes(8, 0), "2.0-3.0"), reported=frozenset({(Tile(0, 0), Tile(1, 0))}))
    for believed in (lanes(16, 16), lanes(8, 16)):
        belief = debounce(belief, scrape, 2)
        assert belief.topology == believed


def test_an_id_that_rows_disagree_on_leaves_the_id_map_at_once() -> None:
    standing = Confirmed(topology("0.0-1.0", [gpu(0), gpu(1)]))
    seen = replace(saw(topology("0.0-1.0", [gpu(0)])), ambiguous=frozenset({1}))
    assert debounce(standing, seen, 5).topology.gpus == (gpu(0),)


@given(topologies, st.integers(1, 4))
def test_what_is_seen_first_is_believed(seen: Topology, confirmations: int) -> None:
    assert debounce(None, saw(seen), confirmations).topology == seen


@given(topologies, topologies, st.integers(1, 4))
def test_what_is_seen_often_enough_is_believed(
    standing: Topology, seen: Topology, confirmations: int
) -> None:
    belief = debounce(None, saw(standing), confirmations)
    for _ in range(confirmations):
        belief = debounce(belief, saw(seen), confirmations)
    assert belief.topology.by_ends.keys() == seen.by_ends.keys()
    assert belief.topology.tiles == seen.tiles
    assert not [key for key in belief.missing if key.kind is not LossKind.PORTS]


@given(topologies, topologies)
def test_one_scrape_takes_no_link_away_unless_ids_moved(standing: Topology, seen: Topology) -> None:
    belief = debounce(Confirmed(standing), saw(seen), 2)
    if not belief.moved:
        assert belief.topology.by_ends.keys() == standing.by_ends.keys() | seen.by_ends.keys()


def test_gpus_that_come_in_place_of_others_are_never_more_than_a_node_has() -> None:
    def gpus_from(first: int) -> Topology:
        ids = range(first, first + GPU_LIMIT)
        tiles = [Tile(device, 0) for device in ids]
        return topology(gpus=[gpu(device, device) for device in ids], tiles=tiles)

    old, new = gpus_from(0), gpus_from(64)
    belief = debounce(None, saw(old), 3)
    believed = []
    for seen in (new, gpus_from(128), new, new):
        belief = debounce(belief, saw(seen), 3)
        believed.append(belief.topology)
        assert len(belief.topology.gpus) <= GPU_LIMIT
    assert believed == [old, old, new, new]
