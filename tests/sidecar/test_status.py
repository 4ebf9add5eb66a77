"""What the sidecar tells of itself, from a story of ticks."""

import ipaddress
import json
from base64 import b64encode
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sidecar.publishing import Policy
from sidecar.settings import SidecarSettings
from sidecar.status import body, status
from tests.documented import documented, keys
from tests.processes import address, get, running
from tests.sidecar.test_loop import CUT, DOWN, FOREIGN, MESH, Scenario
from tests.xpu_manager.bodies import body as bytes_of
from tests.xpu_manager.bodies import self_rows
from xelink.daemon.setting_types import split_address
from xelink.daemon.version import versioned
from xelink.simulators.xpu_manager import Blueprint, Serving, Simulator, render

KEYS = documented("xelink-sidecar")


def told(scenario: Scenario) -> dict[str, Any]:
    found = status(scenario.sidecar, "http://here", "labels.txt", scenario.now, host="here")
    page = "".join(body(found))
    assert "<section" in page
    assert "Xe Links of here" in page  # drawn even without links: its style is let in from then on
    again: dict[str, Any] = json.loads(json.dumps(found))
    assert {*keys(versioned(again), KEYS)} <= KEYS
    return again


def test_before_the_first_scrape_there_is_little_to_tell(tmp_path: Path) -> None:
    found = told(Scenario(tmp_path))
    assert found["not_ready"] == "no scrape yet"
    assert found["scrapes"] == []
    assert found["topology"] is found["published"] is None


def test_links_labels_and_expiry_are_told_and_a_failure_beside_them(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(MESH)
    scenario.tick(DOWN)
    found = told(scenario)
    assert found["topology"]["links"][0] == ["0.0", "1.0", 4, 4]
    assert found["topology"]["gpus"][0]["pci"] == "0000:10:00.0"
    assert found["published"]["labels"]["gpu.intel.com/xe-links"] == "0.0-1.0_0.0-2.0_1.0-2.0"
    assert found["published"]["expires"] == "2026-11-20T10:05:10+00:00"
    failed, good = found["scrapes"]
    assert (failed["result"], failed["reason"], failed["links"]) == ("unknown", "refused", None)
    assert (good["result"], good["reason"], good["links"]) == ("links", None, 3)
    assert found["not_ready"].startswith("last scrape unknown, refused")


def test_a_group_that_nobody_asked_for_is_not_told_as_missing(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, Policy(summary=False))
    scenario.tick(MESH)
    page = "".join(body(status(scenario.sidecar, "", "", scenario.now, host="here")))
    assert "gpu.intel.com/xe-links" in page
    assert "is left out" not in page


def test_losses_that_wait_are_told(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(MESH)
    scenario.tick(CUT)
    lost = {(loss["kind"], loss["of"]): loss for loss in told(scenario)["waiting"]}
    assert lost["link", "1.0-2.0"] == {
        "kind": "link",
        "of": "1.0-2.0",
        "scrapes": 1,
        "confirmations": 2,
    }
    scenario.tick(CUT)
    assert told(scenario)["waiting"] == []


def test_every_documented_key_is_told(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    node = Blueprint(gpus=2).build()
    scenario.tick(render(node))
    scenario.tick(render(node.cut("0.0-1.0")))
    assert {*keys(versioned(told(scenario)), KEYS)} == KEYS


class Texts(HTMLParser):
    """Collects texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def shown(scenario: Scenario) -> list[str]:
    """Give the texts of the page."""
    return Texts("".join(body(told(scenario)))).found


def test_what_one_lost_gpu_takes_with_it_is_told_in_a_few_rows(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(MESH)
    scenario.tick(bytes_of(self_rows("0.0", "1.0")))
    lost = [(loss["kind"], loss["of"]) for loss in told(scenario)["waiting"]]
    assert {("gpu", "2"), ("tile", "2.0"), ("link", "0.0-2.0"), ("lanes", "2.0-0.0")} <= {*lost}
    page = shown(scenario)
    rows = page[page.index("scrapes that agree") : page.index("Labels")]
    assert rows[1:7] == ["GPUs", "2", "1 of 2", "tiles", "2.0", "1 of 2"]
    assert rows[7:14] == ["Xe Links", "0.0-1.0", " ", "0.0-2.0", " ", "1.0-2.0", "1 of 2"]


def test_what_is_good_and_what_is_not_is_marked(tmp_path: Path) -> None:
    ports = [
        f'xpum_xelink_port_status{{pci_bdf="0000:1{bus}:00.0"}} {state}.0'
        for bus, state in ((0, 0), (1, 2))
    ]
    scenario = Scenario(tmp_path)
    scenario.tick([*MESH, *ports])
    scenario.tick(DOWN)
    page = shown(scenario)
    marks = [text for text in page if text.startswith(("✓", "✗"))]
    assert marks == ["✗ not ready", "✗ unknown", "✓ links", "✓ healthy", "✗ failed"]
    scenario.tick([*MESH, *ports])
    assert "✓ ready" in shown(scenario)


def test_labels_that_have_expired_are_told_as_such(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(MESH)
    assert any(text.endswith(", they expire ") for text in shown(scenario))
    scenario.now += timedelta(hours=1)
    assert told(scenario)["published"]["expired"]
    assert any(text.endswith(", they expired ") for text in shown(scenario))


def test_a_source_without_fabric_data_is_told(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(FOREIGN)
    found = told(scenario)
    assert found["published"]["labels"] == {"gpu.intel.com/xe-links.state": "no-fabric-data"}
    assert found["topology"] is None


def test_only_the_last_scrapes_are_remembered(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    for _ in range(30):
        scenario.tick(DOWN)
    assert len(told(scenario)["scrapes"]) == 20


# The real process


@pytest.mark.parametrize("word", ["s3cr3t-word", "another-word"])
def test_no_credential_is_told(tmp_path: Path, word: str) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cr3t-word")
    login = ("-username=an-admin", f"-password-file={secret}")
    files = (f"-tmp-dir-prefix={tmp_path}", f"-dst-file-path={tmp_path / 'labels.txt'}")
    serving = Serving(username="an-admin", password=word, auth_sleep=0.0)
    with (
        Simulator(serving=serving) as xpum,
        running(
            "sidecar", f"-xpum-port={xpum.port}", *login, *files, "-startup-delay=0",
            "-listen=127.0.0.1:0",
        ) as process,
    ):  # fmt: skip
        url = address(process)
        process.wait_for("labels published" if word == "s3cr3t-word" else "no usable answer")
        for path in ("/", "/status.json", "/readyz", "/metrics"):
            text = get(f"{url}{path}")[1]
            for hidden in ("an-admin", "s3cr3t-word", b64encode(b"an-admin:s3cr3t-word").decode()):
                assert hidden not in text
        assert xpum.seen[0].headers["authorization"]


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    host, _ = split_address(SidecarSettings.model_fields["listen"].default)
    assert ipaddress.ip_address(host).is_loopback
