"""The GPUs of this node, from sysfs and devfs.

`scan` reads without a clock: a caller scans every few seconds, and at once when `fingerprint`
changes. Behavior (cards, physical functions, by-path) is that of Intel's GPU plugin,
https://github.com/intel/intel-device-plugins-for-kubernetes/tree/main/cmd/gpu_plugin,
except where it is stricter: a GPU that cannot be read well enough is reported, never inferred.
"""

import os
import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache, partial

from xelink.inventory import devfs, sysfs
from xelink.inventory.devfs import DeviceNode, Mount, Roots
from xelink.inventory.sysfs import BrokenError
from xelink.topology.pci import PciAddress, address_or_none

DRIVERS = ("i915", "xe")

# A name with a leading zero is no DRM minor: the kernel prints plain decimals.
_CARD = re.compile(r"card(0|[1-9][0-9]{0,5})", re.ASCII)
_NODE = re.compile(r"(?:card|renderD)(0|[1-9][0-9]{0,5})", re.ASCII)

# sysfs knows numbers only; these are the data center GPUs that XPU Manager is made for.
_MODELS = {
    0x0BD5: "Data Center GPU Max 1550",
    0x0BD6: "Data Center GPU Max 1550",
    0x0BDA: "Data Center GPU Max 1100",
    0x56C0: "Data Center GPU Flex 170",
    0x56C1: "Data Center GPU Flex 140",
}


class ScanError(Exception):
    """The node could not be scanned: the last good inventory stays in use."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU with one of our drivers; `bdf`, its PCI address, is its only identity.

    `numa` and `tiles` are None where they are unknown. `bridges` are the PCIe bridges
    above it, the host bridge first; none if unknown. `nodes` is every device node
    that the driver made, `missing` the container paths of those that devfs lacks. `by_path` is
    what is there, `mei` too where devfs shows any. `physfn` is the PCI address of the physical
    function of a VF, None for any other GPU. `broken`: it can no longer be read, so the facts are
    old.
    """

    name: str
    bdf: str
    driver: str
    device_id: int
    numa: int | None = None
    tiles: int | None = None
    bridges: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    missing: tuple[str, ...] = ()
    by_path: tuple[Mount, ...] = ()
    mei: tuple[DeviceNode, ...] = ()
    physfn: str | None = None
    broken: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))

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
        """Marketing name, where the PCI device id is a known one."""
        return _MODELS.get(self.device_id)

    @property
    def complaint(self) -> str | None:
        """Why a container could not use this card, by its device nodes; None where it could."""
        if self.broken:
            return "its card can no longer be read"
        if not self.nodes:
            return "it has no device node"
        if self.missing:
            be = "is" if len(self.missing) == 1 else "are"
            return f"{', '.join(self.missing)} {be} not there"
        if not any(map(devfs.is_render, self.nodes)):
            return "it has no render node, which is what computes"
        return None

    @property
    def healthy(self) -> bool:
        """Whether a container can use this card, by its device nodes."""
        return self.complaint is None

    @property
    def present_nodes(self) -> tuple[DeviceNode, ...]:
        """The device nodes that devfs has: naming another would fail the container's start."""
        return tuple(node for node in self.nodes if node.container_path not in self.missing)


class Exclusion(Enum):
    """Why an Intel GPU is not advertised, though nothing is wrong."""

    VFS_ON = "its virtual functions are on, and advertised instead"
    NOT_ALLOWED = "its device id is not allowed"
    DENIED = "its device id is denied"
    NO_DRIVER = "it has no driver"
    OTHER_DRIVER = "its driver is not one of ours"
    NO_CARD = "its driver has not made a card of it"


@dataclass(frozen=True, slots=True)
class ExcludedGpu:
    """An Intel GPU that is not advertised on purpose; `name` is None when it is no DRM card.

    `card` is there for a physical function with VFs on: it is still to be monitored.
    """

    bdf: str
    reason: Exclusion
    name: str | None = None
    driver: str | None = None
    card: Card | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bdf", PciAddress(self.bdf))

    def __str__(self) -> str:
        who = f"{self.name} at {self.bdf}" if self.name else f"GPU at {self.bdf}"
        driver = f" ({self.driver})" if self.reason is Exclusion.OTHER_DRIVER else ""
        return f"{who} is not advertised: {self.reason.value}{driver}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one card, for the operator; `bdf` is None when not even that is known.

    The card is not advertised, unless it is also among the cards of the inventory: then all that
    an allocation needs could be read.
    """

    name: str
    message: str
    bdf: str | None = None

    def __str__(self) -> str:
        return f"{self.name}{f' at {self.bdf}' if self.bdf else ''}: {self.message}"


class DriState(Enum):
    """The state of `/dev/dri` as a whole."""

    FINE = ""
    EMPTY = "/dev/dri has no node of the GPUs that sysfs names: the host's must be mounted here"
    GONE = (
        "/dev/dri here is one that is gone, as after a reload of the driver: this container must"
        " start anew to see the new one, and /healthz asks for that; or restart the node's"
        " container, where the node is one itself"
    )


@dataclass(frozen=True, slots=True)
class Inventory:
    """All Intel GPUs of the node at one instant; equal nodes give equal values.

    `cards` (what may be advertised) and `excluded` are sorted by PCI address, and no two cards
    share an address. `by_path` is the whole `/dev/dri/by-path` where there is one.
    """

    cards: tuple[Card, ...] = ()
    excluded: tuple[ExcludedGpu, ...] = ()
    problems: tuple[Problem, ...] = ()
    by_path: Mount | None = None
    dri: DriState = DriState.FINE

    @property
    def monitored(self) -> tuple[Card, ...]:
        """Every card to monitor, by PCI address: physical functions with VFs on included.

        Not so what is only remembered: a device node that is gone would fail the monitor's start.
        """
        advertised = (card for card in self.cards if not card.broken)
        hidden = (gpu.card for gpu in self.excluded if gpu.card)
        return tuple(sorted((*advertised, *hidden), key=_address))

    @property
    def counted(self) -> tuple["Card | ExcludedGpu", ...]:
        """The GPUs that XPU Manager counts, by PCI address: all that the driver has."""
        excluded = (gpu for gpu in self.excluded if gpu.name and gpu.driver in DRIVERS)
        return tuple(sorted((*self.cards, *excluded), key=_address))

    def keep_known(self, before: "Inventory") -> "Inventory":
        """Keep, as unhealthy, the cards of `before` that can no longer be read.

        Without this a card that breaks would vanish from the node's capacity like one that was
        taken out; kubelet gets `Unhealthy` instead. A card that is gone, excluded, or replaced
        by another GPU is not kept.
        """
        if not self.problems:
            return self
        present = {card.bdf for card in self.cards} | {gpu.bdf for gpu in self.excluded}
        names = {card.name for card in self.cards}
        broken = {problem.name: problem.bdf for problem in self.problems}
        kept = (
            replace(card, broken=True)
            for card in before.cards
            if card.name in broken.keys() - names
            and card.bdf not in present
            and broken[card.name] in {None, card.bdf}
        )
        cards = sorted((*self.cards, *kept), key=_address)
        return replace(self, cards=tuple(cards))


def scan(
    roots: Roots,
    allow_ids: AbstractSet[int] = frozenset(),
    deny_ids: AbstractSet[int] = frozenset(),
) -> Inventory:
    """Scan the node once.

    `allow_ids` and `deny_ids` are PCI device ids, 0 to 0xffff; an empty set has no effect. No
    DRM at all (no driver is loaded) is an empty inventory. Raises `ScanError` when there is no
    sysfs, or its list of cards cannot be read; an error of one card is a `Problem`.
    """
    names: dict[str, str] = {}
    unwanted = partial(_unwanted, allow_ids=allow_ids, deny_ids=deny_ids)
    entries = [
        entry for name in _card_names(roots) for entry in _read(roots, name, names, unwanted)
    ]
    entries.extend(_without_card(roots, names.keys()))
    _card_names(roots)  # a node that was taken away meanwhile was half read: that is no scan
    found = Inventory(
        tuple(sorted((entry for entry in entries if isinstance(entry, Card)), key=_address)),
        tuple(sorted((entry for entry in entries if isinstance(entry, ExcludedGpu)), key=_address)),
        tuple(entry for entry in entries if isinstance(entry, Problem)),
        devfs.by_path_directory(roots),
    )
    return replace(found, dri=_sight(roots, found))


def _sight(roots: Roots, found: Inventory) -> DriState:
    named = [card for card in found.monitored if card.nodes]
    if not named or any(card.present_nodes for card in named):
        return DriState.FINE
    return DriState.GONE if devfs.is_gone(roots) else DriState.EMPTY


def fingerprint(roots: Roots) -> tuple[str, ...]:
    """Condense what makes a new scan worth its while: an unequal value means "scan at once".

    Cheaper than a scan and never an exception: cards, drivers and VFs that come and go, and device
    nodes. To be polled, as sysfs announces no such change to inotify.
    """
    drm = f"{roots.sysfs}/class/drm"
    facts: list[str] = []
    with suppress(OSError):
        names = sysfs.listing(drm)
        cards = filter(_CARD.fullmatch, names)
        facts.extend(names)
        facts.extend(part for card in cards for part in _fingerprint_of(f"{drm}/{card}"))
    for nodes in (f"{roots.devfs}/dri", f"{roots.devfs}/dri/by-path"):
        with suppress(OSError):
            facts.extend((nodes, *sysfs.listing(nodes)))
    return tuple(facts)


def _fingerprint_of(card: str) -> Iterator[str]:
    for link in (card, f"{card}/device/driver"):
        try:
            yield os.readlink(link)  # noqa: PTH115 - a Path costs more than the kernel's answer
        except OSError as error:
            yield str(error)
    # A function has its first VF as long as it has any: their number changes by way of none.
    yield str(os.path.lexists(f"{card}/device/virtfn0"))


# Reading a card


def _card_names(roots: Roots) -> list[str]:
    """Return the cards of the DRM class by number, without connectors, render and control nodes."""
    drm = f"{roots.sysfs}/class/drm"
    if not sysfs.is_directory(str(roots.sysfs)):
        raise ScanError(f"no sysfs at {roots.sysfs}")
    if not os.path.lexists(drm):
        return []
    try:
        return [name for name in sysfs.listing(drm) if _CARD.fullmatch(name)]
    except OSError as error:
        raise ScanError(f"cannot list {drm}: {error.strerror}") from error


def _read(
    roots: Roots, name: str, names: dict[str, str], unwanted: Callable[[int], Exclusion | None]
) -> Iterator[Card | ExcludedGpu | Problem]:
    """Read one card: nothing when it is not Intel's; `names` collects names by address."""
    device = f"{roots.sysfs}/class/drm/{name}/device"
    bdf = None
    try:
        if not sysfs.is_intel(device):
            return
        bdf = sysfs.address(device)
        if (first := names.setdefault(bdf, name)) != name:
            yield Problem(name, f"it has the PCI address of {first}", bdf)
            return
        device_id = sysfs.parse(sysfs.read(f"{device}/device") or "", 16, "device")
        driver = sysfs.link_name(f"{device}/driver")
        if reason := unwanted(device_id) or _unusable(driver):
            yield ExcludedGpu(bdf, reason, name, driver)
            return
        card, complaint = _read_card(roots, device, Card(name, bdf, driver or "", device_id))
        if complaint:
            yield Problem(name, complaint, bdf)
        vfs = sysfs.number(f"{device}/sriov_numvfs", 10)
        yield ExcludedGpu(bdf, Exclusion.VFS_ON, name, driver, card) if vfs else card
    except BrokenError as error:
        yield Problem(name, str(error), bdf)


def _unwanted(
    device_id: int, allow_ids: AbstractSet[int], deny_ids: AbstractSet[int]
) -> Exclusion | None:
    if allow_ids and device_id not in allow_ids:
        return Exclusion.NOT_ALLOWED
    return Exclusion.DENIED if device_id in deny_ids else None


def _unusable(driver: str | None) -> Exclusion | None:
    if driver is None:
        return Exclusion.NO_DRIVER
    return None if driver in DRIVERS else Exclusion.OTHER_DRIVER


def _read_card(roots: Roots, device: str, card: Card) -> tuple[Card, str | None]:
    """Return the card with all facts, and a defect that does not keep it from being used."""
    try:
        minors = [entry for entry in sysfs.listing(f"{device}/drm") if _NODE.fullmatch(entry)]
    except OSError as error:
        raise BrokenError(f"drm: {error.strerror}") from error
    if card.name not in minors:
        raise BrokenError("its driver names no device node of it")
    try:
        numa, complaint = sysfs.numa(device), None
    except BrokenError as error:
        numa, complaint = None, f"its NUMA node is unknown: {error}"
    return replace(
        card,
        numa=numa,
        tiles=sysfs.tiles(device, card.name, card.driver, card.device_id),
        bridges=sysfs.bridges(device),
        nodes=tuple(devfs.node(roots, f"dri/{minor}") for minor in minors),
        missing=tuple(
            f"/dev/dri/{minor}"
            for minor in minors
            if not sysfs.is_node(f"{roots.devfs}/dri/{minor}")
        ),
        by_path=tuple(devfs.by_path_links(roots, card.bdf)),
        mei=tuple(devfs.management_engines(roots, device)),
        physfn=sysfs.link_name(f"{device}/physfn"),
    ), complaint


def _without_card(roots: Roots, known: AbstractSet[str]) -> Iterator[ExcludedGpu]:
    """Find the Intel GPUs that are no DRM card: given to vfio-pci, or left without a driver."""
    functions = f"{roots.sysfs}/bus/pci/devices"
    try:
        addresses = list(filter(None, map(address_or_none, sysfs.listing(functions))))
    except OSError:  # a courtesy to the operator, not what we are here for
        return
    for bdf in _displays(functions, tuple(addresses)):
        with suppress(BrokenError):
            if bdf in known or not sysfs.is_intel_display(f"{functions}/{bdf}"):
                continue
            driver = sysfs.link_name(f"{functions}/{bdf}/driver")
            yield ExcludedGpu(bdf, _unusable(driver) or Exclusion.NO_CARD, None, driver)


@lru_cache(maxsize=1)
def _displays(functions: str, addresses: tuple[PciAddress, ...]) -> tuple[PciAddress, ...]:
    """Return the functions that are Intel GPUs, or cannot be read.

    A server has hundreds of functions, and what one is does not change while the same ones are
    there: to ask each of them at every scan would take most of its time.
    """
    found = []
    for bdf in addresses:
        try:
            if sysfs.is_intel_display(f"{functions}/{bdf}"):
                found.append(bdf)
        except BrokenError:
            found.append(bdf)
    return tuple(found)


def _address(gpu: Card | ExcludedGpu) -> str:
    return gpu.bdf
