"""docs/intel-plugin.md: what it says of a flag of Intel's plugin is what ours does with it."""

import re
from pathlib import Path

import pytest

from device_plugin.settings import PluginSettings
from xelink.daemon.flags import UsageError, load
from xelink.preference.policies import AllocationPolicy

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "intel-plugin.md").read_text()

# Its flags at 0.36.0, each with a value that is not the default; an empty one for a boolean.
VALUES = {
    "-shared-dev-num": "2",
    "-enable-monitoring": "",
    "-monitoring-mode": "split",
    "-bypath": "all",
    "-allow-ids": "0x0bd5,0x0bda",
    "-deny-ids": "0x49c5,0x49c6",
    "-allocation-policy": "balanced",
    "-xpumd-endpoint": "/run/xpumd/intelxpuinfo.sock",
    "-prefix": "/host",
    "-health-management": "",
    "-temp-limit": "90",
    "-gpu-temp-limit": "90",
    "-memory-temp-limit": "90",
    "-wsl": "",
    "-v": "4",
}
DEFAULTS = {
    "-shared-dev-num": 1,
    "-enable-monitoring": False,
    "-monitoring-mode": "single",
    "-bypath": "single",
    "-allow-ids": frozenset(),
    "-deny-ids": frozenset(),
}
ROWS = {
    flag: (here, differs)
    for flag, here, differs in re.findall(
        r"^\| `(-[a-z-]+)` \| (.*?) \| ?(.*?) ?\|$", PAGE, re.MULTILINE
    )
}


def field(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def spelled(flag: str) -> str:
    value = VALUES[flag]
    return f"{flag}={value}" if value else flag


def test_each_flag_of_intel_s_plugin_has_a_row() -> None:
    assert ROWS.keys() == VALUES.keys()
    assert {here for here, _ in ROWS.values()} == {"same", "different", "not here"}


@pytest.mark.parametrize("flag", [flag for flag, (here, _) in ROWS.items() if here != "not here"])
def test_a_flag_that_is_here_is_read_and_takes_effect(flag: str) -> None:
    before, after = load(PluginSettings, []), load(PluginSettings, [spelled(flag)])
    assert after.warnings == ()
    were, are = vars(before.settings), vars(after.settings)
    changed = {name for name in were if were[name] != are[name]}
    assert changed == {field(flag)}


@pytest.mark.parametrize("flag", [flag for flag, (here, _) in ROWS.items() if here == "not here"])
def test_a_flag_that_is_not_here_is_named_in_one_line_with_what_to_do(flag: str) -> None:
    instead = "nodes run Linux" if flag == "-wsl" else "XPU Manager 2.x .*, use -xpumd-endpoint"
    with pytest.raises(UsageError, match=rf"^there is no flag {flag}: {instead}; see -h$"):
        load(PluginSettings, [spelled(flag)])


@pytest.mark.parametrize("flag", [flag for flag, (here, _) in ROWS.items() if here == "same"])
def test_a_flag_that_is_the_same_has_the_same_default(flag: str) -> None:
    value = getattr(load(PluginSettings, []).settings, field(flag))
    assert flag == "-v" or getattr(value, "value", value) == DEFAULTS[flag]


@pytest.mark.parametrize("flag", [flag for flag, (here, _) in ROWS.items() if here == "different"])
def test_what_differs_is_told_and_names_flags_that_exist(flag: str) -> None:
    _, differs = ROWS[flag]
    assert differs
    for named in re.findall(r"`(-[a-z-]+)", differs):
        assert field(named) in PluginSettings.model_fields


def test_the_defaults_that_the_table_names_are_ours() -> None:
    settings = load(PluginSettings, []).settings
    assert "the default is `topology`" in ROWS["-allocation-policy"][1]
    assert settings.allocation_policy is AllocationPolicy.TOPOLOGY
    assert {each.value for each in AllocationPolicy} == {"topology", "balanced", "packed", "none"}
    assert f"Unhealthy is `{settings.health_severity.value}` and above" in PAGE
    assert "A change must be reported twice" in PAGE
    assert settings.health_confirmations == 2


def test_a_gpu_that_is_unhealthy_here_and_offered_there_is_told_with_every_reason() -> None:
    """Without a device node, without a render node, or read no longer: as `Card.complaint` says."""
    (row,) = re.findall(r"^\| a GPU without a render node \|.*\|$", PAGE, re.MULTILINE)
    assert "unhealthy" in row
    page = (DOCS / "device-plugin.md").read_text()
    (gauge,) = re.findall(r"^\| `xelink_device_plugin_unusable_gpus` .*$", page, re.MULTILINE)
    assert all(why in gauge for why in ("device node", "render node", "no longer readable"))


def test_where_the_node_is_a_container_the_page_says_how_to_recover_from_a_reload() -> None:
    page = (DOCS / "device-plugin.md").read_text()
    section = page.partition("### After a reload of the driver")[2].partition("\n## ")[0]
    assert "Restart the node's container" in section
