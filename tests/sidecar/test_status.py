"""What the sidecar tells of itself, from a story of ticks."""

import json
from pathlib import Path
from typing import Any

from sidecar.status import body, status
from tests.sidecar.test_loop import CUT, DOWN, FOREIGN, MESH, Scenario


def told(scenario: Scenario) -> dict[str, Any]:
    found = status(scenario.sidecar, "http://here", "labels.txt", scenario.now, host="here")
    page = "".join(body(found))
    assert "<section" in page
    assert "Xe Links of here" in page  # drawn even without links: its style is let in from then on
    again: dict[str, Any] = json.loads(json.dumps(found))
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
    assert (failed["class"], failed["reason"], failed["links"]) == ("unknown", "refused", None)
    assert (good["class"], good["reason"], good["links"]) == ("links", None, 3)
    assert found["not_ready"].startswith("last scrape unknown, refused")


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
