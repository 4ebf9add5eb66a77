"""What one or many runs came to: the sums, and where `topology` was not better, why. Pure."""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from xelink.cli.simulate.counterfactual import Earlier
from xelink.cli.simulate.placement import KINDS, Kind
from xelink.cli.simulate.simulation import OURS, Comparison, Even, Loss, Outcome
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
    kind: Kind
    fewer: int
    pod: int
    why: str
    criterion: str | None
    story: str


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


class Report:
    """Sums up runs, one after the other."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.pods = self.several = self.linkable = self.lanes_possible = self.never_started = 0
        self.sums: Mapping[Kind, Sums] = {kind: Sums() for kind in KINDS}
        self.better: Counter[Kind] = Counter()
        self.even: Mapping[Kind, Counter[Even]] = {kind: Counter() for kind in KINDS}
        self.worse: list[Worse] = []

    @property
    def others(self) -> tuple[Kind, ...]:
        """Every policy but `topology`."""
        return tuple(kind for kind in KINDS if kind != OURS)

    def add(self, outcome: Outcome) -> None:
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

    def worse_than(self, kind: Kind) -> list[Worse]:
        """Give the runs in which this policy linked more Pods."""
        return [worse for worse in self.worse if worse.kind == kind]

    def facts(self, *, times: bool) -> dict[str, Any]:
        """Give everything for JSON; without `times` it is the same in every run."""
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

    def _against(self, kind: Kind) -> dict[str, Any]:
        return {
            "better": self.better[kind],
            "even": {even.value: count for even, count in sorted_counts(self.even[kind])},
            "worse": [
                {
                    "seed": worse.seed,
                    "fewer": worse.fewer,
                    "why": worse.why,
                    "criterion": worse.criterion,
                    "story": worse.story,
                }
                for worse in self.worse_than(kind)
            ],
        }

    def _compare(self, outcome: Outcome, comparison: Comparison) -> None:
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
                    story=" ".join(_story(outcome, kind, comparison.loss)),
                )
            )
        else:
            self.better[kind] += 1


def sorted_counts(counts: Mapping[Even, int]) -> list[tuple[Even, int]]:
    """Give the reasons that occurred, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0].name))


def _why(earlier: Earlier | None) -> str:
    if earlier is None:
        return UNKNOWN
    if earlier.paid:
        return PAID
    if earlier.criterion.name in _LEFT_CRITERIA:
        return LEFT
    return TIE if earlier.criterion.name == "address" else OWN


def _story(outcome: Outcome, kind: Kind, loss: Loss) -> list[str]:
    pods = outcome.schedule.pods
    pod, earlier = pods[loss.pod], loss.earlier
    where = f" on node {loss.node + 1}" if len(outcome.judges) > 1 else ""
    told = [
        f"minute {loss.minute}: {pod.name} ({pod.size} GPUs{where}) found {_gpus(loss.free)} free,",
        f"under {kind} {_gpus(loss.other_free)}, of which {_gpus(loss.other_gpus)} are linked.",
    ]
    if earlier is None:
        return told
    before = pods[earlier.pod].name
    ended = ", which had ended by then," if earlier.ended else ""
    lost = ", ".join(pods[paying].name for paying in earlier.paid)
    gain = f"it would be linked, and {lost} not" if lost else "one more Pod would be linked"
    return [
        *told,
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
