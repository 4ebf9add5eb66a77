"""The state of the sidecar: for programs as JSON, for people as a page."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sidecar.debounce import Key, LossKind, Missing
from sidecar.loop import Scrape, Sidecar
from xelink.daemon.html import (
    Html,
    StatusDocument,
    badge,
    code,
    instant,
    iso,
    section,
    table,
    tag,
    words,
)
from xelink.nfd.writer import PublishError
from xelink.topology import nfd_format
from xelink.topology.model import PortState, Tile
from xelink.topology.observation import ObservedLinks, Unknown
from xelink.topology.publication import COUNT, GROUP, id_map, parsed, shape
from xelink.topology.text import printable


def status(sidecar: Sidecar, source: str, file: str, now: datetime, *, host: str) -> StatusDocument:
    """Return all there is, ready for JSON; nothing of it is secret."""
    confirmed = sidecar.confirmed
    content, unreadable = None, None
    try:
        content = sidecar.current_file()
    except PublishError as error:
        unreadable = printable(str(error))
    published = nfd_format.parse(content, now) if content is not None else None
    return {
        "now": iso(now),
        "host": host,
        "source": source,
        "not_ready": sidecar.not_ready(),
        "topology": {**shape(confirmed.topology), "gpus": id_map(confirmed.topology)}
        if confirmed
        else None,
        "published": {
            "file": file,
            "expires": iso(published.expiry),
            "expired": published.expired,
            "labels": dict(published.labels),
        }
        if published
        else None,
        "unreadable": unreadable,
        "waiting": [
            _waiting(key, missing, sidecar.policy.confirmations)
            for key, missing in (confirmed.missing if confirmed else {}).items()
        ],
        "scrapes": [_scrape(scrape) for scrape in sidecar.scrapes],
    }


def _waiting(key: Key, missing: Missing, confirmations: int) -> dict[str, Any]:
    match key.of:
        case (Tile() as one, Tile() as other):
            name = f"{one}-{other}"
        case of:
            name = str(of)
    return {
        "kind": key.kind.value,
        "of": name,
        "scrapes": missing.scrapes,
        "confirmations": confirmations,
    }


def _scrape(scrape: Scrape) -> dict[str, Any]:
    observation = scrape.observation
    topology = observation.topology if isinstance(observation, ObservedLinks) else None
    return {
        "at": iso(scrape.at),
        "seconds": round(scrape.seconds, 3),
        "result": observation.result.value,
        "reason": observation.reason if isinstance(observation, Unknown) else None,
        "detail": None if isinstance(observation, ObservedLinks) else observation.detail,
        "links": len(topology.links) if topology else None,
    }


def body(found: StatusDocument) -> Sequence[Html]:
    """Return the parts of the page."""
    return (
        _summary(found),
        _links(found),
        _waits(found),
        _labels(found),
        _scrapes(found),
        _gpus(found),
    )


def _summary(found: StatusDocument) -> Html:
    problem = found["not_ready"]
    scrape = found["scrapes"][0]["result"] if found["scrapes"] else "none yet"
    return section(
        "summary",
        "Now",
        tag(
            "p",
            badge("ready" if not problem else "not ready", good=not problem),
            f" \N{EN DASH} {problem}" if problem else "",
            data_news="",
        ),
        tag("p", f"Last scrape of {found['source']}: {scrape}."),
    )


def _links(found: StatusDocument) -> Html:
    from xelink.view.node_view import NodeView  # noqa: PLC0415 - most daemons never draw
    from xelink.view.svg import svg  # noqa: PLC0415 - the same

    node = NodeView("", found["host"], reason="no topology is confirmed yet")
    if found["topology"]:
        topology = parsed(found["topology"], found["topology"]["gpus"])
        node = replace(NodeView.of(topology), name=found["host"])
    return section("links", "Links", Html(svg(node)))


def _labels(found: StatusDocument) -> Html:
    published = found["published"]
    if not published:
        unreadable = found["unreadable"]
        text = f"Not known: {unreadable}." if unreadable else "Nothing is published."
        return section("labels", "Labels", tag("p", text))
    expires = "expired" if published["expired"] else "expire"
    rows = [(code(name), code(value, "_")) for name, value in published["labels"].items()]
    names = {name.rpartition("/")[2] for name in published["labels"]}
    unknown = COUNT in names and GROUP not in names
    return section(
        "labels",
        "Labels",
        tag("p", f"In {published['file']}, they {expires} ", instant(published["expires"]), "."),
        *([tag("p", f"{GROUP} is left out: {_UNFINISHED}")] if unknown else []),
        table("labels of this node", ("label", "value"), rows),
    )


_UNFINISHED = "the largest group was not found within the bound of the search."


def _scrapes(found: StatusDocument) -> Html:
    rows = [
        (
            instant(scrape["at"]),
            badge(scrape["result"], good=scrape["links"] is not None),
            f"{scrape['seconds']:.3f} s",
            f"{scrape['links']} links"
            if scrape["links"] is not None
            else ": ".join(filter(None, (scrape["reason"], scrape["detail"]))),
        )
        for scrape in found["scrapes"]
    ]
    return section(
        "scrapes", "Scrapes", table("last scrapes", ("when", "result", "took", "found"), rows)
    )


_LOST = {
    LossKind.GPU: "GPUs",
    LossKind.TILE: "tiles",
    LossKind.LINK: "Xe Links",
    LossKind.LANES: "lanes, there or back",
    LossKind.PORTS: "healthy ports of GPUs",
}


def _waits(found: StatusDocument) -> Html:
    # One GPU takes dozens of links, lanes and ports with it.
    lost: dict[tuple[LossKind, str], list[str]] = {}
    for loss in found["waiting"]:
        agreed = f"{loss['scrapes']} of {loss['confirmations']}"
        lost.setdefault((LossKind(loss["kind"]), agreed), []).append(loss["of"])
    rows = [
        (name, words(of), agreed)
        for kind, name in _LOST.items()
        for (its, agreed), of in lost.items()
        if its is kind
    ]
    return section(
        "waiting",
        "Losses",
        table("losses that wait for confirmation", ("lost", "which", "scrapes that agree"), rows),
    )


def _gpus(found: StatusDocument) -> Html:
    gpus = found["topology"]["gpus"] if found["topology"] else []
    rows = [
        (
            str(gpu["id"]),
            code(gpu["pci"]),
            gpu.get("card", "unknown"),
            str(gpu.get("numa", "unknown")),
            _ports(gpu.get("ports")),
            code(gpu["uuid"]) if "uuid" in gpu else "unknown",
        )
        for gpu in gpus
    ]
    columns = ("id", "PCI address", "card", "NUMA", "Xe Link ports", "UUID")
    return section("gpus", "GPUs", table("id map", columns, rows))


def _ports(state: str | None) -> str:
    return badge(state, good=state == PortState.HEALTHY.value) if state else "unknown"
