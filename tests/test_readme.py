"""What the README and the pages of the daemons show is what one sees."""

import re
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from device_plugin.settings import PluginSettings
from sidecar.settings import SidecarSettings
from tests.patience import PATIENCE
from tests.processes import running
from xelink.daemon.flags import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SIDECAR = ROOT / "docs" / "sidecar.md"
PLUGIN = ROOT / "docs" / "device-plugin.md"

TARGETS = {"make demo", "make test"}
"""What everybody may try at once; the first is run below, and the second runs this."""

SHOWN_BY_TESTS = ("kubectl label --list node node-1 ", "kubectl get nodes -L ")
"""Run in tests/deployment/test_guide_cluster.py and tests/e2e/test_rollout.py."""


def shown(page: str) -> Iterator[tuple[str, str]]:
    """Give each command of a page's console blocks with what the page shows below it."""
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield line, output


def test_the_demo_prints_what_is_shown_and_ends_well() -> None:
    (expected,) = shown((ROOT / "docs" / "demo.md").read_text())
    before = getrusage(RUSAGE_CHILDREN)
    with running("xelink", "demo") as process:
        assert (process.wait(3 * PATIENCE), process.lines) == (0, [])
        assert ("make demo", process.output) == expected
    # "In under a minute": by what it takes of a processor, which a busy machine does not change.
    after = getrusage(RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 0 < took < 30


@pytest.mark.parametrize(("line", "output"), list(shown(README)))
def test_a_command_of_the_readme_is_run_by_a_test(line: str, output: str) -> None:
    if line.startswith("xelink "):  # tools/cli.py puts there what it prints
        assert output or " > " in line
    elif not line.startswith(SHOWN_BY_TESTS):
        guide = dict(shown((ROOT / "docs" / "install.md").read_text()))
        assert line in TARGETS or guide.get(line) == output


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ (?:\S*/)?xelink-sidecar (.*)$", SIDECAR.read_text(), re.MULTILINE)
)
def test_the_calls_of_the_sidecar_s_page_are_right(line: str) -> None:
    assert load(SidecarSettings, line.split()).warnings == ()


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ xelink-device-plugin (.*)$", PLUGIN.read_text(), re.MULTILINE)
)
def test_the_calls_of_the_plugin_s_page_are_right(line: str) -> None:
    assert load(PluginSettings, line.split()).warnings == ()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {anchored(title) for title in titles}, link


def anchored(title: str) -> str:
    """Give the anchor that a title gets."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
