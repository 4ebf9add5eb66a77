"""The simulated exposition is the real one: same families, rows, labels, order and size."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from xelink.simulators.xpu_manager import Blueprint, GpuPod, SimulatedNode, parse_link, render
from xelink.topology.model import Link, PortState, Tile

BODIES = Path(__file__).parents[3] / "shared" / "data" / "xpum"

FULL = Blueprint().build()

# Bodies whose GPUs have the addresses and the order that blueprints give: equal series by series.
SAME = {
    "a_8x2_mesh": FULL,
    "a_8x2_mesh.cold": replace(FULL, cold=True),
    "b_4x2_mesh": Blueprint(gpus=4, lanes=8).build(),
    "c_2x1_subdeviceless": Blueprint(gpus=2, tiles=1, lanes=24).build(),
    "f_8_ring": Blueprint(wiring="ring", lanes=16).build(),
    "g_4x1_subdeviceless": Blueprint(gpus=4, tiles=1, lanes=8).build(),
    "k_8x2_no_hostnetwork": replace(FULL, host_network=False),
    "o_8x2_mesh_exporter_1.2_sprint17_lan_count": replace(FULL, spelling="lan_count"),
    "q_8x2_mesh_exporter_V1.2.38": FULL,
    "s_8x2_mesh_kube_pod_labels": FULL.with_pod(0, GpuPod("train-0", "ml", "c")).with_pod(
        4, GpuPod("train-1", "ml", "c")
    ),
    "u_8x2_topology_rpc_error_200_no_topology": replace(FULL, topology_fails=True),
}

# Bodies alike in families, counts and label names only: other addresses, other cards.
ALIKE = SAME | {
    "d_8flex_nolinks": Blueprint(tiles=1, model="flex-170").build(),
    "h_6x2_aurora": Blueprint(gpus=6, wiring="planes", cards="shuffled").build(),
}


def real(name: str) -> str:
    path = BODIES / f"{name}.prom"
    if not path.exists():
        pytest.skip("the real bodies are not here")
    return path.read_bytes().decode()


def samples(body: str) -> list[str]:
    return [line for line in body.split("\n") if not line.startswith("#")]


def series(body: str) -> Counter[str]:
    return Counter(line.rpartition(" ")[0] for line in samples(body))


def counts(body: str) -> Counter[str]:
    return Counter(line.partition("{")[0] for line in samples(body))


def labels(line: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def shapes(body: str) -> set[tuple[str, ...]]:
    return {(line.partition("{")[0], *labels(line)) for line in samples(body)}


def rows(node: SimulatedNode) -> dict[tuple[str, str], tuple[float, int]]:
    """Both ends of each topology row, to its value and lanes."""
    found = {}
    for line in samples(render(node).decode()):
        if line.startswith("xpum_topology_link{"):
            told = labels(line)
            local = f"{told['local_device_id']}.{told['local_subdevice_id']}"
            remote = f"{told['remote_device_id']}.{told['remote_subdevice_id']}"
            found[local, remote] = (float(line.split()[-1]), int(told[node.spelling]))
    return found


def port_rows(node: SimulatedNode) -> dict[str, tuple[float, str]]:
    return {
        labels(line)["device_id"]: (float(line.split()[-1]), labels(line)["description"])
        for line in samples(render(node).decode())
        if line.startswith("xpum_xelink_port_status{")
    }


@pytest.mark.parametrize("name", SAME)
def test_series_are_those_of_the_real_body(name: str) -> None:
    assert series(render(SAME[name]).decode()) == series(real(name))


@pytest.mark.parametrize("name", SAME)
def test_topology_and_port_rows_are_the_real_ones_to_the_byte(name: str) -> None:
    def told(body: str) -> list[str]:
        exact = ("xpum_topology_link{", "xpum_xelink_port_status{")
        return [line for line in samples(body) if line.startswith(exact)]

    assert told(render(SAME[name]).decode()) == told(real(name))


@pytest.mark.parametrize("name", ALIKE)
def test_families_have_as_many_rows_as_in_the_real_body(name: str) -> None:
    assert counts(render(ALIKE[name]).decode()) == counts(real(name))


@pytest.mark.parametrize("name", ALIKE)
def test_label_names_and_their_order_are_the_real_ones(name: str) -> None:
    assert shapes(render(ALIKE[name]).decode()) == shapes(real(name))


@pytest.mark.parametrize("name", ALIKE)
def test_the_size_is_the_real_one_within_one_percent(name: str) -> None:
    assert len(render(ALIKE[name])) == pytest.approx(len(real(name)), rel=0.01)


@pytest.mark.parametrize("name", [name for name in ALIKE if not name.startswith("o_")])
def test_comments_are_the_real_ones_in_some_order(name: str) -> None:
    def comments(body: str) -> list[str]:
        return sorted(line for line in body.split("\n") if line.startswith("#"))

    assert comments(render(ALIKE[name]).decode()) == comments(real(name))


@pytest.mark.parametrize("name", ["a_8x2_mesh", "c_2x1_subdeviceless", "d_8flex_nolinks"])
def test_values_have_the_forms_of_the_real_ones(name: str) -> None:
    def forms(body: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in samples(body):
            family, value = line.partition("{")[0], line.split()[-1]
            form = re.sub(r"\d+", "9", value.partition("e")[0])
            found.setdefault(family, set()).add(form)
        return found

    assert forms(render(ALIKE[name]).decode()) == forms(real(name))


def test_the_race_leaves_what_the_real_race_left() -> None:
    name = "t_8x2_mesh_partial_by_race"
    expected = [line for line in samples(real(name)) if line.startswith("xpum_topology_link{")]
    found = samples(render(FULL.hide(4)).decode())
    assert [line for line in found if line.startswith("xpum_topology_link{")] == expected


def test_crossed_planes_are_wired_as_in_the_real_body() -> None:
    expected = Counter(
        (told["local_device_id"], told["local_subdevice_id"], told["remote_device_id"],
         told["remote_subdevice_id"], told["lane_count"])
        for told in map(labels, samples(real("h_6x2_aurora")))
        if "lane_count" in told
    )  # fmt: skip
    found = Counter(
        (*local.split("."), *remote.split("."), str(lanes))
        for (local, remote), (_, lanes) in rows(ALIKE["h_6x2_aurora"]).items()
    )
    assert found == expected


@pytest.mark.parametrize(
    "node",
    [FULL, Blueprint(gpus=3, tiles=1, igpu=True).build(), replace(FULL, generation=2)],
    ids=["mesh", "with an integrated GPU", "second generation"],
)
def test_comments_come_first_then_sorted_text_and_no_final_newline(node: SimulatedNode) -> None:
    lines = render(node).decode().split("\n")
    first = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    assert all(line.startswith("# ") for line in lines[:first])
    assert lines[first:] == sorted(lines[first:])
    assert all(re.fullmatch(r"\w+\{.*\} -?\d+\.\d*(e[+-]\d+)?", line) for line in lines[first:])


def test_a_default_body_is_about_as_big_as_the_contract_says() -> None:
    body = render(FULL)
    assert len(body) == pytest.approx(660_000, rel=0.02)
    assert body.count(b"\n") + 1 == pytest.approx(2200, rel=0.02)
    assert counts(body.decode())["xpum_topology_link"] == 256


def test_a_scrape_moves_the_values_and_never_the_topology() -> None:
    first, second = render(FULL, 0).decode(), render(FULL, 1).decode()
    assert first == render(FULL, 0).decode()
    assert series(first) == series(second)
    changed = set(samples(first)) ^ set(samples(second))
    assert changed
    assert not any(line.startswith("xpum_topology_link") for line in changed)


def test_counters_grow() -> None:
    def energy(scrape: int) -> list[float]:
        lines = samples(render(FULL, scrape).decode())
        return [float(line.split()[-1]) for line in lines if "energy_joules_total" in line]

    assert all(later > before for before, later in zip(energy(3), energy(4), strict=True))


@pytest.mark.parametrize(
    ("wiring", "links"), [("mesh", 12), ("ring", 8), ("planes", 12), ("pairs", 4), ("none", 0)]
)
def test_each_wiring_has_its_links_told_from_both_ends(wiring: str, links: int) -> None:
    node = Blueprint(gpus=4, wiring=wiring).build()
    told = [ends for ends, (value, _) in rows(node).items() if value == 1]
    assert len(node.topology.links) == links
    assert len(told) == 2 * links
    assert {(b, a) for a, b in told} == set(told)


def test_two_gpus_in_a_ring_have_one_link_per_plane() -> None:
    assert len(Blueprint(gpus=2, wiring="ring").build().links) == 2


def test_an_integrated_gpu_takes_id_0_and_shifts_the_rest() -> None:
    node = Blueprint(gpus=2, igpu=True).build()
    assert [(gpu.id, gpu.bdf) for gpu in node.present] == [
        (0, "0000:00:02.0"),
        (1, "0000:29:00.0"),
        (2, "0000:3a:00.0"),
    ]
    assert rows(node)["0.0", "1.0"] == (4.0, 0)
    assert port_rows(node)["0"] == (-1.0, "Device lacks Xe Link capability.")


def test_id_gaps_leave_ids_out() -> None:
    node = Blueprint(gpus=4, id_gaps=(0, 2)).build()
    assert [gpu.id for gpu in node.present] == [1, 3, 4, 5]


@pytest.mark.parametrize(
    ("cards", "order"), [("reversed", [4, 3, 2, 1]), ("shuffled", [2, 4, 1, 3])]
)
def test_cards_can_be_out_of_order(cards: str, order: list[int]) -> None:
    node = Blueprint(gpus=4, cards=cards).build()
    assert [gpu.card for gpu in node.present] == [f"card{n}" for n in order]


def test_unknown_numa_and_a_missing_card_are_told_as_the_exporter_tells_them() -> None:
    node = Blueprint(gpus=1, numa_nodes=0).build()
    node = node.with_gpu(replace(node.gpu(0), card=None))
    line = next(line for line in samples(render(node).decode()) if "topology_link" in line)
    assert labels(line)["local_numa_index"] == "4294967295"
    assert labels(line)["dev_file"] == ""


def test_beyond_32_tiles_the_topology_is_missing() -> None:
    assert len(rows(Blueprint(gpus=16).build())) == 1024
    assert rows(Blueprint(gpus=17).build()) == {}


def test_the_second_generation_has_no_fabric_and_other_names() -> None:
    node = replace(FULL, generation=2)
    assert all(name.startswith("hw_") for name in counts(render(node).decode()))
    assert node.reported.tiles == ()


def test_a_cut_link_loses_its_lanes_and_fails_its_ports() -> None:
    node = FULL.cut("0.0-1.0")
    assert rows(node)["0.0", "1.0"] == (2.0, 0)  # the other tiles still reach that GPU
    assert port_rows(node)["0"] == (
        2.0,
        "Ports Tile0-1 connection instabilities are preventing workloads making forward progress. ",
    )
    assert port_rows(node)["2"][0] == 0.0
    assert node.cut("0.1-1.1").topology.by_id[0].ports is PortState.FAILED
    assert rows(node.cut("0.1-1.1"))["0.0", "1.0"] == (4.0, 0)


def test_what_was_cut_can_be_restored() -> None:
    node = FULL.cut("0.0-1.0", "1.0-2.0")
    assert render(node.restore("0.0-1.0")) == render(FULL.cut("1.0-2.0"))
    assert render(node.restore()) == render(FULL)
    assert render(FULL.cut().restore()) == render(FULL)


def test_lanes_degrade_each_way_as_the_link_is_spelt() -> None:
    node = FULL.degrade(1, 2, "1.0-0.0")
    assert rows(node)["1.0", "0.0"] == (1.0, 1)
    assert rows(node)["0.0", "1.0"] == (1.0, 2)
    assert node.topology.by_ends[Tile(0, 0), Tile(1, 0)] == Link(Tile(0, 0), Tile(1, 0), 2, 1)


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (PortState.HEALTHY, 0),
        (PortState.DEGRADED, 1),
        (PortState.FAILED, 2),
        (PortState.DISABLED, 3),
    ],
)
def test_port_states_can_be_set_and_unset(state: PortState, value: int) -> None:
    node = FULL.with_ports(3, state)
    assert port_rows(node)["3"][0] == value
    assert ("Tile1-7" in port_rows(node)["3"][1]) is (value > 0)
    assert render(node.with_ports(3, None)) == render(FULL)


def test_a_lost_gpu_is_told_nowhere_and_can_come_back() -> None:
    node = FULL.remove(7)
    assert len(rows(node)) == 14 * 14
    assert b"0000:da:00.0" not in render(node)
    assert port_rows(node)["0"][0] == 2.0
    assert render(node.add(7)) == render(FULL)


def test_a_new_gpu_joins_the_mesh() -> None:
    node = FULL.add(8)
    assert len(node.topology.links) == 2 * 36
    assert node.gpu(8).bdf == "0001:29:00.0"
    assert node.gpu(8).card == "card9"
    with pytest.raises(ValueError, match="there already"):
        node.add(8)


def test_a_hidden_gpu_is_still_mentioned() -> None:
    node = FULL.hide(4)
    assert not any(local.startswith("4.") for local, _ in rows(node))
    assert any(remote.startswith("4.") for _, remote in rows(node))
    assert node.topology == FULL.topology
    assert 4 not in node.reported.by_id
    assert node.reported.by_ends[Tile(0, 0), Tile(4, 0)].lanes_back == 0
    assert render(node.hide()) == render(FULL)


def test_ids_move_with_wires_and_changes() -> None:
    node = Blueprint(gpus=3, wiring="none").build().with_gpu(FULL.gpu(5), parse_link("0.0-5.0"))
    moved = node.degrade(4, 8, "0.0-5.0").renumber({0: 5, 5: 0})
    assert moved.topology.links == (Link(Tile(0, 0), Tile(5, 0), 8, 4),)
    assert moved.gpu(5).bdf == node.gpu(0).bdf
    with pytest.raises(ValueError, match="given twice"):
        node.renumber({0: 1})


def test_one_direction_is_told_from_the_lower_end_and_no_port_fails() -> None:
    node = FULL.one_direction()
    assert rows(node)["0.0", "1.0"] == (1.0, 4)
    assert rows(node)["1.0", "0.0"] == (4.0, 0)
    assert port_rows(node)["1"][0] == 0.0
    assert render(node.restore()) == render(FULL)
    one = FULL.one_direction("1.0-0.0").reported
    assert one.by_ends[Tile(0, 0), Tile(1, 0)].lanes_back == 0
    assert one.by_ends[Tile(0, 1), Tile(1, 1)].lanes_back == 4


def test_stale_rows_stay_beside_the_new_ones() -> None:
    body = render(FULL.lingering().degrade(2, 2, "0.0-1.0")).decode()
    lanes = sorted(
        told["lane_count"]
        for told in map(labels, samples(body))
        if "lane_count" in told
        and (told["local_device_id"], told["local_subdevice_id"]) == ("0", "0")
        and (told["remote_device_id"], told["remote_subdevice_id"]) == ("1", "0")
    )
    assert lanes == ["2", "4"]
    assert counts(body)["xpum_topology_link"] == 258
    assert render(FULL.lingering().lingering(on=False)) == render(FULL)


def test_reported_is_the_truth_where_the_exporter_is_well() -> None:
    assert FULL.reported == FULL.topology
    assert len(FULL.topology.links) == 56
    assert len(FULL.topology.tiles) == 16


@pytest.mark.parametrize(
    "blueprint",
    [
        Blueprint(gpus=-1),
        Blueprint(tiles=0),
        Blueprint(wiring="star"),
        Blueprint(cards="lost"),
        Blueprint(model="b580"),
    ],
    ids=["gpus", "tiles", "wiring", "cards", "model"],
)
def test_a_node_that_cannot_be_is_refused(blueprint: Blueprint) -> None:
    with pytest.raises(ValueError, match=r"unknown|cannot"):
        blueprint.build()


@pytest.mark.parametrize("text", ["", "0.0", "0-1", "0.0-1.0-2.0", "a.b-c.d", "9.0-8.0"])
def test_a_link_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="link"):
        FULL.cut(text)
