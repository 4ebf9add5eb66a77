"""Makes a simulated node's tree in a directory, replacing an earlier one."""

import os
import shutil
from pathlib import Path

from xelink.simulators.node.blueprint import TreeBlueprint
from xelink.simulators.node.sysfs import NodeTree

# Marks what is beside it as ours to replace: never the /sys and /dev of a real machine.
_MARK = ".xelink-simulated-node"
_STAGE = ".xelink-simulated-node.new"
_PARTS = ("sys", "dev")


class TreeError(Exception):
    """The tree was not made: the earlier one is unchanged."""


def put(blueprint: TreeBlueprint, root: Path, *, device_nodes: bool = False) -> NodeTree:
    """Make the tree of a node below `root`; one that was made there before is replaced.

    `device_nodes` makes real character devices, which anybody may open. Raises `TreeError`.
    """
    present = [name for name in _PARTS if os.path.lexists(root / name)]
    if present and not (root / _MARK).is_file():
        raise TreeError(
            f"{root / present[0]} was not made by this program: give an empty directory"
        )
    stage = root / _STAGE
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / _MARK).write_text("sys and dev were made by python -m xelink.simulators.node\n")
        shutil.rmtree(stage, ignore_errors=True)
        node = _build(blueprint, stage, device_nodes=device_nodes)
        for name in _PARTS:
            if os.path.lexists(root / name):
                shutil.rmtree(root / name)
            (stage / name).rename(root / name)
    except OSError as error:
        raise TreeError(
            f"cannot make {error.filename or root}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    node.root = root
    return node


def _build(blueprint: TreeBlueprint, stage: Path, *, device_nodes: bool) -> NodeTree:
    try:
        node = blueprint.build(stage, character_devices=device_nodes)
    except PermissionError as error:
        if not device_nodes:
            raise
        raise TreeError(
            f"cannot make device nodes below {stage.parent}: {error.strerror};"
            " this takes root with CAP_MKNOD, or leave out --device-nodes"
        ) from error
    if device_nodes:
        _require_open(next(iter((stage / "dev/dri").glob("card*")), None))
    return node


def _require_open(device: Path | None) -> None:
    """Raise `TreeError` when a device node that was made cannot be opened."""
    if device is None:
        return
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise TreeError(
            f"device nodes below {device.parents[3]} cannot be opened: {error.strerror};"
            " is its file system mounted with nodev?"
        ) from error
