"""The rows about Xe Links: the topology, the ports, and what passes over the links."""

from collections.abc import Iterator
from itertools import product

from xelink.simulators.xpu_manager.families import Family, Sample, common, repeated, series_of
from xelink.simulators.xpu_manager.gpu import SimulatedGpu
from xelink.simulators.xpu_manager.node import SimulatedNode
from xelink.topology.model import PortState, Tile

UNKNOWN_NUMA = "4294967295"

_SELF, _XE_LINK, _XE_LINK_MDF, _SYS, _NODE, _MDF = 0, 1, 2, 3, 4, 5
_CORES_PER_SOCKET = 52


def fabric_bytes(family: Family, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
    """Return what was sent over each direction of each link."""
    for here, there in node.reported_lanes:
        local, remote = node.gpu(here.device), node.gpu(there.device)
        labels = common(node, local) | {
            "dst_dev_file": remote.card or "",
            "dst_pci_bdf": remote.bdf,
            "dst_sub_dev": str(there.subdevice),
            "sub_dev": str(here.subdevice),
        }
        yield from repeated(family, node, scrape, labels)


def throughput(family: Family, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
    """Return how fast each direction of each link is."""
    for here, there in node.reported_lanes:
        labels = common(node, node.gpu(here.device)) | {
            "local_device_id": str(here.device),
            "local_subdevice_id": str(here.subdevice),
            "remote_device_id": str(there.device),
            "remote_subdevice_id": str(there.subdevice),
        }
        yield from repeated(family, node, scrape, labels)


def topology(_family: Family, node: SimulatedNode, _scrape: int) -> Iterator[Sample]:
    """Return the full matrix of tiles; it is the same in every scrape of the same node."""
    return iter(_lingering(node).items())


def _lingering(node: SimulatedNode) -> dict[str, float]:
    # A gauge keeps the value last set, so the same series of an earlier state is overwritten;
    # a series whose lanes or ids have changed lingers beside the new one.
    before = _lingering(node.before) if node.before else {}
    return before | _matrix(node)


def _matrix(node: SimulatedNode) -> dict[str, float]:
    if not node.tells_topology:
        return {}
    tiles = [end for gpu in node.present for end in gpu.ends]
    sockets = max(2, *(1 + (gpu.numa or 0) for gpu in node.gpus)) if node.gpus else 2
    lanes = node.reported_lanes
    neighbors = {(here.device, there.device) for here, there in lanes}
    gpus = {gpu.id: gpu for gpu in node.present}
    rows: dict[str, float] = {}
    for gpu in node.present:
        if gpu.id in node.hidden:
            continue
        labels = common(node, gpu) | {
            "local_cpu_affinity": _affinity(gpu.numa, sockets),
            "local_device_id": str(gpu.id),
            "local_numa_index": UNKNOWN_NUMA if gpu.numa is None else str(gpu.numa),
            # XPU Manager writes false for one thing only: a Max GPU of one tile.
            "local_on_subdevice": "false" if gpu.model.fabric and gpu.tiles == 1 else "true",
        }
        for here, there in product(gpu.ends, tiles):
            if (here, there) in lanes:
                value = _XE_LINK
            elif (here.device, there.device) in neighbors:
                value = _XE_LINK_MDF
            else:
                value = _without_link(gpu, here, gpus[there.device], there)
            series = series_of(
                "xpum_topology_link",
                labels
                | {
                    node.spelling: str(lanes.get((here, there), 0)),
                    "local_subdevice_id": str(here.subdevice),
                    "remote_device_id": str(there.device),
                    "remote_subdevice_id": str(there.subdevice),
                },
            )
            rows[series] = value
    return rows


def _without_link(local: SimulatedGpu, here: Tile, remote: SimulatedGpu, there: Tile) -> int:
    if here == there:
        return _SELF
    if here.device == there.device:
        return _MDF
    return _NODE if local.numa == remote.numa else _SYS


def _affinity(numa: int | None, sockets: int) -> str:
    if numa is None:
        return f"0-{2 * sockets * _CORES_PER_SOCKET - 1}"
    ranges = ((at * _CORES_PER_SOCKET) for at in (numa, sockets + numa))
    return ",".join(f"{first}-{first + _CORES_PER_SOCKET - 1}" for first in ranges)


_PORT_VALUES = {
    PortState.HEALTHY: 0.0,
    PortState.DEGRADED: 1.0,
    PortState.FAILED: 2.0,
    PortState.DISABLED: 3.0,
}

# In the order in which XPU Manager strings them together, each with a blank at its end.
_PORT_TEXTS = {
    PortState.FAILED: "connection instabilities are preventing workloads making forward progress",
    PortState.DEGRADED: "are up but have quality and/or speed degradation",
    PortState.DISABLED: "are configured down",
}


def port_status(family: Family, node: SimulatedNode, _scrape: int) -> Iterator[Sample]:
    """Return the state of every GPU's Xe Link ports."""
    for gpu in node.present:
        state = node.port_state(gpu)
        labels = {"description": _port_description(node, gpu), "device_id": str(gpu.id)}
        yield (
            series_of(family.name, common(node, gpu) | labels),
            -1.0 if state is None else _PORT_VALUES[state],
        )


def _port_description(node: SimulatedNode, gpu: SimulatedGpu) -> str:
    if not node.reports_fabric(gpu):
        return "Device lacks Xe Link capability."
    ports = node.ports(gpu)
    faults = [
        f"Ports {' '.join(ports[state])} {text}. "
        for state, text in _PORT_TEXTS.items()
        if ports.get(state)
    ]
    return "".join(faults) or "All ports are up and operating as expected."
