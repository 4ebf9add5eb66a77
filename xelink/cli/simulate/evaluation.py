"""How good the GPUs are that a Pod got, and what they cost the Pods to come. Pure.

A group is a set of GPUs that are all linked to each other. Sets of GPUs are bitmasks, as in
`xelink.preference.bitmask`.
"""

from functools import lru_cache
from itertools import combinations

from xelink.cli.simulate.scenario import NodeShape
from xelink.preference.bitmask import mask_of, members
from xelink.preference.criteria import CRITERIA, Criterion, score
from xelink.preference.fabric import Fabric, Free, GpuFacts
from xelink.preference.linked_groups import linked_groups

BROKEN_FROM = 4
"""Size from which on a group counts as one that can be broken."""


class Evaluator:
    """Evaluates sets of GPUs of one node, and remembers what it found."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._own: dict[int, tuple[int, ...]] = {}
        self._largest: dict[int, int] = {}
        self._groups: dict[int, int] = {}
        self._possible: dict[int, int] = {}

    def linked(self, gpus: int, size: int) -> bool:
        """Return whether a Pod got as many GPUs as it asked for, all linked to each other."""
        return gpus.bit_count() == size and self.largest_group(gpus) == size

    def linkable(self, size: int) -> bool:
        """Return whether the node, when it is empty, has a group of so many GPUs."""
        return self.largest_group(self.every) >= size

    @property
    def every(self) -> int:
        """All GPUs of the node."""
        return (1 << len(self.fabric)) - 1

    def lanes(self, gpus: int) -> int:
        """Sum up the lanes of all pairs."""
        return self.own(gpus)[-1]

    def lanes_possible(self, size: int) -> int:
        """Return the most lanes that so many GPUs of the empty node can have."""
        if size not in self._possible:
            sets = combinations(range(len(self.fabric)), min(size, len(self.fabric)))
            self._possible[size] = max(self.lanes(mask_of(some)) for some in sets)
        return self._possible[size]

    def own(self, gpus: int) -> tuple[int, ...]:
        """Measure what a Pod has of its own GPUs: linked, connected, weakest pair, lanes."""
        if gpus not in self._own:
            self._own[gpus] = score(self.fabric, gpus, Free(0))[:4]
        return self._own[gpus]

    def largest_group(self, gpus: int) -> int:
        """Return the size of the largest group within a set; a GPU alone is a group of one."""
        if gpus not in self._largest:
            groups = linked_groups(self.fabric.links, gpus, self._groups)
            self._largest[gpus] = (groups.bit_length() - 1) // len(self.fabric)
        return self._largest[gpus]

    def breaks_group(self, chosen: int, free: int, unused: int) -> bool:
        """Return whether a choice broke a group that the Pod did not need.

        It did when the largest group among the GPUs that stay unused has become smaller than it had
        to, and four or more GPUs could have stayed together: with another set of as many of the
        `free` GPUs, and not fewer links and lanes for the Pod itself.
        """
        left = self.largest_group(unused & ~chosen)
        if self.largest_group(unused) < BROKEN_FROM or left == self.largest_group(unused):
            return False
        own = self.own(chosen)
        others = combinations([1 << gpu for gpu in members(free)], chosen.bit_count())
        return any(
            self.largest_group(unused & ~other) >= max(BROKEN_FROM, left + 1)
            and self.own(other) >= own
            for other in map(sum, others)
        )

    def deciding(self, chosen: int, other: int, free: Free) -> tuple[Criterion, int, int]:
        """Return the first criterion on which two sets differ, and what both have of it."""
        ours, theirs = (score(self.fabric, gpus, free) for gpus in (chosen, other))
        rows = zip(CRITERIA, ours, theirs, strict=True)
        return next(row for row in rows if row[1] != row[2])


@lru_cache(maxsize=64)
def evaluator(
    facts: tuple[GpuFacts, ...], lanes: frozenset[tuple[tuple[str, str], int]]
) -> Evaluator:
    """Return the evaluator of a node."""
    return Evaluator(Fabric.of(facts, dict(lanes)))


def gpu_facts(node: NodeShape) -> tuple[GpuFacts, ...]:
    """Make a scenario's GPUs: card and PCI address by number."""
    return tuple(
        GpuFacts(
            card=f"card{gpu}",
            bdf=f"0000:{0x10 + gpu:02x}:00.0",
            numa=numa,
            ports_healthy=True,
            bridges=next(
                (_behind(number) for number, gpus in enumerate(node.switches) if gpu in gpus), ()
            ),
        )
        for gpu, numa in enumerate(node.numa_nodes)
    )


def _behind(switch: int) -> tuple[str, ...]:
    """Return the bridges above a GPU: each switch has a host bridge of its own."""
    return (f"pci0000:{switch:02x}", f"0000:{switch:02x}:01.0")


def lanes_by_address(node: NodeShape) -> dict[tuple[str, str], int]:
    """Return a scenario's links as the plugin takes them, by pairs of PCI addresses."""
    facts = gpu_facts(node)
    return {(facts[one].bdf, facts[other].bdf): lanes for (one, other), lanes in node.links.items()}


def evaluator_of(node: NodeShape) -> Evaluator:
    """Return the evaluator of a scenario's node."""
    return evaluator(gpu_facts(node), frozenset(lanes_by_address(node).items()))
