"""The overlays as a cluster would get them: rendered by kustomize, without a network.

The tools are looked for on PATH and in `.cache/tools`, where `make deployment-tools` puts them.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "overlays"
TOOLS = ROOT / ".cache" / "tools"
CUSTOM_RESOURCES = TOOLS / "crds"

Document: TypeAlias = dict[str, Any]
"""One object of Kubernetes as YAML gives it."""

WORKLOADS = ("DaemonSet", "Deployment", "StatefulSet", "Job")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), str(TOOLS / "bin")])

# Programs in Go that run for a second: to collect garbage, and on every processor, costs as much.
FRUGAL = {"GOGC": "off", "GOMEMLIMIT": "512MiB", "GOMAXPROCS": "1"}


def tool(name: str) -> str | None:
    """Find a program; None where it is not installed."""
    return shutil.which(name, path=_PATH)


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip where none of these programs is there."""
    return pytest.mark.skipif(
        not any(map(tool, names)), reason=f"no {' or '.join(names)}: run `make deployment-tools`"
    )


needs_kustomize = needs("kubectl", "kustomize")


def run(*words: str, stdin: str = "") -> str:
    """Run a tool; give what it printed, or fail with what it said."""
    done = subprocess.run(
        words,
        input=stdin,
        env={**os.environ, **FRUGAL},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@cache
def _rendered(directory: Path) -> str:
    kubectl, kustomize = tool("kubectl"), tool("kustomize")
    if kubectl:
        return run(kubectl, "kustomize", str(directory))
    if kustomize:
        return run(kustomize, "build", str(directory))
    pytest.skip("no kubectl or kustomize: run `make deployment-tools`")


def render(overlay: str) -> list[Document]:
    """Give the objects of `overlays/<overlay>`; skip where kustomize is missing."""
    return list(yaml.load_all(_rendered(OVERLAYS / overlay), Loader=yaml.CSafeLoader))


@cache
def _written() -> dict[str, str]:
    return {
        str(path.parent.relative_to(OVERLAYS)): path.read_text()
        for path in sorted(OVERLAYS.rglob("kustomization.yaml"))
    }


def kustomizations(kind: str) -> dict[str, Document]:
    """Find what is of a kind (Kustomization or Component), by its path below overlays/."""
    found = {name: yaml.load(text, Loader=yaml.CSafeLoader) for name, text in _written().items()}
    return {name: content for name, content in found.items() if content["kind"] == kind}


each_overlay = pytest.mark.parametrize("overlay", kustomizations("Kustomization"))


class Pod(NamedTuple):
    """The Pod that a workload makes."""

    workload: Document
    spec: Document

    @property
    def containers(self) -> list[Document]:
        """Every container, the initial ones first."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def volumes(self) -> dict[str, Document]:
        """Volumes by their names."""
        return {volume["name"]: volume for volume in self.spec.get("volumes", ())}

    @property
    def on_host_network(self) -> bool:
        """Whether the node's addresses are the Pod's."""
        return bool(self.spec.get("hostNetwork"))

    def container(self, name: str) -> Document:
        """Find a container by its name."""
        (found,) = (each for each in self.containers if each["name"] == name)
        return found


def pods(overlay: str) -> list[Pod]:
    """Give the Pods of an overlay."""
    return [
        Pod(document, document["spec"]["template"]["spec"])
        for document in render(overlay)
        if document["kind"] in WORKLOADS
    ]


def is_ours(container: Mapping[str, Any]) -> bool:
    """Tell whether a container runs this project's image."""
    image: str = container["image"]
    return image.rpartition("/")[2].partition(":")[0] == "xelink"


def words(container: Mapping[str, Any]) -> list[str]:
    """Give what a container runs: its command and the arguments behind it."""
    return [*container.get("command", ()), *container.get("args", ())]


def mounts(pod: Pod, container: Mapping[str, Any]) -> Iterator[tuple[Document, Document]]:
    """Give each mount of a container with its volume."""
    for mount in container.get("volumeMounts", ()):
        yield mount, pod.volumes[mount["name"]]
