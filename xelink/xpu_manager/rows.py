"""Rows of `xpum_topology_link`: what each tile of a node sees of each other. Pure."""

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from xelink.topology.model import Gpu, Tile
from xelink.topology.pci import PciAddress
from xelink.xpu_manager.samples import MalformedSampleError, integer, is_sample, natural, parse

_LINK = b"xpum_topology_link"
_CARD = re.compile(rb"card[0-9]{1,6}")
_UUID = re.compile(rb"[0-9A-Za-z-]{1,64}")
_NUMA_UNKNOWN = 4294967295


class TileConnection(IntEnum):
    """The value of a row: how its two tiles are connected."""

    UNKNOWN = -1
    SELF = 0
    XE_LINK = 1
    XE_LINK_MDF = 2
    SYS = 3
    NODE = 4
    MDF = 5


# As the exporter writes them; other spellings are read as numbers
_CONNECTIONS = {b"%d.0" % connection: connection for connection in TileConnection}


class TopologyRow(NamedTuple):
    """One `xpum_topology_link` sample: what the local tile sees of the remote one.

    `gpu` is the GPU of the local tile; None where the row has no PCI address.
    """

    local: Tile
    remote: Tile
    connection: TileConnection
    lanes: int
    on_subdevice: bool
    gpu: Gpu | None


class _Likeness(NamedTuple):
    """What the rows of one tile with equal lanes have in common."""

    begin: bytes
    """All of the line before the remote tile."""
    ends: Mapping[bytes, TileConnection]
    """How the line may end after the remote tile, by what the value means."""
    local: Tile
    lanes: int
    on_subdevice: bool
    gpu: Gpu | None


_NOTHING = _Likeness(b"\n", {}, Tile(0, 0), 0, on_subdevice=False, gpu=None)


class Matrix:
    """Parses the rows of one matrix; of those that are alike only the first is parsed whole.

    The rows of a tile are the same bytes but for lanes, remote tile and value. Where one has been
    parsed, another with the same bytes around other plain numbers cannot mean anything else.
    """

    def __init__(self) -> None:
        self._gpus: dict[tuple[bytes, ...], Gpu | None] = {}
        self._tiles: dict[
            tuple[bytes, bytes], tuple[TopologyRow, Mapping[bytes, TileConnection]]
        ] = {}
        self._remotes: dict[bytes, Tile] = {}

    def read(self, block: bytes) -> tuple[list[TopologyRow], int]:
        """Return the rows of a block of lines, and how many could not be understood."""
        rows: list[TopologyRow] = []
        unread = 0
        known = self._remotes.get
        begin, ends, local, lanes, on_subdevice, gpu = _NOTHING
        for line in block.split(b"\n"):
            if not line.startswith(begin):
                begin, ends, local, lanes, on_subdevice, gpu = self._likeness(line)
            remote, _, end = line[len(begin) :].partition(_SOURCE)
            tile, connection = known(remote) or self._remote(remote), ends.get(end)
            if tile and connection is not None:
                rows.append(TopologyRow(local, tile, connection, lanes, on_subdevice, gpu))
            elif is_sample(line, _LINK):
                try:
                    rows.append(self._whole(line))
                except (ValueError, KeyError):
                    unread += 1
        return rows, unread

    def _likeness(self, line: bytes) -> _Likeness:
        words = _words(line)
        known = self._tiles.get((words.head, words.local))
        if known is None or not _PLAIN.fullmatch(words.lanes):
            return _NOTHING
        row, ends = known
        lanes = int(words.lanes)
        return _Likeness(words.begin, ends, row.local, lanes, row.on_subdevice, row.gpu)

    def _remote(self, text: bytes) -> Tile | None:
        ids = _REMOTE_IDS.fullmatch(text)
        if not ids:
            return None
        tile = self._remotes[text] = Tile(int(ids[1]), int(ids[2]))
        return tile

    def _whole(self, line: bytes) -> TopologyRow:
        """Parse a row whole, and know its like from now on. Raises `ValueError`, `KeyError`."""
        row = _row(*parse(line, _LINK), self._gpus)
        words = _words(line)
        if words.plain:
            ends = {words.tail + b" " + value: kind for value, kind in _CONNECTIONS.items()}
            self._tiles[words.head, words.local] = row, ends
        return row


_LANES = b'lane_count="'
_REMOTE = b'remote_device_id="'
_SOURCE = b',src="'
_PLAIN = re.compile(rb"[0-9]{1,9}")
_REMOTE_IDS = re.compile(rb'([0-9]{1,9})",remote_subdevice_id="([0-9]{1,9})"')


class _Words(NamedTuple):
    """A row cut at the words that differ among the rows of a tile."""

    head: bytes
    lanes: bytes
    local: bytes
    remote: bytes
    tail: bytes
    begin: bytes
    """All of the line before the remote tile."""

    @property
    def plain(self) -> bool:
        """Whether, the line being a sample, these words are its labels and its value.

        A quote in a label's value is escaped. So a number between quotes, right after the name of a
        label, is that label's, if the name is whole and the label is not given again elsewhere:
        around the numbers, or between those of the remote tile.
        """
        around = b"".join((self.head, self.local, self.tail))
        return (
            self.head.endswith((b"{", b","))
            and self.tail.endswith(b'"}')
            and b"_count" not in around
            and b"remote_" not in around
            and _REMOTE_IDS.fullmatch(self.remote) is not None
        )


def _words(line: bytes) -> _Words:
    head, _, rest = line.partition(_LANES)
    lanes, _, rest = rest.partition(b'"')
    local, _, rest = rest.partition(_REMOTE)
    begin = line[: len(line) - len(rest)]
    remote, _, rest = rest.partition(_SOURCE)
    tail, _, _ = rest.rpartition(b" ")
    return _Words(head, lanes, local, remote, tail, begin)


def _row(
    labels: Mapping[bytes, bytes], value: bytes, gpus: dict[tuple[bytes, ...], Gpu | None]
) -> TopologyRow:
    connection = _CONNECTIONS[value] if value in _CONNECTIONS else TileConnection(integer(value))
    lanes = labels.get(b",lane_count=") or labels.get(b",lan_count=")
    if lanes is None:
        if connection is TileConnection.XE_LINK:
            raise MalformedSampleError
        lanes = b"0"
    device = natural(labels[b",local_device_id="])
    place = tuple(labels.get(key, b"") for key in _PLACE)
    if place not in gpus:
        gpus[place] = _gpu(device, *place[1:])
    return TopologyRow(
        Tile(device, natural(labels[b",local_subdevice_id="])),
        Tile(natural(labels[b",remote_device_id="]), natural(labels[b",remote_subdevice_id="])),
        connection,
        natural(lanes),
        labels.get(b",local_on_subdevice=", b"").lower() == b"true",
        gpus[place],
    )


_PLACE = (b",local_device_id=", b",pci_bdf=", b",dev_file=", b",uuid=", b",local_numa_index=")


def _gpu(device: int, bdf: bytes, card: bytes, uuid: bytes, numa: bytes) -> Gpu | None:
    try:
        return Gpu(
            id=device,
            bdf=PciAddress(bdf.decode().lower()),
            card=card.decode() if _CARD.fullmatch(card) else None,
            uuid=uuid.decode() if _UUID.fullmatch(uuid) else None,
            numa=_numa(numa),
        )
    except ValueError:  # without a place on the bus it is no entry of the id map
        return None


def _numa(text: bytes) -> int | None:
    try:
        numa = integer(text)
    except ValueError:
        return None
    return None if numa < 0 or numa == _NUMA_UNKNOWN else numa
