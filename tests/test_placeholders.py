"""A command of a page can be run as it stands; what the reader must replace has a reason."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = sorted((ROOT / "overlays").rglob("*.yaml"))

# placeholder = "<" words ">" / host of a reserved domain / a node / word in capitals / "..."
# A word in capitals that begins a variable (NAME=) or a column (NAME:) is none.
_WORDS = "NAME|NAMESPACE|FILE|NODE|POD|DIR|ADDRESS|VERSION|REGISTRY|TAG|USER"
_PLACEHOLDER = re.compile(
    rf"<[A-Za-z][\w .-]*>|[\w.-]*\bexample\.(?:com|org)\b|\bnode-\d\b|\bYOUR\w*"
    rf"|(?<![\w$])(?:{_WORDS})\b(?![=:])|\.\.\.",
    re.ASCII,
)
ALLOWED = {
    "registry.example.com": "where the reader's nodes pull images from, which nobody else knows",
    "node-1": "a node of the reader's cluster",
}


def commands(text: str, path: Path) -> Iterator[str]:
    """Give each line of a page's shell blocks that is a command, or of a manifest's comments."""
    if path.suffix == ".yaml":
        yield from re.findall(
            r"^#   ((?:kubectl|curl|kind|kustomize|make) .*)$", text, re.MULTILINE
        )
        return
    shells = r"^ *```(?:console|bash|sh|shell)\n(.*?)^ *```"
    for block in re.findall(shells, text, re.DOTALL | re.MULTILINE):
        yield from re.findall(r"^ *\$ (.*)$", block, re.MULTILINE)


def placeholders(path: Path) -> list[str]:
    """Give what the reader must replace in the commands of a file."""
    found = commands(path.read_text(), path)
    return [each for line in found for each in _PLACEHOLDER.findall(line)]


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_has_no_placeholder_without_a_reason(path: Path) -> None:
    assert {*placeholders(path)} <= ALLOWED.keys()


def test_what_is_allowed_is_in_use() -> None:
    assert {each for path in PAGES for each in placeholders(path)} == ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "kubectl apply -f https://git.example.com/xelink/patch.yaml",
        "kubectl -n <namespace> get pods",
        "kubectl label node YOUR_NODE a=b",
        "xelink show --node NAME",
        "kubectl get pod/NAME",
        "helm install ...",
    ],
)
def test_a_placeholder_is_found(line: str) -> None:
    assert {*_PLACEHOLDER.findall(line)} - ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "kubectl get nodes -o custom-columns='NODE:.metadata.name'",
        "make image IMAGE=xelink:0.1.0",
        'echo "$NODE"',
        "kubectl -n monitoring wait pod/two-gpus --for=jsonpath='{.status.phase}'=Succeeded",
        "xelink show --features - < xelink/examples/eight.txt > picture.svg",
    ],
)
def test_what_is_no_placeholder_is_none(line: str) -> None:
    assert not _PLACEHOLDER.findall(line)
