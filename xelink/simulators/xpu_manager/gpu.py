"""One simulated GPU: its kind, its tiles, and what the exporter's rows report of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from xelink.topology.model import Gpu, Link, PortState, Tile
from xelink.topology.pci import PciAddress

_BUSES = (0x29, 0x3A, 0x4D, 0x5C, 0x9A, 0xAB, 0xCA, 0xDA)


def address(at: int) -> str:
    """Return the PCI address of the n-th GPU: eight to a PCI domain."""
    return f"{at // len(_BUSES):04x}:{_BUSES[at % len(_BUSES)]:02x}:00.0"


@dataclass(frozen=True)
class Model:
    """A kind of GPU: what its rows report of it, and which families it has.

    `engines` are counts by type, per tile; `missing` names families that it does not report.
    """

    key: str
    name: str
    device: int
    revision: int
    engines: Mapping[str, int]
    fabric: bool = True
    missing: frozenset[str] = frozenset()


_MAX_ENGINES = MappingProxyType({"compute": 4, "copy": 9, "decoder": 3, "media_enhancement": 3})
_FLEX_ENGINES = MappingProxyType(
    {"compute": 4, "copy": 1, "decoder": 2, "encoder": 2, "media_enhancement": 2, "render": 1}
)
_CLIENT_ENGINES = MappingProxyType(
    {"compute": 1, "copy": 1, "decoder": 1, "encoder": 1, "media_enhancement": 1, "render": 1}
)
_FLEX_MISSING = frozenset(
    {
        "xpum_cache_errors",
        "xpum_memory_bandwidth_ratio",
        "xpum_memory_read_bytes",
        "xpum_memory_write_bytes",
        "xpum_non_compute_errors",
    }
)

_MAX_1550 = Model("max-1550", "Intel(R) Data Center GPU Max 1550", 0x0BD5, 0x2F, _MAX_ENGINES)
_MAX_1100 = Model("max-1100", "Intel(R) Data Center GPU Max 1100", 0x0BDA, 0x2F, _MAX_ENGINES)
_FLEX_170 = Model(
    "flex-170",
    "Intel(R) Data Center GPU Flex 170",
    0x56C0,
    0x08,
    _FLEX_ENGINES,
    fabric=False,
    missing=_FLEX_MISSING,
)
_INTEGRATED = Model(
    "igpu",
    "Intel(R) UHD Graphics 770",
    0x4680,
    0x0C,
    _CLIENT_ENGINES,
    fabric=False,
    missing=_FLEX_MISSING,
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {model.key: model for model in (_MAX_1550, _MAX_1100, _FLEX_170, _INTEGRATED)}
)


@dataclass(frozen=True)
class GpuPod:
    """The Pod that uses a GPU, as the exporter adds it to that GPU's rows."""

    name: str
    namespace: str = "default"
    container: str = "main"


@dataclass(frozen=True)
class SimulatedGpu:
    """One GPU. `card` None gives an empty `dev_file`, `numa` None the unknown NUMA node.

    `ports` is the state of all its Xe Link ports, whatever its links do; None derives it from
    the links.
    """

    id: int
    bdf: str
    card: str | None = None
    numa: int | None = 0
    tiles: int = 2
    model: Model = _MAX_1550
    ports: PortState | None = None
    pod: GpuPod | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))

    @property
    def uuid(self) -> str:
        """Level Zero's UUID, made of the PCI ids and the address."""
        domain, bus, device, function = PciAddress(self.bdf).numbers
        return (
            f"00000000-00{function:02x}-{device:02x}{bus:02x}-{domain & 0xFFFF:04x}-"
            f"{self.model.revision:04x}{self.model.device:04x}8086"
        )

    @property
    def ends(self) -> tuple[Tile, ...]:
        """Its tiles; a one-tile GPU has tile `n.0`."""
        return tuple(Tile(self.id, subdevice) for subdevice in range(self.tiles))

    @property
    def has_subdevices(self) -> bool:
        """Return whether rows of the other families carry `sub_dev`."""
        return self.tiles > 1

    def entry(self, ports: PortState | None = None) -> Gpu:
        """Return its entry of the id map."""
        return Gpu(self.id, self.bdf, self.card, self.uuid, self.numa, ports)


def same_plane(one: SimulatedGpu, other: SimulatedGpu, lanes: int) -> Iterator[Link]:
    """Link every tile of a GPU with the same tile of another."""
    for a, b in zip(one.ends, other.ends, strict=False):
        yield Link.between(a, b, lanes, lanes)
