"""A node with GPUs as a value: what is in it, how it is wired, and how its exporter reports it.

Nothing here changes: every method that changes a node returns another one. Overlays (`altered`,
`lost`, `hidden`, ...) lie over what was built, so that whatever was done can be undone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice

from xelink.simulators.xpu_manager.gpu import GpuPod, SimulatedGpu, address, same_plane
from xelink.topology.model import Link, PortState, Tile, Topology

# XPU Manager answers without any topology row beyond this many tiles.
MOST_TILES = 32

FIRST_CARD = 1  # card0 is the board's own display, or the integrated GPU

_LANES_PER_PORT = 4
_WORST_FIRST = (PortState.FAILED, PortState.DEGRADED, PortState.DISABLED)

# link = tile "-" tile ; tile = device "." subdevice
_LINK = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})-([0-9]{1,6})\.([0-9]{1,6})", re.ASCII)

Ends = tuple[Tile, Tile]


@dataclass(frozen=True)
class SimulatedNode:
    """GPUs, their wiring, and what the exporter makes of them. `Blueprint(...).build()` makes one.

    `links` is how the node was wired; `altered` holds the links that are now otherwise, with 0
    lanes in a direction that carries nothing. `lost` are ids of GPUs that are gone; `hidden` are
    ids whose own topology rows are missing while others still mention them, as overlapping GETs
    cause; `silent` are directions of links that work but are not reported, as before 1.2.34.
    `before` is a state whose topology rows linger beside the new ones, as in 1.2.1 to 1.2.15.
    """

    gpus: tuple[SimulatedGpu, ...]
    links: tuple[Link, ...] = ()
    name: str = "node-gpu-01"
    altered: tuple[Link, ...] = ()
    lost: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    silent: frozenset[Ends] = frozenset()
    before: "SimulatedNode | None" = field(default=None, repr=False)
    spelling: str = "lane_count"
    host_network: bool = True
    topology_fails: bool = False
    generation: int = 1
    cold: bool = False

    def __post_init__(self) -> None:
        known = {end for gpu in self.gpus for end in gpu.ends}
        for link in (*self.links, *self.altered):
            for end in link.ends:
                if end not in known:
                    raise ValueError(f"link {link}: no tile {end} on this node")
        Topology(gpus=tuple(gpu.entry() for gpu in self.gpus))  # refuses ids given twice
        Topology(links=self.links)  # and links given twice
        Topology(links=self.altered)

    @cached_property
    def present(self) -> tuple[SimulatedGpu, ...]:
        """GPUs that are there, by id."""
        return tuple(
            gpu for gpu in sorted(self.gpus, key=lambda gpu: gpu.id) if gpu.id not in self.lost
        )

    @cached_property
    def current(self) -> tuple[Link, ...]:
        """Links in force between GPUs that are there; a cut link has no lanes either way."""
        links = {link.ends: link for link in (*self.links, *self.altered)}
        return tuple(
            link
            for _, link in sorted(links.items())
            if not {link.a.device, link.b.device} & self.lost
        )

    @cached_property
    def reported_lanes(self) -> Mapping[Ends, int]:
        """Lanes from one tile to another where the exporter reports an Xe Link, lost rows aside."""
        if not self.host_network:
            return {}
        directed = [((link.a, link.b), link.lanes) for link in self.current]
        directed += [((link.b, link.a), link.lanes_back) for link in self.current]
        return {ends: lanes for ends, lanes in directed if lanes and ends not in self.silent}

    @cached_property
    def tells_topology(self) -> bool:
        """Return whether there are topology rows at all."""
        tiles = sum(gpu.tiles for gpu in self.present)
        return not self.topology_fails and self.generation == 1 and tiles <= MOST_TILES

    @cached_property
    def topology(self) -> Topology:
        """The truth about the node, however its exporter reports it."""
        return Topology(
            links=tuple(link for link in self.current if link.lanes or link.lanes_back),
            gpus=tuple(gpu.entry(self.port_state(gpu)) for gpu in self.present),
            tiles=tuple(end for gpu in self.present for end in gpu.ends),
        )

    @cached_property
    def reported(self) -> Topology:
        """What a perfect reader finds in the exposition, lingering rows aside."""
        if not self.tells_topology:
            return Topology()
        shown = [gpu for gpu in self.present if gpu.id not in self.hidden]
        lanes = {
            ends: n for ends, n in self.reported_lanes.items() if ends[0].device not in self.hidden
        }
        links = {Link.between(*ends).ends for ends in lanes}
        return Topology(
            links=tuple(Link(a, b, lanes.get((a, b), 0), lanes.get((b, a), 0)) for a, b in links),
            gpus=tuple(gpu.entry(self.port_state(gpu)) for gpu in shown),
            tiles=tuple(end for gpu in shown for end in gpu.ends),
        )

    def gpu(self, device: int) -> SimulatedGpu:
        """Find a GPU by id; raises `ValueError`."""
        for gpu in self.gpus:
            if gpu.id == device:
                return gpu
        raise ValueError(f"no GPU {device} on this node")

    def port_state(self, gpu: SimulatedGpu) -> PortState | None:
        """Return the worst state of its ports; None where there is no Xe Link."""
        if not self.reports_fabric(gpu):
            return None
        ports = self.ports(gpu)
        return next((state for state in _WORST_FIRST if ports.get(state)), PortState.HEALTHY)

    def reports_fabric(self, gpu: SimulatedGpu) -> bool:
        """Return whether XPU Manager reports Xe Link ports on it; it needs the host's network."""
        return gpu.model.fabric and self.host_network

    def ports(self, gpu: SimulatedGpu) -> Mapping[PortState, list[str]]:
        """Names of a GPU's ports (`Tile0-7`) by state: a port whose lanes are gone has failed."""
        now = {link.ends: link for link in self.current}
        found: dict[PortState, list[str]] = {}
        for tile in gpu.ends:
            numbers = count(1)
            for link in (link for link in self.links if tile in link.ends):
                there = now.get(link.ends, Link(link.a, link.b))
                built, left = (
                    (link.lanes, there.lanes)
                    if tile == link.a
                    else (link.lanes_back, there.lanes_back)
                )
                names = [
                    f"Tile{tile.subdevice}-{number}"
                    for number in islice(numbers, max(1, -(-built // _LANES_PER_PORT)))
                ]
                failed = len(names) - -(-min(built, left) // _LANES_PER_PORT)
                for at, name in enumerate(names):
                    state = PortState.FAILED if at < failed else PortState.HEALTHY
                    found.setdefault(gpu.ports or state, []).append(name)
        if gpu.ports and not found:
            return {gpu.ports: ["Tile0-1"]}  # a GPU without links still has ports
        return found

    # --- Changes: each returns another node ---

    def alter(self, *links: Link) -> "SimulatedNode":
        """Set the lanes of links; a direction with 0 lanes has failed ports and no Xe Link."""
        kept = {link.ends: link for link in (*self.altered, *links)}
        return replace(self, altered=tuple(kept.values()))

    def cut(self, *links: Link | str) -> "SimulatedNode":
        """Take all lanes from these links (`0.0-1.0`); without any, from every link."""
        return self.degrade(0, 0, *links)

    def degrade(self, lanes: int, lanes_back: int, *links: Link | str) -> "SimulatedNode":
        """Leave these lanes, forth and back as the link is spelt; without links, on every one."""
        if lanes < 0 or lanes_back < 0:
            raise ValueError("lanes cannot be negative")
        pairs = [_ends(link) for link in links] or [link.ends for link in self.links]
        return self.alter(*(Link.between(a, b, lanes, lanes_back) for a, b in pairs))

    def restore(self, *links: Link | str) -> "SimulatedNode":
        """Restore these links to what they were wired with; without any, every link."""
        restored = {Link.between(*_ends(link)).ends for link in links}
        return replace(
            self,
            altered=tuple(link for link in self.altered if restored and link.ends not in restored),
            silent=frozenset(
                (a, b)
                for a, b in self.silent
                if restored and Link.between(a, b).ends not in restored
            ),
        )

    def one_direction(self, *links: Link | str) -> "SimulatedNode":
        """Report these links from their lower end only; without any, every link."""
        pairs = [Link.between(*_ends(link)).ends for link in links]
        chosen = pairs or [link.ends for link in self.current]
        return replace(self, silent=self.silent | {(b, a) for a, b in chosen})

    def with_gpu(self, gpu: SimulatedGpu, *links: Link) -> "SimulatedNode":
        """Replace the GPU with this id, or add one with its links."""
        others = tuple(other for other in self.gpus if other.id != gpu.id)
        return replace(
            self, gpus=(*others, gpu), links=(*self.links, *links), lost=self.lost - {gpu.id}
        )

    def with_ports(self, device: int, state: PortState | None) -> "SimulatedNode":
        """Set the state of all ports of a GPU; None derives it from the links again."""
        return self.with_gpu(replace(self.gpu(device), ports=state))

    def with_pod(self, device: int, pod: GpuPod | None) -> "SimulatedNode":
        """Let a Pod use a GPU, or free it."""
        return self.with_gpu(replace(self.gpu(device), pod=pod))

    def remove(self, device: int) -> "SimulatedNode":
        """Lose a GPU: no row knows it any more; its neighbors' ports have failed."""
        return replace(self, lost=self.lost | {self.gpu(device).id})

    def add(self, device: int) -> "SimulatedNode":
        """Bring a lost GPU back, or add a new one, meshed with all by the first link's lanes."""
        if device in self.lost:
            return replace(self, lost=self.lost - {device})
        if any(gpu.id == device for gpu in self.gpus):
            raise ValueError(f"GPU {device} is there already")
        like = self.gpus[-1] if self.gpus else SimulatedGpu(device, address(0), "card0")
        bdfs = {gpu.bdf for gpu in self.gpus}
        cards = {gpu.card for gpu in self.gpus}
        new = replace(
            like,
            id=device,
            bdf=next(bdf for bdf in map(address, count()) if bdf not in bdfs),
            card=next(c for c in (f"card{n}" for n in count(FIRST_CARD)) if c not in cards),
            ports=None,
            pod=None,
        )
        lanes = self.links[0].lanes if self.links else 0
        peers = [gpu for gpu in self.gpus if gpu.model.fabric and lanes]
        return self.with_gpu(
            new, *(link for peer in peers for link in same_plane(peer, new, lanes))
        )

    def hide(self, *devices: int) -> "SimulatedNode":
        """Drop these GPUs' own topology rows; without any, show all again."""
        return replace(self, hidden=frozenset(self.gpu(device).id for device in devices))

    def renumber(self, ids: Mapping[int, int]) -> "SimulatedNode":
        """Move GPUs to other ids, wires and all, as a restart of XPU Manager can."""
        for device in ids:
            self.gpu(device)

        def moved(tile: Tile) -> Tile:
            return Tile(ids.get(tile.device, tile.device), tile.subdevice)

        def rewired(links: Iterable[Link]) -> tuple[Link, ...]:
            return tuple(
                Link.between(moved(link.a), moved(link.b), link.lanes, link.lanes_back)
                for link in links
            )

        return replace(
            self,
            gpus=tuple(replace(gpu, id=ids.get(gpu.id, gpu.id)) for gpu in self.gpus),
            links=rewired(self.links),
            altered=rewired(self.altered),
            lost=frozenset(ids.get(device, device) for device in self.lost),
            hidden=frozenset(ids.get(device, device) for device in self.hidden),
            silent=frozenset((moved(a), moved(b)) for a, b in self.silent),
        )

    def lingering(self, *, on: bool = True) -> "SimulatedNode":
        """Let the rows of this moment stay beside those of any later state, or forget them."""
        return replace(self, before=self if on else None)


def parse_link(text: str) -> Link:
    """Read `0.0-1.0`; raises `ValueError`."""
    return Link.between(*_ends(text))


def _ends(link: Link | str) -> tuple[Tile, Tile]:
    """Return the two tiles as written, because lanes forth and back depend on it."""
    if isinstance(link, Link):
        return link.ends
    match = _LINK.fullmatch(link)
    if match is None:
        raise ValueError(f"not a link: {link!r}; write it as 0.0-1.0")
    a, b, c, d = map(int, match.groups())
    return Tile(a, b), Tile(c, d)
