"""What a search looks up and what it is asked: a prepared node, one request, and its time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from device_plugin.masks import members, union
from device_plugin.wishes import Fabric, linked_groups

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
    GPU (worth, bit) of its links from the widest down, `homes` the GPUs of each NUMA node's bit.
    """

    fabric: Fabric
    alike: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    widest: tuple[tuple[tuple[int, int], ...], ...]
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
        return cls(
            fabric=fabric,
            alike=fabric.alike(),
            rows=rows,
            widest=tuple(
                tuple(sorted(((row[j], 1 << j) for j in members(links)), reverse=True))
                for row, links in zip(rows, fabric.links, strict=True)
            ),
            own=tuple(PORTS_BEST - cost for cost in fabric.ports_cost),
            homes=tuple(homes.items()),
        )


@dataclass(slots=True)
class Task:
    """One request: `size` GPUs of `available`, with all of `must`; `whole` are untouched so far."""

    terrain: Terrain
    available: int
    must: int
    whole: int
    size: int
    clock: Callable[[], float]
    end: float = 0.0
    known: dict[int, int] = field(default_factory=dict)
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
        free = within & ~self.must
        parts = [
            part & free
            for alike in self.terrain.alike
            for part in (alike & self.whole, alike & ~self.whole)
        ]
        parts = [part for part in parts if part]
        return parts + [1 << i for i in members(free & ~union(parts))]

    def ideal(self) -> list[int]:
        """Measure the most that could be left: as many GPUs as can be, all linked, all wide."""
        begun = (self.available & ~self.whole).bit_count()
        count = self.whole.bit_count() - max(0, self.size - begun)
        widest = max((links[0][0] for links in self.terrain.widest if links), default=0) // PER_LANE
        groups: int = (1 + (1 << len(self.terrain.fabric))) ** count
        return [groups, widest * count * (count - 1) // 2]

    def left(self, chosen: int, within: int) -> tuple[int, int]:
        """Measure what is left of `within`: linked groups and lanes."""
        left = self.whole & within & ~chosen
        links = self.terrain.fabric.links
        return linked_groups(links, left, self.known, self.tick), self.lanes(left)

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
