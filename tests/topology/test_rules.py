"""Where no link passes, the rule that filters them is named, with its flag and numbers."""

from pathlib import Path

import pytest

from tests.sidecar.test_loop import Scenario
from xelink.daemon.http_server import ProbeResult
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode, render
from xelink.topology.model import Topology
from xelink.topology.observation import ObservedLinks
from xelink.topology.rules import Rules, sidecar_flag, why_no_links

ONE_TILE = Blueprint(gpus=4, tiles=1, wiring="mesh").build()
NARROW = Blueprint(gpus=2, tiles=2, lanes=2).build()
NOTHING = Blueprint(gpus=4, wiring="none").build()
ONE_TILE_HINT = (
    "6 Xe Links were observed and none passes: 6 of one-tile GPUs (Max 1100), which need"
    " -allow-subdeviceless-links"
)
NOTHING_HINT = (
    "no Xe Link was observed: is XPU Manager's Pod on the host network (hostNetwork: true)?"
    " GPUs without Xe Links, such as Flex, have none"
)


@pytest.mark.parametrize(
    ("node", "hint"),
    [
        (
            ONE_TILE,
            ONE_TILE_HINT,
        ),
        (
            NARROW,
            "2 Xe Links were observed and none passes: 2 with fewer than 4 lanes (-lane-count)",
        ),
        (
            NOTHING,
            NOTHING_HINT,
        ),
    ],
    ids=["one tile", "narrow", "none"],
)
def test_log_readiness_and_metrics_name_the_rule(
    tmp_path: Path, node: SimulatedNode, hint: str
) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(render(node))
    (seen,) = [
        entry for entry in scenario.logs.entries if entry["event"] == "scrape result changed"
    ]
    filtered = node is not NOTHING
    assert (seen["hint"], seen["log_level"]) == (hint, "warning" if filtered else "info")
    assert scenario.sidecar.ready() == ProbeResult(ok=True, text=f"no links: {hint}")
    by_rule = {
        rule: scenario.telemetry.registry.get_sample_value(
            "xelink_sidecar_links_filtered", {"rule": rule}
        )
        for rule in ("lane-count", "allow-subdeviceless-links")
    }
    assert by_rule == {
        "lane-count": 2 if node is NARROW else 0,
        "allow-subdeviceless-links": 6 if node is ONE_TILE else 0,
    }


def test_both_rules_are_named_where_both_filter_links() -> None:
    seen = ObservedLinks(Topology(), narrow=1, one_tile=2)
    assert why_no_links(seen, Rules(lane_count=8), sidecar_flag) == (
        "3 Xe Links were observed and none passes: 2 of one-tile GPUs (Max 1100), which need"
        " -allow-subdeviceless-links, 1 with fewer than 8 lanes (-lane-count)"
    )


def test_where_a_link_passes_there_is_no_hint(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.tick(render(Blueprint(gpus=2).build()))
    assert scenario.sidecar.ready() is None


def test_the_loss_of_all_links_is_a_warning(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    node = Blueprint(gpus=2).build()
    scenario.tick(render(node))
    for _ in range(2):
        scenario.tick(render(node.cut("0.0-1.0", "0.1-1.1")))
    published = [entry for entry in scenario.logs.entries if entry["event"] == "labels published"]
    assert [entry["log_level"] for entry in published] == ["info", "warning"]
    assert published[1]["state"] == "none"
