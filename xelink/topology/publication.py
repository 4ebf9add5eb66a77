"""What one feature file publishes of a node: rendered by the writer, read back by every reader.

Labels are what Kubernetes sees; two raw features carry, in the same file and so at the same
instant, what labels cannot: the lanes of each direction and the id map. Both are JSON, which can
never pass for a label value: an NFD too old to know `no-label` drops them instead of publishing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from hashlib import sha256
from typing import Any

from xelink.topology import labels, nfd_format
from xelink.topology.groups import largest_group
from xelink.topology.model import Gpu, Link, PortState, Tile, Topology, excess

DEFAULT_NAMESPACE = "gpu.intel.com"
COUNT = f"{labels.LABEL}.count"
GPUS = f"{labels.LABEL}.gpus"
GROUP = f"{labels.LABEL}.group"
STATE = f"{labels.LABEL}.state"
HASH = f"{labels.LABEL}.hash"
SUMMARIES = (COUNT, GPUS, GROUP, STATE, HASH)
"""The labels that sum up the links."""
RAW_TOPOLOGY = f"{labels.LABEL}.topology"
RAW_ID_MAP = f"{labels.LABEL}.id-map"

_HASH_DIGITS = 16
_MOST = 10**9


class LinkState(Enum):
    """What is known of the node's Xe Links, in the words of the `xe-links.state` label."""

    LINKS = "links"
    NONE = "none"
    NO_FABRIC_DATA = "no-fabric-data"


class UnusableError(ValueError):
    """Nothing in the file may be used: a reader goes on as if it were not there."""


class AbsentError(UnusableError):
    """The file has no link labels of this namespace."""


class ExpiredFileError(UnusableError):
    """The file's time has passed."""


class InconsistentError(UnusableError):
    """The file's parts contradict each other, or one of them is missing."""


class UnwritableError(ValueError):
    """Kubernetes or NFD would refuse what should be published: it is not written."""


class TooLongError(UnwritableError):
    """NFD would drop the whole file for its length: only fewer links can be published."""


@dataclass(frozen=True)
class Publication:
    """One node's published truth.

    `topology` is None when the source has no fabric data. `expiry` is None when it never
    expires. `whole` is whether the raw features came with the labels: without them links have no
    lanes and nothing maps ids to PCI addresses.
    """

    topology: Topology | None
    expiry: datetime | None = None
    whole: bool = True

    @property
    def state(self) -> LinkState:
        """The value of the `xe-links.state` label."""
        if self.topology is None:
            return LinkState.NO_FABRIC_DATA
        return LinkState.LINKS if self.topology.links else LinkState.NONE

    def until(self, expiry: datetime | None) -> "Publication":
        """Return the same with another expiry."""
        return replace(self, expiry=expiry)


def links_hash(links: tuple[Link, ...]) -> str:
    """Digest the canonical text of the links, to check integrity and to compare nodes."""
    return sha256(labels.links_text(links).encode()).hexdigest()[:_HASH_DIGITS]


def node_labels(
    publication: Publication, namespace: str, *, summary: bool = True
) -> dict[str, str]:
    """Return every label, full name to value, that the publication puts on a node.

    The size of the largest group is left out where the search for it was cut short.
    """
    topology = publication.topology
    found = labels.encode(topology.links, namespace) if topology else {}
    if summary:
        summaries = {STATE: publication.state.value}
        if topology:
            neighbors = topology.neighbors
            largest = largest_group(neighbors)
            summaries = {
                COUNT: str(len(topology.links)),
                GPUS: str(len(neighbors)),
                # A label has no way to say "at least": a selector on it would be wrong.
                **({GROUP: str(len(largest.group))} if largest.complete else {}),
                **summaries,
                HASH: links_hash(topology.links),
            }
        found |= {f"{namespace}/{name}": value for name, value in summaries.items()}
    return found


def raw_features(publication: Publication, namespace: str) -> dict[str, str]:
    """Return the raw features, full name to value: the unsplit topology and the id map."""
    topology = publication.topology
    if topology is None:
        return {}
    return {
        f"{namespace}/{RAW_TOPOLOGY}": _compact(shape(topology)),
        f"{namespace}/{RAW_ID_MAP}": _compact(id_map(topology)),
    }


def shape(topology: Topology) -> dict[str, Any]:
    """Return tiles and links with the lanes of both directions, ready for JSON."""
    return {
        "tiles": [str(tile) for tile in topology.tiles],
        "links": [
            [str(link.a), str(link.b), link.lanes, link.lanes_back] for link in topology.links
        ],
    }


def id_map(topology: Topology) -> list[dict[str, Any]]:
    """Return what is known of each GPU, ready for JSON."""
    return [_gpu_entry(gpu) for gpu in topology.gpus]


def render(publication: Publication, namespace: str, *, summary: bool = True) -> bytes:
    """Write the feature file of a publication.

    The same publication gives the same bytes. Raises `UnwritableError` when a line would not pass
    the rules of Kubernetes or NFD, or when NFD would drop the file for its length.
    """
    raw = raw_features(publication, namespace)
    _require_room(sum(map(len, raw.values())))  # before the work of the summaries
    found = node_labels(publication, namespace, summary=summary)
    for name, value in found.items():
        if problem := nfd_format.label_problem(name, value):
            raise UnwritableError(problem)
    for name in raw:
        if problem := nfd_format.name_problem(name):
            raise UnwritableError(problem)
    lines = [
        *([nfd_format.format_expiry(publication.expiry)] if publication.expiry else []),
        *(f"{name}={value}" for name, value in found.items()),
        *(nfd_format.format_raw(name, value) for name, value in raw.items()),
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    _require_room(len(content))
    return content


def _require_room(size: int) -> None:
    if size > nfd_format.FILE_LIMIT:
        raise TooLongError(f"{size} bytes: NFD drops a file of more than {nfd_format.FILE_LIMIT}")


def read(content: bytes, namespace: str, now: datetime) -> Publication:
    """Read what a feature file publishes at the instant `now`: all of it, or nothing.

    Files of Intel's XeLink sidecar, which have labels only, are understood. Raises `AbsentError`,
    `ExpiredFileError` or `InconsistentError`.
    """
    file = nfd_format.parse(content, now)
    if file.expired:
        raise ExpiredFileError(f"expired at {file.expiry}")
    own = {
        name.removeprefix(f"{namespace}/"): value
        for name, value in {**file.features, **file.labels}.items()
        if labels.own(name, namespace)
    }
    if not own:
        raise AbsentError(f"no label {namespace}/{labels.LABEL}")
    if own.get(STATE) == LinkState.NO_FABRIC_DATA.value:
        if set(own) != {STATE}:
            raise InconsistentError("links beside the state no-fabric-data")
        return Publication(None, file.expiry)
    return _read_links(file.labels, own, namespace).until(file.expiry)


def _read_links(found: Mapping[str, str], own: Mapping[str, str], namespace: str) -> Publication:
    try:
        links = labels.decode(found, namespace)
        raw = {name: own[name] for name in (RAW_TOPOLOGY, RAW_ID_MAP) if name in own}
        topology = _parse_raw(raw) if raw else Topology(links)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InconsistentError(str(error)) from error
    if problem := excess(topology.tiles, (gpu.id for gpu in topology.gpus)):
        raise InconsistentError(problem)
    if [link.ends for link in topology.links] != [link.ends for link in links]:
        raise InconsistentError("the raw topology names other links than the labels")
    publication = Publication(topology, whole=bool(raw))
    # Not the group: its size takes too long to find in a file that means harm.
    expected = {
        COUNT: str(len(links)),
        STATE: publication.state.value,
        HASH: links_hash(links),
    }
    for local, value in expected.items():
        if own.get(local, value) != value:
            raise InconsistentError(f"{local} is {own[local]!r}, but the links make it {value!r}")
    return publication


def _parse_raw(raw: Mapping[str, str]) -> Topology:
    if len(raw) == 1:
        raise ValueError(f"of the raw features there is only {next(iter(raw))}")
    return parsed(json.loads(raw[RAW_TOPOLOGY]), json.loads(raw[RAW_ID_MAP]))


def parsed(shape: Mapping[str, Any], id_map: list[dict[str, Any]]) -> Topology:
    """Read back what `shape` and `id_map` give. Raises `ValueError` and its like."""
    return Topology(
        links=tuple(_parse_links(shape["links"])),
        gpus=tuple(_parse_gpu(entry) for entry in id_map),
        tiles=tuple(_parse_tile(text) for text in shape["tiles"]),
    )


def _parse_links(entries: list[tuple[str, str, int, int]]) -> Iterator[Link]:
    for one, other, lanes, lanes_back in entries:
        yield Link.between(
            _parse_tile(one), _parse_tile(other), _natural(lanes), _natural(lanes_back)
        )


def _parse_tile(text: str) -> Tile:
    device, _, subdevice = text.partition(".")
    return Tile(int(device), int(subdevice))


def _gpu_entry(gpu: Gpu) -> dict[str, Any]:
    entry = {
        "id": gpu.id,
        "pci": gpu.bdf,
        "card": gpu.card,
        "uuid": gpu.uuid,
        "numa": gpu.numa,
        "ports": gpu.ports and gpu.ports.value,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _parse_gpu(entry: Mapping[str, Any]) -> Gpu:
    numa, ports, uuid = entry.get("numa"), entry.get("ports"), entry.get("uuid")
    return Gpu(
        id=_natural(entry["id"]),
        bdf=entry["pci"],
        card=entry.get("card"),
        uuid=None if uuid is None else str(uuid),
        numa=None if numa is None else _natural(numa),
        ports=None if ports is None else PortState(ports),
    )


def _natural(value: int) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("not a natural number of at most nine digits")
    return value


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
