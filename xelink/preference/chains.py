"""Components in which no GPU has more than two links: a path, or a ring.

Their connected sets are their paths: no more of one size than there are GPUs, where a search would
try countless others.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xelink.preference.bitmask import members

_TWO = 2


class Chain(NamedTuple):
    """GPUs one after the other along their links; of a `ring` the last is linked to the first."""

    order: list[int]
    ring: bool

    def paths(self, size: int) -> Iterator[Sequence[int]]:
        """Return every path of so many of the GPUs."""
        whole = size == len(self.order)
        starts = len(self.order) if self.ring and not whole else len(self.order) - size + 1
        round_ = self.order * 2
        return (round_[start : start + size] for start in range(starts))


def chain(links: Sequence[int], component: int) -> Chain | None:
    """Return the chain that a component is, None of any other."""
    inside = {i: links[i] & component for i in members(component)}
    if any(linked.bit_count() > _TWO for linked in inside.values()):
        return None
    ends = [i for i, linked in inside.items() if linked.bit_count() < _TWO]
    order = ends[:1] or [next(iter(inside))]
    rest = component & ~(1 << order[0])
    while ahead := inside[order[-1]] & rest:
        order.append((ahead & -ahead).bit_length() - 1)
        rest ^= 1 << order[-1]
    return Chain(order, ring=not ends)
