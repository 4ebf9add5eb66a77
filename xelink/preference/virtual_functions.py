"""VFs of one physical GPU, put together: to a preference they are what shares of one GPU are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from xelink.preference.fabric import GpuFacts
from xelink.topology.pci import address_or_none

Lanes = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Physical:
    """One physical GPU, and the cards by which containers get it, by PCI address.

    A GPU without VFs is its own only card. Of one with VFs, that is not advertised itself, the
    facts are those of its first VF, under its own address, which stands for its card, too.
    """

    facts: GpuFacts
    cards: tuple[str, ...]


def physical(gpus: Iterable[GpuFacts], lanes: Lanes) -> tuple[tuple[Physical, ...], Lanes]:
    """Put the VFs of one GPU together; give the lanes between what is on this node, too.

    A VF has no links. One that is reported to have some is taken for a GPU of its own. Raises
    `ValueError` when two GPUs share a card or a PCI address.
    """
    gpus = list(gpus)
    known = {gpu.bdf for gpu in gpus}
    if len(known) < len(gpus) or len({gpu.card for gpu in gpus}) < len(gpus):
        raise ValueError("two GPUs of one node share a card or a PCI address")
    between = {pair: width for pair, width in lanes.items() if known.issuperset(pair)}
    linked = {bdf for pair in between for bdf in pair}
    found: dict[str, list[GpuFacts]] = {}
    for gpu in gpus:
        # What a link of sysfs leads to need not be an address
        home = address_or_none(gpu.physfn or "") if gpu.bdf not in linked else None
        found.setdefault(home or gpu.bdf, []).append(gpu)
    return tuple(_united(home, some) for home, some in found.items()), between


def _united(bdf: str, functions: list[GpuFacts]) -> Physical:
    functions.sort(key=lambda gpu: gpu.bdf)
    first = functions[0]
    facts = first if first.bdf == bdf else replace(first, card=bdf, bdf=bdf, physfn=None)
    return Physical(facts, tuple(gpu.card for gpu in functions))
