"""What a body is that is not XPU Manager's, by its first bytes. Pure."""

import re

BEGINNING = 512
"""Bytes that are looked at."""

_LINE_LIMIT = 80

_UTF_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_GZIP = b"\x1f\x8b"

# comment = "#" ( " HELP " / " TYPE " ) name ; sample = name ( "{" / " " number ( blank / end ) )
_METRICS = re.compile(
    rb"# (?:HELP|TYPE) [a-zA-Z_:]"
    rb"|[a-zA-Z_:][a-zA-Z0-9_:]*+(?:\{| [+-]?(?:[0-9.eE+-]++|Inf|NaN)(?:\s|\Z))"
)
_WEB_PAGE = re.compile(rb"<(?:!doctype html|html|head|body)\b", re.IGNORECASE)


def described(beginning: bytes) -> str:
    """Return what begins so, and its first line in quotes."""
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        return "an empty answer, no metrics"
    if text.startswith(_GZIP):
        return "data packed by gzip, not XPU Manager's metrics"
    encoding = _UTF_16.get(beginning[:2])
    if encoding:
        line = _first_line(beginning[2:].decode(encoding, "replace"))
        return f"UTF-16 text, as PowerShell's > writes it, not UTF-8; it begins {line!r}"
    line = _first_line(text.decode(errors="replace"))
    return f"{_kind(text)}, not XPU Manager's metrics; it begins {line!r}"


def _kind(text: bytes) -> str:
    if _WEB_PAGE.match(text):
        return "a web page"
    if text.startswith((b"{", b"[")):
        api = b'"resultType"' in text and b'"status"' in text
        return "an answer of Prometheus's query API" if api else "JSON"
    if _METRICS.match(text):
        return "metrics of another exporter"
    return "no metrics"


def _first_line(text: str) -> str:
    """Return the first line with something on it; `repr` quotes it, and escapes its controls."""
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= _LINE_LIMIT else f"{line[:_LINE_LIMIT]}..."
