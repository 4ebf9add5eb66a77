"""Which set of GPUs is best: prepared once for a node, asked for every request. Pure.

Speaks of GPUs only, as bitmasks: what kubelet counts as devices is in `shares`. The order of
criteria is one table, `xelink.preference.criteria.CRITERIA`; before all of them come GPUs before
replicas, which `shares` sees to: it fixes how many GPUs are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from xelink.preference.fabric import Fabric, Free
from xelink.preference.problem import SearchIndex, SearchProblem
from xelink.preference.search import Search, SearchResult
from xelink.preference.subset_table import EXACT_LIMIT, Subsets

DEFAULT_TIMEOUT = 0.05
"""Seconds that one preference may take beyond 16 GPUs, unless set otherwise."""

Clock = Callable[[], float]
"""Seconds from any fixed point, never going back: `time.monotonic`."""


@dataclass(frozen=True)
class Engine:
    """The GPUs of one node, prepared for requests: immutable.

    Up to 16 GPUs every answer is a look-up in `subsets`; beyond, a search that may take `timeout`
    seconds of `clock`.
    """

    fabric: Fabric
    timeout: float
    clock: Clock = field(repr=False)
    subsets: Subsets | None = field(repr=False)
    index: SearchIndex = field(repr=False)

    @classmethod
    def of(cls, fabric: Fabric, clock: Clock, timeout: float = DEFAULT_TIMEOUT) -> "Engine":
        """Prepare a node: some 15 ms for 8 GPUs, some 35 ms for 16."""
        exact = len(fabric) <= EXACT_LIMIT
        subsets = Subsets.of(fabric) if exact else None
        return cls(fabric, timeout, clock, subsets, SearchIndex.of(fabric))

    def choose(self, available: int, must: int, free: Free, size: int) -> SearchResult:
        """Choose `size` GPUs of `available` with all of `must`; there are as many."""
        if size == must.bit_count():
            return SearchResult(must, proven=True)
        if size == available.bit_count():
            return SearchResult(available, proven=True)
        if self.subsets:
            return SearchResult(self.subsets.best(available, must, free, size), proven=True)
        problem = SearchProblem(self.index, available, must, free, size, self.clock)
        return Search(problem).best(self.timeout)
