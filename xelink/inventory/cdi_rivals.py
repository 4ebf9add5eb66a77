"""Which devices another program's CDI spec defines, by reading its text alone. Pure.

A spec is JSON or YAML, whatever its file is called: runtimes read either with one parser of YAML. A
daemon loads no such parser for a file that is seldom there. JSON is read as JSON. Of YAML the lines
are read, as programs write them: one key in each, without tags or anchors.
"""

import json
import re
from typing import Any

# line = *( blank / "-" ) key *blank ":" 1*blank value [ 1*blank [ "#" *CHAR ] ]
# key = word / "'" word "'" / DQUOTE word DQUOTE, and the value likewise
# word: ALPHA, DIGIT, "_", ".", ":", "/" and "-", at least one
# What is nested may be called `name` without being a device's, so that a device too many is found.
# `kind` counts where a document has it, at the first column, not in annotations.
_LINE = rb"""%s(['"]?)%s\1[ \t]*:[ \t]+(['"]?)([A-Za-z0-9_.:/-]+)\2[ \t]*(?:(?<=[ \t])#[^\n]*)?$"""
_KIND = re.compile(_LINE % (b"^", b"kind"), re.MULTILINE)
_NAME = re.compile(_LINE % (rb"^[ \t-]*", b"name"), re.MULTILINE)


def defined(text: bytes, kind: str) -> frozenset[str]:
    """Find the names of the devices that a spec defines of a kind, none where it is of another."""
    try:
        return _of_json(json.loads(text), kind)
    except (ValueError, RecursionError):
        return _of_lines(text.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), kind.encode())


def _of_json(content: Any, kind: str) -> frozenset[str]:  # noqa: ANN401 - any JSON
    match content:
        case {"kind": declared, "devices": [*devices]} if declared == kind:
            names = (device.get("name") for device in devices if isinstance(device, dict))
            return frozenset(name for name in names if isinstance(name, str))
    return frozenset()


def _of_lines(text: bytes, kind: bytes) -> frozenset[str]:
    if all(match[3] != kind for match in _KIND.finditer(text)):
        return frozenset()
    return frozenset(match[3].decode() for match in _NAME.finditer(text))
