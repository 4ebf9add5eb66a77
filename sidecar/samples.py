"""Samples of an exposition, parsed strictly: labels and value of one line."""

import re
from collections.abc import Mapping

_BLANKS = b" \t"

# sample = name "{" [ label *( "," label ) [ "," ] ] "}" value [ timestamp ]
# label = name "=" DQUOTE *( any but DQUOTE "\" LF / "\" any ) DQUOTE ; blanks between all of them
_SAMPLE = re.compile(
    rb"[ \t]*([a-z_]+)[ \t]*\{(.*)\}[ \t]*([^ \t]+)(?:[ \t]+-?[0-9.eE+]+)?[ \t]*\r?", re.DOTALL
)
_LABEL = re.compile(
    rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|\Z)',
    re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_NUMBER = re.compile(rb"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?")
_PLAIN_DIGITS = 18
_MOST = 10**9  # far above any id or lane count, far below what would not fit a label


class MalformedError(ValueError):
    """The line is no sample that can be understood: count it and go on."""


def is_sample(line: bytes, name: bytes) -> bool:
    """Tell whether a line is a sample of this name, whatever it is worth."""
    return line.startswith(name) or line.lstrip(_BLANKS).startswith(name)


def parse(line: bytes, name: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    """Give the labels, each under the key `,name=`, and the value of a sample.

    Raises `MalformedError`.
    """
    # Without a backslash every quote is a delimiter, and splitting at quotes is exact. What is not
    # in the exporter's own spelling, without a blank between its parts, goes the long way.
    parts = line.split(b'"')
    end = parts.pop()
    keys = parts[0::2]
    names = b"".join(keys)
    if (
        end.startswith(b"} ")
        and line.startswith(name + b"{")
        and b" " not in names
        and names.count(b"=") == len(keys)
        and b"\\" not in line
        and b" " not in end[2:]
    ):
        keys[0] = b"," + keys[0][len(name) + 1 :]
        return dict(zip(keys, parts[1::2], strict=True)), end[2:]
    return _parse_slowly(line, name)


def _parse_slowly(line: bytes, name: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    sample = _SAMPLE.fullmatch(line)
    if not sample or sample[1] != name:
        raise MalformedError
    labels: dict[bytes, bytes] = {}
    position = 0
    while position < len(sample[2]):
        label = _LABEL.match(sample[2], position)
        if not label:
            raise MalformedError
        labels[b",%s=" % label[1]] = _ESCAPE.sub(_unescape, label[2])
        position = label.end()
    return labels, sample[3]


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\n" if match[1] == b"n" else match[1]


def integer(text: bytes) -> int:
    """Read a number that is written as an integer, a float or with an exponent.

    Raises `MalformedError`.
    """
    if text.isdigit() and len(text) <= _PLAIN_DIGITS:
        return int(text)
    text = text.strip()
    if not _NUMBER.fullmatch(text) or (number := float(text)) != int(number):
        raise MalformedError
    return int(number)


def natural(text: bytes) -> int:
    """Read an id or a count. Raises `MalformedError`."""
    number = integer(text)
    if not 0 <= number < _MOST:
        raise MalformedError
    return number
