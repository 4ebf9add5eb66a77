"""The node's GPUs: what is simulated of them, and our own daemons beside them."""

import json
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.api import Object
from tests.e2e.nfd import FEATURES
from tests.e2e.programs import Program, run, until
from tests.processes import get
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, scan
from xelink.simulators.node.blueprint import TreeBlueprint as Tree
from xelink.simulators.node.tree import put
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology import nfd_format

FILE = FEATURES / "xpum-sidecar-labels.txt"
OK = 200
_SAME = 0.01  # seconds by which two spellings of one instant may differ


@dataclass
class Gpus:
    """Eight GPUs of two tiles: as sysfs and device nodes below `root`, and as XPU Manager."""

    root: Path
    xpum: Simulator = field(init=False)

    def start(self) -> "Gpus":
        """Make the tree, and serve the metrics."""
        FEATURES.mkdir(parents=True, exist_ok=True)
        put(Tree(), self.root, device_nodes=True)
        self.xpum = Simulator(Blueprint().build()).start()
        return self

    def stop(self) -> None:
        """Stop serving."""
        self.xpum.close()

    @property
    def inventory(self) -> Inventory:
        """The GPUs on the bus, as the plugin sees them."""
        return scan(Roots.under(self.root, self.root))

    def bdfs(self) -> dict[str, str]:
        """Give the PCI address of each card."""
        return {card.name: card.bdf for card in self.inventory.cards}

    def explained(self, size: int, used: Collection[str] = ()) -> frozenset[str]:
        """Give the PCI addresses that `xelink explain` names from the feature file."""
        others = [f"--used={','.join(used)}"] if used else []
        told = _explain(size, f"--features={FILE}", *others)
        return frozenset(gpu["pci"] for gpu in told)

    def ids(self) -> dict[str, int]:
        """Give XPU Manager's device id of each PCI address."""
        everything = _explain(len(self.inventory.cards), f"--features={FILE}")
        return {gpu["pci"]: gpu["id"] for gpu in everything}


def explained_from_labels(size: int, node: str) -> frozenset[int]:
    """Give the device ids that `xelink explain` names from a node as kubectl prints it."""
    return frozenset(gpu["id"] for gpu in _explain(size, "--node-json=-", stdin=node))


def _explain(size: int, *source: str, stdin: str = "") -> list[Object]:
    told = run(
        *(sys.executable, "-m", "xelink", "explain"),
        *(f"--want={size}", "--output=json", *source),
        stdin=stdin,
    )
    gpus: list[Object] = json.loads(told)["gpus"]
    return gpus


def published() -> dict[str, str]:
    """Give the labels in the feature file, unless they have expired."""
    content = FILE.read_bytes() if FILE.exists() else b""
    return dict(nfd_format.parse(content, datetime.now(UTC)).labels)


def sidecar(
    logs: Path, port: int, *flags: str, name: str = "sidecar", startup_delay: int = 0
) -> Program:
    """Give a sidecar that scrapes every second and writes where it always does."""
    return Program(
        logs,
        name,
        [
            *(sys.executable, "-m", "sidecar"),
            f"-xpum-port={port}",
            f"-startup-delay={startup_delay}",
            "-interval=1",
            "-listen=127.0.0.1:0",
            *flags,
        ],
    )


def plugin(logs: Path, gpus: Gpus, *flags: str, name: str = "plugin") -> Program:
    """Give a device plugin that looks where it always does, but for the GPUs."""
    return Program(
        logs,
        name,
        [
            *(sys.executable, "-m", "device_plugin"),
            f"-prefix={gpus.root}",
            f"-device-root={gpus.root}",
            "-listen=127.0.0.1:0",
            *flags,
        ],
    )


@dataclass
class Companions:
    """The sidecar and the device plugin of one node, as real processes."""

    gpus: Gpus
    logs: Path
    sidecar: Program = field(init=False)
    plugin: Program = field(init=False)
    probes: str = ""

    def start(self, *flags: str) -> "Companions":
        """Start both; the plugin is ready when this returns."""
        self.sidecar = sidecar(self.logs, self.gpus.xpum.port).start()
        self.sidecar.wait_for("labels published")
        self.start_plugin(*flags)
        return self

    def start_plugin(self, *flags: str) -> None:
        """Start the plugin with these flags, in place of the one that runs."""
        if hasattr(self, "plugin"):
            self.plugin.stop()
        self.plugin = plugin(self.logs, self.gpus, *flags).start()
        self.await_plugin()

    def await_plugin(self) -> None:
        """Wait until kubelet knows the plugin that was started, and it knows the links."""
        line = self.plugin.wait_for("event=started")
        self.probes = "http://" + line.split("listen=")[1].split()[0]
        until(lambda: get(f"{self.probes}/readyz")[0] == OK, "the plugin is ready")
        self.await_links()

    def await_links(self) -> None:
        """Wait until the plugin has read the feature file that stands."""

        def read() -> bool:
            told = metric(self.probes, "xelink_device_plugin_feature_file_timestamp_seconds")
            return abs(told - FILE.stat().st_mtime) < _SAME

        until(read, "the plugin reads the feature file")

    def rewire(self, *cut: str) -> None:
        """Let the node have all its links but these, and wait until both daemons know."""
        before = published()
        self.gpus.xpum.node = (
            self.gpus.xpum.first_node.cut(*cut) if cut else (self.gpus.xpum.first_node)
        )
        wanted = str(len(self.gpus.xpum.first_node.topology.links) - len(cut))
        until(
            lambda: published().get("gpu.intel.com/xe-links.count") == wanted,
            lambda: f"{wanted} links in the feature file; before {before}; {self.sidecar.tail()}",
        )
        self.await_links()

    def stop(self) -> None:
        """Stop both; nothing of what they wrote stays."""
        self.plugin.stop()
        self.sidecar.stop()
        FILE.unlink(missing_ok=True)


def metric(probes: str, name: str, **labels: str) -> float:
    """Give the sum of a metric's samples with these labels; 0 where there is none."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in get(f"{probes}/metrics")[1].splitlines()
        if re.match(rf"{name}[ {{]", line) and all(each in line for each in wanted)
    )
