"""The demo: the daemons end to end on this machine, without GPU or cluster, in under a minute.

XPU Manager, kubelet and the node's GPUs are simulated. The sidecar and the device plugin are real:
processes with their own files and sockets, exactly as they run in a Pod.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from xelink.cli.demo import processes
from xelink.cli.demo.processes import Daemon, DemoError, XpuManager
from xelink.cli.exit_codes import OK
from xelink.cli.helptext import HelpFormatter
from xelink.cli.show.matrix import lanes_between, matrix
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.topology.model import Topology
from xelink.topology.nfd_format import parse
from xelink.topology.publication import DEFAULT_NAMESPACE, read
from xelink.topology.text import printable_lines

Say = Callable[[str], object]

_LABELS_SHOWN = 2
_CUT = "0.0-1.0"
_LOST = (1, 4)
_PODS = {"one": 1, "two": 2, "four": 4}
_RESOURCE = "gpu.intel.com/i915"

_EXAMPLES = """\
examples:
  the demo, and in another terminal the files in its temporary directory:
    xelink demo
    watch ls -R /tmp/xelink-*

exit codes: 0 the demo completed, 1 it cannot run on this machine
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    commands.add_parser(
        "demo",
        help=summary,
        description="Watch the sidecar publish the topology of a simulated node and keep it"
        " through failures, and the device plugin allocate linked GPUs to Pods. Needs no GPU and"
        " no cluster, writes only to a temporary directory, and ends in under a minute.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )


def run(_options: argparse.Namespace) -> int:
    """Run the demo and print each step. Raises `DemoError`."""
    demonstrate(_print)
    return OK


def _print(text: str) -> None:
    sys.stdout.write(f"{printable_lines(text)}\n")
    sys.stdout.flush()


def demonstrate(say: Say) -> None:
    """Run each step. Raises `DemoError`."""
    # A short name: the path of a unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="xelink-") as name, ExitStack() as cleanup:
        directory = Path(name)
        labels = directory / "features.d" / "xpum-sidecar-labels.txt"
        labels.parent.mkdir()
        say("xelink demo: a simulated XPU Manager with 8 GPUs x 2 tiles; the daemons are real.")
        xpum = cleanup.enter_context(processes.xpu_manager())
        sidecar = cleanup.enter_context(processes.sidecar(xpum.port, labels))
        _labels_appear(say, sidecar, labels)
        _a_link_is_cut(say, xpum, sidecar, labels)
        _xpu_manager_breaks(say, xpum, sidecar, labels)
        _all_recovers(say, xpum, sidecar, labels)
        _pods_ask(say, xpum, sidecar, labels)
        _the_sidecar_stops(say, sidecar, labels)
        say("\nThe demo is complete. For a real node, see the README.")


def _labels_appear(say: Say, sidecar: Daemon, labels: Path) -> None:
    say("\n1. The sidecar scrapes XPU Manager and publishes what NFD turns into node labels:\n")
    sidecar.wait_for("labels published")
    say(_published(labels))
    say("\n   (0.0-1.0 is GPU 0, tile 0 to GPU 1, tile 0.) Lanes between the GPUs:\n")
    say(_indented(matrix(_topology(labels))))


def _a_link_is_cut(say: Say, xpum: XpuManager, sidecar: Daemon, labels: Path) -> None:
    say(f"\n2. The Xe Link {_CUT} goes down. A loss is published after two scrapes in a row:\n")
    xpum.control("cut", links=[_CUT])
    sidecar.wait_for("a loss waits for confirmation")
    say(f"   after one scrape  {_count(labels)} links, {_CUT} waits for confirmation")
    sidecar.wait_for("labels published")
    say(f"   after two         {_count(labels)} links; ! marks a pair that lost a link\n")
    say(_indented(matrix(_topology(labels))))


def _xpu_manager_breaks(say: Say, xpum: XpuManager, sidecar: Daemon, labels: Path) -> None:
    say("\n3. XPU Manager fails. A failed scrape changes nothing: the labels stay.\n")
    for failure, text in (
        ("daemon-down", "answers 500"),
        ("reset", "resets the connection"),
        ("empty", "answers nothing"),
    ):
        xpum.control("misbehave", name=failure)
        reason = sidecar.wait_for("no usable answer")["reason"]
        say(f"   XPU Manager {text:<22} -> unknown ({reason}), {_count(labels)} links stay")
        xpum.control("recover")
        sidecar.wait_for("scrape result changed")


def _all_recovers(say: Say, xpum: XpuManager, sidecar: Daemon, labels: Path) -> None:
    say("\n4. XPU Manager and the link recover. A gain is published at once:\n")
    xpum.control("reset")
    sidecar.wait_for("labels published")
    say(f"   after one scrape  {_count(labels)} links")


def _pods_ask(say: Say, xpum: XpuManager, sidecar: Daemon, labels: Path) -> None:
    lost = " and ".join(f"GPU {device}" for device in _LOST)
    say(f"\n5. {lost} lose all their links. Pods ask kubelet for 1, 2 and 4 GPUs:\n")
    topology = _topology(labels)
    ends = [str(link) for link in topology.links if {end.device for end in link.ends} & {*_LOST}]
    xpum.control("cut", links=ends)
    sidecar.wait_for("labels published")
    topology = _topology(labels)
    linked = _given(labels, topology, "topology")
    unlinked = _given(labels, topology, "none")
    say(f"   {'Pod':<6}{'xelink-device-plugin':<47}a plugin without preference")
    for pod in _PODS:
        with_links, without = (_summary(each[pod], topology) for each in (linked, unlinked))
        say(f"   {pod:<6}{with_links:<47}{without}".rstrip())


def _given(labels: Path, topology: Topology, policy: str) -> dict[str, tuple[int, ...]]:
    """Run Pods on a node with the real plugin; return the device ids that each got."""
    ids = {gpu.bdf: gpu.id for gpu in topology.gpus}
    directory = labels.parent.parent / policy[:1]
    node = directory / "node"
    NodeTree.eight_max_1550(node)
    with (
        Kubelet(directory / "k") as kubelet,
        processes.device_plugin(node, directory / "k", labels, policy) as plugin,
    ):
        # Its links may come before its registration, or after it.
        plugin.wait_for("links", state="in use")
        kubelet.wait_for_allocatable(_RESOURCE, len(ids))
        given = {
            pod: kubelet.run_pod(pod, _RESOURCE, size).env["XELINK_GPUS"].split(",")
            for pod, size in _PODS.items()
        }
        if plugin.stop():
            raise DemoError("the device plugin did not end well")
    return {pod: tuple(sorted(ids[bdf] for bdf in bdfs)) for pod, bdfs in given.items()}


def _summary(devices: Iterable[int], topology: Topology) -> str:
    """Return one line: these GPUs, and how well they are linked."""
    gpus = sorted(devices)
    pairs = [(one, other) for one in gpus for other in gpus if one < other]
    lanes = lanes_between(topology)
    widths = [sum(lanes.get(pair, ())) for pair in pairs]
    names = " ".join(f"GPU{device}" for device in gpus)
    if not pairs:
        return names
    linked = sum(pair in lanes for pair in pairs)
    return f"{names}: {linked} of {len(pairs)} linked, {sum(widths)} lanes"


def _the_sidecar_stops(say: Say, sidecar: Daemon, labels: Path) -> None:
    say("\n6. The sidecar is stopped, as in a rollout. The labels stay until they expire:\n")
    code = sidecar.stop()
    left = f"which expire in {_minutes_left(labels)} minutes unless renewed"
    say(f"   exit code {code}, {_count(labels)} links, {left}")


def _published(labels: Path) -> str:
    found = parse(labels.read_bytes(), datetime.now(UTC)).labels
    links = [f"{name}={value}" for name, value in found.items() if "." not in name.split("/")[1]]
    more = len(links) - _LABELS_SHOWN
    rest = [f"{name}={value}" for name, value in found.items() if "." in name.split("/")[1]]
    lines = [*links[:_LABELS_SHOWN], f"... {more} more labels of links", *rest]
    return _indented("\n".join(lines))


def _topology(labels: Path) -> Topology:
    published = read(labels.read_bytes(), DEFAULT_NAMESPACE, datetime.now(UTC))
    if published.topology is None:
        raise DemoError("the feature file has no topology")
    return published.topology


def _count(labels: Path) -> str:
    found = parse(labels.read_bytes(), datetime.now(UTC)).labels
    return found[f"{DEFAULT_NAMESPACE}/xe-links.count"]


def _minutes_left(labels: Path) -> int:
    expiry = parse(labels.read_bytes(), datetime.now(UTC)).expiry
    return round((expiry - datetime.now(UTC)).total_seconds() / 60) if expiry else 0


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
