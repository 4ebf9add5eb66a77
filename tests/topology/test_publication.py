import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import topologies
from xelink.topology import nfd_format
from xelink.topology.model import GPU_LIMIT, TILE_LIMIT, Gpu, Link, PortState, Tile, Topology
from xelink.topology.publication import (
    AbsentError,
    ExpiredFileError,
    InconsistentError,
    LinkState,
    Publication,
    UnusableError,
    UnwritableError,
    links_hash,
    node_labels,
    read,
    render,
)

NS = "gpu.intel.com"
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=300)
PAIR = Topology(
    links=(Link(Tile(0, 0), Tile(1, 0), 4, 8), Link(Tile(0, 1), Tile(1, 1), 4, 4)),
    gpus=(
        Gpu(0, "0000:29:00.0", "card1", "00-29", 0, PortState.HEALTHY),
        Gpu(1, "0000:3a:00.0"),
    ),
)


HASH = "579a8f20c282aceb"


def _many(count: int) -> Iterator[Gpu]:
    for number in range(count):
        yield Gpu(number, f"0000:{number:02x}:00.0")


def test_the_file_in_full() -> None:
    assert render(Publication(PAIR, LATER), NS).decode() == (
        "# +expiry-time=2026-11-20T10:05:00Z\n"
        "gpu.intel.com/xe-links=0.0-1.0_0.1-1.1\n"
        "gpu.intel.com/xe-links.count=2\n"
        "gpu.intel.com/xe-links.gpus=2\n"
        "gpu.intel.com/xe-links.group=2\n"
        "gpu.intel.com/xe-links.state=links\n"
        f"gpu.intel.com/xe-links.hash={HASH}\n"
        "# +no-label\n"
        'gpu.intel.com/xe-links.topology={"tiles":["0.0","0.1","1.0","1.1"],'
        '"links":[["0.0","1.0",4,8],["0.1","1.1",4,4]]}\n'
        "# +no-label\n"
        'gpu.intel.com/xe-links.id-map=[{"id":0,"pci":"0000:29:00.0","card":"card1",'
        '"uuid":"00-29","numa":0,"ports":"healthy"},{"id":1,"pci":"0000:3a:00.0"}]\n'
    )


@given(topologies, st.booleans())
def test_read_undoes_render(topology: Topology, summary: bool) -> None:  # noqa: FBT001 - drawn
    publication = Publication(topology, LATER)
    assert read(render(publication, NS, summary=summary), NS, NOW) == publication


@given(topologies)
def test_nfd_publishes_what_was_meant(topology: Topology) -> None:
    publication = Publication(topology, LATER)
    file = nfd_format.parse(render(publication, NS), NOW)
    assert file.labels == node_labels(publication, NS)
    assert not file.problems
    assert all(nfd_format.label_problem(*label) is None for label in file.labels.items())


@given(topologies)
def test_no_raw_feature_could_pass_for_a_label(topology: Topology) -> None:
    file = nfd_format.parse(render(Publication(topology), NS).replace(b"# +no-label\n", b""), NOW)
    raw = [name for name in file.labels if name.endswith((".topology", ".id-map"))]
    assert len(raw) == 2
    assert all(nfd_format.label_problem(name, file.labels[name]) for name in raw)


def test_the_digest_is_the_same_in_every_version() -> None:
    """Nodes are compared by it while some of them run another version."""
    assert links_hash(PAIR.links) == HASH
    assert links_hash(()) == "e3b0c44298fc1c14"


def test_no_links_are_said_and_no_fabric_data_is_not_no_links() -> None:
    none = node_labels(Publication(Topology()), NS)
    assert none[f"{NS}/xe-links"] == ""
    assert none[f"{NS}/xe-links.state"] == "none"
    assert node_labels(Publication(None), NS) == {f"{NS}/xe-links.state": "no-fabric-data"}
    standing = read(render(Publication(None, LATER), NS), NS, NOW)
    assert (standing.state, standing.expiry) == (LinkState.NO_FABRIC_DATA, LATER)


def test_a_file_of_the_reference_is_understood() -> None:
    standing = read(b"gpu.intel.com/xe-links=9.1-10.0_2.0-11.0\n", NS, NOW)
    assert standing.topology == Topology(
        (Link(Tile(2, 0), Tile(11, 0)), Link(Tile(9, 1), Tile(10, 0)))
    )
    assert not standing.whole
    assert standing.expiry is None


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old.encode(), new.encode())


def without(part: str) -> Callable[[bytes], bytes]:
    return lambda content: b"\n".join(
        line for line in content.split(b"\n") if part.encode() not in line
    )


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        pytest.param(without("gpu.intel.com"), AbsentError, id="nothing of ours"),
        pytest.param(replaced("10:05:00Z", "09:59:59Z"), ExpiredFileError, id="expired"),
        pytest.param(
            lambda content: (
                b"gpu.intel.com/xe-links=0.0-1.0\n" + content.replace(b"10:05:00Z", b"09:59:59Z")
            ),
            ExpiredFileError,
            id="expired but for its beginning",
        ),
        pytest.param(without("xe-links="), InconsistentError, id="no link labels"),
        pytest.param(without(".topology="), InconsistentError, id="no raw topology"),
        pytest.param(without(".id-map="), InconsistentError, id="no id map"),
        pytest.param(
            replaced("/xe-links=0.0-1.0_0.1-1.1", "/xe-links=0.0-1.0"),
            InconsistentError,
            id="other links than the raw topology",
        ),
        pytest.param(replaced("count=2", "count=3"), InconsistentError, id="wrong count"),
        pytest.param(replaced("hash=", "hash=0"), InconsistentError, id="wrong hash"),
        pytest.param(replaced("state=links", "state=none"), InconsistentError, id="wrong state"),
        pytest.param(
            replaced("state=links", "state=no-fabric-data"), InconsistentError, id="two states"
        ),
        pytest.param(replaced('"id":1', '"id":0'), InconsistentError, id="an id twice"),
        pytest.param(replaced('"id":1', '"id":-1'), InconsistentError, id="a negative id"),
        pytest.param(replaced('"id":1', '"id":true'), InconsistentError, id="an id of no number"),
        pytest.param(replaced("0000:3a", "0000:29"), InconsistentError, id="an address twice"),
        pytest.param(replaced("0000:3a:00.0", "nowhere"), InconsistentError, id="no address"),
        pytest.param(replaced('"card1"', '"../1"'), InconsistentError, id="no card"),
        pytest.param(replaced('"healthy"', '"fine"'), InconsistentError, id="unknown ports"),
        pytest.param(replaced('"tiles":[', '"tiles":[['), InconsistentError, id="broken JSON"),
        pytest.param(replaced(",4,8]", ",4]"), InconsistentError, id="half a link"),
        pytest.param(replaced('"0.0","1.0",4', '"0.0","1",4'), InconsistentError, id="no tile"),
        pytest.param(
            lambda content: content + b"gpu.intel.com/xe-links.id-map=" + b"[" * 9999 + b"\n",
            InconsistentError,
            id="nested without end",
        ),
    ],
)
def test_a_damaged_file_is_not_used(
    damage: Callable[[bytes], bytes], error: type[UnusableError]
) -> None:
    content = render(Publication(PAIR, LATER), NS)
    assert damage(content) != content
    with pytest.raises(error):
        read(damage(content), NS, NOW)


@given(topologies, st.data())
def test_any_damage_is_noticed_or_harmless(topology: Topology, data: st.DataObject) -> None:
    content = bytearray(render(Publication(topology, LATER), NS))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    try:
        standing = read(bytes(content), NS, NOW)
    except UnusableError:
        return
    # What is accepted never names other links: lanes and facts of the id map have no second copy.
    assert standing.topology is not None
    assert [link.ends for link in standing.topology.links] == [link.ends for link in topology.links]


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_json_is_noticed(value: object) -> None:
    content = render(Publication(PAIR), NS)
    start = content.index(b"/xe-links.id-map=") + len("/xe-links.id-map=")
    with pytest.raises(InconsistentError):
        read(content[:start] + json.dumps([value]).encode(), NS, NOW)


def test_what_nfd_would_drop_is_not_written() -> None:
    with pytest.raises(UnwritableError, match="namespace"):
        render(Publication(PAIR), "GPU.intel.com")
    mesh = tuple(Link(Tile(a, 0), Tile(b, 0)) for b in range(80) for a in range(b))
    with pytest.raises(UnwritableError, match="65536"):
        render(Publication(Topology(mesh)), NS)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Link(Tile(1, 0), Tile(0, 0)), id="ends out of order"),
        pytest.param(lambda: Gpu(0, "29:00.0"), id="half an address"),
        pytest.param(lambda: Gpu(0, "0000:29:00.0", "renderD128"), id="no card"),
        pytest.param(lambda: Topology(PAIR.links + PAIR.links), id="a link twice"),
    ],
)
def test_what_cannot_be_is_never_born(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        make()


def test_the_weaker_direction_is_the_width() -> None:
    assert [link.width for link in PAIR.links] == [4, 4]
    assert Link.between(Tile(1, 0), Tile(0, 0), 8, 4) == PAIR.links[0]


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        pytest.param(Topology(gpus=tuple(_many(GPU_LIMIT + 1))), "65 GPUs are named", id="GPUs"),
        pytest.param(
            Topology(tiles=tuple(Tile(0, number) for number in range(TILE_LIMIT + 1))),
            "129 tiles are named: no node has more than 128",
            id="tiles",
        ),
    ],
)
def test_a_file_that_names_more_than_any_node_has_is_not_used(shape: Topology, what: str) -> None:
    with pytest.raises(InconsistentError, match=what):
        read(render(Publication(shape), NS), NS, NOW)


def test_labels_of_others_that_begin_as_ours_make_no_publication() -> None:
    with pytest.raises(AbsentError):
        read(f"{NS}/xe-links-of-mine=1\n".encode(), NS, NOW)
