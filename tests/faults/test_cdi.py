"""The CDI spec outlives a power cut: what was not synced was not written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shim import LackingError, Shim
from xelink.inventory import cdi
from xelink.simulators.node.sysfs import NodeTree

REFRESH = """
import sys
from pathlib import Path
from xelink.inventory import cdi
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, scan
from xelink.inventory.by_path import ByPath
node, directory = map(Path, sys.argv[1:])
inventory = scan(Roots.under(node)) if node.exists() else Inventory()
standing = cdi.refresh(directory, inventory, ByPath.NONE)
print(standing.error or standing.changed)
"""


class Place:
    """A node, a directory of specs, and a writer of which system calls may fail."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "node"
        self.directory = folder / "cdi"
        self.shim = Shim(folder / "wrong", self.directory)
        NodeTree.eight_max_1550(self.root)

    @property
    def file(self) -> Path:
        return self.directory / cdi.FILE_NAME

    def refresh(self) -> str:
        """Refresh the spec in a process of its own; give what came of it."""
        return subprocess.run(
            [sys.executable, "-c", REFRESH, self.root, self.directory],
            env={**os.environ, **self.shim.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    try:
        return Place(tmp_path)
    except LackingError as lacking:
        pytest.skip(str(lacking))


def test_a_spec_that_is_not_synced_is_not_put_in_place(place: Place) -> None:
    assert place.refresh() == "True"
    stood = b"what stood"
    place.file.write_bytes(stood)
    with place.shim.failing("fsync", errno.EIO):
        assert place.refresh() == f"cannot write {place.file}: Input/output error"
    assert [path.name for path in place.directory.iterdir()] == [cdi.FILE_NAME]
    assert place.file.read_bytes() == stood
    assert place.refresh() == "True"
    assert place.file.read_bytes() != stood


@pytest.mark.parametrize("what", ["write", "remove"])
def test_a_name_that_may_not_last_is_told(place: Place, what: str) -> None:
    if what == "remove":
        assert place.refresh() == "True"
        place.root.rename(place.root.with_name("gone"))
    with place.shim.failing("fsync-directory", errno.EIO):
        assert place.refresh() == f"cannot {what} {place.file}: Input/output error"
    assert place.refresh() == "False", "what stands is whole all the same"
