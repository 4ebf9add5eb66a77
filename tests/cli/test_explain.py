"""`xelink explain`: what it tells is what the plugin does, and why."""

import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_plugin.assembly import Assembler, PreferenceConfig
from device_plugin.resources import ResourceOptions
from tests.cli.commands import EXAMPLES, Xelink, labels, topology
from tests.patience import PATIENCE
from tests.strategies import topologies
from xelink.cli.exit_codes import WrongCallError
from xelink.cli.explain.choice import Wanted, choose
from xelink.cli.explain.text import choice_facts, describe
from xelink.cli.tables import plain
from xelink.inventory.gpus import Card, Inventory
from xelink.inventory.links import join
from xelink.inventory.observation import NodeObservation
from xelink.nfd.reader import DEFAULT_PATH, Look
from xelink.nfd.reader import read as read_labels
from xelink.preference.criteria import CRITERIA
from xelink.preference.policies import POLICIES, AllocationPolicy
from xelink.simulators.node.blueprint import TreeBlueprint
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode
from xelink.topology.labels import parse_links
from xelink.topology.model import Gpu, Link, PortState, Tile, Topology
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, render
from xelink.view.node_view import NodeView

PAGE = Path(__file__).parents[2] / "docs" / "device-plugin.md"
EIGHT = str(EXAMPLES / "eight.txt")


def _explained(xelink: Xelink, *arguments: str) -> dict[str, Any]:
    said = xelink("explain", "--output", "json", *arguments)
    assert said.code == 0, said.err
    facts: dict[str, Any] = json.loads(said.out)
    return facts


def test_the_page_has_a_row_for_each_criterion_and_the_numbers_have_no_gap() -> None:
    section = PAGE.read_text().partition("<!-- criteria -->")[2].partition("<!-- /criteria -->")[0]
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\| (.+?) \|", section, re.MULTILINE)
    assert [(int(number), name, meaning) for number, name, meaning in rows[1:]] == [
        (criterion.number, criterion.name, criterion.meaning) for criterion in CRITERIA
    ]
    numbers = [int(number) for number, *_ in rows]
    assert [*dict.fromkeys(numbers)] == [*range(1, max(numbers) + 1)]


@settings(deadline=None, max_examples=60)
@given(
    shape=topologies.filter(lambda topology: len(topology.gpus) > 1),
    draw=st.data(),
    policy=st.sampled_from([*POLICIES]),
    shares=st.integers(1, 3),
)
def test_it_prefers_what_the_plugin_prefers(
    shape: Topology, draw: st.DataObject, policy: AllocationPolicy, shares: int
) -> None:
    choice_of = draw.draw
    cards = [gpu.card for gpu in shape.gpus]
    if None in cards or len(set(cards)) < len(cards):
        gpus = (replace(gpu, card=f"card{gpu.id}") for gpu in shape.gpus)
        shape = Topology(shape.links, tuple(gpus), shape.tiles)
    # The plugin, from its eyes to its answer
    content = render(Publication(shape), DEFAULT_NAMESPACE, summary=False)
    inventory = Inventory(
        tuple(Card(gpu.card or "", gpu.bdf, "i915", 0x0BD5, gpu.numa) for gpu in shape.gpus)
    )
    reading = read_labels(Look(content=content), DEFAULT_NAMESPACE, datetime.now(UTC))
    choosing = PreferenceConfig(time.monotonic, ResourceOptions(shared=shares), policy)
    snapshot = Assembler(choosing).assemble(NodeObservation(inventory, join(reading, inventory)))
    every = [f"{card.name}-{i}" for card in inventory.cards for i in range(shares)]
    used = choice_of(st.lists(st.sampled_from(every), unique=True, max_size=len(every) - 1))
    free = [device for device in every if device not in used]
    have = choice_of(st.lists(st.sampled_from(free), unique=True, max_size=3))
    size = choice_of(st.integers(max(1, len(have)), len(free)))
    plugin = snapshot.resource("gpu.intel.com/i915").preference
    assert plugin
    preference = plugin.prefer(free, have, size)
    # The tool
    wanted = Wanted(size, tuple(have), tuple(used), shares, policy)
    choice = choose(NodeView.of(shape), wanted, time.monotonic)
    assert choice.preference.ids == preference.ids
    assert plain(describe(choice))
    assert json.loads(json.dumps(choice_facts(choice)))["devices"] == list(preference.ids)


@settings(deadline=None, max_examples=60)
@given(shape=topologies.filter(lambda topology: len(topology.gpus) > 1), draw=st.data())
def test_the_group_that_is_left_is_linked_and_none_is_larger(
    shape: Topology, draw: st.DataObject
) -> None:
    size = draw.draw(st.integers(1, len(shape.gpus)))
    choice = choose(NodeView.of(shape), Wanted(size), time.monotonic)
    group, left = choice.largest_left(), choice.explanation.evaluation.left
    assert set(group) <= set(left)

    def linked(cards: tuple[str, ...]) -> bool:
        return all(lanes is not None for _, _, lanes in choice.pairs(cards))

    assert linked(group)
    if len(left) <= 8:
        assert not any(linked(some) for some in combinations(left, len(group) + 1))


@pytest.mark.parametrize("name", ["card4", "CARD4", "1", "GPU1", "gpu1", "0000:3a:00.0", "3A:00.0"])
def test_a_gpu_is_known_by_card_id_and_address(xelink: Xelink, name: str) -> None:
    assert _explained(xelink, "--want", "1", "--have", name, "--features", EIGHT)["cards"] == [
        "card4"
    ]
    facts = _explained(xelink, "--want", "7", "--used", name, "--features", EIGHT)
    assert "card4" not in facts["cards"]


def test_the_text_tells_set_criterion_runners_up_costs_and_what_is_left(xelink: Xelink) -> None:
    body = xelink.body(Blueprint(gpus=8, wiring="pairs").build())
    said = xelink("explain", "--want", "1", "--used", "card1", "--metrics", body)
    assert said.out == (
        "A Pod that asks for 1 GPU gets card2 (policy topology).\n"
        "Used by others: card1.\n"
        "\n"
        "  CARD   PCI ADDRESS   NUMA\n"
        "  card2  0000:3a:00.0  0\n"
        "\n"
        "Decided by criterion 9 (what is left for the next Pod).\n"
        "\n"
        "  RUNNER-UP  WORSE BY                         DIFFERENCE\n"
        + "".join(
            f"  card{card}      9 what is left for the next Pod"
            "  it leaves 2 instead of 3 linked groups of 2\n"
            for card in (3, 4)
        )
        + "\n"
        "The 6 other sets, by the criterion on which each is worse:\n"
        "  6  9 what is left for the next Pod\n"
        "\n"
        "Left for the next Pod: card3 card4 card5 card6 card7 card8\n"
        "The largest linked group of these has 2: card3 card4\n"
    )


@pytest.mark.parametrize(
    ("node", "arguments", "criterion", "cost"),
    [
        (Blueprint(gpus=4, wiring="pairs").build(), "--want 2", "linked", "0 of 1 pair linked"),
        (
            Blueprint(gpus=4, wiring="ring").build(),
            "--want 3",
            "address",
            "none; higher PCI addresses",
        ),
        (
            Blueprint(gpus=3).build().degrade(4, 4, "0.0-1.0", "0.1-1.1").cut("0.0-1.0"),
            "--want 2",
            "weakest",
            "4 instead of 8 lanes in its weakest pair",
        ),
        (
            Blueprint(gpus=8).build(),
            "--want 4",
            "numa",
            "2 instead of 1 NUMA node",
        ),
        (
            Blueprint(gpus=4).build(),
            "--want 1 --share 2 --used card1-0",
            "groups_open",
            "it leaves no instead of 1 linked group of 4",
        ),
    ],
    ids=["linked", "address", "weakest", "numa", "groups_open"],
)
def test_the_cost_of_an_alternative_is_told_by_its_criterion(
    xelink: Xelink, node: SimulatedNode, arguments: str, criterion: str, cost: str
) -> None:
    facts = _explained(xelink, *arguments.split(), "--metrics", xelink.body(node))
    told_costs = {
        (other["criterion"]["name"], other["difference"]) for other in facts["runners_up"]
    }
    assert (criterion, cost) in told_costs


def test_gpus_behind_one_pcie_switch_come_first_where_sysfs_is_named(
    xelink: Xelink, tmp_path: Path
) -> None:
    source = ("--metrics", xelink.body(Blueprint(8).build()))
    arguments = ("--want", "2", "--used", "card1,card5,card7", *source)
    TreeBlueprint(8, gpus_per_switch=2).build(tmp_path)
    assert _explained(xelink, *arguments)["cards"] == ["card2", "card3"]
    said = xelink("explain", *arguments, "--sysfs", str(tmp_path / "sys"))
    assert "A Pod that asks for 2 GPUs gets card3 card4 (" in said.out
    assert "Decided by criterion 8 (close to each other on PCIe)." in said.out
    assert "PCIe closeness 0 instead of 2, added up over its pairs" in said.out


def test_the_switches_of_this_node_are_known_without_a_word(xelink: Xelink, tmp_path: Path) -> None:
    TreeBlueprint(8, gpus_per_switch=4, numa_nodes=1).build(tmp_path)
    node = topology(Blueprint(gpus=8, numa_nodes=1).build())
    file = tmp_path / DEFAULT_PATH.relative_to("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(render(Publication(node), DEFAULT_NAMESPACE))
    facts = _explained(xelink, "--want", "3", "--used", "card1,card2", "--prefix", str(tmp_path))
    assert facts["cards"] == ["card5", "card6", "card7"]


def test_labels_alone_are_a_guess_and_told_as_one(xelink: Xelink) -> None:
    path = xelink.nodes(gpu=labels(topology(Blueprint(gpus=4, wiring="pairs").build())))
    said = xelink("explain", "--want", "2", "--node-json", path)
    assert said.code == 0
    assert "From labels alone: ids are taken for places in PCI order" in said.out
    assert "0000:" not in said.out
    facts = _explained(xelink, "--want", "2", "--node-json", path)
    assert facts["cards"] == ["GPU0", "GPU1"]
    assert facts["gpus"][0]["pci"] is None


def test_another_policy_is_compared_with_topology(xelink: Xelink) -> None:
    body = xelink.body(Blueprint(gpus=8, wiring="pairs").build())
    words = ("--want", "2", "--used", "card1", "--metrics", body)
    said = xelink("explain", *words, "--policy", "none")
    assert "gets card2 card3 (policy none)" in said.out
    assert "The pair is not linked." in said.out
    assert "With the policy topology the Pod would get card3 card4." in said.out
    assert _explained(xelink, *words, "--policy", "none")["decided"] is None


def test_shares_are_devices(xelink: Xelink) -> None:
    words = ("--share", "2", "--used", "card4-0,card6", "--features", EIGHT)
    facts = _explained(xelink, "--want", "13", *words)
    assert len(facts["devices"]) == 13
    assert "card4-1" in facts["devices"]
    assert not {"card4-0", "card6-0", "card6-1"} & set(facts["devices"])
    facts = _explained(xelink, "--want", "1", "--have", "card4", *words)
    assert facts["devices"] == ["card4-1"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--want 9", "only 8 devices are available"),
        ("--want 0", "'0' is not a number from 1"),
        ("--want many", "'many' is not a number"),
        ("--want 1 --have card1,card2", "2 devices must be included"),
        ("--want 2 --have card99", "no such GPU here; there are card1 card2"),
        ("--want 2 --used card1,,card2", "is not a list like"),
        ("--want 2 --have card1 --used card1", "it is used already"),
        ("--want 2 --have card1,GPU4", "named twice"),
        ("--want 2 --used card1-1", "with --share 1 there is no such"),
        ("--want 2 --policy best", "invalid choice"),
    ],
)
def test_what_cannot_be_is_a_wrong_call(xelink: Xelink, arguments: str, why: str) -> None:
    said = xelink("explain", *arguments.split(), "--features", EIGHT)
    assert said.code == 2
    assert why in said.err
    assert said.out == ""


def test_a_cluster_needs_a_choice(xelink: Xelink) -> None:
    nodes = str(EXAMPLES / "nodes.json")
    assert xelink("explain", "--want", "2", "--node-json", nodes).code == 2
    assert xelink("explain", "--want", "2", "--node-json", nodes, "--node", "gpu-a").code == 0
    said = xelink("explain", "--want", "2", "--node-json", nodes, "--node", "gpu-e")
    assert said.code == 4
    assert "no-fabric-data" in said.err


def test_beyond_sixteen_gpus_it_says_what_was_not_proven() -> None:
    shape = topology(Blueprint(gpus=32, tiles=1).build(), lenient=True)
    frozen = iter(range(10**9))  # every look at the clock is a second later
    choice = choose(
        NodeView.of(shape), Wanted(5, used=("card1", "card9")), lambda: float(next(frozen))
    )
    assert len(choice.preference.ids) == 5
    assert not choice.explanation.complete
    text = plain(describe(choice))
    assert ("Not proven to be the best" in text) is not choice.preference.proven


def _at_random(gpus: int, part: float) -> Topology:
    """Link a part of all pairs: nothing like a real node, and the hardest to evaluator."""
    chance = random.Random(1)  # noqa: S311 - no secret
    pairs = (pair for pair in combinations(range(gpus), 2) if chance.random() < part)
    return Topology(
        tuple(Link(Tile(one, 0), Tile(other, 0), 4, 4) for one, other in pairs),
        tuple(Gpu(i, f"0000:{i + 1:02x}:00.0", f"card{i}") for i in range(gpus)),
    )


def test_sets_that_were_not_weighed_in_time_are_told() -> None:
    late = iter(range(10**9))
    choice = choose(NodeView.of(_at_random(20, 0.5)), Wanted(4), lambda: float(next(late)))
    facts = choice_facts(choice)
    # Sets that differ in what is asked before what is left are weighed at once, whatever the time.
    unweighed = choice.explanation.unweighed
    assert unweighed == facts["sets_not_weighed"]
    assert 0 < unweighed < 4 * 16
    assert len(choice.explanation.runners_up) == 4 * 16 - unweighed
    what = f"{unweighed} set{'' if unweighed == 1 else 's'}"
    remark = f"Not proven to be the best runners-up: the time was up with {what} not weighed."
    assert remark in facts["remarks"]  # type: ignore[operator]  # it is a list
    assert remark in plain(describe(choice))


def _joined_rings(rings: int) -> Topology:
    """Link GPUs to rings of five, and each ring to all of every other: 3**rings largest groups."""
    gpus = range(5 * rings)
    pairs = [(a, b) for a, b in combinations(gpus, 2) if a // 5 != b // 5 or (b - a) % 5 in {1, 4}]
    return Topology(
        tuple(Link(Tile(a, 0), Tile(b, 0), 4, 4) for a, b in pairs),
        tuple(Gpu(i, f"0000:{i + 1:02x}:00.0", f"card{i}") for i in gpus),
    )


def _told_in_2000_looks(shape: Topology) -> tuple[Any, str]:
    """Explain with a clock on which two seconds are 2,000 looks; give it as facts and as text."""
    looks = iter(range(10**9))
    choice = choose(NodeView.of(shape), Wanted(4), lambda: next(looks) / 1000)
    return choice_facts(choice), plain(describe(choice))


def test_an_account_that_would_take_for_ever_ends_and_says_what_it_lacks() -> None:
    facts, text = _told_in_2000_looks(_at_random(60, 0.8))
    assert facts["left"]["groups"] is None
    assert "The linked groups that are left were not counted: the time was up." in text
    assert "nothing to choose" not in text


def test_a_largest_group_that_nobody_can_find_is_told_as_far_as_it_is_known() -> None:
    facts, text = _told_in_2000_looks(_joined_rings(12))
    left = facts["left"]
    assert left["groups"][0]["size"] >= len(left["largest_group"]) > 1
    assert left["largest_group_proven"] is False
    assert f"The largest linked group of these has at least {len(left['largest_group'])}:" in text


@pytest.mark.parametrize("command", ["show", "explain --want=8", "explain --want=8 --share=3"])
def test_whatever_graph_is_told_the_tool_ends_in_seconds(xelink: Xelink, command: str) -> None:
    path = xelink.features(_joined_rings(12))
    said = subprocess.run(
        [sys.executable, "-m", "xelink", *command.split(), f"--features={path}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,  # some seconds, on a machine with nothing else to do
    )
    assert "at least 2" in said.stdout


def test_with_time_enough_every_single_swap_is_weighed() -> None:
    choice = choose(NodeView.of(_at_random(20, 0.5)), Wanted(4), lambda: 0.0)
    assert choice.explanation.unweighed == 0
    assert len(choice.explanation.runners_up) == 4 * 16
    assert "Not proven" not in plain(describe(choice))


def test_whatever_64_gpus_are_linked_it_answers_in_seconds(xelink: Xelink) -> None:
    shape = _at_random(64, 0.85)
    path = xelink.features(shape)
    linked = {}
    for policy in ("topology", "none"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "xelink", "explain", "--want=8", "--output=json"),
                *(f"--policy={policy}", f"--features={path}"),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        told = json.loads(done.stdout)
        assert (told["policy"], told["want"], done.stderr) == (policy, 8, "")
        chosen = {*told["cards"]}
        assert len(chosen) == 8 <= len(chosen & {gpu.card for gpu in shape.gpus})
        linked[policy] = sum(pair["lanes"] is not None for pair in told["pairs"])
        assert len(told["pairs"]) == 8 * 7 / 2
    assert linked["none"] <= linked["topology"] == 8 * 7 / 2, "a group of eight is easily found"


@settings(deadline=None, max_examples=60)
@given(gpus=st.integers(2, 10), part=st.floats(0, 1))
def test_the_largest_group_left_is_the_first_of_the_largest(gpus: int, part: float) -> None:
    topology = _at_random(gpus, part)
    choice = choose(NodeView.of(topology), Wanted(1), lambda: 0.0)
    left = choice.explanation.evaluation.left
    groups = (
        group
        for size in range(len(left), 0, -1)
        for group in combinations(left, size)
        if all(lanes is not None for _, _, lanes in choice.pairs(group))
    )
    assert choice.largest_left() == next(groups)


def test_a_node_of_more_gpus_than_there_are_is_refused(xelink: Xelink) -> None:
    chain = parse_links("_".join(f"{gpu}.0-{gpu + 1}.0" for gpu in range(100)))
    path = xelink.nodes(gpu=labels(Topology(chain)))
    for command in (("show",), ("explain", "--want", "2")):
        said = xelink(*command, "--node-json", path)
        assert said.code == 4
        assert "101 GPUs are named: no node has more than 64" in said.out + said.err


def test_nothing_to_choose_is_said() -> None:
    shape = topology(Blueprint(gpus=2).build())
    assert "There was nothing to choose" in plain(
        describe(choose(NodeView.of(shape), Wanted(2), time.monotonic))
    )
    with pytest.raises(WrongCallError):
        choose(NodeView.of(Topology()), Wanted(1), time.monotonic)


def test_ports_that_both_sets_have_are_no_cost_of_the_other() -> None:
    states = (PortState.FAILED, PortState.HEALTHY, PortState.FAILED)
    gpus = (
        Gpu(number, f"0000:{number + 1:02x}:00.0", f"card{number}", ports=state)
        for number, state in enumerate(states)
    )
    links = (Link(Tile(one, 0), Tile(other, 0), 4, 4) for one, other in combinations(range(3), 2))
    node = NodeView.of(Topology(tuple(links), tuple(gpus)))
    choice = choose(node, Wanted(2, have=("card0",)), time.monotonic)
    assert choice.preference.ids == ("card0-0", "card1-0")
    facts: Any = choice_facts(choice)
    costs = [other["difference"] for other in facts["runners_up"]]
    assert costs == ["Xe Link ports that are not known to be healthy: card2"]
