"""What a scrape proves: links, none, no fabric data, or unknown with a reason. Pure.

Failure is not absence: only self rows, which the exporter gives for every tile, prove that the
matrix is there, and only then does the lack of an Xe Link mean that there is none.
"""

from dataclasses import replace

from xelink.topology.admission import Admitted, Direction, admit
from xelink.topology.model import Gpu, Tile, Topology, excess
from xelink.topology.observation import NoFabricData, Observation, ObservedLinks, Unknown
from xelink.topology.rules import Rules
from xelink.xpu_manager.exposition import Exposition
from xelink.xpu_manager.reasons import ScrapeReason
from xelink.xpu_manager.rows import TileConnection

_HINT = (
    "no Xe Link was observed: is XPU Manager's Pod on the host network (hostNetwork: true)?"
    " GPUs without Xe Links, such as Flex, have none"
)
_STALE_HINT = "XPU Manager before 1.2.16 never forgets a row: update it"


def classify(reading: Exposition, rules: Rules) -> Observation:
    """Return what one exposition proves."""
    if not reading.rows and (unknown := _without_rows(reading)):
        return unknown
    reported = frozenset((row.local, row.remote) for row in reading.rows)
    tiles = {tile for direction in reported for tile in direction}
    if problem := excess(tiles):
        return Unknown(ScrapeReason.TOO_MANY_GPUS, problem)
    self_rows = {row.local for row in reading.rows if row.connection is TileConnection.SELF}
    if not self_rows:
        return Unknown(
            ScrapeReason.NO_SELF_ROWS,
            f"no self row among {len(reading.rows)} xpum_topology_link rows, and {reading.unread}"
            " that could not be understood: the matrix is incomplete",
        )
    links, narrow, one_tile = _admit(reading, rules)
    if reading.unread and not links:
        return Unknown(
            ScrapeReason.UNREADABLE_ROWS,
            f"no link among {len(reading.rows)} xpum_topology_link rows, but {reading.unread} more"
            " could not be understood",
        )
    gpus, ambiguous = _id_map(reading)
    return ObservedLinks(
        Topology(links, gpus, tuple(tiles)),
        reported,
        ambiguous,
        reading.unread,
        _contradicting(reading),
        narrow=narrow,
        one_tile=one_tile,
        hint=_HINT,
        stale_hint=_STALE_HINT,
    )


def _without_rows(reading: Exposition) -> Unknown | NoFabricData | None:
    """Return what an answer proves that has no row which could be understood."""
    if reading.strange:
        return Unknown(ScrapeReason.NOT_XPU_MANAGER, reading.strange, quotes=True)
    if reading.unread:
        return None
    if reading.foreign:
        return NoFabricData(
            "XPU Manager 2.x has no Xe Link topology in its metrics; links need 1.2 or 1.3"
        )
    return Unknown(
        ScrapeReason.NO_ROWS,
        "the answer has no xpum_topology_link rows: XPU Manager's topology call failed, or the"
        " node has more than 32 tiles",
    )


def answered(observation: Observation) -> Observation:
    """Return the observation in the words for what a live port answered."""
    match observation:
        case Unknown(ScrapeReason.NOT_XPU_MANAGER):
            detail = f"something else answers here: {observation.detail}"
            return replace(observation, detail=detail)
    return observation


def _contradicting(reading: Exposition) -> frozenset[tuple[Tile, Tile]]:
    """Return what XPU Manager before 1.2.16 reports twice: as it is, and as it was."""
    first: dict[tuple[Tile, Tile], tuple[TileConnection, int]] = {}
    return frozenset(
        (row.local, row.remote)
        for row in reading.rows
        if first.setdefault((row.local, row.remote), (row.connection, row.lanes))
        != (row.connection, row.lanes)
    )


def _admit(reading: Exposition, rules: Rules) -> Admitted:
    """Return the links that pass; a pair passes when one direction does, as in Intel's sidecar."""
    return admit(
        (
            Direction(row.local, row.remote, row.lanes, row.on_subdevice)
            for row in reading.rows
            if row.connection is TileConnection.XE_LINK
        ),
        rules,
    )


def _id_map(reading: Exposition) -> tuple[tuple[Gpu, ...], frozenset[int]]:
    """Return the GPUs that the rows agree on, and the ids that they do not agree on."""
    by_id: dict[int, set[str]] = {}
    by_bdf: dict[str, set[int]] = {}
    latest: dict[int, Gpu] = {}
    for gpu in {row.gpu for row in reading.rows if row.gpu}:
        by_id.setdefault(gpu.id, set()).add(gpu.bdf)
        by_bdf.setdefault(gpu.bdf, set()).add(gpu.id)
        latest[gpu.id] = max(gpu, latest.get(gpu.id, gpu), key=_completeness)
    ambiguous = {device for device, bdfs in by_id.items() if len(bdfs) > 1} | {
        device for devices in by_bdf.values() if len(devices) > 1 for device in devices
    }
    return (
        tuple(
            _with_ports(gpu, reading) for device, gpu in latest.items() if device not in ambiguous
        ),
        frozenset(ambiguous),
    )


def _completeness(gpu: Gpu) -> tuple[str, str, int]:
    return gpu.card or "", gpu.uuid or "", -1 if gpu.numa is None else gpu.numa


def _with_ports(gpu: Gpu, reading: Exposition) -> Gpu:
    return replace(gpu, ports=reading.ports.get(gpu.bdf))
