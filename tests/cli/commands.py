"""`xelink` called as a person calls it, in this process; and inputs for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from xelink.cli.main import main
from xelink.simulators.xpu_manager import SimulatedNode, render
from xelink.topology import publication
from xelink.topology.model import Topology
from xelink.topology.observation import ObservedLinks
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, node_labels
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import classify
from xelink.xpu_manager.exposition import Exposition, ExpositionReader

EXAMPLES = Path(__file__).parents[2] / "xelink" / "examples"


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Xelink:
    """Calls commands, and writes the files that they read."""

    def __init__(self, capsys: pytest.CaptureFixture[str], directory: Path) -> None:
        self._capsys = capsys
        self.directory = directory

    def __call__(self, *arguments: str) -> Said:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return Said(code, out, err)

    def file(self, name: str, content: bytes | str) -> str:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def body(self, node: SimulatedNode) -> str:
        return self.file("body.prom", render(node))

    def features(self, topology: Topology | None) -> str:
        return self.file("labels.txt", publication.render(Publication(topology), DEFAULT_NAMESPACE))

    def nodes(self, **labels: Mapping[str, str]) -> str:
        items = [
            {"kind": "Node", "metadata": {"name": name, "labels": dict(found)}}
            for name, found in labels.items()
        ]
        return self.file("nodes.json", json.dumps({"kind": "List", "items": items}))


@pytest.fixture
def xelink(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Xelink:
    return Xelink(capsys, tmp_path)


def labels(topology: Topology | None) -> dict[str, str]:
    return node_labels(Publication(topology), DEFAULT_NAMESPACE)


def reading(body: bytes) -> Exposition:
    reader = ExpositionReader()
    lines = reader.line_filter()
    lines.feed(body)
    return reader.read(lines)


def topology(node: SimulatedNode, *, lenient: bool = False) -> Topology:
    """Give what the sidecar would publish of a node."""
    seen = classify(reading(render(node)), Rules(allow_subdeviceless_links=lenient))
    assert isinstance(seen, ObservedLinks)
    return seen.topology
