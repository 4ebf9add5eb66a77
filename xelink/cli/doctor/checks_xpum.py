"""Checks of XPU Manager: its answer, its certificate, and whether it sees the fabric. Pure."""

from collections.abc import Mapping

from xelink.cli.doctor.finding import Finding, fail, ok, skip, span, warn
from xelink.cli.doctor.inspection import Answer, NodeInspection
from xelink.inventory.sysfs import MAX_SERIES
from xelink.topology.model import Topology
from xelink.topology.observation import NoFabricData, ObservedLinks, Unknown
from xelink.topology.rules import Rules, sidecar_flag, why_no_links
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.errors import ErrorCode
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.rows import TileConnection
from xelink.xpu_manager.scrape import HOST

_LINKABLE = 2  # fewer GPUs cannot be linked
_CERTIFICATE_SECONDS = 7 * 86400.0

# How answers of the releases differ
_VERSIONS: Mapping[str, str] = {"text/plain": "1.3.x", "text/html": "1.2.x"}

_RESTART = "restart XPU Manager's Pod"
_OTHER_PORT = "give XPU Manager's port with --xpum-port"
_TODO: Mapping[str, str] = {
    ScrapeReason.REFUSED: "start XPU Manager, give its port with --xpum-port, or run this in the"
    " host's network",
    ScrapeReason.RESOURCES: "close files, or allow more (ulimit -n)",
    ScrapeReason.RESET: "wait while it restarts; where it speaks HTTPS, give --cert",
    ScrapeReason.TIMEOUT: f"give it a minute after its start, then {_RESTART}",
    ScrapeReason.UNAUTHORIZED: "give the right --username and --password-file",
    ScrapeReason.STATUS: f"give it some minutes after its start, then {_RESTART}",
    ScrapeReason.PROTOCOL: _OTHER_PORT,
    ScrapeReason.TOO_LARGE: _OTHER_PORT,
    ScrapeReason.NOT_XPU_MANAGER: f"{_OTHER_PORT}, or stop what answers on this one",
    ScrapeReason.TOO_MANY_GPUS: f"see what answers on this port; if it is XPU Manager, {_RESTART}",
    ScrapeReason.NO_ROWS: f"{_RESTART}; beyond 32 tiles it never reports any",
    ScrapeReason.NO_SELF_ROWS: "run it again; if it stays, update XPU Manager",
    ScrapeReason.UNREADABLE_ROWS: "run it again; if it stays, update XPU Manager",
}

# What to do where TLS fails; where a code is not here, its own advice
_TRUST = "give --cert the CA of XPU Manager's certificate, or that certificate"
_CLIENT = "give a --client-cert that XPU Manager accepts"
_ADDRESS = f"issue a certificate with subjectAltName=IP:{HOST}"
_HTTPS = "let XPU Manager serve HTTPS, or leave out --cert"
_TLS_TODO: Mapping[ErrorCode, str] = {
    ErrorCode.TLS_FILE: _TRUST,
    ErrorCode.SELF_SIGNED: _TRUST,
    ErrorCode.NOT_OF_THAT_CA: _TRUST,
    ErrorCode.NO_CA: _TRUST,
    ErrorCode.NO_NAME: _ADDRESS,
    ErrorCode.NO_ADDRESS: _ADDRESS,
    ErrorCode.NOT_FOR_SERVERS: "issue a certificate for serverAuth",
    ErrorCode.CLIENT_FILE: _CLIENT,
    ErrorCode.CLIENT_FILES: _CLIENT,
    ErrorCode.CLIENT_PERHAPS_WANTED: _CLIENT,
    ErrorCode.CLIENT_WANTED: _CLIENT,
    ErrorCode.CLIENT_REJECTED: _CLIENT,
    ErrorCode.CLIENT_EXPIRED: _CLIENT,
    ErrorCode.CLIENT_OF_UNKNOWN_CA: _CLIENT,
    ErrorCode.NO_TLS: _HTTPS,
    ErrorCode.NO_HANDSHAKE_IN_TIME: _HTTPS,
}


def answers(node: NodeInspection) -> Finding:
    """Check that XPU Manager reports the topology."""
    answer, url = node.answer, node.target.url
    seen = answer.outcome
    if not isinstance(seen, ObservedLinks):
        return _no_topology(answer, seen, url)
    gpus = len({tile.device for tile in seen.topology.tiles})
    links = len(seen.topology.links)
    said = f"{_version(answer)} at {url}: {gpus} GPUs, {links} Xe Links"
    if seen.ambiguous:
        ids = " ".join(map(str, sorted(seen.ambiguous)))
        return warn(f"{said}, rows disagree on the PCI address of id {ids}", _RESTART)
    if seen.unread:
        return warn(f"{said}, {seen.unread} rows cannot be parsed", "update XPU Manager")
    if seen.contradicting:
        count = len(seen.contradicting)
        return warn(
            f"{said}, rows of {count} directions contradict each other: a link that is down"
            " may still be reported",
            "update XPU Manager to 1.2.16 or later",
        )
    usual = classify(answer.reading, Rules()) if answer.reading else seen
    if isinstance(usual, ObservedLinks) and usual.filtered and not usual.topology.links:
        return warn(
            f"{said}; with the sidecar's defaults, {why_no_links(usual, Rules(), sidecar_flag)}",
            "give xelink-sidecar that flag, if these links are to be published",
        )
    return ok(said)


def _no_topology(answer: Answer, seen: NoFabricData | Unknown, url: str) -> Finding:
    if isinstance(seen, NoFabricData):
        said = f"2.x at {url}: no Xe Link topology in its metrics"
        return warn(said, "run 1.2 or 1.3 on nodes whose links should be published")
    match seen.reason:
        case ScrapeReason.TLS:
            return skip(f"no answer at {url}", "tls")
        case ScrapeReason.REFUSED:
            said = f"nothing listens at {url}"
        case ScrapeReason.STATUS:
            said = f"{url} answers {seen.detail}"
        case ScrapeReason.NOT_XPU_MANAGER:
            strange = answer.reading.strange if answer.reading else seen.detail
            said = f"something else answers at {url}: {strange}"
        case ScrapeReason.NO_ROWS:
            said = f"{url} answers 200 without topology rows"
        case _:
            said = f"{url}: {answer.error.what if answer.error else seen.detail}"
    return fail(f"{said} ({seen.reason})", _TODO[seen.reason])


def _version(answer: Answer) -> str:
    return _VERSIONS.get(answer.content_type, "unknown version")


def tls(node: NodeInspection) -> Finding:
    """Check that XPU Manager's certificate can be verified and does not end soon."""
    answer = node.answer
    if node.target.tls is None:
        return skip("plain HTTP, as --cert is not given")
    if isinstance(answer.outcome, Unknown) and answer.outcome.reason is ScrapeReason.TLS:
        return _unverified(answer)
    if answer.certificate_expiry is None:
        return skip("no certificate was shown", "xpum")
    left = answer.certificate_expiry - node.now.timestamp()
    if left < _CERTIFICATE_SECONDS:
        return warn(
            f"verified, but the certificate ends in {span(left)}",
            "renew it; neither XPU Manager nor xelink-sidecar needs a restart for that",
        )
    return ok(f"verified against {node.target.tls.cert}, the certificate ends in {span(left)}")


def _unverified(answer: Answer) -> Finding:
    if answer.error is None or answer.code is None:
        raise AssertionError("TLS failed without an error of the scrape")
    if todo := _TLS_TODO.get(answer.code):
        return fail(str(answer.error), todo)
    return fail(answer.error.what, answer.error.advice or _TRUST)


def host_network(node: NodeInspection) -> Finding:
    """Check that XPU Manager sees the fabric: without the host's network it sees only GPUs."""
    answer = node.answer
    if not isinstance(answer.outcome, ObservedLinks) or answer.reading is None:
        return skip("not known without a topology", "xpum")
    if any(row.connection is TileConnection.XE_LINK for row in answer.reading.rows):
        return ok("XPU Manager sees Xe Links")
    if answer.reading.ports:
        return ok("XPU Manager sees Xe Link ports, and no link between GPUs")
    return _no_fabric(node, answer.outcome.topology)


def _no_fabric(node: NodeInspection, topology: Topology) -> Finding:
    gpus = len({tile.device for tile in topology.tiles})
    if gpus < _LINKABLE:
        return ok("one GPU has no other to be linked to")
    models = _device_ids(node)
    known = [models[gpu.bdf] for gpu in topology.gpus if gpu.bdf in models]
    able = sum(model in MAX_SERIES for model in known)
    said, todo = f"XPU Manager sees {gpus} GPUs and no Xe Link", "give its Pod hostNetwork: true"
    if able >= _LINKABLE:
        return fail(said, todo)
    if len(known) == gpus:
        return ok(f"no Xe Link is to be expected, {able} of {gpus} GPUs are of the Max series")
    return warn(said, f"if these GPUs are of the Max series, {todo}")


def _device_ids(node: NodeInspection) -> Mapping[str, int]:
    """Return PCI device ids by address, of every GPU with a card in sysfs."""
    if node.inventory is None:
        return {}
    hidden = [gpu.card for gpu in node.inventory.excluded if gpu.card]
    return {card.bdf: card.device_id for card in (*node.inventory.cards, *hidden)}
