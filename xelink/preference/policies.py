"""The policies: their names, and the order in which each takes free devices of settled GPUs."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple


class AllocationPolicy(StrEnum):
    """Which devices a Pod had best get."""

    TOPOLOGY = "topology"
    BALANCED = "balanced"
    PACKED = "packed"
    NONE = "none"


class FreeDevice(NamedTuple):
    """One free device as a policy sees it.

    `turn` counts the free devices of the same GPU before it, `free` all of them; `partly_used` is
    whether the Pod has another device of this GPU already.
    """

    gpu: int
    replica: int
    turn: int
    free: int
    partly_used: bool


class PolicyRule(NamedTuple):
    """What a policy does, in words, and the order in which it takes free devices: smallest first.

    `prefers_sets` chooses a set of GPUs first. Its order is for more replicas only, when every GPU
    is in the set.
    """

    meaning: str
    order: Callable[[FreeDevice], tuple[int, ...]]
    prefers_sets: bool = False


POLICIES: Mapping[AllocationPolicy, PolicyRule] = {
    AllocationPolicy.TOPOLOGY: PolicyRule(
        "prefers the best linked GPUs",
        lambda free: (free.turn - free.free, free.gpu),
        prefers_sets=True,
    ),
    AllocationPolicy.BALANCED: PolicyRule(
        "takes devices from the GPU with the most free ones",
        lambda free: (free.turn - free.free, free.gpu),
    ),
    AllocationPolicy.PACKED: PolicyRule(
        "fills one GPU before it begins the next",
        lambda free: (not free.partly_used, free.gpu, free.replica),
    ),
    # As Intel's plugin under that name: a further device of a GPU only when each has given one.
    AllocationPolicy.NONE: PolicyRule(
        "takes the lowest PCI addresses", lambda free: (free.turn + free.partly_used, free.gpu)
    ),
}
