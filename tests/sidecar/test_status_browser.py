"""The sidecar's page in a real browser, from the real process and a simulated XPU Manager."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

import pytest

from tests.browser import Browser, Page, needs_browser
from tests.processes import address, running
from xelink.simulators.xpu_manager import Blueprint, Simulator
from xelink.topology.model import PortState

pytestmark = needs_browser

NODE = Blueprint(gpus=4).build()
LINKS = 12
DRAWN = "document.querySelectorAll('#links path.link:not(.lost) > title').length"
COUNT = "document.querySelector('#labels').innerText.match(/xe-links.count\\s+(\\d+)/)?.[1]"


def has(part: str, text: str) -> str:
    """Write the question whether a part of the page has a text."""
    return f"document.getElementById('{part}')?.innerText.includes('{text}')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def xpum() -> Iterator[Simulator]:
    with Simulator(NODE) as simulator:
        yield simulator


@contextmanager
def sidecar(xpum: Simulator, path: Path, *more: str) -> Iterator[str]:
    arguments = (f"-tmp-dir-prefix={path}", f"-dst-file-path={path / 'labels.txt'}", *more)
    quick = ("-startup-delay=0", "-interval=1", "-listen=127.0.0.1:0")
    with running("sidecar", f"-xpum-port={xpum.port}", *quick, *arguments) as process:
        url = address(process)
        process.wait_for("labels published")
        yield url


@contextmanager
def shown(
    browser: Browser, xpum: Simulator, path: Path, *more: str, width: int = 1280
) -> Iterator[Page]:
    """Show the page, which must not complain, nor ask anyone else, nor be loaded twice."""
    with sidecar(xpum, path, *more) as url, browser.open(url, width=width) as page:
        page.wait(f"{DRAWN} === {LINKS}")
        yield page
        assert page.complaints == []
        assert page.hosts == {url.removeprefix("http://")}
        assert page.loads == 1


def test_the_links_are_drawn_and_one_that_is_cut_goes_by_itself(
    browser: Browser, xpum: Simulator, tmp_path: Path
) -> None:
    with shown(browser, xpum, tmp_path) as page:
        assert page.run("document.querySelector('svg').getBoundingClientRect().width") > 400
        line = "getComputedStyle(document.querySelector('path.link'))"
        assert page.run(f"{line}.stroke") == "rgb(9, 105, 218)"  # the policy let its style in
        assert page.run(COUNT) == str(LINKS)
        xpum.node = NODE.cut("0.0-1.0")
        page.wait(f"{DRAWN} === {LINKS - 1}")
        page.wait(f"{COUNT} === '{LINKS - 1}'")
        titles = "[...document.querySelectorAll('#links title')].map((one) => one.textContent)"
        drawn = page.run(titles)
        assert [title for title in drawn if title.startswith("0.1-1.1")]
        assert not [title for title in drawn if title.startswith("0.0-1.0")]
        page.wait(has("gpus", "✗ failed"))


def test_a_loss_that_waits_and_a_scrape_that_fails_are_told_as_they_come(
    browser: Browser, xpum: Simulator, tmp_path: Path
) -> None:
    with shown(browser, xpum, tmp_path, "-confirmations=1000") as page:
        assert page.run(has("waiting", "none"))
        xpum.node = NODE.cut("0.0-1.0")
        page.wait("document.querySelector('#waiting tbody')")
        told = page.run("document.querySelector('#waiting tbody').innerText").splitlines()
        assert any(line.startswith("Xe Links\t0.0-1.0\t") for line in told)
        assert told[0].endswith(" of 1000")
        assert page.run(DRAWN) == LINKS  # nothing is lost yet
        xpum.misbehave("daemon-down")
        page.wait(has("scrapes", "✗ unknown"))
        assert page.run(has("summary", "✗ not ready"))
        page.wait(has("news", "last scrape unknown, http-status"))  # told to screen readers


def test_the_expiry_counts_down(browser: Browser, xpum: Simulator, tmp_path: Path) -> None:
    text = "document.querySelector('#labels time').textContent"
    left = f"(([, m, s]) => 60 * m + 1 * s)({text}.match(/^in (\\d+) min (\\d+) s$/) ?? [])"
    with shown(browser, xpum, tmp_path, "-expiry=3000") as page:
        before = page.wait(left)
        after = page.wait(f"(now => now !== {before} && now)({left})")
    assert 0 < after < before


def test_it_is_used_with_the_keyboard_and_stays_where_one_is(
    browser: Browser, xpum: Simulator, tmp_path: Path
) -> None:
    with shown(browser, xpum, tmp_path, width=500) as page:
        reached = []
        for _ in range(20):
            page.press("Tab")
            reached.append(page.run("document.activeElement.getAttribute('aria-label')"))
            reached[-1] = reached[-1] or page.run("document.activeElement.getAttribute('href')")
            if reached[-1] == "readyz":
                break
            assert page.run("document.activeElement.matches(':focus-visible')")
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tables = ["labels of this node", "last scrapes", "id map"]
        assert reached == [*tables, "status.json", "metrics", "readyz"]
        page.run("document.querySelector('[aria-label=\"id map\"]').focus()")
        page.press("ArrowRight")
        page.run(_SCROLLED)
        page.run("document.querySelector('[aria-label=\"last scrapes\"]').focus()")
        row = "document.querySelector('#scrapes time').dateTime"
        before = page.run(row)
        page.wait(f"{row} !== '{before}'")
        assert page.run("document.activeElement.ariaLabel") == "last scrapes"
        page.wait("document.querySelector('[aria-label=\"id map\"]').scrollLeft > 0")


_SCROLLED = """new Promise((done) => {
  const box = document.querySelector('[aria-label="id map"]');
  if (box.scrollLeft) done();
  box.addEventListener('scrollend', done);
})"""


def test_a_screen_reader_is_told_what_everything_is(
    browser: Browser, xpum: Simulator, tmp_path: Path
) -> None:
    with shown(browser, xpum, tmp_path) as page:
        told = page.accessible
    headings = ["Now", "Links", "Losses", "Labels", "Scrapes", "GPUs"]
    assert [name for role, name in told if role == "heading"][1:] == headings
    assert [name for role, name in told if role == "region"] == headings
    picture = f"Xe Links of {gethostname()} 4 GPUs, 12 links, 6 of 6 pairs linked"
    assert [name for role, name in told if role == "image"] == [picture]
    tables = ["labels of this node", "last scrapes", "id map"]
    assert [name for role, name in told if role == "table"] == tables
    assert {"banner", "main", "contentinfo", "status"} <= {role for role, _ in told}
    assert ("rowheader", "gpu.intel.com/xe-links") in told
    assert ("columnheader", "PCI address") in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1280])
def test_every_text_can_be_read_and_the_page_never_scrolls_sideways(
    browser: Browser, xpum: Simulator, tmp_path: Path, scheme: str, width: int
) -> None:
    xpum.node = NODE.degrade(2, 4, "0.0-1.0").with_ports(3, PortState.FAILED)
    with (
        sidecar(xpum, tmp_path) as url,
        browser.open(url, scheme=scheme, width=width) as page,
    ):
        page.wait(has("gpus", "failed"))
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(_FAINT) == []


# Texts whose contrast is below 4.5, as WCAG 2 measures it for its level AA
_FAINT = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    const color = numbers(getComputedStyle(element).backgroundColor);
    return color[3] === 0 && element.parentElement ? behind(element.parentElement) : color;
  };
  const contrast = (element) => {
    const style = getComputedStyle(element);
    const ink = light(numbers(element.closest('svg') ? style.fill : style.color));
    const paper = light(behind(element));
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  return [...document.querySelectorAll('body *')]
    .filter((one) => !one.closest('script, title, desc, style'))
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => contrast(one) < 4.5).map((one) => one.textContent);
})()"""
