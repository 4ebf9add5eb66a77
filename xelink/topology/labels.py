"""The codec between links and `xe-links*` labels, both directions.

Labels hold at most 63 bytes, so the text of the links travels in chunks. A cut may fall inside a
number: a part of a set can look valid and be wrong, and is therefore never decoded.
"""

import re
from collections.abc import Iterable, Mapping

from xelink.topology.model import Link, Tile

LABEL = "xe-links"
LABEL_VALUE_LIMIT = 63
CONTINUATION = "Z"

# links = link *( "_" link ) ; link = tile "-" tile ; tile = device "." subdevice ; decimal
_LINK = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})-([0-9]{1,9})\.([0-9]{1,9})", re.ASCII)
_LAST_ALNUM = re.compile(r"[A-Za-z0-9](?=[^A-Za-z0-9]*\Z)", re.ASCII)
_NAME = re.compile(rf"{LABEL}(?P<number>[0-9]*)", re.ASCII)
# own = "xe-links" ( *digit / "." *any ) ; chunks of the links, and what sums them up
_OWN = re.compile(rf"{LABEL}(?:[0-9]*|\..*)", re.ASCII | re.DOTALL)


class LabelSetError(ValueError):
    """The labels are no complete and valid set: none of them may be used."""


def own(name: str, namespace: str) -> bool:
    """Return whether a full name is one of those for links in this namespace."""
    owner, slash, local = name.rpartition("/")
    return bool(slash) and owner == namespace and bool(_OWN.fullmatch(local))


def links_text(links: Iterable[Link]) -> str:
    """Write links in canonical order: the same links are the same text on every node."""
    return "_".join(str(link) for link in sorted(links))


def split(text: str, limit: int = LABEL_VALUE_LIMIT, continuation: str = CONTINUATION) -> list[str]:
    """Cut `text` into chunks that each fit a label value.

    Each cut falls after the last letter or digit within the limit. Every chunk but the first
    begins with the continuation, which uses up its length of the limit. Where no letter or digit is
    left to cut after, nothing valid can be written and the answer is empty.
    """
    chunks: list[str] = []
    prefix = ""
    while len(prefix) + len(text) > limit:
        last = _LAST_ALNUM.search(text[: limit - len(prefix)])
        if last is None:
            return []
        chunks.append(prefix + text[: last.end()])
        text = text[last.end() :]
        prefix = continuation
    return [*chunks, prefix + text]


def join(chunks: Iterable[str]) -> str:
    """Undo `split`. Raises `LabelSetError` for chunks that `split` cannot have made."""
    given = list(chunks)
    if any(not chunk.startswith(CONTINUATION) for chunk in given[1:]):
        raise LabelSetError(f"a chunk lacks the continuation {CONTINUATION!r}")
    text = "".join([*given[:1], *(chunk[len(CONTINUATION) :] for chunk in given[1:])])
    if split(text) != given:
        raise LabelSetError("the chunks are not cut where a writer cuts")
    return text


def encode(links: Iterable[Link], namespace: str) -> dict[str, str]:
    """Return the labels, full name to value, for these links; no links are one empty value."""
    return {
        f"{namespace}/{LABEL}{number if number > 1 else ''}": chunk
        for number, chunk in enumerate(split(links_text(links)), start=1)
    }


def decode(labels: Mapping[str, str], namespace: str) -> tuple[Link, ...]:
    """Return the links, sorted and without lanes, of a whole set of labels.

    Labels that are not `xe-links` plus digits in `namespace` are ignored, so any node's labels can
    be given. Raises `LabelSetError` when the set is absent, incomplete, invalid or inconsistent.
    """
    chunks: dict[int, str] = {}
    for name, value in labels.items():
        owner, _, local = name.rpartition("/")
        match = _NAME.fullmatch(local)
        if owner == namespace and match:
            chunks[_position(local, match["number"])] = value
    if sorted(chunks) != list(range(1, len(chunks) + 1)):
        raise LabelSetError(f"chunks are missing: only {sorted(chunks)} are there")
    if not chunks:
        raise LabelSetError(f"there is no label {namespace}/{LABEL}")
    return parse_links(join(chunks[number] for number in sorted(chunks)))


def parse_links(text: str) -> tuple[Link, ...]:
    """Undo `links_text`. Raises `LabelSetError` for anything that is not a list of links."""
    if not text:
        return ()
    links = [_parse_link(word) for word in text.split("_")]
    if len({link.ends for link in links}) != len(links):
        raise LabelSetError("a link is given twice")
    return tuple(sorted(links))


def _parse_link(word: str) -> Link:
    match = _LINK.fullmatch(word)
    if not match:
        raise LabelSetError(f"not a link: {word!r}")
    a, b, c, d = map(int, match.groups())
    return Link.between(Tile(a, b), Tile(c, d))


def _position(local: str, number: str) -> int:
    if not number:
        return 1
    # The first continuation is 2; `xe-links1` or `xe-links02` come from no writer.
    if number.startswith("0") or number == "1" or len(number) > len("9999"):
        raise LabelSetError(f"no writer names a label {local!r}")
    return int(number)
