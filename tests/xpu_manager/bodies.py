"""Small expositions written row by row, for tests that need what no simulator would say."""

from collections.abc import Iterable

from xelink.topology.model import Topology
from xelink.topology.observation import Observation, ObservedLinks
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.exposition import Exposition, ExpositionReader
from xelink.xpu_manager.line_filter import LineFilter


def row(
    local: str,
    remote: str,
    value: object = "1.0",
    lanes: object = 4,
    *,
    bdf: str | None = None,
    on_subdevice: str = "true",
) -> str:
    """Write one xpum_topology_link sample as the exporter does."""
    device, subdevice = local.split(".")
    remote_device, remote_subdevice = remote.split(".")
    address = f"0000:{int(device) + 16:02x}:00.0" if bdf is None else bdf
    return (
        f'xpum_topology_link{{dev_file="card{int(device) + 1}",dev_name="GPU",lane_count="{lanes}",'
        f'local_cpu_affinity="0-51,104-155",local_device_id="{device}",local_numa_index="0",'
        f'local_on_subdevice="{on_subdevice}",local_subdevice_id="{subdevice}",'
        f'pci_bdf="{address}",remote_device_id="{remote_device}",'
        f'remote_subdevice_id="{remote_subdevice}",src="direct",uuid="00-{device}",'
        f'vendor="Intel(R)"}} {value}'
    )


def self_rows(*tiles: str) -> list[str]:
    return [row(tile, tile, "0.0", 0) for tile in tiles]


def both(a: str, b: str, lanes: int = 4, lanes_back: int | None = None) -> list[str]:
    """Write a link in both directions."""
    return [row(a, b, lanes=lanes), row(b, a, lanes=lanes if lanes_back is None else lanes_back)]


def body(rows: Iterable[str]) -> bytes:
    head = "# HELP xpum_topology_link Connection type of two GPU tiles\n"
    return (head + "\n".join(rows)).encode()


def read_body(content: bytes, chunk: int = 1 << 16) -> Exposition:
    lines = LineFilter()
    for start in range(0, len(content), chunk):
        lines.feed(content[start : start + chunk])
    return ExpositionReader().read(lines)


def judge(rows: Iterable[str], rules: Rules | None = None) -> Observation:
    return classify(read_body(body(rows)), rules or Rules())


def seen(rows: Iterable[str], rules: Rules | None = None) -> Topology:
    outcome = judge(rows, rules)
    assert isinstance(outcome, ObservedLinks), outcome
    return outcome.topology
