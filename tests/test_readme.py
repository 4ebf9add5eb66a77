"""What the README shows is what one sees."""

import re
from pathlib import Path

import pytest

from device_plugin.settings import PluginSettings
from service.flags import load
from sidecar.settings import SidecarSettings
from tests.processes import running

README = Path(__file__).parents[1] / "README.md"
PLUGIN = README.parent / "docs" / "device-plugin.md"


def test_the_demo_prints_what_the_readme_shows_and_ends_well() -> None:
    with running("xelink", "demo") as process:
        assert process.wait() == 0
        shown = re.search(r"\$ make demo\n(.*?)```", README.read_text(), re.DOTALL)
        assert shown
        assert process.output == shown[1]
        assert process.lines == []


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ xelink-sidecar (.*)$", README.read_text(), re.MULTILINE)
)
def test_the_calls_of_the_readme_are_right(line: str) -> None:
    assert load(SidecarSettings, line.split()).warnings == ()


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ xelink-device-plugin (.*)$", PLUGIN.read_text(), re.MULTILINE)
)
def test_the_calls_of_the_plugin_s_page_are_right(line: str) -> None:
    assert load(PluginSettings, line.split()).warnings == ()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README.read_text()), ids=str)
def test_the_links_of_the_readme_lead_somewhere(link: str) -> None:
    assert (README.parent / link).exists()
