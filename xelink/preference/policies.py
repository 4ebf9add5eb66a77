"""The policies: their names, and the order in which each takes free devices of settled GPUs."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Literal, NamedTuple


class AllocationPolicy(Enum):
    """Which devices a Pod had best get."""

    TOPOLOGY = "topology"
    BALANCED = "balanced"
    PACKED = "packed"
    NONE = "none"


Policy = Literal["topology", "balanced", "packed", "none"]


class Spot(NamedTuple):
    """One free device as a policy sees it.

    `turn` counts the free devices of the same GPU before it, `free` all of them; `begun` tells
    that the Pod has another device of this GPU already.
    """

    gpu: int
    replica: int
    turn: int
    free: int
    begun: bool


POLICIES: Mapping[Policy, Callable[[Spot], tuple[int, ...]]] = {
    "topology": lambda spot: (spot.turn - spot.free, spot.gpu),
    "balanced": lambda spot: (spot.turn - spot.free, spot.gpu),
    "packed": lambda spot: (not spot.begun, spot.gpu, spot.replica),
    "none": lambda spot: (spot.turn + spot.begun, spot.gpu),
}
"""The order in which free devices are taken, the smallest first.

`topology` chooses a set of GPUs before and comes here only for more replicas, when every GPU is in
the set. `balanced` takes from the GPU with the most free devices, `packed` fills one GPU before it
begins the next. `none` has no preference but the one of Intel's plugin under that name: as many
different GPUs as it can, by address, and a further device of each only when every GPU has given
one.
"""
