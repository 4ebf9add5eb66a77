"""Snapshots from what was seen: which facts prepare a preference anew, and which do not."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MethodType

import pytest

from device_plugin.assembly import Assembler, PreferenceConfig
from device_plugin.resources import Monitoring, ResourceOptions
from device_plugin.snapshot import Snapshot
from tests.device_plugin.plugins import I915, MONITORING, bdf, card
from xelink.inventory.by_path import ByPath
from xelink.inventory.cdi import KIND
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Card, Inventory, Problem, scan
from xelink.inventory.health import GpuHealth, Health
from xelink.inventory.links import UNREAD, AddressPair, NodeLinks
from xelink.inventory.observation import NodeObservation
from xelink.nfd.reader import FileState
from xelink.preference.shares import Preferences
from xelink.simulators.node.blueprint import TreeBlueprint
from xelink.topology.model import PortState

XE = "gpu.intel.com/xe"


def assembler(options: ResourceOptions | None = None) -> Assembler:
    return Assembler(PreferenceConfig(clock=lambda: 0.0, options=options or ResourceOptions()))


def node(*cards: Card, links: NodeLinks | None = None) -> NodeObservation:
    return NodeObservation(
        inventory=Inventory(cards or tuple(card(number, numa=0) for number in (1, 2, 3, 4))),
        links=links or wired((1, 2), (3, 4)),
        health=Health(error=""),
    )


def wired(
    *pairs: tuple[int, int], lanes: int = 8, state: FileState = FileState.IN_USE
) -> NodeLinks:
    return NodeLinks(state, lanes={(bdf(one), bdf(other)): lanes for one, other in pairs})


def prepared(snapshot: Snapshot, resource: str = I915) -> Preferences:
    """Return what a resource's preference was prepared from."""
    preference = snapshot.resource(resource).preference
    assert preference
    prefer = preference.prefer
    assert isinstance(prefer, MethodType)
    preferences = prefer.__self__
    assert isinstance(preferences, Preferences)
    return preferences


def preferred(snapshot: Snapshot, size: int, resource: str = I915) -> tuple[str, ...]:
    ids = [device.id for device in snapshot.resource(resource).devices]
    preference = snapshot.resource(resource).preference
    assert preference
    return preference.prefer(ids, [], size).ids


def links_of(snapshot: Snapshot) -> NodeLinks:
    links = snapshot.resource(I915).links
    assert links
    return links


def with_cards(change: Callable[[Card], Card]) -> Callable[[NodeObservation], NodeObservation]:
    def changed(seen: NodeObservation) -> NodeObservation:
        first, *others = seen.inventory.cards
        return replace(seen, inventory=replace(seen.inventory, cards=(change(first), *others)))

    return changed


def with_links(**changes: object) -> Callable[[NodeObservation], NodeObservation]:
    return lambda seen: replace(seen, links=replace(seen.links, **changes))  # type: ignore[arg-type]  # fields of the caller


UNCHANGED: Mapping[str, Callable[[NodeObservation], NodeObservation]] = {
    "nothing": lambda seen: seen,
    "the labels were renewed": with_links(expiry=datetime.now(UTC), published=datetime.now(UTC)),
    "the same lanes in another order": lambda seen: replace(
        seen, links=replace(seen.links, lanes=dict(reversed([*seen.links.lanes.items()])))
    ),
    "a link of a GPU that is not here": with_links(
        lanes={**wired((1, 2), (3, 4)).lanes, (bdf(4), bdf(9)): 4}
    ),
    "ports of a GPU that is not here": with_links(ports={bdf(9): PortState.FAILED}),
    "a GPU is ill": lambda seen: replace(
        seen, health=Health({bdf(1): GpuHealth(healthy=False, reason="hot")}, error="")
    ),
    "a device node is gone": with_cards(lambda one: replace(one, missing=("/dev/dri/card1",))),
    "a card is a CDI device": lambda seen: replace(seen, cdi=frozenset({"card1"})),
    "another card is broken": lambda seen: replace(
        seen, inventory=replace(seen.inventory, problems=(Problem("card9", "no device"),))
    ),
}

CHANGED: Mapping[str, Callable[[NodeObservation], NodeObservation]] = {
    "lanes": lambda seen: replace(seen, links=wired((1, 2), (3, 4), lanes=4)),
    "a link less": lambda seen: replace(seen, links=wired((1, 2))),
    "no links any more": lambda seen: replace(seen, links=wired()),
    "expired": with_links(state=FileState.EXPIRED),
    "ports": with_links(ports={bdf(1): PortState.DEGRADED}),
    "NUMA": with_cards(lambda one: replace(one, numa=1)),
    "NUMA is no longer told": with_cards(lambda one: replace(one, numa=None)),
    "DRM's number": with_cards(lambda one: replace(one, name="card9")),
    "the PCI address": with_cards(lambda one: replace(one, bdf=bdf(0))),
    "a card more": lambda seen: replace(
        seen, inventory=replace(seen.inventory, cards=(*seen.inventory.cards, card(5)))
    ),
    "a card less": lambda seen: replace(
        seen, inventory=replace(seen.inventory, cards=seen.inventory.cards[1:])
    ),
}


@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
def test_a_preference_is_kept_when_nothing_that_matters_to_it_changed(
    change: Callable[[NodeObservation], NodeObservation],
) -> None:
    ours = assembler()
    before = ours.assemble(node())
    after = ours.assemble(change(node()))
    assert prepared(after) is prepared(before)


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_preference_is_prepared_anew_when_what_it_rests_on_changed(
    change: Callable[[NodeObservation], NodeObservation],
) -> None:
    ours = assembler()
    before = ours.assemble(node())
    after = ours.assemble(change(node()))
    assert prepared(after) is not prepared(before)
    # and is no other than that of an assembler that has never seen anything else
    assert prepared(after).fabric == prepared(assembler().assemble(change(node()))).fabric


def test_a_preference_that_comes_back_is_right_again() -> None:
    ours = assembler()
    seen = node(links=wired((2, 4)))
    assert preferred(ours.assemble(seen), 2) == ("card2-0", "card4-0")
    assert preferred(ours.assemble(replace(seen, links=wired((1, 3)))), 2) == ("card1-0", "card3-0")
    assert preferred(ours.assemble(seen), 2) == ("card2-0", "card4-0")


def test_i915_and_xe_are_apart() -> None:
    ours = assembler()
    others = tuple(replace(card(number), driver="xe") for number in (5, 6))
    seen = node(card(1), card(2), *others, links=wired((1, 2), (2, 5), (5, 6)))
    before = ours.assemble(seen)
    assert {
        name: [device.id for device in one.devices] for name, one in before.resources.items()
    } == {
        I915: ["card1-0", "card2-0"],
        XE: ["card5-0", "card6-0"],
    }
    assert [gpu.card for gpu in prepared(before).fabric.gpus] == ["card1", "card2"]
    assert [gpu.card for gpu in prepared(before, XE).fabric.gpus] == ["card5", "card6"]
    # What changes within one, or between the two, leaves the other alone.
    after = ours.assemble(replace(seen, links=wired((1, 2), (5, 6), lanes=2)))
    assert prepared(after) is not prepared(before)
    other = ours.assemble(replace(seen, links=wired((1, 2), (1, 6), lanes=2)))
    assert prepared(other) is prepared(after)
    assert prepared(other, XE) is not prepared(after, XE)


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (Monitoring.SINGLE, {MONITORING}),
        (Monitoring.SPLIT, {"gpu.intel.com/i915_monitoring", "gpu.intel.com/xe_monitoring"}),
    ],
)
def test_monitoring_is_offered_and_has_no_preference(mode: Monitoring, names: set[str]) -> None:
    seen = node(card(1), replace(card(2), driver="xe"))
    snapshot = assembler(ResourceOptions(1, ByPath.SINGLE, mode)).assemble(seen)
    assert snapshot.resources.keys() == names | {I915, XE}
    preferring = {name for name, one in snapshot.resources.items() if one.preference}
    assert preferring == {I915, XE}


def test_shares_are_offered_and_preferred_by_gpu() -> None:
    snapshot = assembler(ResourceOptions(2)).assemble(node(links=wired((2, 4))))
    assert [device.id for device in snapshot.resource(I915).devices][:4] == [
        "card1-0",
        "card1-1",
        "card2-0",
        "card2-1",
    ]
    assert preferred(snapshot, 2) == ("card2-0", "card4-0")


@pytest.mark.parametrize("state", FileState)
def test_lanes_are_known_where_links_are_usable_and_none_otherwise(state: FileState) -> None:
    snapshot = assembler().assemble(node(links=wired((2, 4), state=state)))
    usable = state in {FileState.IN_USE, FileState.INFERRED}
    pair: AddressPair = (bdf(2), bdf(4))
    assert links_of(snapshot) == (NodeLinks(state, lanes={pair: 8}) if usable else UNREAD)
    best = ("card2-0", "card4-0") if usable else ("card1-0", "card2-0")
    assert preferred(snapshot, 2) == best


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NodeLinks(FileState.MISSING, "No such file"), NodeLinks(FileState.EXPIRED, "expired")),
        (wired((1, 2)), replace(wired((1, 2)), reason="another text")),
        (wired((1, 2)), replace(wired((1, 2)), ports={bdf(1): PortState.DEGRADED})),
        (wired((1, 2)), replace(wired((1, 2)), not_on_bus=("0000:ff:00.0",))),
    ],
    ids=["no links for another reason", "another text", "ports", "GPUs of no card"],
)
def test_what_changes_no_answer_is_no_news_to_kubelet(before: NodeLinks, after: NodeLinks) -> None:
    ours = assembler()
    assert ours.assemble(node(links=before)) == ours.assemble(node(links=after))


def test_before_the_first_look_no_lanes_are_known() -> None:
    snapshot = assembler().assemble(NodeObservation(inventory=Inventory((card(1), card(2)))))
    assert links_of(snapshot) == UNREAD
    assert preferred(snapshot, 1) == ("card1-0",)


def test_of_a_gpu_that_the_id_map_lacks_no_links_are_known() -> None:
    links = replace(wired((1, 2)), not_in_map=(bdf(3),))
    snapshot = assembler().assemble(node(links=links))
    assert [links_of(snapshot).knows(bdf(number)) for number in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_node_without_links_is_known_to_have_none() -> None:
    links = links_of(assembler().assemble(node(links=NodeLinks(FileState.IN_USE))))
    assert links.knows(bdf(1))
    assert links.lanes == {}


def test_without_gpus_there_is_nothing_to_offer_and_what_was_known_comes_back() -> None:
    ours = assembler()
    before = ours.assemble(node())
    empty = ours.assemble(NodeObservation())
    assert empty == Snapshot()
    assert prepared(ours.assemble(node())) is prepared(before)


def test_a_complaint_makes_a_device_unhealthy_and_gives_the_reason() -> None:
    hot = Health({bdf(2): GpuHealth(healthy=False, reason="core is critical (hot)")}, error="")
    snapshot = assembler().assemble(replace(node(), health=hot))
    told = {device.id: device.complaint for device in snapshot.resource(I915).devices}
    assert told == {
        "card1-0": None,
        "card2-0": "core is critical (hot)",
        "card3-0": None,
        "card4-0": None,
    }


def test_a_virtual_function_is_as_ill_as_its_physical_function() -> None:
    hot = Health({bdf(9): GpuHealth(healthy=False, reason="hot")}, error="")
    seen = replace(node(replace(card(1), physfn=bdf(9)), card(2)), health=hot)
    snapshot = assembler().assemble(seen)
    ill = [(one.unit, one.complaint) for one in snapshot.resource(I915).devices if not one.healthy]
    assert ill == [(bdf(1), f"its physical function {bdf(9)}: hot")]


@pytest.mark.parametrize("cdi", [frozenset(), frozenset({"card1"})], ids=["none", "one"])
def test_the_cdi_names_that_may_be_handed_out_are_those_that_stand(cdi: frozenset[str]) -> None:
    devices = assembler().assemble(replace(node(), cdi=cdi)).resource(I915).devices
    assert {one.cdi for one in devices if one.cdi} == {f"{KIND}={name}" for name in cdi}


def test_a_snapshot_is_not_changed_by_what_comes_after_it() -> None:
    lanes = {(bdf(1), bdf(2)): 8}
    snapshot = assembler().assemble(node(links=NodeLinks(FileState.IN_USE, lanes=lanes)))
    lanes.clear()
    assert links_of(snapshot).lanes == {(bdf(1), bdf(2)): 8}


def test_gpus_behind_one_switch_of_the_node_are_preferred(tmp_path: Path) -> None:
    TreeBlueprint(gpus_per_switch=2, cards="shuffled").build(tmp_path)
    seen = NodeObservation(inventory=scan(Roots.under(tmp_path)))
    snapshot = assembler().assemble(seen)
    by_address = [card.name for card in seen.inventory.cards]
    ids = [f"{name}-0" for name in by_address]
    preference = snapshot.resources[I915].preference
    assert preference
    assert preference.prefer([ids[1], ids[2], ids[3], ids[5]], [], 2).ids == (ids[2], ids[3])
