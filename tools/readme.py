# ruff: noqa: INP001 - a program's part, not a package
"""The generated blocks of README.md: flags and metrics as tables, what the demo prints."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.flags import flag_rows
from sidecar.settings import SidecarSettings
from sidecar.telemetry import Telemetry
from xelink import demo

README = Path("README.md")


def blocks(root: Path) -> Mapping[Path, bytes]:
    """Give README.md with its blocks as they must be."""
    text = (root / README).read_text(encoding="utf-8")
    text = replaced(text, "demo", demo_block())
    text = replaced(text, "flags", "\n".join(_flags()))
    text = replaced(text, "metrics", "\n".join(_metrics()))
    return {README: text.encode()}


def demo_block() -> str:
    """Run the demo and give the block that shows it."""
    said: list[str] = []
    demo.run(said.append)
    return "\n".join(["```console", "$ make demo", *said, "```"])


def replaced(text: str, name: str, content: str) -> str:
    """Put `content` between the markers of a block."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def _flags() -> Iterator[str]:
    yield "| Flag | Default | What it does |"
    yield "|---|---|---|"
    for flag, default, description in flag_rows(SidecarSettings):
        escaped = flag.replace("|", "\\|")
        yield f"| `{escaped}` | {f'`{default}`' if default else ''} | {description} |"


def _metrics() -> Iterator[str]:
    yield "| Metric | Labels | What it tells |"
    yield "|---|---|---|"
    for name, labels, description in Telemetry().rows:
        yield f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {description} |"
