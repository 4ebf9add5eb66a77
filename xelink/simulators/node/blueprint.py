"""Nodes by a few parameters: how many GPUs of which model, and the order of their cards.

Equal parameters give equal PCI addresses, cards and NUMA nodes in
`xelink.simulators.xpu_manager` and here, so that the links of a simulated XPU Manager join to the
cards of a simulated node.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from xelink.simulators.node.sysfs import NodeTree, PciGpu

DRIVERS = ("i915", "xe")

MODELS: Mapping[str, int] = MappingProxyType(
    {"max-1550": 0x0BD5, "max-1100": 0x0BDA, "flex-170": 0x56C0, "igpu": 0x4680}
)
"""PCI device id of each model."""

CARDS: Mapping[str, Callable[[int], list[int]]] = MappingProxyType(
    {
        "ordered": lambda n: list(range(n)),
        "reversed": lambda n: list(range(n))[::-1],
        "shuffled": lambda n: [*range(1, n, 2), *range(0, n, 2)],
    }
)
"""Which card, from the first on, each GPU is in the order of PCI addresses."""

_BUSES = ("29", "3a", "4d", "5c", "9a", "ab", "ca", "da")
_FIRST_CARD = 1  # card0 is the board's own display, or the integrated GPU
_FIRST_RENDER = 128
_TOTAL_VFS = 63

_DISPLAY = PciGpu("0000:03:00.0", 0, driver="ast", device_id=0x2000, vendor=0x1A03, numa=0, tiles=0)


@dataclass(frozen=True)
class TreeBlueprint:
    """What a node is built from; every field is a flag of the command line.

    `gpus` does not count the integrated one. `gpus_per_switch` of them are behind one PCIe switch;
    0 puts each on a host bridge of its own. One tile and the model left open make Max 1100 GPUs,
    else Max 1550. Raises `ValueError` for what no node can be.
    """

    gpus: int = 8
    tiles: int = 2
    igpu: bool = False
    cards: str = "ordered"
    model: str | None = None
    numa_nodes: int = 2
    driver: str = "i915"
    gpus_per_switch: int = 0

    def __post_init__(self) -> None:
        if min(self.gpus, self.numa_nodes, self.gpus_per_switch) < 0 or self.tiles < 1:
            raise ValueError("gpus, switches and NUMA nodes cannot be negative, nor tiles below 1")
        for what, value, known in (
            ("order of cards", self.cards, CARDS),
            ("model", self.made, MODELS),
            ("driver", self.driver, DRIVERS),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(known)}")

    @property
    def made(self) -> str:
        """The model, also where it was left open."""
        return self.model or ("max-1550" if self.tiles > 1 else "max-1100")

    def build(self, root: Path, *, character_devices: bool = False) -> NodeTree:
        """Build the node below a root that is empty so far, as `NodeTree` does."""
        node = NodeTree(root, character_devices=character_devices)
        for gpu in self._every():
            node.add(gpu)
        return node

    def _every(self) -> Iterator[PciGpu]:
        first_render = _FIRST_RENDER
        if self.igpu:
            yield PciGpu(
                "0000:00:02.0",
                0,
                driver=self.driver,
                device_id=MODELS["igpu"],
                tiles=1,
                render=_FIRST_RENDER,
            )
            first_render += 1
        else:
            yield _DISPLAY
        for at, place in enumerate(CARDS[self.cards](self.gpus)):
            yield PciGpu(
                _address(at),
                _FIRST_CARD + place,
                driver=self.driver,
                device_id=MODELS[self.made],
                numa=at * self.numa_nodes // self.gpus if self.numa_nodes else None,
                tiles=self.tiles,
                render=first_render + place,
                mei=(place,),
                totalvfs=_TOTAL_VFS,
                bridges=self._bridges(at),
                fabric=at if self.made.startswith("max-") else None,
            )

    def _bridges(self, at: int) -> tuple[str, ...]:
        """Return root port, upstream port and downstream port above a GPU, if it has a switch.

        The buses before that of the first GPU behind a switch are free.
        """
        if not self.gpus_per_switch:
            return ()
        number = at % self.gpus_per_switch
        domain, bus, _ = _address(at - number).split(":")
        first = int(bus, 16)
        return (
            f"{domain}:{first - 3:02x}:01.0",
            f"{domain}:{first - 2:02x}:00.0",
            f"{domain}:{first - 1:02x}:{number % 32:02x}.0",
        )


def _address(at: int) -> str:
    return f"{at // len(_BUSES):04x}:{_BUSES[at % len(_BUSES)]}:00.0"
