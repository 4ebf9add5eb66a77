"""The plugin's page in a real browser, from the real process, a simulated node and kubelet."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import gethostname

import pytest

from tests.browser import Browser, Page, needs_browser
from tests.processes import address, running
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.blueprint import TreeBlueprint as Hardware
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode
from xelink.topology.publication import Publication, render

pytestmark = needs_browser

I915 = "gpu.intel.com/i915"
NODE = Blueprint(gpus=4).build()
DRAWN = "document.querySelectorAll('#links path.link:not(.lost) > title').length"


def has(part: str, text: str) -> str:
    """Write the question whether a part of the page has a text."""
    return f"document.getElementById('{part}')?.innerText.includes('{text}')"


class Scene:
    """A node with four GPUs, its kubelet, and the feature file that the plugin reads."""

    def __init__(self, path: Path, kubelet: Kubelet) -> None:
        self.path = path
        self.kubelet = kubelet
        self.hardware = Hardware(gpus=4).build(path / "n")

    def publish(self, node: SimulatedNode) -> None:
        """Put a feature file in place as the sidecar does."""
        expiry = datetime.now(UTC) + timedelta(minutes=59)
        staged = self.path / "staged"
        staged.write_bytes(render(Publication(node.topology, expiry), "gpu.intel.com"))
        staged.rename(self.path / "labels")

    @contextmanager
    def shown(self, browser: Browser) -> Iterator[Page]:
        """Show the page, which must not complain, nor ask anyone else, nor be loaded twice."""
        directories = [f"-prefix={self.path / 'n'}", f"-plugin-dir={self.path / 'k'}"]
        files = [f"-label-file={self.path / 'labels'}", f"-cdi-dir={self.path / 'cdi'}"]
        with running("device_plugin", *directories, *files, "-listen=127.0.0.1:0") as process:
            url = address(process)
            self.kubelet.wait_for_capacity(I915, 4)
            with browser.open(url) as page:
                yield page
                assert page.complaints == []
                assert page.hosts == {url.removeprefix("http://")}
                assert page.loads == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def scene() -> Iterator[Scene]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        path = Path(name)
        with Kubelet(path / "k") as kubelet:
            yield Scene(path, kubelet)


def test_links_come_and_one_that_is_cut_goes_by_itself(browser: Browser, scene: Scene) -> None:
    with scene.shown(browser) as page:
        page.wait(has("links", "✗ missing"))
        assert page.run(DRAWN) == 0
        scene.publish(NODE)
        page.wait(f"{DRAWN} === 12")
        line = "getComputedStyle(document.querySelector('path.link'))"
        assert page.run(f"{line}.stroke") == "rgb(9, 105, 218)"  # the policy let its style in
        assert page.run(has("links", "✓ in use"))
        assert page.run(has("news", "links in use"))  # told to screen readers
        page.wait("document.querySelector('#links').innerText.match(/expires in \\d+ min \\d+ s/)")
        scene.publish(NODE.cut("0.0-1.0", "0.1-1.1"))
        page.wait(f"{DRAWN} === 10")
        assert page.run("document.querySelectorAll('#links path.lost > title').length") == 1
        rows = "[...document.querySelectorAll('#gpus tbody tr')]"
        linked = page.run(f"{rows}.map((row) => row.lastChild.innerText)")
        assert linked == ["card3 card4", "card3 card4", "all others", "all others"]


def test_who_holds_what_and_why_and_what_breaks_are_told_as_it_happens(
    browser: Browser, scene: Scene
) -> None:
    scene.publish(NODE.cut("0.0-1.0", "0.1-1.1"))
    with scene.shown(browser) as page:
        page.wait(f"{DRAWN} === 10")
        assert page.run(has("holders", "none"))
        scene.kubelet.run_pod("pod", I915, 2)
        page.wait("document.querySelector('#holders tbody')")
        (held,) = page.run("document.querySelector('#holders tbody').innerText").splitlines()
        assert held.split("\t")[1:5] == ["card3-0 card4-0", I915, "all pairs", "our preference"]
        (why,) = page.wait("document.querySelector('#preferences tbody')?.innerText").splitlines()
        asked = [
            "2 of 4",
            "none",
            "card3-0 card4-0",
            "criterion 6: healthy Xe Link ports",
            "card1 card3",
        ]
        assert why.split("\t")[1:6] == asked
        broken = next(gpu for gpu in scene.hardware.gpus if gpu.card == "card1")
        scene.hardware.lose_node(broken.bdf)
        page.wait(has("gpus", "✗ unhealthy: /dev/dri/card1 is not there"))
        assert page.run(has("devices", "card1-0"))


def test_a_screen_reader_is_told_what_everything_is(browser: Browser, scene: Scene) -> None:
    scene.publish(NODE)
    with scene.shown(browser) as page:
        page.wait(f"{DRAWN} === 12")
        told = page.accessible
    headings = ["Now", "Links", "Devices", "GPUs", "Current holders, best effort"]
    headings.append("Preferences")
    assert [name for role, name in told if role == "heading"][1:] == headings
    assert [name for role, name in told if role == "region"] == headings
    picture = f"Xe Links of {gethostname()} 4 GPUs, 12 links, 6 of 6 pairs linked"
    assert [name for role, name in told if role == "image"] == [picture]
    tables = ["resources that are advertised to kubelet", "GPUs that are advertised"]
    assert [name for role, name in told if role == "table"] == tables
    assert {"banner", "main", "contentinfo", "status"} <= {role for role, _ in told}
