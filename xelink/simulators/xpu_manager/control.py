"""The control: `POST /control/NAME` with a JSON object of arguments changes what is simulated."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType, UnionType
from typing import Any, Protocol, get_origin

from xelink.simulators.xpu_manager import faults
from xelink.simulators.xpu_manager.blueprint import Blueprint
from xelink.simulators.xpu_manager.gpu import GpuPod
from xelink.simulators.xpu_manager.node import SimulatedNode
from xelink.topology.model import Link, PortState


class ControlError(Exception):
    """The call changed nothing; its message is the reason, with status 400."""


class Controlled(Protocol):
    """What the control turns: a running simulator."""

    node: SimulatedNode

    @property
    def first_node(self) -> SimulatedNode:
        """The node as it was at the start."""
        ...

    def misbehave(
        self,
        what: str,
        *,
        times: int | None = None,
        seconds: float | None = None,
        **options: faults.Option,
    ) -> None:
        """Misbehave until recovered, or so many times or seconds long."""
        ...

    def recover(self) -> None:
        """Behave again."""
        ...


def _cut(node: SimulatedNode, *links: str) -> SimulatedNode:
    """Cut these links ("0.0-1.0"), or all: no lanes, failed ports."""
    return node.cut(*links)


def _restore(node: SimulatedNode, *links: str) -> SimulatedNode:
    """Restore these links, or all, to the lanes they were wired with."""
    return node.restore(*links)


def _degrade(
    node: SimulatedNode, *links: str, lanes: int = 1, lanes_back: int | None = None
) -> SimulatedNode:
    """Leave these links, or all, so many lanes; `lanes_back` where the ways differ."""
    return node.degrade(lanes, lanes if lanes_back is None else lanes_back, *links)


def _one_direction(node: SimulatedNode, *links: str) -> SimulatedNode:
    """Report these links, or all, from their lower end only; `restore` undoes it."""
    return node.one_direction(*links)


def _ports(node: SimulatedNode, *, gpu: int, state: str | None = None) -> SimulatedNode:
    """Set a GPU's ports healthy, degraded, failed or disabled; null derives it from links."""
    return node.with_ports(gpu, None if state is None else PortState(state))


def _remove(node: SimulatedNode, *, gpu: int) -> SimulatedNode:
    """Lose a GPU; no row knows it any more."""
    return node.remove(gpu)


def _add(node: SimulatedNode, *, gpu: int) -> SimulatedNode:
    """Bring a lost GPU back, or add a new one."""
    return node.add(gpu)


def _hide(node: SimulatedNode, *, gpu: int | None = None) -> SimulatedNode:
    """Drop one GPU's own topology rows while others mention it; null shows all again."""
    return node.hide() if gpu is None else node.hide(gpu)


def _renumber(node: SimulatedNode, *, ids: dict[str, int]) -> SimulatedNode:
    """Move GPUs to other ids: {"ids": {"0": 1, "1": 0}}."""
    return node.renumber({int(old): new for old, new in ids.items()})


def _spelling(node: SimulatedNode, *, label: str = "lan_count") -> SimulatedNode:
    """Spell the label of the lanes so: lan_count as one old release, or lane_count."""
    return replace(node, spelling=label)


def _stale(node: SimulatedNode, *, on: bool = True) -> SimulatedNode:
    """Let the topology rows of this moment stay beside all later ones, or forget them."""
    return node.lingering(on=on)


def _pod(
    node: SimulatedNode,
    *,
    gpu: int,
    name: str | None = "train-0",
    namespace: str = "default",
    container: str = "main",
) -> SimulatedNode:
    """Let a Pod use a GPU, so that its rows carry kube_* labels; a null name frees it."""
    return node.with_pod(gpu, None if name is None else GpuPod(name, namespace, container))


def _host_network(node: SimulatedNode, *, on: bool = False) -> SimulatedNode:
    """Take the host's network away, and with it every Xe Link, or give it back."""
    return replace(node, host_network=on)


def _topology_fails(node: SimulatedNode, *, on: bool = True) -> SimulatedNode:
    """Answer 200 with every family but the topology, or with it again."""
    return replace(node, topology_fails=on)


def _generation(node: SimulatedNode, *, number: int = 2) -> SimulatedNode:
    """Answer as XPU Manager 1.x or 2.x, which knows no topology."""
    return replace(node, generation=number)


def _cold(node: SimulatedNode, *, on: bool = True) -> SimulatedNode:
    """Answer as at the first scrape after a start, without duplicates."""
    return replace(node, cold=on)


def _node(_node: SimulatedNode, **blueprint: Any) -> SimulatedNode:  # noqa: ANN401 - JSON
    """Build another node: gpus, tiles, wiring, lanes, igpu, id_gaps, cards, model, ..."""
    known = {item.name for item in fields(Blueprint)}
    unknown = sorted(set(blueprint) - known)
    if unknown:
        raise ValueError(f"no such part of a node: {', '.join(unknown)}")
    if "id_gaps" in blueprint:
        blueprint["id_gaps"] = tuple(blueprint["id_gaps"])
    return Blueprint(**blueprint).build()


def _misbehave(
    simulator: Controlled,
    *,
    name: str,
    times: int | None = None,
    seconds: float | None = None,
    **options: Any,  # noqa: ANN401 - JSON; checked by the misbehaviour's own table
) -> None:
    """Misbehave until recovered, or so many answers or seconds long; `refuse` needs the seconds."""
    if name == faults.REFUSE and seconds is None:
        raise ValueError("refuse needs seconds: no call could end it")
    simulator.misbehave(name, times=times, seconds=seconds, **options)


def _recover(simulator: Controlled) -> None:
    """Behave again; the node stays as it is."""
    simulator.recover()


def _reset(simulator: Controlled) -> None:
    """Behave again, with the node as it was at the start."""
    simulator.recover()
    simulator.node = simulator.first_node


NodeCall = Callable[..., SimulatedNode]

# Calls that give another node. Positional arguments come as the list "links".
CALLS: Mapping[str, NodeCall] = MappingProxyType(
    {
        "add": _add,
        "cold": _cold,
        "cut": _cut,
        "degrade": _degrade,
        "generation": _generation,
        "hide": _hide,
        "host-network": _host_network,
        "node": _node,
        "one-direction": _one_direction,
        "pod": _pod,
        "ports": _ports,
        "remove": _remove,
        "renumber": _renumber,
        "restore": _restore,
        "spelling": _spelling,
        "stale": _stale,
        "topology-fails": _topology_fails,
    }
)


_SERVER_CALLS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"recover": _recover, "misbehave": _misbehave, "reset": _reset}
)


def call(simulator: Controlled, name: str, body: bytes) -> None:
    """Do what a call asks; raises `ControlError`, and then nothing has changed."""
    try:
        arguments = _arguments(body)
        if name in _SERVER_CALLS:
            _SERVER_CALLS[name](simulator, **arguments)
        else:
            simulator.node = _changed(simulator.node, name, arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ControlError(str(error)) from error


def describe() -> dict[str, dict[str, str]]:
    """Return every call and misbehaviour with its arguments and what it does."""
    calls = {**CALLS, **_SERVER_CALLS}
    return {
        "calls": {
            name: f"{_told(calls[name])}{(calls[name].__doc__ or '').strip()}"
            for name in sorted(calls)
        },
        "misbehaviours": faults.describe()
        | {faults.REFUSE: "Stop listening and drop all connections."},
    }


def node_state(node: SimulatedNode) -> dict[str, Any]:
    """Return a node as `GET /control` shows it: links with their lanes forth and back."""

    def lanes(links: Iterable[Link]) -> dict[str, str]:
        return {str(link): f"{link.lanes}/{link.lanes_back}" for link in links}

    return {
        "gpus": {
            gpu.id: {
                "pci": gpu.bdf,
                "card": gpu.card,
                "numa": gpu.numa,
                "tiles": gpu.tiles,
                "ports": state.value if (state := node.port_state(gpu)) else None,
                "pod": gpu.pod.name if gpu.pod else None,
            }
            for gpu in node.present
        },
        "links": lanes(node.topology.links),
        "altered": lanes(node.altered),
        "silent": [f"{here}-{there}" for here, there in sorted(node.silent)],
        "lost": sorted(node.lost),
        "hidden": sorted(node.hidden),
        "stale": node.before is not None,
        "spelling": node.spelling,
        "host-network": node.host_network,
        "topology-fails": node.topology_fails,
        "generation": node.generation,
        "cold": node.cold,
    }


def _changed(node: SimulatedNode, name: str, arguments: dict[str, Any]) -> SimulatedNode:
    if name not in CALLS:
        raise ValueError(f"no call {name!r}; there are: {', '.join(describe()['calls'])}")
    links = arguments.pop("links", [])
    if not isinstance(links, list):
        raise TypeError('"links" is a list, as in ["0.0-1.0"]')
    for parameter in inspect.signature(CALLS[name]).parameters.values():
        value, kind = arguments.get(parameter.name), parameter.annotation
        if parameter.name in arguments and not isinstance(value, _class(kind)):
            raise TypeError(f"{name}: {parameter.name} cannot be {value!r}")
    return CALLS[name](node, *links, **arguments)


def _arguments(body: bytes) -> dict[str, Any]:
    arguments = json.loads(body or b"{}")
    if not isinstance(arguments, dict):
        raise TypeError("arguments are a JSON object")
    return arguments


def _class(kind: type | UnionType) -> type | UnionType:
    """Return what `isinstance` takes for an annotation: `dict` for `dict[str, int]`."""
    return kind if isinstance(kind, UnionType) else get_origin(kind) or kind


def _told(act: Callable[..., object]) -> str:
    names = [
        parameter.name
        if parameter.default is parameter.empty
        else f"{parameter.name}={parameter.default!r}"
        for parameter in list(inspect.signature(act).parameters.values())[1:]
    ]
    return f"({', '.join(names)}) " if names else ""
