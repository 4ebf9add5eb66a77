"""The GPUs of this node, as sysfs and devfs tell them, and the devices that kubelet counts.

`scan` reads, `devices` decides, both without a clock: a caller scans every few seconds, and at once
when `fingerprint` changes. Behavior (ids, resources, monitoring, by-path) is that of Intel's GPU
plugin, https://github.com/intel/intel-device-plugins-for-kubernetes/tree/main/cmd/gpu_plugin,
except where it is stricter: a GPU that cannot be read well enough is told, never guessed.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path

NAMESPACE = "gpu.intel.com"
DRIVERS = ("i915", "xe")
MONITORING_ID = "all"

_INTEL = 0x8086
_DISPLAY_CLASS = 0x03  # PCI base class of every display controller, 3D-only GPUs included
_ATTRIBUTE_LIMIT = 4096  # bytes: sysfs never gives more than a page
_NUMA_LIMIT = 1024  # the kernel's largest MAX_NUMNODES

# A name with a leading zero is no DRM minor: the kernel prints plain decimals.
_CARD = re.compile(r"card(0|[1-9][0-9]{0,5})", re.ASCII)
_NODE = re.compile(r"(?:card|renderD)(0|[1-9][0-9]{0,5})", re.ASCII)
_MEI = re.compile(r"mei[0-9]{1,6}", re.ASCII)
_TILE = {kind: re.compile(rf"{kind}[0-9]{{1,2}}", re.ASCII) for kind in ("tile", "gt")}
_NUMBER = {
    10: re.compile(r"[0-9]{1,10}", re.ASCII),
    16: re.compile(r"0x[0-9a-f]{4,8}", re.ASCII),
}
# domain ":" bus ":" device "." function, lower case; a VMD domain has more than four digits
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)

# sysfs knows numbers only; these are the data center GPUs that XPU Manager is made for.
_MODELS = {
    0x0BD5: "Data Center GPU Max 1550",
    0x0BD6: "Data Center GPU Max 1550",
    0x0BDA: "Data Center GPU Max 1100",
    0x56C0: "Data Center GPU Flex 170",
    0x56C1: "Data Center GPU Flex 140",
}
_MAX_SERIES = range(0x0BD0, 0x0C00)


class ScanError(Exception):
    """The node could not be looked at: the last good inventory still stands."""


class _BrokenError(Exception):
    """One card cannot be read well enough to be offered: the others still can."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where sysfs and devfs are read, and what the host calls that devfs.

    Containers see `/dev/...` whatever the prefix; kubelet and the runtime open the path of the
    host, which is the same path that we read (so mount a prefixed tree where the host has it).
    """

    sysfs: Path = Path("/sys")
    devfs: Path = Path("/dev")
    host_devfs: Path = Path("/dev")

    @classmethod
    def under(cls, prefix: str | Path = "/") -> "Roots":
        """Give the roots below a prefix; an empty prefix is `/`."""
        base = Path(prefix or "/").absolute()
        return cls(base / "sys", base / "dev", base / "dev")


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


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU with one of our drivers; `bdf`, its PCI address, is its only identity.

    `numa` and `tiles` are None where the system does not tell them. `nodes` is every device node
    that the driver made, `missing` the container paths of those that devfs lacks. `by_path` and
    `mei` are what is there. `physfn` is the PCI address of the physical function of a VF, None for
    any other GPU. `broken` says that the facts are old, because it can no longer be read.
    """

    name: str
    bdf: str
    driver: str
    device_id: int
    numa: int | None = None
    tiles: int | None = None
    nodes: tuple[DeviceNode, ...] = ()
    missing: tuple[str, ...] = ()
    by_path: tuple[Mount, ...] = ()
    mei: tuple[DeviceNode, ...] = ()
    physfn: str | None = None
    broken: bool = False

    @property
    def number(self) -> int:
        """DRM's number of the card, which follows neither PCI order nor XPU Manager's ids."""
        return int(self.name.removeprefix("card"))

    @property
    def is_vf(self) -> bool:
        """Whether this is an SR-IOV virtual function."""
        return self.physfn is not None

    @property
    def model(self) -> str | None:
        """Marketing name, where the PCI device id tells it."""
        return _MODELS.get(self.device_id)

    @property
    def healthy(self) -> bool:
        """Whether a container that is given this card can open it, as far as devfs tells."""
        return bool(self.nodes) and not self.missing and not self.broken

    @property
    def present_nodes(self) -> tuple[DeviceNode, ...]:
        """The device nodes that devfs has: naming another would fail the container's start."""
        return tuple(node for node in self.nodes if node.container_path not in self.missing)


class Reason(Enum):
    """Why an Intel GPU is not offered, though nothing is wrong."""

    VFS_ON = "its virtual functions are on, and offered instead"
    NOT_ALLOWED = "its device id is not allowed"
    DENIED = "its device id is denied"
    NO_DRIVER = "it has no driver"
    OTHER_DRIVER = "its driver is not one of ours"
    NO_CARD = "its driver has not made a card of it"


@dataclass(frozen=True, slots=True)
class Withheld:
    """An Intel GPU that is not offered on purpose; `name` is None when it is no DRM card.

    `card` is there for a physical function with VFs on: it is still to be monitored.
    """

    bdf: str
    reason: Reason
    name: str | None = None
    driver: str | None = None
    card: Card | None = None

    def __str__(self) -> str:
        who = f"{self.name} at {self.bdf}" if self.name else f"GPU at {self.bdf}"
        driver = f" ({self.driver})" if self.reason is Reason.OTHER_DRIVER else ""
        return f"{who} is not offered: {self.reason.value}{driver}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one card, for the operator; `bdf` is None when not even that is known.

    The card is not offered, unless it also stands among the cards of the inventory: then all that
    an allocation needs could still be read.
    """

    name: str
    message: str
    bdf: str | None = None

    def __str__(self) -> str:
        return f"{self.name}{f' at {self.bdf}' if self.bdf else ''}: {self.message}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All Intel GPUs of the node at one instant; equal nodes give equal values.

    `cards` (what may be offered) and `withheld` are sorted by PCI address, numerically, and no two
    cards share an address. `by_path` is the whole `/dev/dri/by-path` where there is one.
    """

    cards: tuple[Card, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    problems: tuple[Problem, ...] = ()
    by_path: Mount | None = None

    @property
    def monitored(self) -> tuple[Card, ...]:
        """Every card to monitor, by PCI address: physical functions with VFs on included.

        Not so what is only remembered: a device node that is gone would fail the monitor's start.
        """
        offered = (card for card in self.cards if not card.broken)
        hidden = (gpu.card for gpu in self.withheld if gpu.card)
        return tuple(sorted((*offered, *hidden), key=_place))

    def keep_known(self, before: "Inventory") -> "Inventory":
        """Keep, as unhealthy, the cards of `before` that can no longer be read.

        Without this a card that breaks would vanish from the node's capacity like one that was
        taken out; kubelet is told `Unhealthy` instead. A card that is gone, withheld, or replaced
        by another GPU is not kept.
        """
        told = {card.bdf for card in self.cards} | {withheld.bdf for withheld in self.withheld}
        names = {card.name for card in self.cards}
        broken = {problem.name: problem.bdf for problem in self.problems}
        kept = (
            replace(card, broken=True)
            for card in before.cards
            if card.name in broken.keys() - names
            and card.bdf not in told
            and broken[card.name] in {None, card.bdf}
        )
        cards = sorted((*self.cards, *kept), key=_place)
        return replace(self, cards=tuple(cards))


def scan(
    roots: Roots,
    allow_ids: AbstractSet[int] = frozenset(),
    deny_ids: AbstractSet[int] = frozenset(),
) -> Inventory:
    """Look at the node once.

    `allow_ids` and `deny_ids` are PCI device ids, 0 to 0xffff; an empty set says nothing. No DRM
    at all (no driver is loaded) is an empty inventory. Raises `ScanError` when there is no sysfs,
    or its list of cards cannot be read; whatever is wrong with one card is a `Problem`.
    """
    seen: dict[str, str] = {}
    unwanted = partial(_unwanted, allow_ids=allow_ids, deny_ids=deny_ids)
    told = [entry for name in _card_names(roots) for entry in _tell(roots, name, seen, unwanted)]
    told.extend(_without_card(roots, seen.keys()))
    by_path = "dri/by-path"
    return Inventory(
        tuple(sorted((entry for entry in told if isinstance(entry, Card)), key=_place)),
        tuple(sorted((entry for entry in told if isinstance(entry, Withheld)), key=_place)),
        tuple(entry for entry in told if isinstance(entry, Problem)),
        _mount(roots, by_path) if _is_directory(roots.devfs / by_path) else None,
    )


def fingerprint(roots: Roots) -> tuple[str, ...]:
    """Condense what makes a new scan worth its while: an unequal value says "scan at once".

    Cheaper than a scan and never an exception: cards, drivers and VFs that come and go, and device
    nodes. To be polled, as sysfs announces no such change to inotify.
    """
    drm = roots.sysfs / "class/drm"
    facts: list[str] = []
    with suppress(OSError):
        names = _listing(drm)
        cards = filter(_CARD.fullmatch, names)
        facts.extend((*names, *(sign for card in cards for sign in _signs_of(drm / card))))
    for nodes in (roots.devfs / "dri", roots.devfs / "dri/by-path"):
        with suppress(OSError):
            facts.extend((str(nodes), *_listing(nodes)))
    return tuple(facts)


def _signs_of(card: Path) -> Iterator[str]:
    device = card / "device"
    for look in (
        card.readlink,
        lambda: _link_name(device / "driver"),
        lambda: _read(device / "sriov_numvfs"),
    ):
        try:
            yield str(look())
        except (OSError, _BrokenError) as error:
            yield str(error)


# What kubelet is offered


class ByPath(Enum):
    """What of `/dev/dri/by-path` an allocation mounts.

    The device plugin API turns a mounted symlink into the node that it points to; only the whole
    directory keeps the symlinks, and shows those of every GPU.
    """

    SINGLE = "single"
    NONE = "none"
    ALL = "all"


class Monitoring(Enum):
    """One monitoring resource for the node, or one for each driver."""

    SINGLE = "single"
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Offer:
    """How GPUs are offered: `shared` containers may use one at a time (at least 1).

    `monitoring` None offers no monitoring. Raises `ValueError` when `shared` is less than 1.
    """

    shared: int = 1
    by_path: ByPath = ByPath.SINGLE
    monitoring: Monitoring | None = None

    def __post_init__(self) -> None:
        if self.shared < 1:
            raise ValueError(f"a GPU cannot be shared by {self.shared} containers")


@dataclass(frozen=True, slots=True)
class Device:
    """What kubelet counts: a share of a card, or all GPUs together for monitoring (no `card`).

    `numa` None means that no TopologyInfo may be sent: an empty one fails admissions.
    """

    id: str
    card: Card | None
    healthy: bool
    numa: int | None
    nodes: tuple[DeviceNode, ...]
    mounts: tuple[Mount, ...] = ()


def devices(inventory: Inventory, offer: Offer) -> dict[str, tuple[Device, ...]]:
    """Give the devices of each resource, by its full name (`gpu.intel.com/i915`).

    In the order of PCI addresses, then of shares. A resource without devices is not there: whoever
    has registered it before goes on with an empty list.
    """
    found: dict[str, tuple[Device, ...]] = {}
    for driver in DRIVERS:
        cards = [card for card in inventory.cards if card.driver == driver]
        if cards:
            found[f"{NAMESPACE}/{driver}"] = tuple(
                Device(
                    f"{card.name}-{share}",
                    card,
                    card.healthy,
                    card.numa,
                    card.nodes,
                    mounts(card, inventory, offer.by_path),
                )
                for card in cards
                for share in range(offer.shared)
            )
    return found | _monitoring(inventory.monitored, offer.monitoring)


def mounts(card: Card, inventory: Inventory, by_path: ByPath) -> tuple[Mount, ...]:
    """Give the by-path mounts of one card in one mode."""
    match by_path:
        case ByPath.SINGLE:
            return card.by_path
        case ByPath.ALL if inventory.by_path:
            return (inventory.by_path,)
        case _:
            return ()


def _monitoring(
    cards: tuple[Card, ...], monitoring: Monitoring | None
) -> dict[str, tuple[Device, ...]]:
    match monitoring:
        case Monitoring.SINGLE:
            groups = {"monitoring": cards}
        case Monitoring.SPLIT:
            groups = {
                f"{driver}_monitoring": tuple(card for card in cards if card.driver == driver)
                for driver in DRIVERS
            }
        case _:
            groups = {}
    return {f"{NAMESPACE}/{name}": (_all_of(group),) for name, group in groups.items() if group}


def _all_of(cards: tuple[Card, ...]) -> Device:
    # No by-path mounts: a monitor often mounts the host's /dev/dri, where they cannot be made.
    nodes = {node: None for card in cards for node in (*card.present_nodes, *card.mei)}
    return Device(MONITORING_ID, None, bool(nodes), None, tuple(nodes))


# Reading a card


def _card_names(roots: Roots) -> list[str]:
    """Give the cards of the DRM class by number; connectors, render and control nodes are none."""
    drm = roots.sysfs / "class/drm"
    if not _is_directory(roots.sysfs):
        raise ScanError(f"no sysfs at {roots.sysfs}")
    if not os.path.lexists(drm):
        return []
    try:
        return [name for name in _listing(drm) if _CARD.fullmatch(name)]
    except OSError as error:
        raise ScanError(f"cannot list {drm}: {error.strerror}") from error


def _tell(
    roots: Roots, name: str, seen: dict[str, str], unwanted: Callable[[int], Reason | None]
) -> Iterator[Card | Withheld | Problem]:
    """Tell all of one card: nothing when it is not Intel's; `seen` collects names by address."""
    device = roots.sysfs / "class/drm" / name / "device"
    bdf = None
    try:
        if not _is_intel(device):
            return
        bdf = _address(device)
        if (first := seen.setdefault(bdf, name)) != name:
            yield Problem(name, f"it has the PCI address of {first}", bdf)
            return
        device_id = _parse(_read(device / "device") or "", 16, "device")
        driver = _link_name(device / "driver")
        if reason := unwanted(device_id) or _unusable(driver):
            yield Withheld(bdf, reason, name, driver)
            return
        card, complaint = _read_card(roots, device, Card(name, bdf, driver or "", device_id))
        if complaint:
            yield Problem(name, complaint, bdf)
        vfs = _number(device / "sriov_numvfs", 10)
        yield Withheld(bdf, Reason.VFS_ON, name, driver, card) if vfs else card
    except _BrokenError as error:
        yield Problem(name, str(error), bdf)


def _unwanted(
    device_id: int, allow_ids: AbstractSet[int], deny_ids: AbstractSet[int]
) -> Reason | None:
    if allow_ids and device_id not in allow_ids:
        return Reason.NOT_ALLOWED
    return Reason.DENIED if device_id in deny_ids else None


def _unusable(driver: str | None) -> Reason | None:
    if driver is None:
        return Reason.NO_DRIVER
    return None if driver in DRIVERS else Reason.OTHER_DRIVER


def _is_intel(device: Path) -> bool:
    """Tell whether this is Intel's; a card without a PCI function (a virtual one) is nobody's."""
    if not os.path.lexists(device) and _is_directory(device.parent):
        return False
    if not _is_directory(device):
        raise _BrokenError("it leads to no device")
    return _number(device / "vendor", 16) == _INTEL


def _address(device: Path) -> str:
    """Give the PCI address: the name of the directory that `device` leads to, or of its uevent."""
    try:
        name = device.resolve(strict=True).name
    except (OSError, RuntimeError) as error:  # RuntimeError: Python's word for a loop of links
        raise _BrokenError("it leads to no device") from error
    if _BDF.fullmatch(name):
        return name
    for line in (_read(device / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME" and _BDF.fullmatch(value):
            return value
    raise _BrokenError("it has no PCI address")


def _read_card(roots: Roots, device: Path, card: Card) -> tuple[Card, str | None]:
    """Give the card with all facts, and what is wrong that does not keep it from being used."""
    try:
        minors = [entry for entry in _listing(device / "drm") if _NODE.fullmatch(entry)]
    except OSError as error:
        raise _BrokenError(f"drm: {error.strerror}") from error
    if card.name not in minors:
        raise _BrokenError("its driver names no device node of it")
    try:
        numa, complaint = _numa(device), None
    except _BrokenError as error:
        numa, complaint = None, f"its NUMA node is unknown: {error}"
    return replace(
        card,
        numa=numa,
        tiles=_tiles(device, card),
        nodes=tuple(_node(roots, f"dri/{minor}") for minor in minors),
        missing=tuple(
            f"/dev/dri/{minor}" for minor in minors if not _is_node(roots.devfs / "dri" / minor)
        ),
        by_path=tuple(_links(roots, card.bdf)),
        mei=tuple(_mei(roots, device)),
        physfn=_link_name(device / "physfn"),
    ), complaint


def _numa(device: Path) -> int | None:
    text = _read(device / "numa_node")
    if text is None or text == "-1":
        return None
    node = _parse(text, 10, "numa_node")
    if node >= _NUMA_LIMIT:
        raise _BrokenError(f"numa_node: no such node, {node}")
    return node


def _tiles(device: Path, card: Card) -> int | None:
    """Count tiles: xe has a directory for each, i915 one for each GT.

    A GT is a tile on the Max series; on client GPUs the media engine has a GT of its own, so that
    more than one says nothing of tiles there.
    """
    xe = card.driver == "xe"
    directory, kind = (device, "tile") if xe else (device / "drm" / card.name / "gt", "gt")
    try:
        found = sum(1 for entry in _listing(directory) if _TILE[kind].fullmatch(entry))
    except OSError:
        return None
    certain = xe or found == 1 or card.device_id in _MAX_SERIES
    return found if found and certain else None


def _links(roots: Roots, bdf: str) -> Iterator[Mount]:
    # Exact names: `pci-<bdf>-platform-simple-framebuffer.0-card` begins alike, and a container
    # that is given it as well does not start.
    for kind in ("card", "render"):
        name = f"dri/by-path/pci-{bdf}-{kind}"
        if _is_node(roots.devfs / name):
            yield _mount(roots, name)


def _mei(roots: Roots, device: Path) -> Iterator[DeviceNode]:
    """Find the GPU's management engines: `device/<driver>.mei-gscfi.<n>/mei/mei<m>`."""
    try:
        children = [device / child / "mei" for child in _listing(device) if ".mei-" in child]
    except OSError:
        return
    for child in children:
        with suppress(OSError):
            for name in filter(_MEI.fullmatch, _listing(child)):
                if _is_node(roots.devfs / name):
                    yield _node(roots, name)


def _without_card(roots: Roots, seen: AbstractSet[str]) -> Iterator[Withheld]:
    """Find the Intel GPUs that are no DRM card: given to vfio-pci, or left without a driver."""
    functions = roots.sysfs / "bus/pci/devices"
    try:
        addresses = [name for name in _listing(functions) if _BDF.fullmatch(name)]
    except OSError:  # a courtesy to the operator, not what we are here for
        return
    for bdf in addresses:
        with suppress(_BrokenError):
            if bdf in seen or not _is_intel_display(functions / bdf):
                continue
            driver = _link_name(functions / bdf / "driver")
            yield Withheld(bdf, _unusable(driver) or Reason.NO_CARD, None, driver)


def _is_intel_display(function: Path) -> bool:
    kind = _number(function / "class", 16) or 0
    return kind >> 16 == _DISPLAY_CLASS and _number(function / "vendor", 16) == _INTEL


# Reading sysfs and devfs, of which nothing is taken for granted


def _read(attribute: Path) -> str | None:
    """Give an attribute's text without its line end, None when there is no such attribute."""
    try:
        # Not blocking: a pipe in an attribute's place would hold the scan for ever.
        descriptor = os.open(attribute, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _ATTRIBUTE_LIMIT + 1)
        finally:
            os.close(descriptor)
        text = content.decode("ascii").strip()
    except FileNotFoundError as error:
        if os.path.lexists(attribute):
            raise _BrokenError(f"{attribute.name}: leads nowhere") from error
        return None
    except OSError as error:
        raise _BrokenError(f"{attribute.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _BrokenError(f"{attribute.name}: not text") from error
    if len(content) > _ATTRIBUTE_LIMIT:
        raise _BrokenError(f"{attribute.name}: longer than any attribute")
    return text


def _parse(text: str, base: int, name: str) -> int:
    if not _NUMBER[base].fullmatch(text):
        raise _BrokenError(f"{name}: not a number, {text[:20]!r}")
    return int(text, base)


def _number(attribute: Path, base: int) -> int | None:
    text = _read(attribute)
    return None if text is None else _parse(text, base, attribute.name)


def _link_name(link: Path) -> str | None:
    """Give the last name of a symlink's target, which need not exist; None without a symlink."""
    try:
        name = link.readlink().name
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _BrokenError(f"{link.name}: {error.strerror}") from error
    return os.fsencode(name).decode("ascii", "backslashreplace")


def _listing(directory: Path) -> list[str]:
    """Give the names in a directory in natural order; raises `OSError`."""
    names = [entry.name for entry in directory.iterdir()]
    return sorted(names, key=lambda name: (len(name), name))


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _is_node(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _node(roots: Roots, name: str) -> DeviceNode:
    return DeviceNode(f"/dev/{name}", str(roots.host_devfs / name))


def _mount(roots: Roots, name: str) -> Mount:
    return Mount(f"/dev/{name}", str(roots.host_devfs / name))


def _place(gpu: Card | Withheld) -> tuple[int, ...]:
    """Order PCI addresses as numbers: as text, domain 10000 would come before 2000."""
    return tuple(int(part, 16) for part in re.split("[:.]", gpu.bdf))
