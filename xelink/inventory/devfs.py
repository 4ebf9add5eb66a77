"""Device nodes: those of a GPU in devfs, and those that a container gets."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xelink.inventory.sysfs import is_directory, is_node, listing

_BY_PATH = "dri/by-path"
_MEI = re.compile(r"mei[0-9]{1,6}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Roots:
    """Where sysfs and devfs are read, and what the host calls that devfs.

    Containers see `/dev/...` whatever the roots; kubelet and the runtime open the path of the host,
    which need not be the path that we read.
    """

    sysfs: Path = Path("/sys")
    devfs: Path = Path("/dev")
    host_devfs: Path = Path("/dev")

    @classmethod
    def under(cls, prefix: str | Path = "/", device_root: str | Path = "/") -> "Roots":
        """Return the roots below a prefix; an empty prefix is `/`.

        What is at the prefix here is at `device_root`, an absolute path, on the host.
        """
        base = Path(prefix or "/").absolute()
        return cls(base / "sys", base / "dev", Path(device_root) / "dev")


@dataclass(frozen=True, order=True, slots=True)
class DeviceNode:
    """A device node: absolute paths in the container and on the host.

    For reading and writing, as even the query of a metric writes to its GPU.
    """

    container_path: str
    host_path: str
    permissions: str = "rw"


@dataclass(frozen=True, order=True, slots=True)
class Mount:
    """A bind mount: absolute paths in the container and on the host."""

    container_path: str
    host_path: str
    read_only: bool = True


def is_render(node: DeviceNode) -> bool:
    """Return whether this is a render node, which a container computes with."""
    return node.container_path.startswith("/dev/dri/renderD")


def is_gone(roots: Roots) -> bool:
    """Return whether the `/dev/dri` that is mounted here has been removed.

    The kernel removes the directory with the driver's last node and makes another one with the
    next. A mount of the old one stays empty: a directory without a name.
    """
    try:
        return (roots.devfs / "dri").stat().st_nlink == 0
    except OSError:
        return False


def node(roots: Roots, name: str) -> DeviceNode:
    """Name a device node, `dri/card0`, whether or not it is there."""
    return DeviceNode(f"/dev/{name}", f"{roots.host_devfs}/{name}")


def mount(roots: Roots, name: str) -> Mount:
    """Name a mount of something below `/dev`, whether or not it is there."""
    return Mount(f"/dev/{name}", f"{roots.host_devfs}/{name}")


def by_path_directory(roots: Roots) -> Mount | None:
    """Return the whole `/dev/dri/by-path` as a mount, None where there is none."""
    return mount(roots, _BY_PATH) if is_directory(f"{roots.devfs}/{_BY_PATH}") else None


def by_path_links(roots: Roots, bdf: str) -> Iterator[Mount]:
    """Find the symlinks to the nodes of one PCI address, as mounts."""
    # Exact names: `pci-<bdf>-platform-simple-framebuffer.0-card` begins alike, and a container
    # that is given it as well does not start.
    for kind in ("card", "render"):
        name = f"{_BY_PATH}/pci-{bdf}-{kind}"
        if is_node(f"{roots.devfs}/{name}"):
            yield mount(roots, name)


def management_engines(roots: Roots, device: str) -> Iterator[DeviceNode]:
    """Find the GPU's management engines: `device/<driver>.mei-gscfi.<n>/mei/mei<m>`.

    As sysfs names them: a container that has `/dev/dri` alone has none, though the host does. Where
    there is any, the devfs is the host's, and one that is not there is left out.
    """
    names = _engines(device)
    if not names:
        return
    shown = _any_engine(roots)
    for name in names:
        if not shown or is_node(f"{roots.devfs}/{name}"):
            yield node(roots, name)


def _engines(device: str) -> list[str]:
    found: list[str] = []
    with suppress(OSError):
        for child in listing(device):
            if ".mei-" in child:
                with suppress(OSError):
                    found += filter(_MEI.fullmatch, listing(f"{device}/{child}/mei"))
    return found


def _any_engine(roots: Roots) -> bool:
    try:
        return any(map(_MEI.fullmatch, listing(str(roots.devfs))))
    except OSError:
        return False
