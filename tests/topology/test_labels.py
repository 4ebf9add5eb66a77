import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import vectors
from tests.strategies import link_sets
from xelink.topology.labels import (
    LabelSetError,
    decode,
    encode,
    join,
    links_text,
    own,
    parse_links,
    split,
)
from xelink.topology.model import Link, Tile
from xelink.topology.nfd_format import value_problem

NS = "gpu.intel.com"


@pytest.mark.parametrize("case", vectors("split_vectors.json"))
def test_split_cuts_where_the_reference_cuts(case: dict[str, object]) -> None:
    assert split(str(case["input"]), int(str(case["max"])), str(case["control"])) == case["output"]


@pytest.mark.parametrize("case", vectors("topology_label_vectors.json"))
def test_links_of_the_reference_are_our_links(case: dict[str, object]) -> None:
    cells = case["cells"] or []
    assert isinstance(cells, list)
    assert isinstance(case["lines"], list)
    lines = dict(str(line).split("=", 1) for line in case["lines"])
    wide = {
        tuple(sorted((local, remote)))
        for cell in cells
        for local, remote in [
            (
                Tile(cell["LocalDeviceID"], cell["LocalSubdeviceID"]),
                Tile(cell["RemoteDeviceID"], cell["RemoteSubdeviceID"]),
            )
        ]
        if cell["LaneCount"] >= case["min_lane_count"]
    }
    ours = encode([Link(a, b) for a, b in wide], str(case["namespace"]))
    assert decode(ours, NS) == decode(lines, NS)
    assert list(ours) == list(lines)


@pytest.mark.parametrize(
    ("length", "chunks"),
    [(0, [0]), (1, [1]), (63, [63]), (64, [63, 2]), (125, [63, 63]), (126, [63, 63, 2])],
)
def test_split_lengths(length: int, chunks: list[int]) -> None:
    assert [len(chunk) for chunk in split("1" * length)] == chunks


def test_nothing_is_written_where_no_cut_is_valid() -> None:
    assert split("_" * 63 + "2") == []


@given(st.text("0123456789._-", max_size=400))
def test_join_undoes_split(text: str) -> None:
    chunks = split(text)
    if chunks:
        assert join(chunks) == text


@given(link_sets)
def test_decode_undoes_encode(links: list[Link]) -> None:
    labels = encode(links, NS)
    assert [link.ends for link in decode(labels, NS)] == sorted(link.ends for link in links)


@given(link_sets)
def test_every_chunk_is_a_valid_label_value(links: list[Link]) -> None:
    assert [value for value in encode(links, NS).values() if value_problem(value)] == []


@given(link_sets, st.randoms(use_true_random=False))
def test_the_same_links_are_the_same_text_in_any_order(links: list[Link], random: object) -> None:
    shuffled = sorted(links, key=lambda _: random.random())  # type: ignore[attr-defined]  # a Random
    turned = [Link.between(link.b, link.a, link.lanes_back, link.lanes) for link in shuffled]
    assert links_text(turned) == links_text(links)


@given(link_sets, st.data())
def test_a_set_without_one_of_its_first_chunks_is_refused(
    links: list[Link], data: st.DataObject
) -> None:
    labels = encode(links, NS)
    if len(labels) > 1:
        lost = data.draw(st.sampled_from(list(labels)[:-1]))
        with pytest.raises(LabelSetError):
            decode({name: value for name, value in labels.items() if name != lost}, NS)


def test_numbers_sort_as_numbers_and_lower_ends_come_first() -> None:
    links = [
        Link.between(Tile(10, 0), Tile(9, 1)),
        Link.between(Tile(2, 0), Tile(11, 0)),
        Link.between(Tile(2, 0), Tile(3, 0)),
    ]
    assert links_text(links) == "2.0-3.0_2.0-11.0_9.1-10.0"


def test_labels_of_others_are_ignored() -> None:
    labels = {
        f"{NS}/xe-links": "0.0-1.0",
        f"{NS}/xe-links.count": "1",
        f"{NS}/xe-linksfoo": "x",
        f"{NS}/gpu-numbers": "0.1",
        "other.com/xe-links": "3.0-4.0",
        "plain": "true",
    }
    assert decode(labels, NS) == (Link(Tile(0, 0), Tile(1, 0)),)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({}, id="absent"),
        pytest.param({"xe-links2": "Z_0.0-1.0"}, id="the first is missing"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links3": "Z_1.0-2.0"}, id="a gap"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links2": "_1.0-2.0"}, id="no continuation"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links2": ""}, id="an empty continuation"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links2": "Z_1.0-2.0"}, id="cut too early"),
        pytest.param({"xe-links": "0.0-1"}, id="half a tile"),
        pytest.param({"xe-links": "0.0_1.0"}, id="no link"),
        pytest.param({"xe-links": "true"}, id="another word"),
        pytest.param({"xe-links": "0.0-1.0_1.0-0.0"}, id="a link twice"),
        pytest.param({"xe-links": "0.0-1.0_"}, id="an empty link"),
        pytest.param({"xe-links": "\uff10.0-1.0"}, id="digits that are no ASCII"),
        pytest.param({"xe-links": "9999999999.0-1.0"}, id="an id that no device has"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links1": "Z"}, id="a name that no writer uses"),
        pytest.param({"xe-links": "0.0-1.0", "xe-links02": "Z"}, id="a leading zero"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_as_a_whole(labels: dict[str, str]) -> None:
    with pytest.raises(LabelSetError):
        decode({f"{NS}/{name}": value for name, value in labels.items()}, NS)


def test_no_links_are_one_empty_value() -> None:
    assert encode((), NS) == {f"{NS}/xe-links": ""}
    assert decode({f"{NS}/xe-links": ""}, NS) == ()


def test_parse_links_undoes_links_text() -> None:
    assert links_text(parse_links("0.0-1.0_0.1-1.1")) == "0.0-1.0_0.1-1.1"


@pytest.mark.parametrize(("gpus", "labels"), [(8, 8), (16, 35)])
def test_meshes_of_two_tiles_fill_this_many_labels(gpus: int, labels: int) -> None:
    mesh = [
        Link(Tile(a, tile), Tile(b, tile))
        for a in range(gpus)
        for b in range(a + 1, gpus)
        for tile in range(2)
    ]
    assert len(encode(mesh, NS)) == labels


@pytest.mark.parametrize("local", ["xe-links", "xe-links2", "xe-links.count", "xe-links.id-map"])
def test_names_that_tell_of_links_are_ours_in_their_namespace_alone(local: str) -> None:
    assert own(f"{NS}/{local}", NS)
    assert not own(f"other/{local}", NS)
    assert not own(local, NS)


@pytest.mark.parametrize("local", ["xe-links-of-mine", "xe-linksx", "xe-links2x", "my-xe-links"])
def test_names_that_only_begin_as_ours_are_not_ours(local: str) -> None:
    assert not own(f"{NS}/{local}", NS)
