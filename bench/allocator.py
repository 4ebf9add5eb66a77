"""What glibc's allocator settings do to the memory of the daemons: resident MB, as ratios.

Each daemon runs with each setting: the sidecar for 30 scrapes of 8 GPUs with 2 tiles, the plugin
for 200 Pods. The image sets what helps; docs/image.md has the figures.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep

from report import Table

from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "glibc's own": {},
    "ARENA_MAX=1": {"MALLOC_ARENA_MAX": "1"},
    "TRIM_THRESHOLD_=131072": {"MALLOC_TRIM_THRESHOLD_": "131072"},
    "MMAP_THRESHOLD_=65536": {"MALLOC_MMAP_THRESHOLD_": "65536"},
    "all three": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    },
}
SCRAPES, PODS = 30, 200
RESOURCE = "gpu.intel.com/i915"
_SCRAPES = re.compile(r"^xelink_sidecar_scrapes_total\{.*\} (\S+)$", re.MULTILINE)
_RESIDENT = re.compile(r"VmRSS:\s+(\d+) kB")


@contextmanager
def started(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module of ours while the block runs; its log comes as lines."""
    with started_as(["-m", *arguments], **env) as process:
        yield process


@contextmanager
def started_as(arguments: Sequence[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python with these arguments while the block runs; what it says comes as lines."""
    with subprocess.Popen(  # noqa: S603 - our own programs
        [sys.executable, *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Return what follows this text in the next line that has it."""
    for line in process.stdout or ():
        if text in line:
            return line.partition(text)[2].split()[0]
    raise SystemExit(f"{text!r} did not come")


def resident(process: subprocess.Popen[str]) -> float:
    """Return the resident memory, in MB."""
    found = _RESIDENT.search(Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def scrapes(address: str) -> int:
    """Ask a sidecar how often it has scraped."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return sum(int(float(found)) for found in _SCRAPES.findall(answer.read().decode()))


def sidecars() -> list[float]:
    """Run a sidecar with each of the settings, all on one XPU Manager; give the memory of each."""
    with (
        tempfile.TemporaryDirectory(prefix="xl-") as name,
        started("xelink.simulators.xpu_manager", "--port=0") as simulator,
        ExitStack() as cleanup,
    ):
        port = wait_for(simulator, "http://127.0.0.1:").partition("/")[0]
        processes = []
        for number, env in enumerate(SETTINGS.values()):
            (Path(name) / str(number)).mkdir()
            arguments = (
                *(f"-xpum-port={port}", f"-tmp-dir-prefix={name}/{number}"),
                *(f"-dst-file-path={name}/{number}/labels", "-startup-delay=0", "-interval=1"),
            )
            processes.append(
                cleanup.enter_context(started("sidecar", *arguments, "-listen=127.0.0.1:0", **env))
            )
        for process in processes:
            address = wait_for(process, "listen=")
            while scrapes(address) < SCRAPES:
                sleep(0.5)
        return [resident(process) for process in processes]


def plugin(env: Mapping[str, str]) -> float:
    """Return the memory of a plugin after the Pods."""
    with tempfile.TemporaryDirectory(prefix="xl-") as name, Kubelet(Path(name) / "k") as kubelet:
        NodeTree.eight_max_1550(Path(name) / "n")
        arguments = (
            *(f"-prefix={name}/n", f"-plugin-dir={kubelet.directory}", f"-label-file={name}/none"),
            *(f"-cdi-dir={name}/c", "-listen=127.0.0.1:0"),
        )
        with started("device_plugin", *arguments, **env) as process:
            kubelet.wait_for_allocatable(RESOURCE, 8)
            for pod in range(PODS):
                kubelet.run_pod(str(pod), RESOURCE, 4)
                kubelet.delete_pod(str(pod))
            return resident(process)


def main() -> None:
    """Print the table."""
    print(platform.machine())
    sides = [f"{name}{what}" for name in ("sidecar", "plugin") for what in (", MB", "/glibc's own")]
    table = Table("allocator", ("settings (MALLOC_...)", *sides))
    both = [*zip(SETTINGS, sidecars(), map(plugin, SETTINGS.values()), strict=True)]
    _, first, second = both[0]
    for name, one, other in both:
        table.row(name, one, one / first, other, other / second)


if __name__ == "__main__":
    main()
