"""What is confirmed: a gain at once, a loss only when scrapes in a row agree on it. Pure.

A scrape that overlaps another one, or comes just after a start, can miss a GPU's rows. So whatever
is confirmed stays so until it was missing from `confirmations` good scrapes in a row. Everything
that can be lost is a level: presence of a link, tile or GPU (0 or 1), lanes of a direction, health
of a GPU's ports. A level may rise at once; it falls to the best that was observed while it was
missing.

A row that could not be understood is not a row that was missing: in a scrape with such rows, what
was not reported is neither lost nor there.
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
    """How often in a row a level was lower than confirmed, and the best that was observed."""

    scrapes: int
    best: int


@dataclass(frozen=True)
class Confirmed:
    """The topology that is confirmed, and the losses that wait for it."""

    topology: Topology
    missing: Mapping[Key, Missing] = field(default_factory=dict)
    moved: tuple[str, ...] = ()
    """PCI addresses whose device id changed with the last scrape: older labels named other GPUs."""

    def pending(self, kind: LossKind) -> int:
        """Return how many losses of a kind wait to be confirmed."""
        return sum(key.kind is kind for key in self.missing)


def debounce(before: Confirmed | None, observed: ObservedLinks, confirmations: int) -> Confirmed:
    """Return what is confirmed after a good scrape, given what was before."""
    topology = observed.topology
    if before is None:
        return Confirmed(topology)
    if topology == before.topology:
        return Confirmed(before.topology)
    if moved := _moved(before.topology, topology):
        return Confirmed(topology, moved=moved)
    levels, now = _levels(before.topology), _levels(topology)
    evidence = _Evidence(observed, now)
    missing: dict[Key, Missing] = {}
    lost: dict[Key, Missing] = {}
    settled = dict(now)
    for key, level in levels.items():
        current = now.get(key, 0)
        if current >= level or (key.kind is LossKind.GPU and key.of in observed.ambiguous):
            continue
        so_far = before.missing.get(key, Missing(0, 0))
        if not evidence.of_loss(key):
            settled[key] = level
            if so_far.scrapes:
                missing[key] = so_far
            continue
        loss = Missing(min(so_far.scrapes + 1, confirmations), max(so_far.best, current))
        if loss.scrapes >= confirmations:
            settled[key] = loss.best
            lost[key] = loss
        else:
            settled[key] = level
            missing[key] = loss
    merged = _topology(settled, before.topology, topology)
    if excess(merged.tiles, merged.by_id):
        # What replaces the confirmed GPUs is no gain beside them: no node has so many.
        return Confirmed(before.topology, {**missing, **lost})
    return Confirmed(merged, missing)


class _Evidence:
    """What a scrape can prove to be lost."""

    def __init__(self, observed: ObservedLinks, levels: Mapping[Key, int]) -> None:
        self._all_understood = not observed.unread
        self._reported = observed.reported
        self._tiles = frozenset(observed.topology.tiles)
        self._devices = {tile.device for tile in observed.topology.tiles}
        self._levels = levels

    def of_loss(self, key: Key) -> bool:
        """Return whether the scrape proves the loss of what it does not show."""
        match key.of:
            case (Tile() as one, Tile() as other) if key.kind is LossKind.LINK:
                return self._reports(one, other) or self._reports(other, one)
            case (Tile() as one, Tile() as other) if key.kind is LossKind.LANES:
                return self._reports(one, other)
        if key.kind is LossKind.GPU:
            return key.of not in self._devices  # else only its own rows are late
        if key.kind is LossKind.PORTS:
            return key in self._levels  # not reported is not worse
        return True

    def _reports(self, one: Tile, other: Tile) -> bool:
        return (
            self._all_understood
            or (one, other) in self._reported
            or not self._tiles >= {one, other}
        )


def _moved(before: Topology, observed: Topology) -> tuple[str, ...]:
    ids = {gpu.bdf: gpu.id for gpu in before.gpus}
    return tuple(
        gpu.bdf
        for gpu in observed.gpus
        if ids.get(gpu.bdf, gpu.id) != gpu.id
        or (gpu.id in before.by_id and before.by_id[gpu.id].bdf != gpu.bdf)
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


def _topology(levels: Mapping[Key, int], before: Topology, observed: Topology) -> Topology:
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
            for a, b in {*before.by_ends, *observed.by_ends}
            if (a, b) in ends
        ),
        gpus=tuple(
            _merge(before.by_id.get(device), observed.by_id.get(device), levels)
            for device in {*before.by_id, *observed.by_id}
            if device in devices
        ),
        tiles=tuple(tile for tile in {*before.tiles, *observed.tiles} if tile in tiles),
    )


def _merge(before: Gpu | None, observed: Gpu | None, levels: Mapping[Key, int]) -> Gpu:
    """Return a GPU as the scrape reports it, and as it was where the scrape reports nothing."""
    newest, oldest = observed or before, before or observed
    if newest is None or oldest is None:
        raise AssertionError("a GPU that is neither observed nor confirmed")
    return replace(
        newest,
        card=newest.card or oldest.card,
        uuid=newest.uuid or oldest.uuid,
        numa=oldest.numa if newest.numa is None else newest.numa,
        ports=_STATE.get(levels.get(Key(LossKind.PORTS, newest.id), 0), oldest.ports),
    )
