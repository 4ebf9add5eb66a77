"""What makes one set of GPUs better than another: the table of criteria.

The table is the definition. Its numbers, names and words are those of the docs, the page, the tool
and the metrics. `subset_table` and `search` only find its optimum without asking it for every set.
"""

from collections.abc import Callable
from typing import NamedTuple

from xelink.preference.bitmask import members, union
from xelink.preference.fabric import Fabric, Free
from xelink.preference.linked_groups import group_counts, linked_groups
from xelink.preference.pcie import closeness

GPUS_FIRST = "different GPUs before more shares, or VFs, of one GPU"
"""Criterion 1. It fixes how many GPUs a set has: only sets of equally many are compared."""


class Score(NamedTuple):
    """One measure per criterion, in their order; more is always better."""

    linked: int
    connected: int
    weakest: int
    lanes: int
    ports: int
    numa: int
    pcie: int
    groups_open: int
    groups_left: int
    lanes_left: int
    address: int


class SetComparison(NamedTuple):
    """Two sets of one node that a criterion decides between, with its measures of both."""

    fabric: Fabric
    chosen: int
    other: int
    chosen_measure: int
    measure: int


class Criterion(NamedTuple):
    """One row of the table.

    `number` is its place for people: rows that measure one thing in several ways share one. `name`
    is its name in metrics, logs and JSON. `meaning` is what it asks for, `detail` what is measured.
    `measure(fabric, chosen, free)` takes what is free before the choice; more is better.
    `difference` says how another set is worse than the chosen one.
    """

    number: int
    name: str
    meaning: str
    detail: str
    measure: Callable[[Fabric, int, Free], int]
    difference: Callable[[SetComparison], str]


def score(fabric: Fabric, chosen: int, free: Free) -> Score:
    """Return every measure of `chosen`, when so much is free before."""
    return Score(*(criterion.measure(fabric, chosen, free) for criterion in CRITERIA))


def _linked(fabric: Fabric, chosen: int, _free: Free) -> int:
    return int(all(width >= 0 for width in fabric.lanes_within(chosen)))


def _connected(fabric: Fabric, chosen: int, _free: Free) -> int:
    return int(fabric.reach(chosen & -chosen, chosen) == chosen)


def _weakest(fabric: Fabric, chosen: int, _free: Free) -> int:
    return max(0, min(fabric.lanes_within(chosen), default=0))


def _lanes(fabric: Fabric, chosen: int, _free: Free) -> int:
    return sum(width for width in fabric.lanes_within(chosen) if width > 0)


def _ports(fabric: Fabric, chosen: int, _free: Free) -> int:
    return -sum(fabric.ports_cost[i] for i in members(chosen))


def _numa(fabric: Fabric, chosen: int, _free: Free) -> int:
    return -union(fabric.numa[i] for i in members(chosen)).bit_count()


def _pcie(fabric: Fabric, chosen: int, _free: Free) -> int:
    return closeness(fabric.near[0], chosen)


def _groups_open(fabric: Fabric, chosen: int, free: Free) -> int:
    return linked_groups(fabric.links, free.shareable_after(chosen)) >> len(fabric)


def _groups_left(fabric: Fabric, chosen: int, free: Free) -> int:
    return linked_groups(fabric.links, free.unused_after(chosen)) >> len(fabric)


def _lanes_left(fabric: Fabric, chosen: int, free: Free) -> int:
    return _lanes(fabric, free.unused_after(chosen), free)


def _address(fabric: Fabric, chosen: int, _free: Free) -> int:
    return fabric.mirrored(chosen)


def _fewer_linked(pair: SetComparison) -> str:
    lanes = pair.fabric.lanes_within(pair.other)
    linked = sum(width >= 0 for width in lanes)
    return f"{linked} of {counted(len(lanes), 'pair')} linked"


def _worse_ports(pair: SetComparison) -> str:
    fabric = pair.fabric
    bad = (i for i in members(pair.other & ~pair.chosen) if fabric.ports_cost[i])
    cards = " ".join(fabric.gpus[i].card for i in bad)
    return f"Xe Link ports that are not known to be healthy: {cards}"


def _fewer_close(pair: SetComparison) -> str:
    its, own = pair.measure, pair.chosen_measure
    return f"PCIe closeness {its} instead of {own}, added up over its pairs"


def _fewer_groups(pair: SetComparison, gpus: str) -> str:
    size = len(pair.fabric)
    own, its = (dict(group_counts(groups, size)) for groups in (pair.chosen_measure, pair.measure))
    size = max(size for size in own.keys() | its.keys() if own.get(size) != its.get(size))
    before, now = own.get(size, 0), its.get(size, 0)
    groups = f"linked group{'' if before == 1 else 's'} of {size}" if size > 1 else gpus
    return f"it leaves {now or 'no'} instead of {before or 'no'} {groups}"


def counted(number: int, what: str) -> str:
    """Return a number of things: `1 pair`, `2 pairs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


# GPUs before replicas comes before all of these: it fixes how many GPUs a set has (`engine`),
# and only sets of equally many GPUs are ever compared.
#
# What is left are, first, the GPUs that keep a free device: these the next Pod can share. Using up
# one of them costs a GPU; so where it matters, Pods begin another one rather. Then the GPUs that
# stay unused: available with every replica, and nothing of them chosen. Where GPUs are not shared
# both are the same, and only the second is measured. The measure is the number of linked groups of
# each size among them, the largest size first: how many ways the next Pod finds k GPUs that are
# all linked. On separate groups it is the same as comparing their sizes from the largest down, so
# a lone GPU is taken before one of a pair, one of a pair before one of four, and a pair before a
# part of four; unlike a partition it needs no tie-break and is defined alike on rings and on
# overlapping groups.
CRITERIA = (
    Criterion(
        2,
        "linked",
        "all pairs linked",
        "1 if every two GPUs of the set have a link",
        _linked,
        _fewer_linked,
    ),
    Criterion(
        3,
        "connected",
        "else connected",
        "1 if every GPU reaches every other over links of the set",
        _connected,
        lambda _: "it falls into parts that no link joins",
    ),
    Criterion(
        4,
        "weakest",
        "the weakest pair's lanes",
        "lanes of the pair with the fewest",
        _weakest,
        lambda pair: f"{pair.measure} instead of {pair.chosen_measure} lanes in its weakest pair",
    ),
    Criterion(
        5,
        "lanes",
        "the sum of lanes",
        "lanes of all pairs together",
        _lanes,
        lambda pair: f"{pair.measure} instead of {pair.chosen_measure} lanes in all",
    ),
    Criterion(
        6,
        "ports",
        "healthy Xe Link ports",
        "minus 1 for each GPU of unknown port health, minus 2 for each with an unhealthy port",
        _ports,
        _worse_ports,
    ),
    Criterion(
        7,
        "numa",
        "one NUMA node",
        "minus the NUMA nodes of the set",
        _numa,
        lambda pair: f"{-pair.measure} instead of {counted(-pair.chosen_measure, 'NUMA node')}",
    ),
    Criterion(
        8,
        "pcie",
        "close to each other on PCIe",
        "pairs below one host bridge, and pairs behind one PCIe switch once more",
        _pcie,
        _fewer_close,
    ),
    Criterion(
        9,
        "groups_open",
        "what is left for the next Pod",
        "if GPUs are shared: linked groups among GPUs with a free share, the largest groups first",
        _groups_open,
        lambda pair: _fewer_groups(pair, "GPUs to share"),
    ),
    Criterion(
        9,
        "groups_left",
        "what is left for the next Pod",
        "linked groups among unused GPUs, the largest groups first",
        _groups_left,
        lambda pair: _fewer_groups(pair, "unused GPUs"),
    ),
    Criterion(
        9,
        "lanes_left",
        "what is left for the next Pod",
        "lanes of all pairs of unused GPUs together",
        _lanes_left,
        lambda pair: f"{pair.measure} instead of {pair.chosen_measure} lanes between what is left",
    ),
    Criterion(
        10,
        "address",
        "lowest PCI addresses",
        "the set whose PCI addresses come first",
        _address,
        lambda _: "none; higher PCI addresses",
    ),
)
