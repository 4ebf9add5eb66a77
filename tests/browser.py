"""A real browser without a window, driven by its DevTools protocol over a pair of pipes.

    with Browser(directory) as browser, browser.open(url, scheme="dark") as page:
        page.wait("document.querySelector('svg')")    # what it gives, once that is true
        page.complaints, page.hosts                   # what its console said, whom it asked

It waits for what a page does, told by the page itself; nothing is polled and no time is spent.
The protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import pytest

from tests.patience import PATIENCE

CHROMIUM = shutil.which("chromium")

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

Message: TypeAlias = dict[str, Any]

# The protocol's pipes are descriptors 3 and 4.
_WITH_PIPES = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'

# Looks again at each change of the document; the failure says what was waited for.
_WAIT = """new Promise((done, fail) => {
  const watcher = new MutationObserver(look);
  const late = setTimeout(() => { watcher.disconnect(); fail(new Error('in vain')); }, %d);
  function look() {
    const found = (%s);
    if (!found) return;
    clearTimeout(late);
    watcher.disconnect();
    done(found);
  }
  const all = {subtree: true, childList: true, characterData: true, attributes: true};
  watcher.observe(document, all);
  look();
})"""


class Browser:
    """A browser with a profile of its own, for as long as the block runs."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        self._process = subprocess.Popen(
            [
                *("/bin/sh", "-c", _WITH_PIPES, "sh", CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-component-update", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={profile}", "--remote-debugging-pipe"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._rest = b""
        self._number = 0
        self._heard: dict[str, list[Message]] = {}

    def __enter__(self) -> Self:
        self.call("Browser.getVersion")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait(PATIENCE)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe
                pipe.close()

    @contextmanager
    def open(
        self, url: str, *, scheme: str = "light", width: int = 1280, height: int = 900
    ) -> Iterator["Page"]:
        """Show a page as a user who prefers `light` or `dark` sees it in a window so wide."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(f"{domain}.enable")
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.call("Emulation.setEmulatedMedia", features=[feature])
        page.size(width, height)
        page.call("Page.navigate", url=url)
        self.hear(session, "Page.loadEventFired")
        yield page
        self.call("Target.closeTarget", targetId=target)

    def call(
        self,
        method: str,
        session: str | None = None,
        patience: float = PATIENCE,
        **parameters: Any,  # noqa: ANN401 - JSON
    ) -> Message:
        """Call a method of the protocol and give its result."""
        self._number += 1
        number = self._number
        message: Message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        deadline = time.monotonic() + patience
        while (answer := self._next(deadline, method)).get("id") != number:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: Message = answer["result"]
        return result

    def hear(self, session: str, event: str) -> None:
        """Wait until a page has told of an event."""
        deadline = time.monotonic() + PATIENCE
        while not self.heard(session, event):
            self._next(deadline, event)

    def heard(self, session: str, *events: str) -> list[Message]:
        """Give what a page has told of some kinds of events."""
        return [one["params"] for one in self._heard.get(session, []) if one["method"] in events]

    def _next(self, deadline: float, what: str) -> Message:
        assert self._process.stdout
        while b"\0" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            assert ready, f"the browser does not answer: {what}"
            read = os.read(self._process.stdout.fileno(), 1 << 20)
            assert read, f"the browser has ended: {what}"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        message: Message = json.loads(text)
        if "method" in message and "sessionId" in message:
            self._heard.setdefault(message["sessionId"], []).append(message)
        return message


class Page:
    """A page in a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> Message:  # noqa: ANN401 - JSON
        """Call a method of the protocol for this page."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """Evaluate JavaScript in the page and give what comes out, awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            patience=2 * PATIENCE,
        )
        assert "exceptionDetails" not in answer, (expression, self.run("document.body.innerText"))
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """Wait until an expression is true, and give its value."""
        return self.run(_WAIT % (1000 * PATIENCE, expression))

    def press(self, key: str) -> None:
        """Press a key, by its name in the protocol: `Tab`, `ArrowRight`."""
        code = {"Tab": 9, "ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def size(self, width: int, height: int) -> None:
        """Make the window so wide and high."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def picture(self) -> bytes:
        """Give the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return b64decode(shot["data"])

    @property
    def complaints(self) -> list[str]:
        """Warnings, errors and exceptions that a console would show, and requests that failed."""
        self.call("Runtime.evaluate", expression="0")  # what came before it was told before it
        heard = self._browser.heard
        return [
            *(
                str(event)
                for event in heard(self._session, "Runtime.consoleAPICalled")
                if event["type"] in ("warning", "error", "assert")
            ),
            *(
                str(event["entry"])
                for event in heard(self._session, "Log.entryAdded")
                if event["entry"]["level"] in ("warning", "error")
            ),
            *map(str, heard(self._session, "Runtime.exceptionThrown", "Network.loadingFailed")),
        ]

    @property
    def loads(self) -> int:
        """How often it was loaded as a whole."""
        return len(self._browser.heard(self._session, "Page.loadEventFired"))

    @property
    def hosts(self) -> set[str]:
        """Whom the page asked for anything."""
        asked = self._browser.heard(self._session, "Network.requestWillBeSent")
        return {urlsplit(event["request"]["url"]).netloc for event in asked}

    @property
    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
