"""The daemons, kubelet's sockets, the GPUs and their links. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from xelink.cli.doctor.dialing import Dialed, Line
from xelink.cli.doctor.finding import Finding, Status, fail, hung, ok, skip, some, span, warn
from xelink.cli.doctor.probe import Probe, Visit
from xelink.inventory.links import NodeLinks, join
from xelink.kubelet.sockets import KUBELET
from xelink.nfd.reader import FileState, Reading
from xelink.topology.model import PortState, Topology
from xelink.topology.observation import ObservedLinks
from xelink.topology.publication import Publication
from xelink.view.node_view import Mark, Node

_READY = 200
_ALL_IT_SAYS = "links "  # what the device plugin says first, unless something else is amiss
_UNIQUE = re.compile(r"-[0-9a-f]{8}(?=\.sock$)", re.ASCII)
_BAD_PORTS = {PortState.DEGRADED, PortState.FAILED}


def sidecar(visit: Visit) -> Finding:
    """Check what the sidecar says of itself; a file that is not renewed tells of a kill."""
    found = _daemon(visit, "sidecar", visit.place.sidecar, visit.sidecar)
    alive = isinstance(visit.said, Publication) and visit.said.whole
    if found.status is not Status.SKIP or not alive or visit.expired:
        return found
    said = f"{visit.place.sidecar}: {visit.sidecar.text}"
    if visit.expiry is None or not visit.renewal_missed:
        why = "was written in time" if visit.expiry else "never expires"
        return skip(
            f"{said}, and its feature file {why}: its -listen is another or empty, or it was"
            " -oneshot"
        )
    return warn(
        f"{said}, and its feature file, which lives for"
        f" {span((visit.expiry - visit.now).total_seconds())}, was not renewed: was it killed?",
        "start xelink-sidecar, or give its -listen with --sidecar",
    )


def plugin(visit: Visit) -> Finding:
    """Check what the device plugin says of itself: it may be ready, and have nothing to give."""
    finding = _daemon(visit, "device_plugin", visit.place.plugin, visit.plugin)
    if finding.status is Status.OK and not visit.plugin.text.startswith(_ALL_IT_SAYS):
        return warn(finding.reason, "mend that, and see its log")
    return finding


def _daemon(visit: Visit, part: str, url: str, probe: Probe) -> Finding:
    program = f"xelink-{part.replace('_', '-')}"
    option = f"--{part.rpartition('_')[2]}"
    if probe.status is None:
        said = f"{url}: {probe.text}"
        if option in visit.place.given or not probe.refused:
            do = "start" if probe.refused else "restart"
            return fail(said, f"{do} {program}, or give its -listen with {option}")
        return skip(f"{said}; no {program} here, or its -listen is another")
    if probe.part != part:
        return fail(
            f"another program than {program} answers at {url}", f"give its -listen with {option}"
        )
    said = f"{program} {probe.version}"
    if probe.status != _READY:
        return fail(f"{said} is not ready: {probe.text}", "mend that, and see its log")
    return ok(f"{said} is ready" + ("" if probe.text == "ok" else f": {probe.text}"))


def kubelet(visit: Visit) -> Finding:
    """Check that kubelet listens for device plugins."""
    seen, path = visit.sockets, visit.place.plugin_dir
    if seen.problem:
        return _not_looked_into(visit)
    match seen.kubelet:
        case None:
            return fail(
                f"there is no {KUBELET} in {path}",
                "start kubelet, or give its directory with --plugin-dir",
            )
        case Dialed(line=Line.ANSWERED):
            return ok(f"kubelet listens in {path}")
        case Dialed(line=Line.BARRED):
            return skip(f"{path / KUBELET} may not be dialed from here; ask as root")
    return fail(f"nobody listens on {path / KUBELET}", "start kubelet")


def _not_looked_into(visit: Visit) -> Finding:
    seen, path = visit.sockets, visit.place.plugin_dir
    if why := visit.hung.get("plugin_dir"):
        return hung(why)
    if "--plugin-dir" in visit.place.given:
        if seen.missing:
            return fail(f"there is no {path}", "give kubelet's directory with --plugin-dir")
        return fail(f"{path}: {seen.problem.lower()}", "ask as root, or give another --plugin-dir")
    return skip(f"{path}: {seen.problem.lower()}; ask on the node as root")


def sockets(visit: Visit) -> Finding:
    """Check that a plugin answers on each socket of `gpu.intel.com`, one for a resource."""
    seen = visit.sockets
    if seen.problem:
        return skip("kubelet's directory cannot be looked into", "kubelet")
    if not seen.plugins:
        return skip(f"no device plugin of gpu.intel.com serves in {visit.place.plugin_dir}")
    serving: dict[str, list[str]] = {}
    for name, dialed in seen.plugins.items():
        if dialed.line is Line.ANSWERED:
            serving.setdefault(_UNIQUE.sub("", name), []).append(name)
    if trouble := _trouble(seen.plugins, serving):
        return trouble
    if not serving:
        return skip(f"{some([*seen.plugins])} may not be dialed from here; ask as root")
    names = [name for (name,) in serving.values()]
    prefers = sum(seen.plugins[name].prefers for name in names)
    return ok(f"a plugin answers on {some(names)}, {prefers} of {len(names)} with a preference")


def _trouble(plugins: Mapping[str, Dialed], serving: Mapping[str, Sequence[str]]) -> Finding | None:
    wrong = {name: dialed for name, dialed in plugins.items() if dialed.line in _WRONG}
    for name, dialed in wrong.items():
        if _UNIQUE.sub("", name) not in serving:
            return fail(
                f"{_WRONG[dialed.line]} {name}{f' ({dialed.why})' if dialed.why else ''}",
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


_WRONG: Mapping[Line, str] = {
    Line.STALE: "nobody listens on",
    Line.SILENT: "no device plugin answers on",
    Line.NO_SOCKET: "there is something else in the place of the socket",
}


def id_map(visit: Visit) -> Finding:
    """Check that ids, PCI addresses and cards of the id map are those of this node's sysfs."""
    topology, source = _topology(visit)
    inventory = visit.inventory
    if topology is None or not topology.gpus:
        return skip("there is no id map", "xpum", "consistent")
    if why := visit.hung.get("sysfs"):
        return hung(why)
    if inventory is None:
        return skip(f"there is no sysfs at {visit.place.prefix / 'sys'}; give --prefix")
    links = join(Reading(FileState.IN_USE, said=Publication(topology)), inventory)
    functions = {card.bdf for card in inventory.cards if card.is_vf}
    unmapped = [bdf for bdf in links.not_in_map if bdf not in functions]
    names = {card.bdf: card.name for card in inventory.cards}
    names |= {gpu.bdf: gpu.name for gpu in inventory.excluded if gpu.name}
    wrong = [*_contradictions(topology, links, names)]
    if wrong:
        return fail(
            f"the id map of {source} does not match sysfs: {some(wrong, 2)}",
            "restart XPU Manager's Pod, so that it counts the GPUs anew",
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


def degraded(visit: Visit) -> Finding:
    """Check the links: lanes, directions, links that others of the node have, states of ports."""
    topology, source = _topology(visit)
    if topology is None:
        return skip("no lanes are known", "xpum", "consistent")
    # A scrape is judged by rules that hold nothing back.
    node = replace(Node.of(topology), every_link=visit.published is None)
    faulty = [f"{link} {_lanes(marks)}" for link, marks in node.marks.items()]
    thin, lost = (
        [f"GPU{one} to GPU{other}" for one, other in pairs] for pairs in (node.thin, node.lost)
    )
    ports = [
        f"GPU{gpu.id} {gpu.card or gpu.bdf} {gpu.ports.value}"
        for gpu in topology.gpus
        if gpu.ports in _BAD_PORTS
    ]
    told = [
        f"{what} {some(names)}"
        for what, names in (
            ("links", faulty),
            ("fewer links than usual:", thin),
            (f"{node.no_link} where others have some{_aside(node.or_else)}:", lost),
            ("ports", ports),
        )
        if names
    ]
    if told:
        return warn(
            f"{source} tells of {'; '.join(told)}",
            "look at all with xelink show, then at bridges and cables",
        )
    return ok(f"{source} tells of {len(topology.links)} links, none degraded")


def _aside(text: str) -> str:
    return f" ({text})" if text else ""


def _lanes(marks: tuple[Mark, ...]) -> str:
    return " and ".join(mark.value for mark in marks)


def _topology(visit: Visit) -> tuple[Topology | None, str]:
    """Give what the sidecar believes; where nothing is published now, what one scrape said.

    One scrape may miss rows, which the sidecar waits out.
    """
    if visit.published is not None:
        return visit.published, "the feature file"
    if isinstance(visit.answer.outcome, ObservedLinks):
        return visit.answer.outcome.topology, "XPU Manager's answer"
    return None, ""
