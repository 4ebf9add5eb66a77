"""The sidecar's log: each change once, with its facts."""

import re
from collections.abc import Set as AbstractSet
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from sidecar.debounce import Confirmed, LossKind
from xelink.daemon.logs import Changes
from xelink.topology.model import Tile, Topology
from xelink.topology.observation import NoFabricData, ObservedLinks, Source, Unknown
from xelink.topology.publication import GROUP, Publication

_MOST_NAMED = 8
_DIGITS = re.compile(r"[0-9]+")  # a detail that differs in numbers only is not new


class Announcements:
    """The lines of the log; remembers what was logged last of each thing.

    `source` says what it is called now, `verb` what becomes of labels: published, or only printed.
    """

    def __init__(self, log: FilteringBoundLogger, source: Source, verb: str) -> None:
        self._log = log
        self._source = source
        self._verb = verb
        self._changes = Changes()

    def ignored(self, reason: str) -> None:
        """Log that the existing feature file is not used."""
        self._log.warning("existing feature file ignored", reason=reason)

    def resumed(self, published: Publication) -> None:
        """Log what the existing feature file publishes."""
        self._log.info(
            "resuming from the existing feature file",
            **_facts(published),
            expires=expiry_text(published.expiry),
        )

    def observed(self, observation: ObservedLinks, hint: str) -> bool:
        """Log what was observed; return whether that is new."""
        if not self._changes.of("observation", observation.result):
            return False
        log = self._log.warning if hint and observation.filtered else self._log.info
        facts = {"result": observation.result.value} | ({"hint": hint} if hint else {})
        log("scrape result changed", **facts)
        return True

    def no_links_known(
        self,
        observation: NoFabricData | Unknown,
        *,
        published: bool,
        until: datetime | None,
        alone: bool,
    ) -> bool:
        """Log why links are not known, and what becomes of the labels; return whether it is new.

        `published` is whether there are labels, which live `until`; `alone` that this state itself
        is all that is published.
        """
        if not self._changes.of("observation", _news(observation)):
            return False
        becomes = "the published labels stay" if published else f"nothing is {self._verb}"
        if alone:
            becomes = f"this state alone is {self._verb}"
        facts = {"result": observation.result.value}
        if isinstance(observation, Unknown):
            event, facts["reason"] = "gave no usable answer", str(observation.reason)
        else:
            event = "has no fabric data"
        self._log.warning(
            f"{self._source.name} {event}: {becomes}",
            **facts,
            detail=observation.detail,
            **({"expires": expiry_text(until)} if published else {}),
        )
        return True

    def source_warning(self, warning: str | None) -> None:
        """Log what is wrong with the source, although it observes, and when that has ended."""
        if self._changes.of("source warning", warning):
            if warning:
                self._log.warning("source warning", source=self._source.name, reason=warning)
            else:
                self._log.info("source warning resolved", source=self._source.name)

    def warnings(self, observed: ObservedLinks, confirmed: Confirmed) -> None:
        """Log what of a scrape needs a look, and what waits for confirmation."""
        if confirmed.moved:
            self._log.warning(
                "device ids moved: the labels before this named other GPUs",
                gpus=" ".join(confirmed.moved),
            )
        if self._changes.of("ambiguous", observed.ambiguous or None):
            if observed.ambiguous:
                self._log.warning(
                    "rows disagree on the PCI address of device ids: left out of the id map",
                    ids=" ".join(map(str, sorted(observed.ambiguous))),
                )
            else:
                self._log.info("rows agree on all PCI addresses again")
        if self._changes.of("unread", observed.unread or None):
            if observed.unread:
                self._log.warning(
                    "rows not understood: what they would report is not treated as lost",
                    rows=observed.unread,
                )
            else:
                self._log.info("all rows understood again")
        if self._changes.of("contradicting", observed.contradicting or None):
            if observed.contradicting:
                self._log.warning(
                    "rows contradict each other: a cut link may still be reported",
                    directions=_some(observed.contradicting),
                    **({"hint": observed.stale_hint} if observed.stale_hint else {}),
                )
            else:
                self._log.info("rows contradict each other no longer")
        waiting = pending(confirmed)
        if self._changes.of("pending", waiting) and waiting:
            self._log.info("a loss waits for confirmation", missing=waiting)

    def publisher(self, other: str | None) -> None:
        """Log when another sidecar writes the file, and when it is ours again."""
        if self._changes.of("who publishes", other):
            if other:
                self._log.warning("another sidecar publishes here: standing by", other=other)
            else:
                self._log.info("the other sidecar has ended: publishing")

    def touched(self, *, by_others: bool) -> None:
        """Log that the file is not as we left it, as with a second sidecar of other flags."""
        if self._changes.of("other writer", by_others or None) and by_others:
            self._log.warning(
                "the feature file was changed by somebody else: it is written again; does a second"
                " sidecar run here?"
            )

    def group(self, *, missing: bool) -> None:
        """Log that the largest group is not among the labels."""
        if self._changes.of("group", missing or None) and missing:
            self._log.warning(
                "the largest group of linked GPUs was not found within the bound of the search:"
                f" {GROUP} is left out; no real node is like this"
            )

    def published(
        self,
        wanted: Publication,
        before: Confirmed | None,
        expiry: datetime | None,
        *,
        renewed: bool,
        logged: bool,
    ) -> None:
        """Log what is published now; a renewal, or what was `logged` already, is for debugging."""
        if renewed or logged:
            self._log.debug(
                f"labels {'renewed' if renewed else self._verb}", expires=expiry_text(expiry)
            )
            return
        gone = before and before.topology.links and not (wanted.topology or Topology()).links
        log = self._log.warning if gone else self._log.info
        log(
            f"labels {self._verb}",
            **_facts(wanted),
            **_difference(before, wanted),
            expires=expiry_text(expiry),
        )

    def publishing(self, problem: str | None) -> None:
        """Log when labels cannot be published, and when they can again."""
        if self._changes.of("publishing", problem):
            if problem:
                self._log.error("labels not published", reason=problem)
            else:
                self._log.info("labels can be published again")

    def stopped(self, labels: str, error: str | None = None) -> None:
        """Log what the end leaves of the labels, and why that is not what was asked for."""
        if error:
            self._log.error("stopped", labels=labels, reason=error)
        else:
            self._log.info("stopped", labels=labels)


def _news(observation: NoFabricData | Unknown) -> tuple[str, str]:
    """Return what makes it differ from the last one: numbers do not, nor do others' words."""
    if isinstance(observation, NoFabricData):
        return observation.result.value, ""
    detail = "" if observation.quotes else _DIGITS.sub("", observation.detail)
    return observation.reason, detail


def pending(confirmed: Confirmed) -> str | None:
    """Return what waits for confirmation, in words; None when nothing does."""
    counts = {kind.value: confirmed.pending(kind) for kind in LossKind}
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count) or None


def _facts(publication: Publication) -> dict[str, object]:
    topology = publication.topology
    if topology is None:
        return {"state": publication.state.value}
    return {
        "state": publication.state.value,
        "links": len(topology.links),
        "gpus": len(topology.neighbors),
    }


def _difference(before: Confirmed | None, wanted: Publication) -> dict[str, object]:
    if before is None or wanted.topology is None:
        return {}
    old, new = before.topology, wanted.topology
    gained, lost = set(new.by_ends) - set(old.by_ends), set(old.by_ends) - set(new.by_ends)
    others = {
        "tiles": old.tiles != new.tiles,
        "id map": old.gpus != new.gpus,
        "lanes": not gained | lost and old.links != new.links,
    }
    changed = " ".join(what for what, differs in others.items() if differs)
    return {"gained": _some(gained), "lost": _some(lost), "also": changed or "nothing"}


def _some(ends: AbstractSet[tuple[Tile, Tile]]) -> str:
    """Return the names of a few links; a log line is no place for hundreds."""
    names = [f"{a}-{b}" for a, b in sorted(ends)]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return " ".join(names[:_MOST_NAMED]) + more or "none"


def expiry_text(expiry: datetime | None) -> str:
    """Return when labels expire, in words."""
    return expiry.isoformat() if expiry else "never"
