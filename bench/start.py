"""From the start of the sidecar's process to its first published labels, and where that time goes.

Times depend on the machine; so each is also told as a ratio to what Python itself takes to start
and end, from the same run. The answer is ready before it is asked for: what XPU Manager takes for
it, 25 ms in its simulator, is not the sidecar's. The floor is to import the libraries and no more.
"""

import compileall
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ready import ready
from report import Table

from xelink.simulators.xpu_manager import Blueprint, render

RUNS = 15
HEAVY = (
    *("pydantic_settings", "structlog", "httpx", "prometheus_client", "tenacity"),
    *("sidecar.settings", "sidecar.daemon"),
)
BODY = render(Blueprint(gpus=8, tiles=2).build())
LIBRARIES = """
from xelink.daemon import lazy_imports
lazy_imports.block_imports("bz2", "click", "lzma", "rich")
lazy_imports.defer_imports("asyncio", "idna", "secrets")
lazy_imports.trim_pydantic()
with lazy_imports.gc_paused():
    lazy_imports.no_task_names()
    import httpx, prometheus_client, pydantic_settings, structlog, tenacity
    pydantic_settings.BaseSettings, structlog.wrap_logger
"""


def first_label(port: int, directory: Path) -> float:
    """Start the sidecar and wait for its file; give the seconds."""
    file = directory / "labels.txt"
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - our own program
        [
            *(sys.executable, "-m", "sidecar", f"-xpum-port={port}", "-startup-delay=0"),
            *(f"-tmp-dir-prefix={directory}", f"-dst-file-path={file}", "-listen=127.0.0.1:0"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stderr is None:
            raise AssertionError(process)
        for line in process.stderr:
            if "labels published" in line:
                break
        took = time.perf_counter() - started
        process.terminate()
        process.stderr.read()
    return took


def python(program: str) -> float:
    """Return the seconds that Python takes for a program."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - ours
    return time.perf_counter() - started


def imports() -> dict[str, float]:
    """Return the seconds that modules take to import, with what they import; the best of some."""
    best: dict[str, float] = {}
    for _ in range(5):
        told = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "sidecar", "-version"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for line in told.splitlines():
            _, total, module = line.removeprefix("import time:").split("|")
            if total.strip().isdigit():
                seconds = int(total) / 1e6
                best[module.strip()] = min(seconds, best.get(module.strip(), seconds))
    return best


def main() -> None:
    """Print the tables."""
    for package in ("xelink", "sidecar"):  # byte code, as in the image
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
    lowest = median(python("") for _ in range(RUNS))
    libraries = median(python(LIBRARIES) for _ in range(RUNS))
    table = Table("start", ("what", "ms", "times a bare Python"))
    table.row("a bare Python", lowest * 1000, 1)
    table.row("only the libraries, same imports blocked", libraries * 1000, libraries / lowest)
    with tempfile.TemporaryDirectory() as directory, ready(BODY) as port:
        took = median(first_label(port, Path(directory)) for _ in range(RUNS))
        table.row("start to first label", took * 1000, took / lowest)
    found = imports()
    for module in HEAVY:
        if module in found:
            table.row(f"of it, import {module}", found[module] * 1000, found[module] / lowest)


if __name__ == "__main__":
    main()
