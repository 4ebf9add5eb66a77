"""The CDI spec of this node's GPUs: what a runtime puts into a container that names one.

Format: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md. Version 0.5.0 is
the first with `hostPath` of a device node and the last that the first runtimes with CDI know
(containerd 1.7.0); nothing newer is needed.

A CDI device is a whole GPU and is named by its card, `intel.cdi.k8s.io/gpu=card1`: it is what the
device ids of kubelet (`card1-0`, `card1-1`) begin with, so that every share of a GPU names the
same CDI device, and what Intel's plugin calls it, so that whoever names one by hand goes on.
DRM may number its cards otherwise after a reboot; the directory does not outlive one.
"""

import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from device_plugin.devfs import DeviceNode, Mount
from device_plugin.devices import Card, Inventory
from device_plugin.offers import ByPath, mounts
from service.files import read_beginning, read_file
from topology.text import printable

VERSION = "0.5.0"
KIND = "intel.cdi.k8s.io/gpu"
DIRECTORY = Path("/var/run/cdi")
# Runtimes read *.json and *.yaml only, so that they never see the temporary file.
FILE_NAME = "intel.cdi.k8s.io-gpu.json"
_TEMPORARY = f".{FILE_NAME}."
_MODE = 0o644
_SPEC_LIMIT = 1 << 20  # bytes of somebody else's spec that we are ready to look through
_MOST_NAMED = 16  # files of others that are named; Intel's plugin leaves one for each GPU

# name = 1*( ALPHA / DIGIT / "_" / "." / ":" / "-" ), of a device; that of a kind has no colon, and
# the last part of a path is neither
_NAME = re.compile(rb"(?<![/A-Za-z0-9_.:-])[A-Za-z0-9_.:-]+")
_OUR_KIND = re.compile(rb"(?<![A-Za-z0-9_.-])" + re.escape(KIND.encode()) + rb"(?![A-Za-z0-9_.-])")


class CdiError(Exception):
    """The spec was not written or removed: what stood before still stands.

    Device nodes and mounts are handed out all the same; only the CDI name must be left out.
    """


class RivalError(CdiError):
    """Somebody else's specs define our devices: ours is not there until they are gone."""


def qualified_name(card: Card) -> str:
    """Give the name by which an allocation names the card to the runtime."""
    return f"{KIND}={card.name}"


def spec(inventory: Inventory, by_path: ByPath) -> dict[str, Any] | None:
    """Give the spec as JSON values, None without cards: a spec without devices is not valid.

    Every card that may be offered is in it with all its device nodes, healthy or not, so that
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


def refresh(directory: Path, inventory: Inventory, by_path: ByPath) -> bool:
    """Make the spec file tell the inventory; True when it had to be written or removed.

    The file appears whole, synced and readable by all (0644), and is left alone when it says the
    same. The directory is made when it is not there. Raises `CdiError`, and `RivalError` once our
    file is removed: of a device that two files define a runtime takes neither.
    """
    wanted = _rendered(inventory, by_path)
    if wanted is None:
        return remove(directory)
    if others := rivals(directory, inventory):
        remove(directory)
        raise RivalError(_told(directory, others))
    path = directory / FILE_NAME
    if _stands(path, wanted):
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


def rivals(directory: Path, inventory: Inventory) -> tuple[str, ...]:
    """Find the names of other specs that define our devices, as Intel's plugin leaves them behind.

    By the words in them, whatever they are written in: our kind, and the name of a card. Of a file
    that is too long to be looked through the kind is enough. One that cannot be read is no rival.
    """
    ours = {card.name.encode() for card in inventory.cards}
    return tuple(
        name
        for name in sorted(_names(directory))
        if name.endswith((".json", ".yaml"))
        and name != FILE_NAME
        and _defines(_start(directory / name), ours)
    )


def _defines(text: bytes, ours: AbstractSet[bytes]) -> bool:
    if not _OUR_KIND.search(text):
        return False
    return len(text) >= _SPEC_LIMIT or not ours.isdisjoint(_NAME.findall(text))


def _told(directory: Path, names: Sequence[str]) -> str:
    """Say which files are in the way, as a command that removes them."""
    files = " ".join(shlex.quote(printable(str(directory / name))) for name in names[:_MOST_NAMED])
    more = f" (and {len(names) - _MOST_NAMED} more)" if len(names) > _MOST_NAMED else ""
    return (
        "other specs define the same devices, and runtimes resolve none of these: stop what wrote"
        f" them, then rm {files}{more}"
    )


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


def _stands(path: Path, content: bytes) -> bool:
    try:
        told = path.lstat()
        regular = stat.S_ISREG(told.st_mode) and stat.S_IMODE(told.st_mode) == _MODE
        if not regular or told.st_size != len(content):
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
        return read_beginning(path, _SPEC_LIMIT)
    except OSError:
        return b""
