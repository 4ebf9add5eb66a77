# ruff: noqa: INP001 - a program's part, not a package
"""The generated blocks of the documentation: flags and metrics as tables, what the demo prints."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from device_plugin.settings import PluginSettings
from device_plugin.telemetry import NodeTelemetry, ServingTelemetry
from sidecar.settings import SidecarSettings
from sidecar.telemetry import Telemetry as SidecarTelemetry
from xelink.cli.demo import command as demo
from xelink.cli.main import main as xelink
from xelink.daemon.flags import DaemonSettings, flag_rows
from xelink.daemon.metrics import Metrics
from xelink.preference.criteria import CRITERIA, GPUS_FIRST


class BlockError(Exception):
    """A page has not one place for a block: what belongs there would be told nowhere."""


def tables(root: Path) -> Mapping[Path, bytes]:
    """Return the daemons' pages with their tables of flags and metrics. Raises `BlockError`."""
    plugin = Metrics("xelink_device_plugin")
    ServingTelemetry(plugin)
    NodeTelemetry(plugin)
    return _pages(
        root,
        {
            Path("docs/sidecar.md"): {
                "flags": _flags(SidecarSettings),
                "metrics": _metrics(SidecarTelemetry().rows),
            },
            Path("docs/device-plugin.md"): {
                "criteria": _criteria(),
                "plugin-flags": _flags(PluginSettings),
                "plugin-metrics": _metrics(plugin.rows),
            },
        },
    )


def outputs(root: Path) -> Mapping[Path, bytes]:
    """Return the pages with what the demo and the simulation print. Raises `BlockError`."""
    return _pages(
        root,
        {
            Path("docs/demo.md"): {"demo": _demo()},
            Path("docs/simulate.md"): {
                "simulate-islands": _called("simulate islands --no-times"),
                "simulate-list": _called("simulate --list"),
                "simulate-thousand": _called("simulate --random 1 --runs 1000 --no-times", 40),
            },
        },
    )


def _pages(root: Path, content: Mapping[Path, Mapping[str, Iterable[str]]]) -> Mapping[Path, bytes]:
    """Put lines between the markers of each block of each page."""
    return {
        path: _replaced(path, (root / path).read_text(encoding="utf-8"), named).encode()
        for path, named in content.items()
    }


def _replaced(path: Path, text: str, named: Mapping[str, Iterable[str]]) -> str:
    for name, lines in named.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        body = "\n".join(lines).replace("\\", r"\\")
        text, times = pattern.subn(rf"\g<1>{body}\n\g<2>", text)
        if times != 1:
            raise BlockError(f"{path} has {times} blocks {name}, not one")
    return text


def _demo() -> list[str]:
    said: list[str] = []
    demo.demonstrate(said.append)
    return ["```console", "$ make demo", *said, "```"]


def _called(call: str, lines: int | None = None) -> list[str]:
    with redirect_stdout(StringIO()) as said:
        xelink(call.split())
    cut = f" | head -n {lines}" if lines else ""
    return ["```console", f"$ xelink {call}{cut}", *said.getvalue().splitlines()[:lines], "```"]


def _flags(settings: type[DaemonSettings]) -> Iterator[str]:
    yield "| Flag | Default | What it does |"
    yield "|---|---|---|"
    for flag, default, description in flag_rows(settings):
        escaped = flag.replace("|", "\\|")
        yield f"| `{escaped}` | {f'`{default}`' if default else ''} | {description} |"


def _metrics(rows: Iterable[tuple[str, tuple[str, ...], str]]) -> Iterator[str]:
    yield "| Metric | Labels | Meaning |"
    yield "|---|---|---|"
    for name, labels, description in rows:
        yield f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {description} |"


def _criteria() -> Iterator[str]:
    yield "| | Name | Criterion | What is measured |"
    yield "|---|---|---|---|"
    yield f"| 1 | | {GPUS_FIRST} | the GPUs of the set |"
    for each in CRITERIA:
        yield f"| {each.number} | `{each.name}` | {each.meaning} | {each.detail} |"
