import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import BODIES, needs_data
from tests.xpu_manager.bodies import body, both, judge, read_body, row, seen, self_rows
from xelink.simulators.xpu_manager import Blueprint, render
from xelink.topology.labels import decode, links_text
from xelink.topology.model import Gpu, Link, PortState, Tile
from xelink.topology.observation import NoFabricData, Observation, ObservedLinks, Unknown
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.reasons import ScrapeReason

TILES = ("0.0", "0.1", "1.0", "1.1")
SUBDEVICELESS = Rules(allow_subdeviceless_links=True)


def texts(outcome: Observation) -> str:
    assert isinstance(outcome, ObservedLinks)
    return links_text(outcome.topology.links)


@pytest.mark.parametrize(
    ("rows", "links"),
    [
        pytest.param(both("0.0", "1.0"), "0.0-1.0", id="both directions are one link"),
        pytest.param([row("1.0", "0.0")], "0.0-1.0", id="one direction is enough"),
        pytest.param(both("0.0", "1.0", 3, 4), "0.0-1.0", id="either direction may be wide"),
        pytest.param(both("0.0", "1.0", 3, 3), "", id="too narrow"),
        pytest.param([row("0.0", "1.0", value="2.0")], "", id="MDF is no Xe Link"),
        pytest.param([row("0.0", "0.1", value="5.0")], "", id="nor is the other tile"),
        pytest.param([row("0.0", "1.0", value="3.0")], "", id="nor is PCIe"),
        pytest.param([row("0.0", "1.0", value="-1.0")], "", id="nor is unknown"),
        pytest.param([row("0.0", "1.0", on_subdevice="false")], "", id="not on a subdevice"),
        pytest.param(both("0.0", "1.0") * 3, "0.0-1.0", id="duplicates"),
        pytest.param(
            [*both("0.0", "1.0", 2), *both("0.0", "1.0", 8)], "0.0-1.0", id="stale rows beside new"
        ),
    ],
)
def test_admission(rows: list[str], links: str) -> None:
    assert texts(judge([*self_rows(*TILES), *rows])) == links


def test_lanes_of_both_directions_are_kept() -> None:
    topology = seen([*self_rows(*TILES), *both("1.0", "0.0", 3, 8)])
    assert topology.links == (Link(Tile(0, 0), Tile(1, 0), lanes=8, lanes_back=3),)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([*both("0.0", "1.0", 8, 12), *both("0.0", "1.0", 4, 4)], id="wide first"),
        pytest.param([*both("0.0", "1.0", 4, 4), *both("0.0", "1.0", 8, 12)], id="wide last"),
        pytest.param([row("0.0", "1.0", lanes=8), *both("0.0", "1.0", 4, 12)], id="mixed"),
    ],
)
def test_of_rows_that_disagree_on_lanes_the_most_count_in_any_order(rows: list[str]) -> None:
    topology = seen([*self_rows(*TILES), *rows])
    assert topology.links == (Link(Tile(0, 0), Tile(1, 0), lanes=8, lanes_back=12),)


def test_links_of_one_tile_gpus_count_when_asked_for() -> None:
    rows = [row("0.0", "0.0", "0.0", 0), row("0.0", "1.0", on_subdevice="false")]
    assert texts(judge(rows, SUBDEVICELESS)) == "0.0-1.0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", ScrapeReason.NOT_XPU_MANAGER, id="empty"),
        pytest.param(b"#nodata: due to unexpected failure", ScrapeReason.NO_ROWS, id="no data"),
        pytest.param(b"<html>hello</html>", ScrapeReason.NOT_XPU_MANAGER, id="a web page"),
        pytest.param(b"\x00" * 100, ScrapeReason.NOT_XPU_MANAGER, id="NULs"),
        pytest.param(body(["xpum_power_watts 1"]), ScrapeReason.NO_ROWS, id="no topology"),
        pytest.param(
            body(both("0.0", "1.0")), ScrapeReason.NO_SELF_ROWS, id="links without self rows"
        ),
        pytest.param(body(["xpum_topology_link 1"]), ScrapeReason.NO_SELF_ROWS, id="only bad rows"),
    ],
)
def test_what_proves_nothing_is_unknown_with_its_reason(
    content: bytes, reason: ScrapeReason
) -> None:
    outcome = classify(read_body(content), Rules())
    assert isinstance(outcome, Unknown)
    assert outcome.reason is reason
    assert outcome.result.value == "unknown"


def test_xpu_manager_2_has_no_fabric_data() -> None:
    outcome = classify(read_body(b"hw_status 1\n"), Rules())
    assert isinstance(outcome, NoFabricData)
    assert outcome.result.value == "no-fabric-data"


def test_no_links_needs_the_proof_of_self_rows() -> None:
    assert judge(self_rows(*TILES)).result.value == "none"
    assert judge([*self_rows(*TILES), *both("0.0", "1.0")]).result.value == "links"


def test_the_id_map_has_every_gpu_with_the_state_of_its_ports() -> None:
    port = 'xpum_xelink_port_status{device_id="1",pci_bdf="0000:11:00.0"} 1.0'
    topology = seen([*self_rows("0.0", "1.0"), port])
    assert topology.gpus == (
        Gpu(0, "0000:10:00.0", "card1", "00-0", 0),
        Gpu(1, "0000:11:00.0", "card2", "00-1", 0, PortState.DEGRADED),
    )


def test_of_rows_that_tell_more_and_less_of_a_gpu_the_most_is_known() -> None:
    devices = range(16)
    whole = self_rows(*(f"{device}.0" for device in devices))
    bare = [
        line.replace(f'dev_file="card{device + 1}"', 'dev_file=""')
        .replace(f'uuid="00-{device}"', 'uuid=""')
        .replace('local_numa_index="0"', 'local_numa_index="4294967295"')
        for device, line in zip(devices, whole, strict=True)
    ]
    for rows in (whole + bare, bare + whole):
        assert seen(rows).gpus == tuple(
            Gpu(device, f"0000:{device + 16:02x}:00.0", f"card{device + 1}", f"00-{device}", 0)
            for device in devices
        )


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row("0.0", "0.0", "0.0", bdf="0000:99:00.0")], id="one id, two addresses"),
        pytest.param([row("2.0", "2.0", "0.0", bdf="0000:10:00.0")], id="one address, two ids"),
    ],
)
def test_what_rows_disagree_on_is_left_out_of_the_id_map(rows: list[str]) -> None:
    outcome = judge([*self_rows("0.0", "1.0"), *rows])
    assert isinstance(outcome, ObservedLinks)
    assert [gpu.id for gpu in outcome.topology.gpus] == [1]
    assert 0 in outcome.ambiguous


@given(
    st.permutations(
        [
            *self_rows(*TILES),
            *both("0.0", "1.0", 4, 8),
            *both("0.0", "1.0", 12, 4),
            *both("0.1", "1.1"),
        ]
    ),
    st.data(),
)
def test_order_and_duplicates_change_nothing(rows: list[str], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10))
    assert seen(rows + again) == seen(sorted(rows))


REFERENCE = BODIES / "reference_labels.json"


def reference() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else {}
    return found


@needs_data
@pytest.mark.parametrize("key", [key for key in reference() if not key.startswith("u_")])
def test_a_real_body_gives_the_links_of_the_reference(key: str) -> None:
    name, _, subdeviceless = key.partition("|")
    content = (BODIES / name).read_bytes()
    rules = Rules(4, allow_subdeviceless_links=bool(subdeviceless))
    labels = dict(line.split("=", 1) for line in reference()[key])
    for text in (content, b"\n".join(reversed(content.splitlines()))):
        outcome = classify(read_body(text), rules)
        assert isinstance(outcome, ObservedLinks)
        ends = [link.ends for link in outcome.topology.links]
        assert ends == [link.ends for link in decode(labels, "gpu.intel.com")]
        assert outcome.unread == 0


@needs_data
def test_a_body_without_topology_proves_nothing() -> None:
    content = (BODIES / "u_8x2_topology_rpc_error_200_no_topology.prom").read_bytes()
    outcome = classify(read_body(content), Rules())
    assert isinstance(outcome, Unknown)
    assert outcome.reason is ScrapeReason.NO_ROWS


@needs_data
@pytest.mark.parametrize("path", sorted((BODIES / "errors").glob("*")), ids=lambda path: path.name)
def test_the_body_of_an_error_proves_nothing(path: object) -> None:
    content = (BODIES / "errors" / str(path)).read_bytes()
    assert classify(read_body(content), Rules()).result.value == "unknown"


@needs_data
def test_cards_are_mapped_by_address_whatever_their_order() -> None:
    outcome = classify(read_body((BODIES / "h_6x2_aurora.prom").read_bytes()), Rules())
    assert isinstance(outcome, ObservedLinks)
    assert {gpu.id: (gpu.bdf, gpu.card) for gpu in outcome.topology.gpus} == {
        0: ("0000:18:00.0", "card1"),
        1: ("0000:42:00.0", "card0"),
        2: ("0000:6c:00.0", "card2"),
        3: ("0001:18:00.0", "card5"),
        4: ("0001:42:00.0", "card4"),
        5: ("0001:6c:00.0", "card3"),
    }


@needs_data
def test_failed_ports_are_seen_on_the_degraded_node() -> None:
    outcome = classify(read_body((BODIES / "e_8x2_degraded.prom").read_bytes()), Rules())
    assert isinstance(outcome, ObservedLinks)
    assert {gpu.ports for gpu in outcome.topology.gpus} == {PortState.FAILED}


def test_a_body_with_one_gpus_rows_missing_still_gives_all_links() -> None:
    whole = Blueprint(gpus=4, tiles=2).build()
    thin = classify(read_body(render(whole.hide(2))), Rules())
    assert isinstance(thin, ObservedLinks)
    assert texts(thin) == links_text(whole.topology.links)
    assert [gpu.id for gpu in thin.topology.gpus] == [0, 1, 3]
    assert Tile(2, 0) in thin.topology.tiles
