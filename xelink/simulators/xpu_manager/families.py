"""Families of the exposition: a metric's name, its help, and how its rows and values come about.

Values are those of a busy node, made up from a hash of their series: the same node and scrape
give the same bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias
from zlib import crc32

from xelink.simulators.xpu_manager.gpu import SimulatedGpu
from xelink.simulators.xpu_manager.node import SimulatedNode

VENDOR = "Intel(R) Corporation"

Labels: TypeAlias = dict[str, str]
Sample: TypeAlias = tuple[str, float]
Value: TypeAlias = Callable[[float, int], float]


def idle(_x: float, _ticks: int) -> float:
    """Return the value of what never happens."""
    return 0.0


@dataclass(frozen=True)
class Family:
    """One metric name, its help, and how many rows it gives for what.

    `whole` is the `src` of a row for a GPU of several tiles as a whole, None where there is no
    such row. `repeats` is how often each series appears once the daemon has been asked before:
    the exporter prints duplicates.
    """

    name: str
    text: str
    kind: str = "gauge"
    whole: str | None = None
    variants: tuple[Labels, ...] = ({},)
    repeats: int = 1
    value: Value = idle
    make: "Callable[[Family, SimulatedNode, int], Iterator[Sample]] | None" = None
    always: bool = False

    @property
    def key(self) -> str:
        """The name by which a model lacks it, without the ending of a counter."""
        return self.name.removesuffix("_total").removesuffix("_created")

    def samples(self, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
        """Return series and value of every row."""
        return (self.make or per_tile)(self, node, scrape)

    def number(self, series: str, scrape: int, salt: int = 0) -> float:
        """Make up this scrape's value of a series."""
        fixed = self.kind == "counter" or self.name.endswith("_created")
        seed = series if fixed else f"{series}{scrape}.{salt}"
        return self.value(crc32(seed.encode()) / 0xFFFFFFFF, 2 * scrape + salt)


def series_of(name: str, labels: Labels) -> str:
    """Print a name and its labels, sorted, as the exporter does."""
    inside = ",".join(f'{key}="{_escape(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{inside}}}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def common(node: SimulatedNode, gpu: SimulatedGpu, src: str = "direct") -> dict[str, str]:
    """Return the labels that every row of a GPU carries."""
    labels = {
        "dev_file": gpu.card or "",
        "dev_name": gpu.model.name,
        "node": node.name,
        "pci_bdf": gpu.bdf,
        "pci_dev": f"{gpu.model.device:#x}",
        "src": src,
        "uuid": gpu.uuid,
        "vendor": VENDOR,
    }
    if gpu.pod:
        labels |= {
            "kube_container": gpu.pod.container,
            "kube_namespace": gpu.pod.namespace,
            "kube_pod": gpu.pod.name,
        }
    return labels


def per_tile(family: Family, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
    """Return a row per tile, and one for the whole GPU where the family has such."""
    for gpu in node.present:
        if family.key in gpu.model.missing:
            continue
        for place in _places(gpu, family.whole):
            labels = common(node, gpu) | place
            for variant in family.variants:
                yield from repeated(family, node, scrape, labels | variant)


def _places(gpu: SimulatedGpu, whole: str | None) -> Iterator[dict[str, str]]:
    if not gpu.has_subdevices:
        yield {}
        return
    for tile in gpu.ends:
        yield {"sub_dev": str(tile.subdevice)}
    if whole:
        yield {"src": whole}


def repeated(family: Family, node: SimulatedNode, scrape: int, labels: Labels) -> Iterator[Sample]:
    """Return a series as often as the exporter prints it."""
    series = series_of(family.name, labels)
    for salt in range(1 if node.cold else family.repeats):
        yield series, family.number(series, scrape, salt)


def per_engine(family: Family, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
    """Return a row per engine of every tile."""
    for gpu in node.present:
        engines = [(kind, n) for kind, count in gpu.model.engines.items() for n in range(count)]
        for place, (kind, n) in product(_places(gpu, None), engines):
            labels = common(node, gpu) | place | {"engine_id": str(n), "type": kind}
            yield from repeated(family, node, scrape, labels)
