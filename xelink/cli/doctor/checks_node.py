"""The daemons, kubelet's sockets, the GPUs and their links. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from xelink.cli.doctor.finding import CheckStatus, Finding, fail, hung, ok, skip, some, span, warn
from xelink.cli.doctor.inspection import DaemonAnswer, NodeInspection
from xelink.cli.doctor.socket_probe import SocketAnswer, SocketProbe
from xelink.inventory.links import NodeLinks, join
from xelink.kubelet.sockets import KUBELET
from xelink.nfd.reader import FileState, Reading
from xelink.topology.model import PortState, Topology
from xelink.topology.observation import ObservedLinks
from xelink.topology.publication import Publication
from xelink.view.node_view import Mark, NodeView

_READY = 200
_READY_TEXT = "links "  # how `/readyz` of a plugin without other problems begins
_UNIQUE = re.compile(r"-[0-9a-f]{8}(?=\.sock$)", re.ASCII)
_BAD_PORTS = {PortState.DEGRADED, PortState.FAILED}


def sidecar(node: NodeInspection) -> Finding:
    """Check `/readyz` of the sidecar; a feature file that is not renewed hints at a kill."""
    found = _daemon(node, "sidecar", node.locations.sidecar, node.sidecar)
    alive = isinstance(node.content, Publication) and node.content.whole
    if found.status is not CheckStatus.SKIP or not alive or node.expired:
        return found
    said = f"{node.locations.sidecar}: {node.sidecar.text}"
    if node.expiry is None or not node.renewal_missed:
        why = "was written in time" if node.expiry else "never expires"
        return skip(
            f"{said}, and its feature file {why}: its -listen is another or empty, or it was"
            " -oneshot"
        )
    return warn(
        f"{said}, and its feature file, which lives for"
        f" {span((node.expiry - node.now).total_seconds())}, was not renewed: was it killed?",
        "start xelink-sidecar, or give its -listen with --sidecar",
    )


def plugin(node: NodeInspection) -> Finding:
    """Check `/readyz` of the device plugin: it may be ready and have nothing to give."""
    finding = _daemon(node, "device_plugin", node.locations.plugin, node.plugin)
    if finding.status is CheckStatus.OK and not node.plugin.text.startswith(_READY_TEXT):
        return warn(finding.reason, "fix that, and read its log")
    return finding


def _daemon(node: NodeInspection, part: str, url: str, probe: DaemonAnswer) -> Finding:
    program = f"xelink-{part.replace('_', '-')}"
    option = f"--{part.rpartition('_')[2]}"
    if probe.status is None:
        said = f"{url}: {probe.text}"
        if option in node.locations.given or not probe.refused:
            do = "start" if probe.refused else "restart"
            return fail(said, f"{do} {program}, or give its -listen with {option}")
        return skip(f"{said}; no {program} here, or its -listen is another")
    if probe.part != part:
        return fail(
            f"another program than {program} answers at {url}", f"give its -listen with {option}"
        )
    said = f"{program} {probe.version}"
    if probe.status != _READY:
        return fail(f"{said} is not ready: {probe.text}", "fix that, and read its log")
    return ok(f"{said} is ready" + ("" if probe.text == "ok" else f": {probe.text}"))


def kubelet(node: NodeInspection) -> Finding:
    """Check that kubelet accepts connections of device plugins."""
    seen, path = node.sockets, node.locations.plugin_dir
    if seen.problem:
        return _unreadable(node)
    match seen.kubelet:
        case None:
            return fail(
                f"there is no {KUBELET} in {path}",
                "start kubelet, or give its directory with --plugin-dir",
            )
        case SocketProbe(answer=SocketAnswer.ANSWERED):
            return ok(f"kubelet accepts connections in {path}")
        case SocketProbe(answer=SocketAnswer.PERMISSION_DENIED):
            return skip(f"no permission to connect to {path / KUBELET}; run as root")
    return fail(f"nothing listens on {path / KUBELET}", "start kubelet")


def _unreadable(node: NodeInspection) -> Finding:
    seen, path = node.sockets, node.locations.plugin_dir
    if why := node.hung.get("plugin_dir"):
        return hung(why)
    if "--plugin-dir" in node.locations.given:
        if seen.missing:
            return fail(f"there is no {path}", "give kubelet's directory with --plugin-dir")
        return fail(f"{path}: {seen.problem.lower()}", "run as root, or give another --plugin-dir")
    return skip(f"{path}: {seen.problem.lower()}; run on the node as root")


def sockets(node: NodeInspection) -> Finding:
    """Check that a plugin answers on each socket of `gpu.intel.com`, one for a resource."""
    seen = node.sockets
    if seen.problem:
        return skip("kubelet's directory cannot be read", "kubelet")
    if not seen.plugins:
        return skip(f"no device plugin of gpu.intel.com serves in {node.locations.plugin_dir}")
    serving: dict[str, list[str]] = {}
    for name, probed in seen.plugins.items():
        if probed.answer is SocketAnswer.ANSWERED:
            serving.setdefault(_UNIQUE.sub("", name), []).append(name)
    if problem := _socket_problem(seen.plugins, serving):
        return problem
    if not serving:
        return skip(f"no permission to connect to {some([*seen.plugins])}; run as root")
    names = [name for (name,) in serving.values()]
    prefers = sum(seen.plugins[name].prefers for name in names)
    return ok(f"a plugin answers on {some(names)}, {prefers} of {len(names)} with a preference")


def _socket_problem(
    plugins: Mapping[str, SocketProbe], serving: Mapping[str, Sequence[str]]
) -> Finding | None:
    wrong = {name: probed for name, probed in plugins.items() if probed.answer in _WRONG}
    for name, probed in wrong.items():
        if _UNIQUE.sub("", name) not in serving:
            return fail(
                f"{_WRONG[probed.answer]} {name}{f' ({probed.why})' if probed.why else ''}",
                "start the device plugin that served it, or remove the socket",
            )
    if wrong:
        return warn(f"a killed plugin left {some([*wrong])}", "remove the socket")
    if twice := [names for names in serving.values() if len(names) > 1]:
        return warn(
            f"several plugins serve one resource, {some(twice[0])}",
            "stop all but one, unless a rolling update is under way",
        )
    return None


_WRONG: Mapping[SocketAnswer, str] = {
    SocketAnswer.STALE: "nothing listens on",
    SocketAnswer.SILENT: "no device plugin answers on",
    SocketAnswer.NO_SOCKET: "something other than a socket is at",
}


def id_map(node: NodeInspection) -> Finding:
    """Check that ids, PCI addresses and cards of the id map are those of this node's sysfs."""
    topology, source = _topology(node)
    inventory = node.inventory
    if topology is None or not topology.gpus:
        return skip("there is no id map", "xpum", "consistent")
    if why := node.hung.get("sysfs"):
        return hung(why)
    if inventory is None:
        return skip(f"there is no sysfs at {node.locations.prefix / 'sys'}; give --prefix")
    links = join(Reading(FileState.IN_USE, publication=Publication(topology)), inventory)
    functions = {card.bdf for card in inventory.cards if card.is_vf}
    unmapped = [bdf for bdf in links.not_in_map if bdf not in functions]
    names = {card.bdf: card.name for card in inventory.cards}
    names |= {gpu.bdf: gpu.name for gpu in inventory.excluded if gpu.name}
    wrong = [*_contradictions(topology, links, names)]
    if wrong:
        return fail(
            f"the id map of {source} does not match sysfs: {some(wrong, 2)}",
            "restart XPU Manager's Pod, so that it counts the GPUs again",
        )
    if unmapped:
        return warn(
            f"the id map of {source} lacks {some([f'{names[bdf]} {bdf}' for bdf in unmapped])}",
            "restart XPU Manager's Pod, unless XPUM_ENABLED_GPU_IDS leaves them out",
        )
    return ok(f"the id map of {source} matches sysfs: {len(topology.gpus)} GPUs")


def _contradictions(
    topology: Topology, links: NodeLinks, names: Mapping[str, str]
) -> Iterator[str]:
    for gpu in topology.gpus:
        who = f"GPU{gpu.id} {gpu.bdf}"
        if gpu.bdf in links.not_on_bus:
            yield f"{who} is not on the bus"
        elif gpu.card and names.get(gpu.bdf, gpu.card) != gpu.card:
            yield f"{who} is {names[gpu.bdf]}, not {gpu.card}"
    for device in links.without_address:
        yield f"GPU{device} has links and no PCI address"


def degraded(node: NodeInspection) -> Finding:
    """Check the links: lanes, directions, missing links, port states."""
    topology, source = _topology(node)
    if topology is None:
        return skip("no lanes are known", "xpum", "consistent")
    # A scrape is evaluated with rules that filter nothing.
    shown = replace(NodeView.of(topology), every_link=node.published is None)
    faulty = [f"{link} {_lanes(marks)}" for link, marks in shown.marks.items()]
    thin, lost = (
        [f"GPU{one} to GPU{other}" for one, other in pairs] for pairs in (shown.thin, shown.lost)
    )
    ports = [
        f"GPU{gpu.id} {gpu.card or gpu.bdf} {gpu.ports.value}"
        for gpu in topology.gpus
        if gpu.ports in _BAD_PORTS
    ]
    problems = [
        f"{what} {some(names)}"
        for what, names in (
            ("links", faulty),
            ("fewer links than usual:", thin),
            (f"{shown.no_link} where others have some{_in_brackets(shown.or_else)}:", lost),
            ("ports", ports),
        )
        if names
    ]
    if problems:
        return warn(
            f"{source} has {'; '.join(problems)}",
            "see all with xelink show, then check bridges and cables",
        )
    return ok(f"{source} has {len(topology.links)} links, none degraded")


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _lanes(marks: tuple[Mark, ...]) -> str:
    return " and ".join(mark.value for mark in marks)


def _topology(node: NodeInspection) -> tuple[Topology | None, str]:
    """Return the published topology, or that of one scrape if nothing is published.

    One scrape may lack rows; the sidecar confirms them.
    """
    if node.published is not None:
        return node.published, "the feature file"
    if isinstance(node.answer.outcome, ObservedLinks):
        return node.answer.outcome.topology, "XPU Manager's answer"
    return None, ""
