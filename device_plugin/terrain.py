"""What a search looks up and what it is asked: a prepared node, one request, and its time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from device_plugin.masks import members, union
from device_plugin.wishes import Fabric, Free, linked_groups

PER_LANE = 1 << 16
"""Worth of one lane. A GPU's ports are worth at most 2: lanes come before."""

PORTS_BEST = 2

# Work between two looks at the clock; a unit takes about a microsecond.
_PATIENCE = 256


class ExpiredError(Exception):
    """The time is up: what was found so far is the answer."""


@dataclass(frozen=True, slots=True)
class Terrain:
    """What a search looks up, made once per snapshot.

    `alike` are sets of GPUs that can be exchanged, `rows` the worth of each pair, `widest` for each
    GPU (worth, bit) of its links from the widest down, `wide` for each GPU (worth, its links that
    are worth as much) up to the widest, `widths` the lanes that pairs have, at least 0, `homes` the
    GPUs of each NUMA node's bit.
    """

    fabric: Fabric
    alike: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    widest: tuple[tuple[tuple[int, int], ...], ...]
    wide: tuple[tuple[tuple[int, int], ...], ...]
    widths: tuple[int, ...]
    own: tuple[int, ...]
    homes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, fabric: Fabric) -> "Terrain":
        """Prepare a search on this node."""
        none = (0,) * len(fabric)
        rows = tuple(
            tuple([width * PER_LANE if width > 0 else 0 for width in row]) if links else none
            for row, links in zip(fabric.lanes, fabric.links, strict=True)
        )
        homes: dict[int, int] = {}
        for i, node in enumerate(fabric.numa):
            homes[node] = homes.get(node, 0) | 1 << i
        widest = tuple(
            tuple(sorted(((row[j], 1 << j) for j in members(links)), reverse=True))
            for row, links in zip(rows, fabric.links, strict=True)
        )
        return cls(
            fabric=fabric,
            alike=fabric.alike(),
            rows=rows,
            widest=widest,
            wide=tuple(map(_wide, widest)),
            widths=tuple(sorted({0, *(width for row in fabric.lanes for width in row)} - {-1})),
            own=tuple(PORTS_BEST - cost for cost in fabric.ports_cost),
            homes=tuple(homes.items()),
        )


@dataclass(slots=True)
class Task:
    """One request: `size` GPUs of `available`, with all of `must`, and what of them is free."""

    terrain: Terrain
    available: int
    must: int
    free: Free
    size: int
    clock: Callable[[], float]
    end: float = 0.0
    known: dict[int, int] = field(default_factory=dict)
    full: dict[int, int] = field(default_factory=dict)
    done: int = 0

    def tick(self, work: int = _PATIENCE) -> None:
        """Look at the clock, once enough work is done; raise when the time is up."""
        self.done += work
        if self.done >= _PATIENCE:
            self.done = 0
            if self.clock() >= self.end:
                raise ExpiredError

    def kinds(self, within: int) -> list[int]:
        """Split the free GPUs of `within` into sets whose members are alike for this request."""
        others = within & ~self.must
        parts = [part for alike in self.terrain.alike for part in self.free.kinds(alike & others)]
        return parts + [1 << i for i in members(others & ~union(parts))]

    def most_left(self, chosen: int, candidates: int, open_: int) -> tuple[int, int, int]:
        """Bound what `open_` more of the candidates can leave: as many as can be, all linked."""
        spare = candidates & ~self.free.last
        closing = max(0, open_ - spare.bit_count())
        begun = (spare & ~self.free.whole).bit_count()
        opened = self.free.open_after(chosen).bit_count() - closing
        whole = self.free.whole_after(chosen).bit_count() - max(0, open_ - closing - begun)
        widest = self.terrain.widths[-1] * whole * (whole - 1) // 2
        return self._all_linked(opened), self._all_linked(whole), widest

    def _all_linked(self, count: int) -> int:
        """Count the linked groups of so many GPUs at most."""
        if count not in self.full:
            self.full[count] = (1 + (1 << len(self.terrain.fabric))) ** count
        return self.full[count]

    def left(self, chosen: int, within: int) -> tuple[int, int, int]:
        """Measure what is left of `within`: linked groups to share, whole ones, and their lanes."""
        left = self.free.whole_after(chosen) & within
        opened = self.groups(self.free.open_after(chosen) & within)
        return opened, self.groups(left), self.lanes(left)

    def groups(self, mask: int) -> int:
        """Count the linked groups of a set, as `linked_groups` does."""
        links = self.terrain.fabric.links
        if all(not mask & ~(links[i] | 1 << i) for i in members(mask)):
            return self._all_linked(mask.bit_count())
        return linked_groups(links, mask, self.known, self.tick)

    def lanes(self, mask: int) -> int:
        """Sum up the lanes of all pairs in a set."""
        linked = [i for i in members(mask) if self.terrain.fabric.links[i] & mask]
        if not linked:
            return 0
        pick = itemgetter(*linked)  # at least two: a link has two ends
        worth = 0
        for i in linked:
            self.tick(1 + len(linked) // 32)
            worth += sum(pick(self.terrain.rows[i]))
        return worth // (2 * PER_LANE)


def _wide(widest: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Unite the links that are worth at least as much as each."""
    links, found = 0, {}
    for worth, bit in widest:
        links |= bit
        found[worth] = links
    return tuple(sorted(found.items()))
