"""What one or many runs came to: the sums, and where `topology` was not better, why. Pure."""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from xelink.cli.simulate.counterfactual import EarlierChoice
from xelink.cli.simulate.placement import ALLOCATORS, Allocator
from xelink.cli.simulate.simulation import OURS, Comparison, Even, Loss, SimulationResult
from xelink.preference.bitmask import members

OWN = "the earlier Pod's own criterion came first"
LEFT = "what was left looked better, and other Pods came"
TIE = "a tie: the lowest PCI addresses decided"
PAID = "another Pod would have paid for it"
# The criteria that look at what a choice leaves
_LEFT_CRITERIA = {"groups_open", "groups_left", "lanes_left"}
UNKNOWN = "no single choice: several had to differ"


class Worse(NamedTuple):
    """One run in which another policy linked more Pods, in words."""

    seed: int
    kind: Allocator
    fewer: int
    pod: int
    why: str
    criterion: str | None
    explanation: str


class Sums:
    """The sums of a policy over all runs."""

    def __init__(self) -> None:
        self.linked = 0
        self.lanes = 0
        self.broken = 0
        self.seconds: list[float] = []

    @property
    def times(self) -> tuple[float, float]:
        """The median and the longest decision, in seconds."""
        return (median(self.seconds), max(self.seconds)) if self.seconds else (0.0, 0.0)


class SimulationReport:
    """Sums up runs, one after the other."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.pods = self.several = self.linkable = self.lanes_possible = self.never_started = 0
        self.sums: Mapping[Allocator, Sums] = {kind: Sums() for kind in ALLOCATORS}
        self.better: Counter[Allocator] = Counter()
        self.even: Mapping[Allocator, Counter[Even]] = {kind: Counter() for kind in ALLOCATORS}
        self.worse: list[Worse] = []

    @property
    def others(self) -> tuple[Allocator, ...]:
        """Every policy but `topology`."""
        return tuple(kind for kind in ALLOCATORS if kind != OURS)

    def add(self, outcome: SimulationResult) -> None:
        """Add a run."""
        self.seeds.append(outcome.scenario.seed)
        self.pods += len(outcome.schedule.pods)
        self.never_started += len(outcome.schedule.never_started)
        self.several += len(outcome.several)
        self.linkable += len(outcome.linkable)
        self.lanes_possible += outcome.lanes_possible
        for kind, tally in outcome.tallies.items():
            sums = self.sums[kind]
            sums.linked += len(tally.linked)
            sums.lanes += tally.lanes
            sums.broken += tally.broken
            sums.seconds += tally.seconds
        for comparison in outcome.comparisons:
            self._compare(outcome, comparison)

    def worse_than(self, kind: Allocator) -> list[Worse]:
        """Return the runs in which this policy linked more Pods."""
        return [worse for worse in self.worse if worse.kind == kind]

    def facts(self, *, times: bool) -> dict[str, Any]:
        """Return everything for JSON; without `times` it is the same in every run."""
        return {
            "seeds": {"first": self.seeds[0], "runs": len(self.seeds)},
            "pods": {
                "all": self.pods,
                "multi_gpu": self.several,
                "linkable": self.linkable,
                "never_started": self.never_started,
            },
            "lanes_possible": self.lanes_possible,
            "policies": {
                kind: {
                    "fully_linked": sums.linked,
                    "fully_linked_share": _share(sums.linked, self.several),
                    "lanes": sums.lanes,
                    "lanes_share": _share(sums.lanes, self.lanes_possible),
                    "broken_groups": sums.broken,
                }
                | ({"decision_seconds": _times(sums)} if times else {})
                for kind, sums in self.sums.items()
            },
            "topology_against": {kind: self._against(kind) for kind in self.others},
        }

    def _against(self, kind: Allocator) -> dict[str, Any]:
        return {
            "better": self.better[kind],
            "even": {even.value: count for even, count in sorted_counts(self.even[kind])},
            "worse": [
                {
                    "seed": worse.seed,
                    "fewer": worse.fewer,
                    "why": worse.why,
                    "criterion": worse.criterion,
                    "explanation": worse.explanation,
                }
                for worse in self.worse_than(kind)
            ],
        }

    def _compare(self, outcome: SimulationResult, comparison: Comparison) -> None:
        kind = comparison.kind
        if comparison.even:
            self.even[kind][comparison.even] += 1
        elif comparison.loss:
            earlier = comparison.loss.earlier
            self.worse.append(
                Worse(
                    seed=outcome.scenario.seed,
                    kind=kind,
                    fewer=-comparison.more,
                    pod=comparison.loss.pod,
                    why=_why(earlier),
                    criterion=earlier.criterion.name if earlier else None,
                    explanation=" ".join(_explanation(outcome, kind, comparison.loss)),
                )
            )
        else:
            self.better[kind] += 1


def sorted_counts(counts: Mapping[Even, int]) -> list[tuple[Even, int]]:
    """Return the reasons that occurred, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0].name))


def _why(earlier: EarlierChoice | None) -> str:
    if earlier is None:
        return UNKNOWN
    if earlier.paid:
        return PAID
    if earlier.criterion.name in _LEFT_CRITERIA:
        return LEFT
    return TIE if earlier.criterion.name == "address" else OWN


def _explanation(outcome: SimulationResult, kind: Allocator, loss: Loss) -> list[str]:
    pods = outcome.schedule.pods
    pod, earlier = pods[loss.pod], loss.earlier
    where = f" on node {loss.node + 1}" if len(outcome.evaluators) > 1 else ""
    sentences = [
        f"minute {loss.minute}: {pod.name} ({pod.size} GPUs{where}) found {_gpus(loss.free)} free,",
        f"under {kind} {_gpus(loss.other_free)}, of which {_gpus(loss.other_gpus)} are linked.",
    ]
    if earlier is None:
        return sentences
    before = pods[earlier.pod].name
    ended = ", which had ended by then," if earlier.ended else ""
    lost = ", ".join(pods[paying].name for paying in earlier.paid)
    gain = f"it would be linked, and {lost} not" if lost else "one more Pod would be linked"
    return [
        *sentences,
        f"In minute {earlier.minute} {before}{ended} had got {_gpus(earlier.chosen)};",
        f"with {_gpus(earlier.instead)} {gain}.",
        f"That choice was made by {earlier.criterion.name}.",
    ]


def _gpus(mask: int) -> str:
    return f"GPU {','.join(map(str, members(mask)))}" if mask else "no GPU"


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _times(sums: Sums) -> dict[str, float]:
    middle, longest = sums.times
    return {"median": middle, "longest": longest}
