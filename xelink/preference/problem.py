"""What a search looks up and what it is asked: a prepared node, one request, and its time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from xelink.preference.bitmask import mask_of, members, union
from xelink.preference.fabric import Fabric, Free
from xelink.preference.linked_groups import linked_groups
from xelink.preference.pcie import Levels, closeness, most_closeness

PER_LANE = 1 << 12
"""Worth of one lane. A GPU's ports are worth at most 2: lanes come before, up to 2,047 GPUs."""

PORTS_BEST = 2

NEVER = -(1 << 60)
"""Less than any sum of lanes: never to be taken."""

# Work between two looks at the clock; a unit takes about a microsecond.
_WORK_BETWEEN_LOOKS = 256


class TimeUpError(Exception):
    """The time is up: what was found so far is the answer."""


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """What a search looks up, made once per snapshot.

    `alike` are sets of GPUs that can be exchanged, `rows` the worth of each pair, `widest` for each
    GPU (worth, bit) of its links from the widest down, `wide` for each GPU (worth, its links that
    are worth as much) up to the widest, `widths` the lanes that pairs have, at least 0, `homes` the
    GPUs of each NUMA node's bit. Bit i * n + j stands for the pair of i and j, twice for each pair,
    in `linked`, the pairs with a link, and in `digits`, the pairs whose lanes have
    each binary digit. `triangles` is whether any three GPUs are all linked. `near` are the groups
    of each criterion that has any.
    """

    fabric: Fabric
    alike: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    widest: tuple[tuple[tuple[int, int], ...], ...]
    wide: tuple[tuple[tuple[int, int], ...], ...]
    widths: tuple[int, ...]
    own: tuple[int, ...]
    homes: tuple[tuple[int, int], ...]
    linked: int
    triangles: bool
    near: tuple[Levels, ...]
    digits: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, fabric: Fabric) -> "SearchIndex":
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
        widths = sorted({0, *(width for row in fabric.lanes for width in row)} - {-1})
        return cls(
            fabric=fabric,
            alike=fabric.alike(),
            rows=rows,
            widest=widest,
            wide=tuple(map(_wide, widest)),
            widths=tuple(widths),
            own=tuple(PORTS_BEST - cost for cost in fabric.ports_cost),
            homes=tuple(homes.items()),
            linked=_squared(fabric.links),
            triangles=any(
                links & fabric.links[j] for links in fabric.links for j in members(links)
            ),
            near=tuple(levels for levels in fabric.near if levels),
            digits=tuple(
                (
                    digit,
                    _squared(
                        mask_of(
                            j for j, width in enumerate(row) if width >= 0 and width >> digit & 1
                        )
                        for row in fabric.lanes
                    ),
                )
                for digit in range(widths[-1].bit_length())
            ),
        )


@dataclass(slots=True)
class SearchProblem:
    """One request: `size` GPUs of `available`, with all of `must`, and what of them is free."""

    index: SearchIndex
    available: int
    must: int
    free: Free
    size: int
    clock: Callable[[], float]
    end: float = 0.0
    known: dict[int, int] = field(default_factory=dict)
    full: dict[int, int] = field(default_factory=dict)
    done: int = 0

    def tick(self, work: int = _WORK_BETWEEN_LOOKS) -> None:
        """Look at the clock, once enough work is done; raise when the time is up."""
        self.done += work
        if self.done >= _WORK_BETWEEN_LOOKS:
            self.done = 0
            if self.clock() >= self.end:
                raise TimeUpError

    def kinds(self, within: int) -> list[int]:
        """Split the free GPUs of `within` into sets whose members are alike for this request."""
        others = within & ~self.must
        parts = [part for alike in self.index.alike for part in self.free.kinds(alike & others)]
        return parts + [1 << i for i in members(others & ~union(parts))]

    def fewest_nodes(self, nodes: int, candidates: int, open_: int) -> int:
        """Bound the NUMA nodes of a set from below: fill the nodes it touches, then the largest."""
        homes = self.index.homes
        open_ -= sum((home & candidates).bit_count() for node, home in homes if node & nodes)
        fewest = nodes.bit_count()
        if open_ > 0:
            others = ((home & candidates).bit_count() for node, home in homes if not node & nodes)
            for size in sorted(others, reverse=True):
                fewest, open_ = fewest + 1, open_ - size
                if open_ <= 0:
                    break
        return fewest

    def most_left(
        self, chosen: int, candidates: int, open_: int, known: Sequence[int]
    ) -> Iterator[int]:
        """Bound what `open_` more of the candidates can leave, measure by measure, as `left` does.

        Whatever is no candidate stays for sure; candidates that stay count as linked to all others,
        and as widely as can be. What is more than the `known` measure anyway is not bounded closer.
        """
        spare = candidates & ~self.free.last_share
        closing = max(0, open_ - spare.bit_count())
        partly = (spare & ~self.free.unused).bit_count()
        shareable, unused = self.free.shareable_after(chosen), self.free.unused_after(chosen)
        sure = shareable & ~(candidates & self.free.last_share)
        more = (shareable ^ sure).bit_count() - closing
        yield self._most_groups(sure, more, known[0])
        sure = unused & ~candidates
        more = (unused ^ sure).bit_count() - max(0, open_ - closing - partly)
        yield self._most_groups(sure, more, known[1])
        pairs = more * (more - 1) // 2 + more * sure.bit_count()
        yield self.lanes(sure) + self.index.widths[-1] * pairs

    def after_numa(self, chosen: int) -> Iterator[int]:
        """Measure what is asked for after NUMA nodes and before addresses."""
        left = self.left(chosen, self.available)
        near = self.index.near
        return chain((closeness(levels, chosen) for levels in near), left) if near else left

    def most_after_numa(
        self, chosen: int, candidates: int, open_: int, known: Sequence[int]
    ) -> Iterator[int]:
        """Bound the measures of `after_numa` for a set and `open_` more of the candidates."""
        near = self.index.near
        left = self.most_left(chosen, candidates, open_, known[len(near) :])
        if not near:
            return left
        return chain((most_closeness(levels, chosen, candidates, open_) for levels in near), left)

    @property
    def is_closeness_known(self) -> bool:
        """Whether available GPUs differ in how close they are to each other."""
        return any(
            1 < (group & self.available).bit_count() < self.available.bit_count()
            for levels in self.index.near
            for level in levels
            for group in level
        )

    def left(self, chosen: int, within: int) -> Iterator[int]:
        """Measure what is left of `within`: groups to share, unused groups, and their lanes."""
        left = self.free.unused_after(chosen) & within
        yield self.groups(self.free.shareable_after(chosen) & within)
        yield self.groups(left)
        yield self.lanes(left)

    def _most_groups(self, sure: int, more: int, known: int) -> int:
        """Bound the linked groups of a set and of so many others, unless they exceed `known`."""
        most = self._all_linked(more)
        return most if most > known else most * self.groups(sure)

    def _all_linked(self, count: int) -> int:
        """Count the linked groups of so many GPUs at most."""
        if count not in self.full:
            self.full[count] = (1 + (1 << len(self.index.fabric))) ** count
        return self.full[count]

    def groups(self, mask: int) -> int:
        """Count the linked groups of a set, as `linked_groups` does."""
        count, links = mask.bit_count(), self.index.fabric.links
        pairs = (self._pairs(mask) & self.index.linked).bit_count() // 2
        if pairs == count * (count - 1) // 2:
            return self._all_linked(count)
        if not self.index.triangles:
            return 1 + (count << len(links)) + (pairs << 2 * len(links))
        return linked_groups(links, mask, self.known, self.tick)

    def lanes(self, mask: int) -> int:
        """Sum up the lanes of all pairs in a set."""
        pairs = self._pairs(mask)
        digits = self.index.digits
        return sum((pairs & having).bit_count() << digit for digit, having in digits) // 2

    def _pairs(self, mask: int) -> int:
        """Pair every GPU of a set with every one, as bits."""
        self.tick(1 + len(self.index.fabric) // 16)
        n, starts, rest = len(self.index.fabric), 0, mask
        while rest:
            last = rest.bit_length() - 1
            starts |= 1 << last * n
            rest ^= 1 << last
        return starts * mask


def _squared(rows: Iterable[int]) -> int:
    """Put one row of bits after the other; of as many GPUs as there are rows."""
    rows = list(rows)
    return sum(row << i * len(rows) for i, row in enumerate(rows))


def _wide(widest: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Unite the links that are worth at least as much as each."""
    links, found = 0, {}
    for worth, bit in widest:
        links |= bit
        found[worth] = links
    return tuple(sorted(found.items()))
