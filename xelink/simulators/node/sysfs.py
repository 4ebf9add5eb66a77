"""A node with GPUs, as a tree of sysfs and devfs with the kernel's own links.

Below its root are `sys` and `dev`; a plugin that is started with that root as its prefix sees a
node. The layout is that of Linux 6.x:

    sys/class/drm/card1 -> ../../devices/pci0000:29/0000:29:00.0/drm/card1
    sys/devices/pci0000:29/0000:29:00.0/{vendor,device,class,numa_node,uevent,drm/,driver,...}
    sys/bus/pci/{devices/0000:29:00.0,drivers/i915/0000:29:00.0} -> ../../...
    dev/dri/{card1,renderD128,by-path/pci-0000:29:00.0-card -> ../card1}, dev/mei0

A change is a method call and is made at once, in one thread; a concurrent reader may see half of
it, as on a real node.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from pathlib import Path

from xelink.topology.pci import PciAddress

INTEL = 0x8086
MAX_1550 = 0x0BD5
NULL_DEVICE = (1, 3)  # /dev/null: a character device that anyone may open without harm

_DRM_DRIVERS = ("i915", "xe", "ast")  # of these a card comes; vfio-pci and none make no card
_FIRST_RENDER = 128


@dataclass(frozen=True, slots=True)
class PciGpu:
    """One PCI function with a display controller.

    `number` is DRM's card, `render` the minor of its render node (None: it has none), both kept
    while it is bound to a driver that makes no card. `numa` None writes -1, as the kernel does.
    `mei` are the numbers of its management engines. `bridges` are the PCI addresses of the bridges
    above it, the root port first; without any it is on a host bridge of its own bus. `physfn` is
    the PCI address of the GPU of which it is a VF. `totalvfs` is how many VFs it could have,
    `numvfs` how many are on. `fabric` is the number of its Xe Link device, None: it has none.
    """

    bdf: str
    number: int
    driver: str | None = "i915"
    device_id: int = MAX_1550
    vendor: int = INTEL
    numa: int | None = 0
    tiles: int = 2
    render: int | None = None
    control: int | None = None
    mei: tuple[int, ...] = ()
    physfn: str | None = None
    totalvfs: int = 0
    numvfs: int = 0
    bridges: tuple[str, ...] = ()
    fabric: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))
        object.__setattr__(self, "bridges", tuple(map(PciAddress, self.bridges)))

    @property
    def place(self) -> str:
        """Its directory below `sys/devices`."""
        above = (*self.bridges, self.bdf)
        return "/".join((f"pci{above[0][:-5]}", *above))

    @property
    def card(self) -> str:
        """DRM's name of the card."""
        return f"card{self.number}"

    @property
    def has_card(self) -> bool:
        """Whether its driver makes a DRM card of it."""
        return self.driver in _DRM_DRIVERS

    @property
    def minors(self) -> tuple[str, ...]:
        """Names of its device nodes below `/dev/dri`."""
        render = () if self.render is None else (f"renderD{self.render}",)
        return (self.card, *render) if self.has_card else ()


class Damage(Enum):
    """What can replace a file, a directory or a link of sysfs."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NONSENSE = "nonsense"
    NOT_TEXT = "not text"
    HUGE = "huge"
    FILE = "a file"
    DIRECTORY = "a directory"
    PIPE = "a pipe"
    DANGLING = "a link to nothing"
    LOOP = "a link to itself"


class NodeTree:
    """A node below `root`, empty at first; a GPU is identified by its PCI address.

    `character_devices` makes real character devices (null's numbers; takes CAP_MKNOD) where regular
    files are made otherwise. `by_path` False leaves out `/dev/dri/by-path`, as a node without udev.
    Every method raises `KeyError` for a GPU that is not there.
    """

    def __init__(
        self, root: Path, *, character_devices: bool = False, by_path: bool = True
    ) -> None:
        self.root = root
        self._character_devices = character_devices
        self._by_path = by_path
        self._gpus: dict[str, PciGpu] = {}
        for directory in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/devices", "dev"):
            (root / directory).mkdir(parents=True, exist_ok=True)

    @classmethod
    def eight_max_1550(cls, root: Path, *, character_devices: bool = False) -> "NodeTree":
        """Build a node with eight Max 1550 GPUs, four on each of two sockets.

        PCI addresses, cards and NUMA nodes are those of a real one, whose card0 is the display of
        its management controller.
        """
        node = cls(root, character_devices=character_devices)
        node.add(PciGpu("0000:03:00.0", 0, driver="ast", device_id=0x2000, vendor=0x1A03, tiles=0))
        for index, bus in enumerate(("29", "3a", "4d", "5c", "9a", "ab", "ca", "da")):
            node.add(
                PciGpu(
                    f"0000:{bus}:00.0",
                    number=1 + index,
                    numa=index // 4,
                    render=_FIRST_RENDER + index,
                    mei=(index,),
                    totalvfs=63,
                    fabric=index,
                )
            )
        return node

    @property
    def gpus(self) -> tuple[PciGpu, ...]:
        """Every GPU that is plugged in, in the order in which they came."""
        return tuple(self._gpus.values())

    def gpu(self, bdf: str) -> PciGpu:
        """Return the GPU at a PCI address."""
        return self._gpus[bdf]

    def add(self, gpu: PciGpu) -> None:
        """Plug a GPU in; raises `ValueError` when its address or a device node is taken."""
        if gpu.bdf in self._gpus:
            raise ValueError(f"there is a GPU at {gpu.bdf} already")
        if taken := {*gpu.minors} & {minor for other in self.gpus for minor in other.minors}:
            raise ValueError(f"device nodes taken already: {sorted(taken)}")
        self._gpus[gpu.bdf] = gpu
        self._write(gpu)

    def remove(self, bdf: str) -> None:
        """Take a GPU out, and its VFs with it."""
        for virtual in self.vfs(bdf):
            self.remove(virtual.bdf)
        self._erase(self._gpus.pop(bdf))

    def rebind(self, bdf: str, driver: str | None) -> None:
        """Bind a GPU to another driver, or to none: with `vfio-pci` and None it has no card."""
        self._change(bdf, driver=driver)

    def renumber(self, bdf: str, number: int, render: int | None) -> None:
        """Change the minors of a GPU, as a reboot may."""
        self._change(bdf, number=number, render=render)

    def repair(self, bdf: str) -> None:
        """Undo all damage to a GPU, and restore its device nodes."""
        self._change(bdf)

    def enable_vfs(self, bdf: str, number: int, driver: str | None = "i915") -> None:
        """Turn a GPU's VFs on, next to it on its bus, bound to `driver`; cards get free numbers.

        As in the kernel, VFs that are on must be turned off first: raises `ValueError`.
        """
        gpu = self._gpus[bdf]
        if gpu.numvfs or not 0 < number <= gpu.totalvfs:
            raise ValueError(f"{bdf} has {gpu.numvfs} VFs on, of {gpu.totalvfs}")
        self._change(bdf, numvfs=number)
        for index in range(1, number + 1):
            self.add(
                PciGpu(
                    _neighbor(bdf, index),
                    number=self._free(other.number for other in self.gpus),
                    driver=driver,
                    device_id=gpu.device_id,
                    numa=gpu.numa,
                    tiles=gpu.tiles,
                    render=self._free(
                        (other.render for other in self.gpus if other.render is not None),
                        _FIRST_RENDER,
                    ),
                    physfn=bdf,
                    bridges=gpu.bridges,
                )
            )
        for index, virtual in enumerate(self.vfs(bdf)):
            self._link(self.device(bdf) / f"virtfn{index}", self.device(virtual.bdf))

    def disable_vfs(self, bdf: str) -> None:
        """Turn a GPU's VFs off."""
        for virtual in self.vfs(bdf):
            self.remove(virtual.bdf)
        self._change(bdf, numvfs=0)

    def vfs(self, bdf: str) -> tuple[PciGpu, ...]:
        """Return the VFs of a GPU that are on."""
        return tuple(gpu for gpu in self.gpus if gpu.physfn == bdf)

    def reload_driver(self) -> None:
        """Take `/dev/dri` away with all device nodes, and make another one, as a reload does."""
        shutil.rmtree(self.root / "dev/dri")
        for gpu in self.gpus:
            self._change(gpu.bdf)

    def lose_node(self, bdf: str, minor: str | None = None) -> None:
        """Take a device node away (`renderD128`; the card's own by default), in use or not."""
        (self.root / "dev/dri" / (minor or self._gpus[bdf].card)).unlink()

    def damage(self, bdf: str, name: str, damage: Damage) -> Path:
        """Replace one entry of a GPU's directory by something else, until `repair`.

        `name` is relative to that directory (`vendor`, `drm`), or is the card's own link `device`
        as `drm/card1/device`. Returns the path.
        """
        path = self.device(bdf) / name
        _take_away(path)
        if damage is not Damage.MISSING:
            path.parent.mkdir(parents=True, exist_ok=True)
            _DAMAGES[damage](path)
        return path

    def device(self, bdf: str) -> Path:
        """Return the directory of a PCI function, whether or not there is one."""
        gpu = self._gpus.get(bdf) or PciGpu(bdf, 0)
        return self.root / "sys/devices" / gpu.place

    @staticmethod
    def _free(taken: Iterator[int], first: int = 0) -> int:
        used = set(taken)
        return next(number for number in count(first) if number not in used)

    def _change(self, bdf: str, **changes: object) -> None:
        before = self._gpus[bdf]
        self._erase(before)
        self._gpus[bdf] = replace(before, **changes)  # type: ignore[arg-type]  # fields of the caller
        self._write(self._gpus[bdf])
        for index, virtual in enumerate(self.vfs(bdf)):
            self._link(self.device(bdf) / f"virtfn{index}", self.device(virtual.bdf))

    def _write(self, gpu: PciGpu) -> None:
        device = self.device(gpu.bdf)
        for name, value in _attributes(gpu):
            _write_file(device / name, f"{value}\n")
        self._link(self.root / "sys/bus/pci/devices" / gpu.bdf, device)
        self._link(device / "subsystem", self.root / "sys/bus/pci")
        if gpu.physfn:
            self._link(device / "physfn", self.device(gpu.physfn))
        if gpu.driver:
            driver = self.root / "sys/bus/pci/drivers" / gpu.driver
            driver.mkdir(exist_ok=True)
            self._link(device / "driver", driver)
            self._link(driver / gpu.bdf, device)
        if gpu.has_card:
            self._write_card(gpu, device)

    def _write_card(self, gpu: PciGpu, device: Path) -> None:
        drm = self.root / "sys/class/drm"
        _write_file(drm / "version", "drm 1.1.0 20060810\n")
        controls = () if gpu.control is None else (f"controlD{gpu.control}",)
        for minor in (*gpu.minors, *controls):
            _write_file(device / "drm" / minor / "uevent", f"DEVNAME=dri/{minor}\n")
            self._link(device / "drm" / minor / "device", device)
            self._link(drm / minor, device / "drm" / minor)
        # i915 lists tiles as GTs of the card, xe as directories of the PCI function
        tiles = device / "tile" if gpu.driver == "xe" else device / "drm" / gpu.card / "gt/gt"
        for tile in range(gpu.tiles):
            tiles.with_name(f"{tiles.name}{tile}").mkdir(parents=True, exist_ok=True)
        for number in gpu.mei:
            engine = device / f"{gpu.driver}.mei-gscfi.{number}/mei/mei{number}"
            _write_file(engine / "uevent", f"DEVNAME=mei{number}\n")
            self._link(self.root / "sys/class/mei" / engine.name, engine)
            self._make_node(self.root / "dev" / engine.name)
        if gpu.fabric is not None and gpu.driver == "i915":
            fabric = device / f"i915.iaf.{gpu.fabric}"
            _write_file(fabric / "iaf_fabric_id", f"{0x10000 + gpu.fabric:#x}\n")
        for minor in gpu.minors:
            self._make_node(self.root / "dev/dri" / minor)
        if self._by_path:
            for minor, kind in zip(gpu.minors, ("card", "render"), strict=False):
                link = self.root / f"dev/dri/by-path/pci-{gpu.bdf}-{kind}"
                self._link(link, self.root / "dev/dri" / minor)

    def _erase(self, gpu: PciGpu) -> None:
        for path in (
            self.root / "sys/devices" / gpu.place,
            self.root / "sys/bus/pci/devices" / gpu.bdf,
            *(self.root / "sys/bus/pci/drivers").glob(f"*/{gpu.bdf}"),
            *(self.root / "sys/class/drm" / minor for minor in gpu.minors),
            self.root / f"sys/class/drm/controlD{gpu.control}",
            *(self.root / f"sys/class/mei/mei{number}" for number in gpu.mei),
            *(self.root / f"dev/mei{number}" for number in gpu.mei),
            *(self.root / "dev/dri" / minor for minor in gpu.minors),
            *(self.root / "dev/dri/by-path").glob(f"pci-{gpu.bdf}-*"),
        ):
            _take_away(path)

    def _make_node(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._character_devices:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*NULL_DEVICE))
            path.chmod(0o666)  # whatever the umask
        else:
            path.touch()

    @staticmethod
    def _link(link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        # As the kernel writes it: ending in the target's name, even where that is above the link.
        link.symlink_to(Path(os.path.relpath(target.parent, link.parent)) / target.name)


def _attributes(gpu: PciGpu) -> Iterator[tuple[str, str]]:
    yield "vendor", f"0x{gpu.vendor:04x}"
    yield "device", f"0x{gpu.device_id:04x}"
    yield "class", "0x038000"
    yield "numa_node", str(-1 if gpu.numa is None else gpu.numa)
    yield (
        "uevent",
        f"PCI_CLASS=38000\nPCI_ID={gpu.vendor:04X}:{gpu.device_id:04X}\nPCI_SLOT_NAME={gpu.bdf}",
    )
    if gpu.totalvfs:
        yield "sriov_totalvfs", str(gpu.totalvfs)
        yield "sriov_numvfs", str(gpu.numvfs)


def _neighbor(bdf: str, offset: int) -> PciAddress:
    """Return the PCI address `offset` functions further: VFs fill devices, then buses (ARI)."""
    domain, bus, device, function = PciAddress(bdf).numbers
    routing = (bus << 8 | device << 3 | function) + offset
    return PciAddress.of(domain, routing >> 8, routing >> 3 & 0x1F, routing & 7)


def _write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def _take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_DAMAGES: dict[Damage, Callable[[Path], object]] = {
    # reading it is an I/O error even for root, to whom a mode means nothing
    Damage.UNREADABLE: lambda path: path.symlink_to("/proc/self/mem"),
    Damage.EMPTY: lambda path: path.write_bytes(b""),
    Damage.NONSENSE: lambda path: path.write_bytes(b"0xzz and more\n"),
    Damage.NOT_TEXT: lambda path: path.write_bytes(b"\xff\xfe\x00\x01"),
    Damage.HUGE: lambda path: path.write_bytes(b"0" * (1 << 20)),
    Damage.FILE: lambda path: path.write_bytes(b"0x8086\n"),
    Damage.DIRECTORY: lambda path: path.mkdir(),
    Damage.PIPE: os.mkfifo,
    Damage.DANGLING: lambda path: path.symlink_to("nowhere/at/all"),
    Damage.LOOP: lambda path: path.symlink_to(path.name),
}
