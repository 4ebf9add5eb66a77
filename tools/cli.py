# ruff: noqa: INP001 - a program's part, not a package
"""What the pages show of the tool: every `$ xelink ...` in them is run, and its output put there.

A block of a page that begins with such a line is replaced by what the command prints; where the
command ends in `> FILE`, that file is what it prints. So pages and pictures are what one sees.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from xelink.cli.exit_codes import FAILED, WRONG_CALL
from xelink.cli.main import main
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode, render
from xelink.topology import publication
from xelink.topology.model import Topology
from xelink.topology.observation import ObservedLinks
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, node_labels
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.exposition import ExpositionReader

PAGES = (Path("docs/cli.md"), Path("docs/not-linked.md"), Path("README.md"))
EXAMPLES = Path("xelink/examples")

_WIDTH = "100"
_BLOCK = re.compile(
    r"(?<=^```console\n)(\$ xelink (?:[^\n]*\\\n)*[^\n]*\n).*?(?=^```$)", re.MULTILINE | re.DOTALL
)
_FAMILIES = (b"xpum_topology_link{", b"xpum_xelink_port_status{")


class CommandError(Exception):
    """A command of a page failed: the page would show an error."""


def pages(root: Path) -> Mapping[Path, bytes]:
    """Return the pages with what their commands print, and the files that these write."""
    written: dict[Path, bytes] = {}

    def run(block: re.Match[str]) -> str:
        line = block[1].removeprefix("$ ").replace("\\\n", " ")
        command, _, file = line.partition(" > ")
        output = _run(root, shlex.split(command)[1:])
        if not file:
            return block[1] + output
        written[Path(file.strip())] = output.encode()
        return block[1]

    made = {page: _BLOCK.sub(run, (root / page).read_text("utf-8")).encode() for page in PAGES}
    return made | written


def _run(root: Path, arguments: list[str]) -> str:
    output = StringIO()
    # The help is as wide as the terminal says.
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), _WIDTH
    try:
        with chdir(root), redirect_stdout(output), redirect_stderr(output):
            code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    if code in {FAILED, WRONG_CALL}:
        raise CommandError(f"xelink {shlex.join(arguments)}: {output.getvalue()}")
    return output.getvalue()


def examples(_root: Path) -> Mapping[Path, bytes]:
    """Make the inputs of the examples: a body, a feature file, and nodes as kubectl prints them."""
    whole = Blueprint(gpus=8, cards="shuffled").build()
    worn = (
        whole.cut("0.0-1.0", "5.0-6.0", "5.1-6.1").degrade(4, 2, "2.0-3.0").one_direction("4.1-7.1")
    )
    four = Blueprint(gpus=4, wiring="mesh", lanes=8).build().degrade(2, 2, "1.0-2.0")
    nodes = {
        "gpu-a": _labels(_topology(whole)),
        "gpu-b": _labels(_topology(whole)),
        "gpu-c": _labels(_topology(worn)),
        "gpu-d": _labels(_topology(Blueprint(gpus=4, wiring="pairs").build())),
        "gpu-e": _labels(None),
        "plain": {"kubernetes.io/arch": "amd64"},
    }
    given = {
        "four.prom": b"".join(_rows(render(four))),
        "eight.txt": publication.render(Publication(_topology(worn)), DEFAULT_NAMESPACE),
        "nodes.json": f"{json.dumps(_list(nodes), indent=2)}\n".encode(),
    }
    return {EXAMPLES / name: content for name, content in given.items()}


def _rows(body: bytes) -> Iterator[bytes]:
    return (line for line in body.splitlines(keepends=True) if line.startswith(_FAMILIES))


def _topology(node: SimulatedNode) -> Topology:
    """Return what the sidecar would publish of a node."""
    reader = ExpositionReader()
    lines = reader.line_filter()
    lines.feed(render(node))
    seen = classify(reader.read(lines), Rules())
    if not isinstance(seen, ObservedLinks):
        raise CommandError(f"the simulated node has no topology: {seen.result.value}")
    return seen.topology


def _labels(topology: Topology | None) -> dict[str, str]:
    return node_labels(Publication(topology), DEFAULT_NAMESPACE)


def _list(nodes: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
            }
            for name, labels in nodes.items()
        ],
    }
