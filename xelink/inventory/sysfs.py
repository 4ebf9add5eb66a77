"""Reads a GPU's PCI function in sysfs, and takes nothing for granted.

A `device` is the function's directory, reached through a card (`class/drm/card0/device`) or the
bus (`bus/pci/devices/0000:29:00.0`).

Paths are strings here: all this is read every few seconds for as long as the node is up, and to
make a `Path` takes longer than the kernel takes to answer.
"""

import os
import re
import stat
from contextlib import suppress

from xelink.topology.pci import PciAddress, address_or_none

_INTEL = 0x8086
_DISPLAY_CLASS = 0x03  # PCI base class of every display controller, 3D-only GPUs included
_ATTRIBUTE_LIMIT = 4096  # bytes: sysfs never returns more than a page
_NUMA_LIMIT = 1024  # the kernel's largest MAX_NUMNODES
_CPU_LIMIT = 8191  # the kernel's largest CPU number
_MOST_BRIDGES = 32  # above one GPU; a deep tree of switches has six
MAX_SERIES = range(0x0BD0, 0x0C00)

_TILE = {kind: re.compile(rf"{kind}[0-9]{{1,2}}", re.ASCII) for kind in ("tile", "gt")}
_NODE = re.compile(r"node[0-9]{1,4}", re.ASCII)
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}", re.ASCII)  # "pci" domain ":" bus
_CPUS = re.compile(r"[0-9]{1,4}(?:-[0-9]{1,4})?", re.ASCII)  # first [ "-" last ]
_NUMBER = {
    10: re.compile(r"[0-9]{1,10}", re.ASCII),
    16: re.compile(r"0x[0-9a-f]{4,8}", re.ASCII),
}


class BrokenError(Exception):
    """One card cannot be read well enough to be advertised: the others are."""


def is_intel(device: str) -> bool:
    """Return whether this is Intel's; a card without a PCI function (a virtual one) is not.

    Raises `BrokenError`.
    """
    if not os.path.lexists(device) and is_directory(os.path.dirname(device)):
        return False
    if not is_directory(device):
        raise BrokenError("it leads to no device")
    return number(f"{device}/vendor", 16) == _INTEL


def address(device: str) -> PciAddress:
    """Return the PCI address: the name of the directory that `device` leads to, or of its uevent.

    Raises `BrokenError`.
    """
    name = ""
    with suppress(BrokenError):  # no link at all
        name = link_name(device) or ""
    if found := address_or_none(name):
        return found
    try:
        name = os.path.basename(os.path.realpath(device, strict=True))
    except OSError as error:
        raise BrokenError("it leads to no device") from error
    if found := address_or_none(name):
        return found
    for line in (read(f"{device}/uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME" and (found := address_or_none(value)):
            return found
    raise BrokenError("it has no PCI address")


def numa(device: str) -> int | None:
    """Return the NUMA node, None where the platform has none. Raises `BrokenError`.

    Firmware may set it for the bridges above a GPU only: the nearest one with a node counts.
    """
    if (own := _numa_node(device)) is not None:
        return own
    place, first_error = os.path.realpath(device), None
    for _ in range(_MOST_BRIDGES):
        if os.path.basename(place) in {"", "devices"}:
            break
        if (node := _numa_node(place)) is not None:
            return node
        try:
            if (node := _node_of_cpus(place)) is not None:
                return node
        except BrokenError as error:  # a bridge further up may still have it
            first_error = first_error or error
        place = os.path.dirname(place)
    if first_error:
        raise first_error
    return None


def _numa_node(device: str) -> int | None:
    text = read(f"{device}/numa_node")
    if text is None or text == "-1":
        return None
    node = parse(text, 10, "numa_node")
    if node >= _NUMA_LIMIT:
        raise BrokenError(f"numa_node: no such node, {node}")
    return node


def _node_of_cpus(device: str) -> int | None:
    """Return the one node of the CPUs near a device, None where they show no node.

    The kernel names every CPU where it knows no node: that is no nearness.
    """
    near = _cpus(f"{device}/local_cpulist")
    if not near:
        return None
    root, is_below, _ = device.rpartition("/sys/devices/")
    if not is_below:
        return None
    system = f"{root}/sys/devices/system/node"
    try:
        names = [name for name in listing(system) if _NODE.fullmatch(name)][:_NUMA_LIMIT]
    except OSError:
        return None
    homes = {int(name[4:]): _cpus(f"{system}/{name}/cpulist") for name in names}
    touched = [node for node, cpus in homes.items() if cpus & near]
    others = any(cpus and node not in touched for node, cpus in homes.items())
    return touched[0] if len(touched) == 1 and others else None


def _cpus(attribute: str) -> frozenset[int]:
    """Return the CPUs of a list like 0-27,56-83, none where there is no such attribute."""
    text, found = read(attribute) or "", set[int]()
    for part in text.split(",") if text else ():
        if not _CPUS.fullmatch(part):
            raise BrokenError(f"{os.path.basename(attribute)}: not a list of CPUs, {text[:20]!r}")
        first, _, last = part.partition("-")
        found.update(range(int(first), min(int(last or first), _CPU_LIMIT) + 1))
    return frozenset(found)


def bridges(device: str) -> tuple[str, ...]:
    """Return the PCIe bridges above a function, the host bridge first; none if it is not found.

    The kernel's own tree has them as directories: pci0000:29/0000:29:01.0/0000:2a:00.0/...
    """
    place, found = os.path.dirname(os.path.realpath(device)), list[str]()
    for _ in range(_MOST_BRIDGES):
        name = os.path.basename(place)
        found.append(name)
        if _HOST_BRIDGE.fullmatch(name):
            return tuple(reversed(found))
        if address_or_none(name) is None:
            break
        place = os.path.dirname(place)
    return ()


def tiles(device: str, card: str, driver: str, device_id: int) -> int | None:
    """Count tiles: xe has a directory for each, i915 one for each GT; None where it is unknown.

    A GT is a tile on the Max series; on client GPUs the media engine has a GT of its own, so that
    more than one is no count of tiles there.
    """
    xe = driver == "xe"
    directory, kind = (device, "tile") if xe else (f"{device}/drm/{card}/gt", "gt")
    try:
        found = sum(1 for entry in listing(directory) if _TILE[kind].fullmatch(entry))
    except OSError:
        return None
    certain = xe or found == 1 or device_id in MAX_SERIES
    return found if found and certain else None


def is_intel_display(function: str) -> bool:
    """Return whether this is a GPU of Intel's, by class and vendor. Raises `BrokenError`."""
    kind = number(f"{function}/class", 16) or 0
    return kind >> 16 == _DISPLAY_CLASS and number(f"{function}/vendor", 16) == _INTEL


def read(attribute: str) -> str | None:
    """Return an attribute's text without its line end, None when there is no such attribute.

    Raises `BrokenError`.
    """
    try:
        # Not blocking: a pipe in an attribute's place would block the scan.
        descriptor = os.open(attribute, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _ATTRIBUTE_LIMIT + 1)
        finally:
            os.close(descriptor)
        text = content.decode("ascii").strip()
    except FileNotFoundError as error:
        if os.path.lexists(attribute):
            raise BrokenError(f"{os.path.basename(attribute)}: leads nowhere") from error
        return None
    except OSError as error:
        raise BrokenError(f"{os.path.basename(attribute)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BrokenError(f"{os.path.basename(attribute)}: not text") from error
    if len(content) > _ATTRIBUTE_LIMIT:
        raise BrokenError(f"{os.path.basename(attribute)}: longer than any attribute")
    return text


def parse(text: str, base: int, name: str) -> int:
    """Read a number of base 10 or 16 as the kernel prints it. Raises `BrokenError`."""
    if not _NUMBER[base].fullmatch(text):
        raise BrokenError(f"{name}: not a number, {text[:20]!r}")
    return int(text, base)


def number(attribute: str, base: int) -> int | None:
    """Return an attribute's number, None when there is no such attribute. Raises `BrokenError`."""
    text = read(attribute)
    return None if text is None else parse(text, base, os.path.basename(attribute))


def link_name(link: str) -> str | None:
    """Return the last name of a symlink's target, which need not exist; None without a symlink.

    Raises `BrokenError`.
    """
    try:
        name = os.path.basename(os.readlink(link).rstrip("/"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokenError(f"{os.path.basename(link)}: {error.strerror}") from error
    return os.fsencode(name).decode("ascii", "backslashreplace")


def listing(directory: str) -> list[str]:
    """Return the names in a directory in natural order; raises `OSError`."""
    names = os.listdir(directory)
    return sorted(names, key=lambda name: (len(name), name))


def is_directory(path: str) -> bool:
    """Return whether a directory is there, also behind links; one that cannot be read is none."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def is_node(path: str) -> bool:
    """Return whether something that may be a device node is there, also behind links."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False
