"""Samples of an exposition, parsed strictly: labels and value of one line. Pure."""

import re
from collections.abc import Mapping
from string import ascii_letters, digits

_BLANKS = b" \t"
_OF_A_NAME = frozenset(bytes([byte]) for byte in b"_:" + ascii_letters.encode() + digits.encode())

# sample = name "{" [ label *( "," label ) [ "," ] ] "}" value [ timestamp ]
# label = name "=" DQUOTE *( any but DQUOTE "\" / "\" any ) DQUOTE ; blanks between all of them
#
# Anybody may have written these bytes: nothing is tried in two ways (possessive, one step after the
# other), so a line takes time by its length and no more.
_BEGIN = re.compile(rb"[ \t]*+([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+\{[ \t]*+")
_LABEL = re.compile(
    rb'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]++|\\.)*+)"[ \t]*+(,[ \t]*+)?+', re.DOTALL
)
_END = re.compile(rb"\}[ \t]*+([^ \t\r]++)(?:[ \t]++-?[0-9.eE+]++)?+[ \t]*+\r?")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_NUMBER = re.compile(rb"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?")
_PLAIN_DIGITS = 18
_MOST = 10**9  # far above any id or lane count, far below what would not fit a label


class MalformedSampleError(ValueError):
    """The line is no sample that can be understood: count it and go on."""


def is_sample(line: bytes, name: bytes) -> bool:
    """Return whether a line is a sample of this whole name, well-formed or not."""
    if not line.startswith(name):
        line = line.lstrip(_BLANKS)
    return line.startswith(name) and ends_name(line, len(name))


def ends_name(text: bytes, place: int) -> bool:
    """Return whether the name of a metric that goes up to this place ends there."""
    return text[place : place + 1] not in _OF_A_NAME


def parse(line: bytes, name: bytes) -> tuple[Mapping[bytes, bytes], bytes]:
    """Return the labels, each under the key `,name=`, and the value of a sample.

    Raises `MalformedSampleError`.
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
    begin = _BEGIN.match(line)
    if not begin or begin[1] != name:
        raise MalformedSampleError
    labels: dict[bytes, bytes] = {}
    position, more = begin.end(), True
    while more and (label := _LABEL.match(line, position)):
        labels[b",%s=" % label[1]] = _ESCAPE.sub(_unescape, label[2])
        position, more = label.end(), label[3] is not None
    end = _END.fullmatch(line, position)
    if not end:
        raise MalformedSampleError
    return labels, end[1]


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\n" if match[1] == b"n" else match[1]


def integer(text: bytes) -> int:
    """Read a number that is written as an integer, a float or with an exponent.

    Raises `MalformedSampleError`.
    """
    if text.isdigit() and len(text) <= _PLAIN_DIGITS:
        return int(text)
    text = text.strip()
    if not _NUMBER.fullmatch(text) or (number := float(text)) != int(number):
        raise MalformedSampleError
    return int(number)


def natural(text: bytes) -> int:
    """Read an id or a count. Raises `MalformedSampleError`."""
    number = integer(text)
    if not 0 <= number < _MOST:
        raise MalformedSampleError
    return number
