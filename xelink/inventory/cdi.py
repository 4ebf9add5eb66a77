"""The CDI spec of this node's GPUs: what a runtime puts into a container that names one.

Format: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md. Version 0.5.0 is
the first with `hostPath` of a device node and the last that the first runtimes with CDI know
(containerd 1.7.0); nothing newer is needed.

A CDI device is a whole GPU and is named by its card, `intel.cdi.k8s.io/gpu=card1`: it is what the
device ids of kubelet (`card1-0`, `card1-1`) begin with, so that every share of a GPU names the
same CDI device, and what Intel's plugin calls it, so that names written by hand keep working.
DRM may number its cards otherwise after a reboot; the directory does not outlive one.
"""

import json
import os
import shlex
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from xelink.daemon.files import read_beginning, read_file
from xelink.inventory.by_path import ByPath, mounts
from xelink.inventory.cdi_rivals import defined
from xelink.inventory.devfs import DeviceNode, Mount
from xelink.inventory.gpus import Card, Inventory
from xelink.topology.text import printable

VERSION = "0.5.0"
KIND = "intel.cdi.k8s.io/gpu"
DIRECTORY = Path("/var/run/cdi")
# Runtimes read *.json and *.yaml only, and so never the temporary file.
FILE_NAME = "intel.cdi.k8s.io-gpu.json"
_TEMPORARY = f".{FILE_NAME}."
_MODE = 0o644
_SPEC_LIMIT = 1 << 20  # bytes of the longest foreign spec that is read
_MOST_NAMED = 16  # files of others, and cards; Intel's plugin leaves a file for each GPU


class CdiError(Exception):
    """The spec was not written or removed: the earlier file is unchanged.

    Device nodes and mounts are handed out all the same; only the CDI name must be left out.
    """


class Rivals(NamedTuple):
    """Other specs that define our names: files, and the cards in them.

    `unread` are files too long to be read, which may define any card.
    """

    files: tuple[str, ...] = ()
    cards: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()


class CdiState(NamedTuple):
    """The cards that may be named now, and what keeps others from it, if anything."""

    named: frozenset[str]
    error: str = ""
    changed: bool = False
    """Whether the file had to be written or removed."""


def qualified_name(card: Card) -> str:
    """Return the name by which an allocation names the card to the runtime."""
    return f"{KIND}={card.name}"


def spec(inventory: Inventory, by_path: ByPath) -> dict[str, Any] | None:
    """Return the spec as JSON values, None without cards: a spec without devices is not valid.

    Every card that may be advertised is in it with all its device nodes, healthy or not, so that
    health that comes and goes does not rewrite a file that running Pods depend on.
    """
    if not inventory.cards:
        return None
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": [
            {
                "name": card.name,
                "containerEdits": _edits(card.nodes, mounts(card, inventory, by_path)),
            }
            for card in inventory.cards
        ],
    }


def refresh(directory: Path, inventory: Inventory, by_path: ByPath) -> CdiState:
    """Write the inventory to the spec file, without the cards that other specs define.

    Of a device that two files define a runtime takes neither; the other cards keep their names,
    which kubelet has recorded for Pods that may start again. Beside a file that cannot be read ours
    stays whole, for these, but no further name is allocated: one that is defined twice would keep
    a container from starting, and device nodes alone are enough.

    The file appears whole, synced and readable by all (0644), and is left alone when it is the
    same. The directory is made when it is not there. Never raises `CdiError`: its text is part of
    the error, beside the rivals.
    """
    others = rivals(directory, inventory)
    ours = tuple(card for card in inventory.cards if card.name not in others.cards)
    conflicts = _conflicts(directory, others)
    try:
        changed = _put(directory, replace(inventory, cards=ours), by_path)
    except CdiError as error:
        return CdiState(frozenset(), "; ".join(filter(None, (str(error), conflicts))))
    named = frozenset() if others.unread else frozenset(card.name for card in ours)
    return CdiState(named, conflicts, changed)


def _put(directory: Path, inventory: Inventory, by_path: ByPath) -> bool:
    """Write these cards to the file; True when it had to be written or removed."""
    wanted = _rendered(inventory, by_path)
    if wanted is None:
        return remove(directory)
    path = directory / FILE_NAME
    if _is_current(path, wanted):
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        _replace(path, wanted)
    except OSError as error:
        raise CdiError(f"cannot write {path}: {error.strerror}") from error
    return True


@lru_cache(maxsize=1)
def _rendered(inventory: Inventory, by_path: ByPath) -> bytes | None:
    # Kept: it is asked for at every scan, and a node seldom changes.
    content = spec(inventory, by_path)
    return None if content is None else f"{json.dumps(content, indent=2)}\n".encode()


def remove(directory: Path) -> bool:
    """Remove the spec file, and what a killed writer left; True when there was one."""
    path = directory / FILE_NAME
    try:
        _sweep(directory)
        path.unlink()
        _sync(directory)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CdiError(f"cannot remove {path}: {error.strerror}") from error
    return True


def rivals(directory: Path, inventory: Inventory) -> Rivals:
    """Find other specs that define our devices, as Intel's plugin leaves them behind.

    One that cannot be read is no rival: no runtime reads it, either.
    """
    ours = frozenset(card.name for card in inventory.cards)
    if not ours:
        return Rivals()
    files, unread, cards = [], [], set[str]()
    for name in sorted(_names(directory)):
        if name == FILE_NAME or not name.endswith((".json", ".yaml")):
            continue
        text = _start(directory / name)
        if len(text) > _SPEC_LIMIT:
            unread.append(name)
        elif theirs := ours & defined(text, KIND):
            files.append(name)
            cards |= theirs
    return Rivals(tuple(files), frozenset(cards), tuple(unread))


def _conflicts(directory: Path, others: Rivals) -> str:
    """Return which specs conflict, and the command that removes them; empty where none does."""
    found = []
    if others.files:
        cards = _some(sorted(others.cards, key=lambda name: (len(name), name)))
        found.append(
            f"other specs define the same devices ({cards}), so that ours leaves these out: stop"
            f" what wrote them, then rm {_paths(directory, others.files)}"
        )
    if others.unread:
        found.append(
            f"longer than {_SPEC_LIMIT} bytes, so that they may define the same"
            f" devices: {_paths(directory, others.unread)}"
        )
    return "; ".join(found)


def _paths(directory: Path, names: Iterable[str]) -> str:
    return _some(shlex.quote(printable(str(directory / name))) for name in names)


def _some(texts: Iterable[str]) -> str:
    every = list(texts)
    more = f" (and {len(every) - _MOST_NAMED} more)" if len(every) > _MOST_NAMED else ""
    return f"{' '.join(every[:_MOST_NAMED])}{more}"


def _edits(nodes: tuple[DeviceNode, ...], by_path: tuple[Mount, ...]) -> dict[str, Any]:
    edits: dict[str, Any] = {
        "deviceNodes": [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "permissions": node.permissions,
            }
            for node in nodes
        ]
    }
    if by_path:
        edits["mounts"] = [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "type": "none",
                # Not `nodev`: what a by-path link leads to is a device that must open.
                "options": ["bind", "ro" if mount.read_only else "rw"],
            }
            for mount in by_path
        ]
    return edits


def _is_current(path: Path, content: bytes) -> bool:
    try:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == _MODE
        if not regular or status.st_size != len(content):
            return False
        return read_file(path, len(content)) == content
    except OSError:
        return False


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def _sweep(directory: Path) -> None:
    for name in _names(directory):
        if name.startswith(_TEMPORARY):
            with suppress(OSError):
                (directory / name).unlink()


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - at every scan: no Path for each of them
    except OSError:
        return []


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _start(path: Path) -> bytes:
    try:
        return read_beginning(path, _SPEC_LIMIT + 1)
    except OSError:
        return b""
