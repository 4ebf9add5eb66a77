"""The plugin's page for people: its status in sections and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from device_plugin.history import MOST_PREFERENCES
from device_plugin.status import JsonObject
from xelink.daemon.html import (
    Html,
    StatusDocument,
    badge,
    code,
    instant,
    section,
    table,
    tag,
    words,
)
from xelink.nfd.reader import FileState
from xelink.preference.criteria import CRITERIA
from xelink.preference.decision import FALLBACK, NOTHING, POLICY, UNKNOWN
from xelink.topology.publication import parsed
from xelink.view.node_view import NodeView

_MOST_ROWS = 64
"""Rows of a table that could be very long; the JSON has all of them."""


def body(status: StatusDocument) -> Sequence[Html]:
    """Return the sections of the page."""
    return (
        _summary(status),
        _picture(status),
        _resources(status),
        _gpus(status),
        _holders(status),
        _preferences(status),
    )


def _summary(status: StatusDocument) -> Html:
    fine = status["ready"]
    return section(
        "summary",
        "Now",
        tag(
            "p",
            badge("ready" if fine else "not ready", good=fine),
            f" \N{EN DASH} {status['readyz']}",
            data_news="",
        ),
        tag("p", f"Preferences by the policy {status['policy']}; health {status['health']}."),
        _items("Warnings", status["warnings"]),
    )


def _items(title: str, texts: Sequence[str]) -> Html:
    if not texts:
        return Html("")
    items = [tag("li", text) for text in texts]
    return Html(tag("p", f"{title}:") + tag("ul", *items))


def _picture(status: StatusDocument) -> Html:
    from xelink.view.svg import svg  # noqa: PLC0415 - most daemons never draw

    links = status["links"]
    state, reason = links["state"], links["reason"]
    facts = [
        tag("p", f"From {links['file']}: ", badge(state, good=state == FileState.IN_USE.value))
    ]
    if reason:
        facts.append(tag("p", f"{reason}."))
    if links["written"]:
        expires = "expired" if state == FileState.EXPIRED.value else "expires"
        written, end = instant(links["written"]), instant(links["expires"])
        facts.append(tag("p", "Written ", written, f", {expires} ", end, "."))
    drawn = NodeView("", status["host"], reason=state)
    if links["topology"]:
        guess = state == FileState.INFERRED.value
        name = f"{status['host']} (a guess)" if guess else status["host"]
        topology = parsed(links["topology"], links["topology"]["gpus"])
        drawn = replace(NodeView.of(topology), name=name, labels_only=guess)
    else:
        facts.append(tag("p", "No links are known: GPUs are preferred by NUMA node and address."))
    # Without links, too: a page may show none at first, and links later.
    return section("links", "Links", *facts, Html(svg(drawn)))


def _resources(status: StatusDocument) -> Html:
    rows = [
        (
            one["resource"],
            _registration(one),
            str(one["streams"]),
            str(one["devices"] - len(one["unhealthy"])),
            str(len(one["unhealthy"])),
            code(one["socket"]),
        )
        for one in status["resources"]
    ]
    columns = ("resource", "kubelet", "streams", "healthy", "unhealthy", "socket")
    bad = [
        (id_, one["resource"], why)
        for one in status["resources"]
        for id_, why in one["unhealthy"].items()
    ]
    unhealthy = [_long_table("devices that are unhealthy", ("device", "resource", "why"), bad)]
    return section(
        "devices",
        "Devices",
        table("resources that are advertised to kubelet", columns, rows),
        *(unhealthy if bad else ()),
    )


def _registration(one: JsonObject) -> Html:
    if one["registered"]:
        return tag("span", badge("registered", good=True), " ", instant(one["since"]))
    why = f": {one['error']}" if one["error"] else ""
    return tag("span", badge("not registered", good=False), why)


def _gpus(status: StatusDocument) -> Html:
    cards = {gpu["pci"]: gpu["card"] for gpu in status["gpus"]}
    rows = [
        (
            gpu["card"],
            code(gpu["pci"]),
            f"{gpu['model'] or gpu['device_id']}{' (VF)' if gpu['vf_of'] else ''}",
            _or_unknown(gpu["numa"]),
            gpu["driver"],
            _or_unknown(gpu["tiles"]),
            _health(gpu),
            _linked(gpu, cards, guess=status["links"]["state"] == FileState.INFERRED.value),
        )
        for gpu in status["gpus"]
    ]
    columns = ("card", "PCI address", "model", "NUMA", "driver", "tiles", "health", "linked to")
    return section(
        "gpus",
        "GPUs",
        table("GPUs that are advertised", columns, rows),
        _items("Not advertised", status["excluded"]),
    )


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _health(gpu: JsonObject) -> Html:
    if gpu["unhealthy"]:
        return tag("span", badge("unhealthy", good=False), f": {gpu['unhealthy']}")
    state = badge("healthy", good=True)
    silent = "" if gpu["health_known"] else " (not reported by XPU Manager)"
    return tag("span", state, silent)


def _linked(gpu: JsonObject, cards: Mapping[str, str], *, guess: bool) -> str:
    linked = gpu["linked_to"]
    if linked is None:
        return "unknown"
    others = cards.keys() - {gpu["pci"]}
    every = bool(linked) and others == {*linked}
    names = "all others" if every else words(cards.get(bdf, bdf) for bdf in linked)
    return Html(f"{names} (a guess)") if guess else names


_LINKED = {
    "all": "all pairs",
    "some": "some pairs",
    "none": "none",
    "single": "one GPU",
    "unknown": "unknown",
}
_FOLLOWED = {
    "followed": "our preference",
    "not_followed": "kubelet's, not our preference",
    "not_requested": "kubelet's, no preference requested",
}


def _holders(status: StatusDocument) -> Html:
    rows = [
        (
            instant(one["at"]),
            words(one["devices"]),
            one["resource"],
            _LINKED[one["linked"]] if one["gpus"] else "no GPU of its own",
            _FOLLOWED[one["preference"]],
            Html(f"{words(one['reallocated'])} reallocated") if one["reallocated"] else "nothing",
        )
        for one in status["allocations"]
    ]
    columns = ("when", "devices", "resource", "linked", "preference", "since then")
    return section(
        "holders",
        "Current holders, best effort",
        tag(
            "p",
            "The device plugin API reports neither the Pod nor its end: these containers got their"
            " devices last, since this plugin started. Where some devices were reallocated since,"
            " that container has ended, or was an init container.",
        ),
        _long_table("last allocation of each device", columns, rows),
    )


_DECIDED = {
    **{
        criterion.name: f"criterion {criterion.number}: {criterion.meaning}"
        for criterion in CRITERIA
    },
    NOTHING: "there was no other set",
    POLICY: "the policy uses no criteria",
    FALLBACK: "fallback",
    UNKNOWN: "not found out in time",
}


def _preferences(status: StatusDocument) -> Html:
    rows = [
        (
            instant(one["at"]),
            words([f"{one['size']} of {one['available']}"]),
            words(one["must_include"]),
            words(one["chosen"]),
            _DECIDED[one["decided"]],
            words(one["runner_up"]),
            _proof(one),
        )
        for one in status["preferences"]
    ]
    columns = ("when", "asked", "must include", "chosen", "decided by", "runner-up", "best")
    return section(
        "preferences",
        "Preferences",
        table(f"the last {MOST_PREFERENCES} preferences", columns, rows),
    )


def _proof(one: JsonObject) -> Html:
    if one["error"]:
        return tag("span", badge("fallback", good=False), f": {one['error']}")
    return tag("span", "proven" if one["proven"] else "not proven")


def _long_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    shown = table(caption, columns, rows[:_MOST_ROWS])
    if len(rows) <= _MOST_ROWS:
        return shown
    more = tag(
        "p", f"and {len(rows) - _MOST_ROWS} more: ", tag("a", "status.json", href="status.json")
    )
    return Html(shown + more)
