"""Which Xe Links are published, and why none is. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xelink.topology.observation import ObservedLinks


@dataclass(frozen=True)
class Rules:
    """Which Xe Links are published."""

    lane_count: int = 4
    """Fewest lanes, in either direction."""
    allow_subdeviceless_links: bool = False
    """Whether links of one-tile GPUs, which are on no subdevice, count."""


def why_no_links(observed: "ObservedLinks", rules: Rules, flag: Callable[[str], str]) -> str:
    """Return which rule filters the Xe Links that were observed, or the source's own hint.

    `flag` returns the name by which a user sets a field of `Rules`.
    """
    if not observed.filtered:
        return observed.hint
    reasons = []
    if observed.one_tile:
        allow = flag("allow_subdeviceless_links")
        reasons.append(f"{observed.one_tile} of one-tile GPUs (Max 1100), which need {allow}")
    if observed.narrow:
        lane_count = flag("lane_count")
        reasons.append(f"{observed.narrow} with fewer than {rules.lane_count} lanes ({lane_count})")
    return f"{observed.filtered} Xe Links were observed and none passes: {', '.join(reasons)}"


def sidecar_flag(name: str) -> str:
    """Return the flag of `xelink-sidecar` for a setting, whose name has underscores."""
    return f"-{name.replace('_', '-')}"
