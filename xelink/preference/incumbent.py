"""The best set that a search has found so far, and what cannot be better than it."""

from collections.abc import Iterator

from xelink.preference.bitmask import lowest
from xelink.preference.problem import SearchProblem


class Incumbent:
    """The best of the sets that were tried; each better one is appended to `found`.

    What lanes and ports are worth is counted twice, as bounds do: `least` is what a better set is
    worth at least. Where sets are to be `connected` others are rejected; `torn` is whether this has
    happened. `fewest_nodes` is for the search to say how many NUMA nodes any set has at least that
    it has not tried yet.
    """

    def __init__(
        self, problem: SearchProblem, found: list[int], *, connected: bool = False
    ) -> None:
        self._problem, self._found, self._connected = problem, found, connected
        self._fabric = problem.index.fabric
        self.least = -1
        self.fewest_nodes, self.torn = 1, False
        self._nodes = 0
        self._left: tuple[int, ...] = ()

    def offer(self, chosen: int, worth: int, nodes: int) -> None:
        """Take a set for the best if it is better than that, by all criteria."""
        most = (worth, -nodes.bit_count())
        best = (self.least, -self._nodes)
        if most < best:
            return
        if self._connected and self._fabric.reach(chosen & -chosen, chosen) != chosen:
            self.torn = True
            return
        if most == best:
            measures = self._problem.after_numa(chosen)
            if not self._is_more(measures, chosen, 0, 0):
                return
        self.least, self._nodes, self._left = worth, nodes.bit_count(), ()
        self._found.append(chosen)

    def may_lose(self, chosen: int, candidates: int, nodes: int, open_: int) -> bool:
        """Return whether a set of equal worth may be better: `chosen` and `open_` candidates."""
        fewest = max(self.fewest_nodes, nodes.bit_count())
        if fewest <= self._nodes:
            fewest = max(fewest, self._problem.fewest_nodes(nodes, candidates, open_))
        if fewest != self._nodes:
            return fewest < self._nodes
        measures = self._problem.most_after_numa(chosen, candidates, open_, self._remainder())
        return self._is_more(measures, chosen, candidates, open_)

    def _is_more(self, measures: Iterator[int], chosen: int, candidates: int, open_: int) -> bool:
        """Compare measures after NUMA while these are equal, then addresses."""
        for more, most in zip(measures, self._remainder(), strict=True):
            if more != most:
                return more > most
        chosen |= lowest(candidates, open_)
        return self._fabric.mirrored(chosen) > self._fabric.mirrored(self._found[-1])

    def _remainder(self) -> tuple[int, ...]:
        self._left = self._left or (*self._problem.after_numa(self._found[-1]),)
        return self._left
