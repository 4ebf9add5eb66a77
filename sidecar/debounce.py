"""What is believed: a gain at once, a loss only when scrapes in a row agree on it. Pure.

A scrape that overlaps another one, or comes just after a start, can miss a GPU's rows. So whatever
is believed and not seen stays believed until it was missing from `confirmations` good scrapes in a
row. Everything that can be lost is a level: presence of a link, tile or GPU (0 or 1), lanes of a
direction, health of a GPU's ports. A level may rise at once; it falls to the best that was seen
while it was missing.

And a row that could not be understood is no row that was missing: what nobody told of in a scrape
with such rows is neither lost nor there.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from xelink.topology.model import Gpu, Link, PortState, Tile, Topology, excess
from xelink.topology.observation import ObservedLinks


class LossKind(Enum):
    """What can be lost."""

    LINK = "link"
    TILE = "tile"
    GPU = "gpu"
    LANES = "lanes"
    PORTS = "ports"


@dataclass(frozen=True, slots=True)
class Key:
    """Names one thing that can be lost, as `LossKind` and what it belongs to."""

    kind: LossKind
    of: Hashable


@dataclass(frozen=True, slots=True)
class Missing:
    """How often in a row a level was seen lower than believed, and the best that was seen."""

    scrapes: int
    best: int


@dataclass(frozen=True)
class Confirmed:
    """The topology that is believed, and the losses that wait to be confirmed."""

    topology: Topology
    missing: Mapping[Key, Missing] = field(default_factory=dict)
    moved: tuple[str, ...] = ()
    """PCI addresses whose device id changed with the last scrape: older labels named others."""

    def pending(self, kind: LossKind) -> int:
        """Count the losses of a kind that wait to be confirmed."""
        return sum(key.kind is kind for key in self.missing)


def debounce(standing: Confirmed | None, seen: ObservedLinks, confirmations: int) -> Confirmed:
    """Judge what a good scrape has seen in the light of what stands."""
    topology = seen.topology
    if standing is None:
        return Confirmed(topology)
    if topology == standing.topology:
        return Confirmed(standing.topology)
    if moved := _moved(standing.topology, topology):
        return Confirmed(topology, moved=moved)
    believed, now = _levels(standing.topology), _levels(topology)
    evidence = _Evidence(seen, now)
    missing: dict[Key, Missing] = {}
    confirmed: dict[Key, Missing] = {}
    settled = dict(now)
    for key, level in believed.items():
        current = now.get(key, 0)
        if current >= level or (key.kind is LossKind.GPU and key.of in seen.ambiguous):
            continue
        before = standing.missing.get(key, Missing(0, 0))
        if not evidence.of_loss(key):
            settled[key] = level
            if before.scrapes:
                missing[key] = before
            continue
        loss = Missing(min(before.scrapes + 1, confirmations), max(before.best, current))
        if loss.scrapes >= confirmations:
            settled[key] = loss.best
            confirmed[key] = loss
        else:
            settled[key] = level
            missing[key] = loss
    believed_now = _topology(settled, standing.topology, topology)
    if excess(believed_now.tiles, believed_now.by_id):
        # What comes in the place of what stands is no gain beside it: no node has so many GPUs.
        return Confirmed(standing.topology, {**missing, **confirmed})
    return Confirmed(believed_now, missing)


class _Evidence:
    """What a scrape can prove to be lost."""

    def __init__(self, seen: ObservedLinks, levels: Mapping[Key, int]) -> None:
        self._all_understood = not seen.unread
        self._reported = seen.reported
        self._tiles = frozenset(seen.topology.tiles)
        self._devices = {tile.device for tile in seen.topology.tiles}
        self._levels = levels

    def of_loss(self, key: Key) -> bool:
        """Tell whether the scrape speaks against what it does not show."""
        match key.of:
            case (Tile() as one, Tile() as other) if key.kind is LossKind.LINK:
                return self._speaks_of(one, other) or self._speaks_of(other, one)
            case (Tile() as one, Tile() as other) if key.kind is LossKind.LANES:
                return self._speaks_of(one, other)
        if key.kind is LossKind.GPU:
            return key.of not in self._devices  # else only its own rows are late
        if key.kind is LossKind.PORTS:
            return key in self._levels  # not told is not worse
        return True

    def _speaks_of(self, one: Tile, other: Tile) -> bool:
        return (
            self._all_understood
            or (one, other) in self._reported
            or not self._tiles >= {one, other}
        )


def _moved(standing: Topology, seen: Topology) -> tuple[str, ...]:
    before = {gpu.bdf: gpu.id for gpu in standing.gpus}
    return tuple(
        gpu.bdf
        for gpu in seen.gpus
        if before.get(gpu.bdf, gpu.id) != gpu.id
        or (gpu.id in standing.by_id and standing.by_id[gpu.id].bdf != gpu.bdf)
    )


def _levels(topology: Topology) -> dict[Key, int]:
    levels = {Key(LossKind.TILE, tile): 1 for tile in topology.tiles}
    for link in topology.links:
        levels[Key(LossKind.LINK, link.ends)] = 1
        levels[Key(LossKind.LANES, (link.a, link.b))] = link.lanes
        levels[Key(LossKind.LANES, (link.b, link.a))] = link.lanes_back
    for gpu in topology.gpus:
        levels[Key(LossKind.GPU, gpu.id)] = 1
        if gpu.ports:
            levels[Key(LossKind.PORTS, gpu.id)] = _HEALTH[gpu.ports]
    return levels


# From 1 upwards: a state, however bad, is more than none
_HEALTH = {state: level for level, state in enumerate(reversed(PortState), start=1)}
_STATE = {level: state for state, level in _HEALTH.items()}


def _topology(levels: Mapping[Key, int], standing: Topology, seen: Topology) -> Topology:
    def of(kind: LossKind) -> set[Hashable]:
        return {key.of for key, level in levels.items() if key.kind is kind and level}

    ends = of(LossKind.LINK)
    tiles, devices = of(LossKind.TILE), of(LossKind.GPU)
    return Topology(
        links=tuple(
            Link(
                a,
                b,
                levels.get(Key(LossKind.LANES, (a, b)), 0),
                levels.get(Key(LossKind.LANES, (b, a)), 0),
            )
            for a, b in {*standing.by_ends, *seen.by_ends}
            if (a, b) in ends
        ),
        gpus=tuple(
            _merge(standing.by_id.get(device), seen.by_id.get(device), levels)
            for device in {*standing.by_id, *seen.by_id}
            if device in devices
        ),
        tiles=tuple(tile for tile in {*standing.tiles, *seen.tiles} if tile in tiles),
    )


def _merge(standing: Gpu | None, seen: Gpu | None, levels: Mapping[Key, int]) -> Gpu:
    """Take what the scrape tells of a GPU, and what stands where it tells nothing."""
    newest, oldest = seen or standing, standing or seen
    if newest is None or oldest is None:
        raise AssertionError("a GPU that is neither seen nor believed")
    return replace(
        newest,
        card=newest.card or oldest.card,
        uuid=newest.uuid or oldest.uuid,
        numa=oldest.numa if newest.numa is None else newest.numa,
        ports=_STATE.get(levels.get(Key(LossKind.PORTS, newest.id), 0), oldest.ports),
    )
