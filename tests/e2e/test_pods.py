"""kubelet, the second reader's client: Pods get linked GPUs, whole, and nobody else's."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster import NODE
from tests.e2e.conftest import Tell
from tests.e2e.gpus import Companions, explained_from_labels, published
from tests.e2e.kubelet import PLUGIN_DIRECTORY, RESOURCE, Kubelet, one_numa_node, two_numa_nodes
from tests.e2e.nfd import Nfd
from tests.e2e.pods import Pods, Report
from xelink.api.deviceplugin_pb2 import ContainerAllocateResponse

Keep = Callable[[int, int], bool]
"""Whether the links between two GPUs stay, by their device ids."""

WIRINGS: dict[str, Keep] = {
    "GPUs 0 and 3 have no link": lambda one, other: not {one, other} & {0, 3},
    "even with even, odd with odd": lambda one, other: one % 2 == other % 2,
    "pairs across the sockets": lambda one, other: other - one == 4,
}
# Labels name no GPU without a link, and no NUMA node.
LABELS_TELL_ALL = ("even with even, odd with odd", "pairs across the sockets")
SIZES = (1, 2, 4, 8)


def cut(companions: Companions, keep: Keep) -> list[str]:
    links = companions.gpus.xpum.first_node.topology.links
    return [str(link) for link in links if not keep(*sorted(end.device for end in link.ends))]


@pytest.fixture(autouse=True)
def whole_node(companions: Companions, kubelet: Kubelet) -> None:
    """Begin each story with all links and all GPUs."""
    companions.rewire()
    kubelet.await_allocatable(8)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_pods_get_the_sets_that_explain_names(
    companions: Companions, pods: Pods, wiring: str, tell: Tell
) -> None:
    companions.rewire(*cut(companions, WIRINGS[wiring]))
    for size in SIZES:
        expected = companions.gpus.explained(size)
        report = pods.run(f"wants-{size}", size)
        assert report.gpus == expected
        assert_opened(companions, report)
        tell(
            f"{size}: {' '.join(sorted(report.gpus))} linked={report.environment['XELINK_LINKED']}"
        )
        pods.delete(f"wants-{size}")


@pytest.mark.parametrize("wiring", LABELS_TELL_ALL)
def test_explain_names_the_same_sets_from_the_labels_on_the_node(
    companions: Companions, nfd: Nfd, wiring: str
) -> None:
    companions.rewire(*cut(companions, WIRINGS[wiring]))
    nfd.read_every(2)
    nfd.labeled(published())
    node = nfd.cluster.kubectl("get", "node", NODE, "--output=json")
    ids = companions.gpus.ids()
    for size in SIZES:
        expected = {ids[bdf] for bdf in companions.gpus.explained(size)}
        assert explained_from_labels(size, node) == expected


def test_a_second_pod_gets_what_explain_names_of_the_rest(
    companions: Companions, pods: Pods
) -> None:
    companions.rewire(*cut(companions, WIRINGS["even with even, odd with odd"]))
    everything = set(companions.gpus.bdfs().values())
    first = pods.run("first", 2)
    second = pods.run("second", 4)
    assert second.gpus == companions.gpus.explained(4, first.gpus)
    third = pods.run("third", 2)
    assert third.gpus == everything - first.gpus - second.gpus


def assert_opened(companions: Companions, report: Report) -> None:
    bdfs = companions.gpus.bdfs()
    assert {bdfs[card] for card in report.cards} == report.gpus
    assert len(report.renders) == len(report.gpus)
    assert not report.refused


def test_everything_that_we_answer_arrives(kubelet: Kubelet, pods: Pods, tell: Tell) -> None:
    report = pods.run("asks", 2)
    assert report.environment["XELINK_LINKED"] == "all"
    assert report.environment["XELINK_LINKS"] == f"{'-'.join(sorted(report.gpus))}=8"
    for bdf in report.gpus:
        for kind in ("card", "render"):
            path = f"/dev/dri/by-path/pci-{bdf}-{kind}"
            assert path in report.mounts
            assert path in report.opened
    noted = kubelet_noted()
    cards = {f"intel.cdi.k8s.io/gpu={card}" for card in report.cards}
    assert {device.name for device in noted.cdi_devices} == cards
    container = runtime_was_told(kubelet, pods, "asks")
    annotations = container["annotations"]
    assert set(annotations["gpu.intel.com/xelink.gpus"].split(",")) == report.gpus
    assert annotations["gpu.intel.com/xelink.linked"] == "all"
    tell(f"annotations: {' '.join(sorted(noted.annotations))}")
    tell(f"CDI: kubelet has noted {' '.join(sorted(cards))}")


def kubelet_noted() -> ContainerAllocateResponse:
    """Give the one answer of ours in kubelet's checkpoint."""
    noted = json.loads((PLUGIN_DIRECTORY / "kubelet_internal_checkpoint").read_text())
    (entry,) = noted["Data"]["PodDeviceEntries"]
    return ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"]))


def runtime_was_told(kubelet: Kubelet, pods: Pods, name: str) -> dict[str, Any]:
    """Give the container as kubelet asked containerd for it."""
    status = pods.get(name)["status"]["containerStatuses"][0]
    told = json.loads(
        kubelet.runtime.ctr("containers", "info", status["containerID"].split("//")[1])
    )
    extension = told["Extensions"]["io.cri-containerd.container.metadata"]
    metadata = json.loads(base64.b64decode(extension["value"]))
    config: dict[str, Any] = metadata["Metadata"]["Config"]
    return config


def test_two_pods_never_share_and_a_full_node_says_why(
    companions: Companions, pods: Pods, tell: Tell
) -> None:
    everything = set(companions.gpus.bdfs().values())
    reports = {number: pods.run(f"one-{number}", 1) for number in range(8)}
    given = [bdf for report in reports.values() for bdf in report.gpus]
    assert sorted(given) == sorted(everything)
    pods.create("ninth", 1)
    reason = pods.pending("ninth")
    assert f"Insufficient {RESOURCE}" in reason
    tell(f"the scheduler: {reason}")
    pods.create("forced", 1, scheduled=False)
    refusal = pods.failed("forced")
    assert RESOURCE in refusal
    tell(f"kubelet, past the scheduler: {refusal}")
    pods.delete("one-5", "forced")
    pods.running("ninth")
    assert pods.report("ninth").gpus == reports[5].gpus


def test_pods_share_where_sharing_is_on(
    companions: Companions, kubelet: Kubelet, pods: Pods
) -> None:
    companions.start_plugin("-shared-dev-num=2")
    try:
        kubelet.await_allocatable(16)
        reports = [pods.run(f"pod-{number}", 4) for number in range(4)]
        # Each has four GPUs of its own kind, and each GPU serves two of them.
        assert all(len(report.gpus) == 4 for report in reports)
        given = [bdf for report in reports for bdf in report.gpus]
        assert all(given.count(bdf) == 2 for bdf in companions.gpus.bdfs().values())
        pods.create("fifth", 1)
        assert f"Insufficient {RESOURCE}" in pods.pending("fifth")
    finally:
        pods.delete_all()
        companions.start_plugin()
        kubelet.await_allocatable(8)


@pytest.fixture
def two_sockets(kubelet: Kubelet) -> Iterator[None]:
    """Let kubelet see two NUMA nodes, and hold Pods to one."""
    kubelet.program.stop()
    two_numa_nodes(kubelet.cluster.work)
    kubelet.configure(topology_policy="single-numa-node")
    kubelet.program.start()
    kubelet.await_allocatable(8)
    yield
    kubelet.program.stop()
    one_numa_node()
    kubelet.configure()
    kubelet.program.start()
    kubelet.await_allocatable(8)


@pytest.mark.usefixtures("two_sockets")
def test_a_pod_stays_on_one_numa_node_where_kubelet_asks_for_it(
    companions: Companions, pods: Pods, tell: Tell
) -> None:
    # The best pair is across the sockets: only there are links.
    companions.rewire(*cut(companions, WIRINGS["pairs across the sockets"]))
    numa = {card.bdf: card.numa for card in companions.gpus.inventory.cards}
    criterion = companions.gpus.explained(2)
    assert {numa[bdf] for bdf in criterion} == {0, 1}
    report = pods.run("aligned", 2)
    assert len({numa[bdf] for bdf in report.gpus}) == 1
    assert len({numa[bdf] for bdf in pods.run("four", 4).gpus}) == 1
    pods.create("eight", 8, scheduled=False)
    tell(f"a Pod that no NUMA node can hold: {pods.failed('eight')}")
