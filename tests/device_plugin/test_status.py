"""What the plugin tells of itself: from a story with kubelet, from values, from a real process."""

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from device_plugin.assembly import Assembler, PreferenceConfig
from device_plugin.endpoints import Endpoints
from device_plugin.history import (
    MOST_DEVICES,
    MOST_PREFERENCES,
    AllocationRecord,
    Followed,
    History,
    PreferenceRecord,
)
from device_plugin.page import body
from device_plugin.snapshot import Snapshot
from device_plugin.status import Parts, status
from device_plugin.telemetry import NodeTelemetry
from device_plugin.updates import Updates
from tests.device_plugin.events import until
from tests.device_plugin.plugins import I915, Account, Running, changed, directory
from tests.device_plugin.plugins import node as snapshot_of
from tests.device_plugin.plugins import running as serving
from tests.documented import documented, keys
from tests.processes import address, get, running
from xelink.daemon.html import StatusDocument, pages
from xelink.daemon.http_server import ProbeResult
from xelink.daemon.metrics import Metrics
from xelink.daemon.version import versioned
from xelink.daemon.watch import Watch
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, scan
from xelink.inventory.health import GpuHealth, Health
from xelink.inventory.links import join
from xelink.inventory.observation import NodeObservation
from xelink.inventory.workload_facts import Linked
from xelink.nfd import reader as labels
from xelink.preference.decision import Decision
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree as Tree
from xelink.simulators.node.sysfs import PciGpu
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode
from xelink.topology.publication import Publication, render

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
NAMESPACE = "gpu.intel.com"
MESH = Blueprint(gpus=8, tiles=2, cards="reversed").build()
KEYS = documented("xelink-device-plugin")
READY = ProbeResult(ok=True, text="links in use")
NASTY = '<script>alert("x")</script><img src=x>&amp;\'"\udcff\0'


class Balanced(HTMLParser):
    """Reads a page strictly: every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(told: StatusDocument) -> Balanced:
    return Balanced(pages("a title", lambda: told, body)["/"]().body.decode())


def content(node: SimulatedNode, *, whole: bool = True) -> bytes:
    """Return a feature file: ours, or one that has labels only."""
    found = render(Publication(node.topology, NOW + timedelta(minutes=5)), NAMESPACE)
    return found if whole else found.partition(b"# +no-label")[0]


@dataclass
class Scene:
    """A plugin's observation, as given, and its status."""

    path: Path
    updates: Updates
    watch: Watch[Snapshot]
    endpoints: Endpoints
    ready: ProbeResult = READY

    def see(self, file: bytes | None, inventory: Inventory) -> None:
        seen = labels.Look(content=file, modified=NOW - timedelta(seconds=7))
        links = join(labels.read(seen, NAMESPACE, NOW), inventory)
        self.updates.observation = replace(
            self.updates.observation, inventory=inventory, links=links
        )
        self.updates.assembled = True
        self.watch.replace(
            Assembler(PreferenceConfig(clock=time.monotonic)).assemble(self.updates.observation)
        )

    def told(self) -> dict[str, Any]:
        parts = Parts(
            host="a-node",
            policy="topology",
            file=Path("/labels.txt"),
            ready=lambda: self.ready,
            updates=self.updates,
            watch=self.watch,
            endpoints=self.endpoints,
        )
        found = status(parts, NOW)
        page_of(found)
        again: dict[str, Any] = json.loads(json.dumps(found))
        assert {*keys(versioned(again), KEYS)} <= KEYS
        return again


def scene(path: Path, run: Running | None = None, endpoint: str = "") -> Scene:
    account = run or Account()
    watch = run.watch if run else Watch(Snapshot())
    observed = Watch(NodeObservation(monitored=bool(endpoint)))
    assembler = Assembler(PreferenceConfig(clock=time.monotonic))
    updates = Updates(observed, assembler, watch, NodeTelemetry(Metrics("node")), account.log)
    endpoints = run.endpoints if run else Endpoints(watch, account.telemetry, account.log)
    return Scene(path, updates, watch, endpoints)


@pytest.fixture
def eight(tmp_path: Path) -> tuple[Scene, Inventory]:
    Tree.eight_max_1550(tmp_path / "n")
    return scene(tmp_path), scan(Roots.under(tmp_path / "n"))


# A story


def with_complaint(snapshot: Snapshot, unit: str, complaint: str) -> Snapshot:
    devices = tuple(
        replace(one, complaint=complaint) if one.unit == unit else one
        for one in snapshot.resource(I915).devices
    )
    return changed(snapshot, devices=devices)


def test_devices_health_allocations_and_preferences_are_told() -> None:
    async def story(path: Path) -> None:
        Tree.eight_max_1550(path / "n")
        inventory = scan(Roots.under(path / "n"))
        (path / "k").mkdir()
        with Kubelet(path / "k") as kubelet:
            async with serving(path / "k", Snapshot()) as run:
                here = scene(path, run)
                here.see(content(MESH), inventory)
                await asyncio.to_thread(kubelet.wait_for_capacity, I915, 8)
                await until(lambda: run.events("registered"))
                for name, size in (("one", 2), ("two", 1)):
                    await asyncio.to_thread(kubelet.run_pod, name, I915, size)
                kubelet.delete_pod("one")
                await asyncio.to_thread(kubelet.run_pod, "three", I915, 1)
                await until(lambda: len(run.events("allocated")) >= 3)
                first = run.watch.current
                run.watch.replace(with_complaint(first, "0000:29:00.0", "memory is failed"))
                tell(here.told(), path)

    def tell(told: dict[str, Any], path: Path) -> None:
        assert {*keys(versioned(told), KEYS)} == KEYS  # docs/json.md has these and no other
        (resource,) = told["resources"]
        assert resource["registered"]
        assert datetime.fromisoformat(resource["since"]).tzinfo
        assert (resource["streams"], resource["devices"], resource["error"]) == (1, 8, None)
        assert resource["socket"] == f"{path}/k/gpu.intel.com-i915.sock"
        assert resource["unhealthy"] == {"card1-0": "memory is failed"}
        assert [gpu["card"] for gpu in told["gpus"] if gpu["unhealthy"]] == ["card1"]

        third, second, first = told["preferences"]
        assert (first["size"], first["available"], first["must_include"]) == (2, 8, [])
        assert first["chosen"] == ["card1-0", "card2-0"]
        assert (first["decided"], first["proven"], first["error"]) == ("address", True, None)
        assert first["runner_up"] == ["card1", "card3"]
        assert (second["size"], second["available"]) == (1, 6)
        assert third["chosen"] == ["card1-0"]

        newest, other, oldest = told["allocations"]
        assert (newest["devices"], newest["reallocated"]) == (["card1-0"], [])
        assert other["preference"] == "followed"
        assert (oldest["devices"], oldest["reallocated"]) == (["card2-0"], ["card1-0"])
        assert oldest["gpus"] == ["0000:29:00.0", "0000:3a:00.0"]
        assert oldest["linked"] == "all"
        shown = " ".join(page_of(told).texts)
        assert "card1-0  reallocated" in shown
        assert "memory is failed" in shown

    with directory() as path:
        asyncio.run(story(path))


def test_why_a_resource_is_not_registered_is_told() -> None:
    async def story(path: Path) -> None:
        with Kubelet(path) as kubelet:
            kubelet.faults.refuse("no room here")
            async with serving(path, snapshot_of(2)) as run:
                await until(lambda: run.events("cannot register"))
                (resource,) = scene(path, run).told()["resources"]
                assert (resource["registered"], resource["since"]) == (False, None)
                assert "no room here" in resource["error"]
                kubelet.faults.clear()
                await until(lambda: run.events("registered"))
                (resource,) = scene(path, run).told()["resources"]
                assert (resource["registered"], resource["error"]) == (True, None)

    with directory() as path:
        asyncio.run(story(path))


# What is remembered


def preferred(number: int, *must: str) -> PreferenceRecord:
    decision = Decision("address", ("card9",))
    return PreferenceRecord(
        number, 1, 2, must, ("card1-0",), decision, proven=True, error=None, seconds=0.1
    )


def allocated(number: int, *ids: str) -> AllocationRecord:
    return AllocationRecord(number, ids, (), Linked.SINGLE, Followed.YES)


def test_only_the_last_preferences_are_remembered_the_newest_first() -> None:
    history = History()
    for number in range(100):
        history.prefer(preferred(number))
    assert [one.at for one in history.preferences] == [*range(99, 99 - MOST_PREFERENCES, -1)]


def test_a_preference_that_names_any_number_of_ids_is_remembered_in_little_room() -> None:
    history = History()
    history.prefer(preferred(1, *("x" * 100_000 for _ in range(1000))))
    (one,) = history.preferences
    assert sum(map(len, one.must)) <= 64 * 64


def test_of_each_device_the_last_allocation_is_remembered_and_of_devices_not_too_many() -> None:
    history = History()
    history.allocate(allocated(1, "a", "b"))
    before = history.allocations
    history.allocate(allocated(2, "b"))
    assert {id_: one.at for id_, one in history.allocations.items()} == {"a": 1, "b": 2}
    assert {id_: one.at for id_, one in before.items()} == {"a": 1, "b": 1}
    for number in range(3 * MOST_DEVICES):
        history.allocate(allocated(number, f"card{number}"))
    history.allocate(allocated(0, "card2500"))
    assert len(history.allocations) == MOST_DEVICES
    assert [*history.allocations][:2] == ["card2500", f"card{3 * MOST_DEVICES - 1}"]


# The node


def test_the_topology_in_use_has_the_cards_of_this_node(eight: tuple[Scene, Inventory]) -> None:
    here, inventory = eight
    here.see(content(MESH), inventory)
    told = here.told()
    links = told["links"]
    assert (links["state"], links["linked_pairs"], links["age_seconds"]) == ("in use", 28, 7)
    assert links["expires"] == "2026-11-21T12:05:00+00:00"
    # In the file the cards were counted the other way.
    assert MESH.topology.gpus[0].card == "card8"
    assert links["topology"]["gpus"][0] | {"uuid": ""} == {
        "id": 0, "pci": "0000:29:00.0", "card": "card1", "uuid": "", "numa": 0, "ports": "healthy",
    }  # fmt: skip
    gpu = told["gpus"][0]
    assert (gpu["card"], gpu["model"], gpu["numa"]) == ("card1", "Data Center GPU Max 1550", 0)
    assert (gpu["driver"], gpu["tiles"], len(gpu["linked_to"])) == ("i915", 2, 7)
    assert "8 GPUs, 56 links, 28 of 28 pairs linked" in page_of(told).texts


def test_labels_alone_are_told_as_a_guess(eight: tuple[Scene, Inventory]) -> None:
    here, inventory = eight
    here.see(content(MESH, whole=False), inventory)
    told = here.told()
    assert told["links"]["state"] == "inferred"
    assert told["links"]["topology"]["gpus"][7]["card"] == "card8"
    texts = page_of(told).texts
    assert "a-node (a guess)" in texts
    assert "link; lanes are not known" in texts
    assert " (a guess)" in "".join(texts)


@pytest.mark.parametrize(
    ("file", "state"),
    [
        (None, "missing"),
        (b"# +expiry-time=2020-01-01T00:00:00Z\ngpu.intel.com/xe-links=0.0-1.0\n", "expired"),
        (b"gpu.intel.com/xe-links=<b>nasty</b>\n", "inconsistent"),
        (b"gpu.intel.com/xe-links=0.0-9.0\n", "ambiguous"),
        (b"gpu.intel.com/xe-links.state=no-fabric-data\n", "no-fabric-data"),
    ],
)
def test_links_that_are_not_known_are_told_with_the_reason(
    eight: tuple[Scene, Inventory], file: bytes | None, state: str
) -> None:
    here, inventory = eight
    here.see(file, inventory)
    told = here.told()
    assert (told["links"]["state"], told["links"]["topology"]) == (state, None)
    assert told["gpus"][0]["linked_to"] is None
    page = page_of(told)
    assert f"unknown: {state}" in page.texts
    assert "b" not in page.tags


def test_the_policy_of_the_first_answer_lets_a_drawing_in_that_comes_later(
    eight: tuple[Scene, Inventory],
) -> None:
    here, inventory = eight
    policies = set()
    for file in (None, content(MESH)):
        here.see(file, inventory)
        reply = pages("a title", here.told, body)["/"]()
        policies.add(dict(reply.headers)["Content-Security-Policy"])
    assert len(policies) == 1


def test_where_health_comes_from_is_told_and_of_which_gpus_nothing_is_said(
    tmp_path: Path,
) -> None:
    Tree.eight_max_1550(tmp_path / "n")
    here = scene(tmp_path, endpoint="/run/xpumd.sock")
    here.see(None, scan(Roots.under(tmp_path / "n")))
    assert here.told()["health"] == "unknown: not connected yet"
    health = Health(gpus={"0000:29:00.0": GpuHealth(known=True)}, error="")
    here.updates.observation = replace(here.updates.observation, health=health)
    told = here.told()
    assert told["health"] == "as reported by XPU Manager"
    assert [gpu["health_known"] for gpu in told["gpus"]] == [True, *[False] * 7]
    assert page_of(told).texts.count(" (not reported by XPU Manager)") == 7


def test_what_is_not_ready_stands_out(eight: tuple[Scene, Inventory]) -> None:
    here, inventory = eight
    here.see(None, inventory)
    here.ready = ProbeResult(ok=False, text="no scan has succeeded yet")
    told = here.told()
    assert (told["ready"], told["readyz"]) == (False, "no scan has succeeded yet")
    assert "✗ not ready" in page_of(told).texts


def test_gpus_that_are_not_offered_are_told_whatever_sysfs_says(tmp_path: Path) -> None:
    tree = Tree.eight_max_1550(tmp_path / "n")
    tree.add(PciGpu("0000:f0:00.0", 20, driver="<b>&"))
    here = scene(tmp_path)
    here.see(None, scan(Roots.under(tmp_path / "n")))
    told = here.told()
    assert [text for text in told["excluded"] if "<b>&" in text]
    page = page_of(told)
    assert "b" not in page.tags
    assert any("(<b>&)" in text for text in page.texts)


# Whatever it shows

FIXED = {
    "at",
    "since",
    "written",
    "expires",
    "state",
    "decided",
    "linked",
    "preference",
    "topology",
}


def saying(text: str, told: Any) -> Any:  # noqa: ANN401 - JSON
    """Put a text in the place of every text that comes from elsewhere."""
    match told:
        case dict():
            return {key: it if key in FIXED else saying(text, it) for key, it in told.items()}
        case list():
            return [saying(text, it) for it in told]
        case str():
            return text
        case _:
            return told


def test_hostile_texts_stay_texts(eight: tuple[Scene, Inventory]) -> None:
    here, inventory = eight
    here.see(content(MESH), inventory)
    told = here.told()
    told["warnings"], told["excluded"] = ["?"], ["?"]
    told["gpus"][0]["unhealthy"] = told["links"]["reason"] = "?"
    one = {"at": told["now"], "resource": "?"}
    told["resources"] = [
        {"resource": "?", "registered": False, "since": None, "error": "?", "streams": 0}
        | {"socket": "?", "devices": 1, "unhealthy": {NASTY: "?"}}
    ]
    told["allocations"] = [
        {**one, "devices": ["?"], "reallocated": ["?"], "gpus": ["?"]}
        | {"linked": "all", "preference": "not_followed"}
    ]
    told["preferences"] = [
        {**one, "size": 1, "available": 1, "must_include": ["?"], "chosen": ["?"], "seconds": 0}
        | {"decided": "fallback", "runner_up": ["?"], "proven": False, "error": "?"}
    ]
    plain, hostile = page_of(saying("plain", told)), page_of(saying(NASTY, told))
    assert hostile.tags == plain.tags
    assert hostile.tags.count("script") == 1
    shown = NASTY.replace("\udcff", "?")
    assert sum(text.count(shown) for text in hostile.texts) >= 20


def test_tables_that_would_be_very_long_say_where_the_rest_is(
    eight: tuple[Scene, Inventory],
) -> None:
    here, inventory = eight
    here.see(None, inventory)
    one = {"at": None, "resource": "r", "devices": ["d"], "reallocated": [], "gpus": []}
    told = {
        **here.told(),
        "allocations": [{**one, "linked": "all", "preference": "not_followed"}] * 1000,
    }
    page = page_of(told)
    assert page.tags.count("tr") < 200
    assert "and 936 more: " in page.texts


# The real process


def test_the_process_serves_the_page_and_the_same_as_json() -> None:
    with tempfile.TemporaryDirectory(prefix="x") as name:
        path = Path(name)
        Tree.eight_max_1550(path / "n")
        file = path / "labels"
        file.write_bytes(render(Publication(MESH.topology), NAMESPACE))
        arguments = (f"-prefix={path / 'n'}", f"-plugin-dir={path / 'k'}", "-listen=127.0.0.1:0")
        more = (f"-label-file={file}", f"-cdi-dir={path / 'cdi'}")
        with (
            Kubelet(path / "k") as kubelet,
            running("device_plugin", *arguments, *more) as process,
        ):
            url = address(process)
            kubelet.wait_for_capacity(I915, 8)
            process.wait_for("event=registered")
            kubelet.run_pod("pod", I915, 2)
            process.wait_for("event=allocated")
            code, text = get(f"{url}/status.json")
            assert code == 200
            told = json.loads(text)
            assert told["resources"][0]["registered"]
            assert told["links"]["expires"] is None
            assert told["allocations"][0]["devices"] == told["preferences"][0]["chosen"]
            code, text = get(f"{url}/")
            assert code == 200
            page = Balanced(text)
            assert "h1" in page.tags
            assert page.tags.count("h2") == page.tags.count("section") == 6
            assert "svg" in page.tags
            assert any(told["host"] in text for text in page.texts)
            # The first request has loaded what draws; nothing of it stands in the way of the end.
            assert process.stop() == 0
