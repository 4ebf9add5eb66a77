"""The sidecar and the device plugin as processes on a simulated node, with a kubelet."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import Running, running
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node import tree
from xelink.simulators.node.blueprint import TreeBlueprint as Cards
from xelink.simulators.xpu_manager import Blueprint, Simulator

I915 = "gpu.intel.com/i915"


class Pipeline:
    """The sidecar and the plugin on a simulated node, until kubelet knows the GPUs."""

    def __init__(self, directory: Path, sidecar: Running, plugin: Running) -> None:
        self.labels = directory / "f" / "xpum-sidecar-labels.txt"
        self.sidecar = sidecar
        self.plugin = plugin


@contextmanager
def pipeline(gpus: int, *more: str) -> Iterator[tuple[Pipeline, Kubelet, Path]]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        directory = Path(name)
        labels = directory / "f" / "xpum-sidecar-labels.txt"
        for each in ("f", "d"):
            (directory / each).mkdir()
        tree.put(Cards(gpus=gpus), directory / "n")
        sidecar = [f"-tmp-dir-prefix={labels.parent}", f"-dst-file-path={labels}"]
        plugin = [
            f"-prefix={directory / 'n'}",
            f"-plugin-dir={directory / 'k'}",
            f"-cdi-dir={directory / 'd'}",
            f"-label-file={labels}",
            "-listen=127.0.0.1:0",
        ]
        with (
            Simulator(Blueprint(gpus=gpus).build()) as xpum,
            Kubelet(directory / "k") as kubelet,
            running(
                "sidecar",
                *sidecar,
                f"-xpum-port={xpum.port}",
                "-startup-delay=0",
                "-interval=1",
                "-listen=127.0.0.1:0",
                *more,
            ) as writer,
            running("device_plugin", *plugin) as reader,
        ):
            kubelet.wait_for_allocatable(I915, gpus)
            yield Pipeline(directory, writer, reader), kubelet, directory
