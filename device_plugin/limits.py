"""Bounds of one request, and of all requests together. Pure.

kubelet's largest requests are far below: it asks for one container at a time, names each of its
devices at most twice, and has one connection with one stream and one waiting call. Whoever exceeds
a bound gets RESOURCE_EXHAUSTED, and kubelet's own requests are answered meanwhile.
"""

from dataclasses import dataclass
from typing import NamedTuple

# Cards that are advertised: the largest node has 16 GPUs, and a GPU has at most 63 VFs.
_MOST_CARDS = 16 * 64
# All of these in a hundred shares, or a hundred GPUs in the thousand that -shared-dev-num allows. A
# kubelet hears of hardly more: its gRPC takes 4 MiB in one message, about 25 bytes for each device.
_MOST_DEVICES = 100 * _MOST_CARDS
_LEAST_IDS = 4096
_BYTES_OF_ID = 16  # "card999999-999" has 14, and 2 before it
_OTHER_BYTES = 1 << 14
_MOST_CALLS = 128
_IDS_UNDER_WAY = _MOST_CALLS * _LEAST_IDS  # of all calls together


class ExceededError(Exception):
    """A request, or all of them together, exceed a bound: RESOURCE_EXHAUSTED."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one resource's server.

    `ids` and `containers` are those of one request, `calls` those under way, until the answer is
    sent. `streams` are those of ListAndWatch. A request must arrive within `read_timeout` seconds.
    """

    ids: int = _LEAST_IDS
    containers: int = 32
    calls: int = _MOST_CALLS
    streams: int = 64
    read_timeout: float = 5.0

    @classmethod
    def of(cls, shares: int) -> "Limits":
        """Return the bounds where each card is as many devices, which a request may name twice.

        The larger a request may be, the fewer are under way, so that all of them take no more.
        """
        ids = max(_LEAST_IDS, 2 * min(_MOST_CARDS * shares, _MOST_DEVICES))
        return cls(ids=ids, calls=min(_MOST_CALLS, _IDS_UNDER_WAY // ids))

    @property
    def bytes(self) -> int:
        """Of one request."""
        return self.ids * _BYTES_OF_ID + _OTHER_BYTES


class Varint(NamedTuple):
    """A number of the wire format, and where it ends."""

    value: int
    end: int


def require_few(message: bytes, most: int) -> None:
    """Raise `ExceededError` where a message has more than `most` fields at its top.

    To be asked before it is parsed: each may be an empty container of two bytes, which takes a
    hundred in memory. What is no message is let through, for who parses it.
    """
    at = 0
    for _ in range(most):
        if (end := _end(message, at)) is None or end >= len(message):
            return
        at = end
    raise ExceededError(f"more than {most} fields in one request")


# message = *( tag value ) ; tag = varint, of which the last three bits are the kind of the value
# value = varint / 8OCTET / ( length *OCTET ) / 4OCTET
_FIXED = {1: 8, 5: 4}
_LENGTH = 2


def _end(message: bytes, at: int) -> int | None:
    """Return where the field that begins at `at` ends, None where there is none."""
    tag = _varint(message, at)
    if tag is None:
        return None
    kind = tag.value & 7
    if kind in _FIXED:
        return tag.end + _FIXED[kind]
    value = _varint(message, tag.end)
    if value is None or kind not in {0, _LENGTH}:
        return None
    return value.end + (value.value if kind == _LENGTH else 0)


def _varint(message: bytes, at: int) -> Varint | None:
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a number has its highest bit clear
            return Varint(value, at + place + 1)
    return None
