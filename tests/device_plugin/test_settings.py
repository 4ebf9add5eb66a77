"""The flags of the device plugin: what each is called, takes, defaults to, and refuses."""

import os
import shlex
from pathlib import Path

import pytest

from device_plugin.resources import Monitoring
from device_plugin.settings import PluginSettings
from xelink.daemon.command_line import parse_command_line
from xelink.daemon.flags import (
    HelpRequested,
    UsageError,
    flag_rows,
    help_text,
    load,
    parse,
    print_config,
)
from xelink.daemon.setting_types import LogFormat
from xelink.inventory.by_path import ByPath
from xelink.inventory.health import Threshold
from xelink.kubelet.sockets import SocketName
from xelink.preference.policies import AllocationPolicy

PREFIX = "XELINK_DEVICE_PLUGIN_"
DEFAULTS = {
    "allocation-policy": "topology",
    "allocation-timeout": "50",
    "require-links": "",
    "shared-dev-num": "1",
    "allow-ids": "",
    "deny-ids": "",
    "bypath": "single",
    "enable-monitoring": "",
    "monitoring-mode": "single",
    "label-file": "/etc/kubernetes/node-feature-discovery/features.d/xpum-sidecar-labels.txt",
    "label-namespace": "gpu.intel.com",
    "allocate-env": "true",
    "cdi": "true",
    "cdi-dir": "/var/run/cdi",
    "xpumd-endpoint": "",
    "health-severity": "critical",
    "health-confirmations": "2",
    "socket-name": "default",
    "plugin-dir": "/var/lib/kubelet/device-plugins",
    "prefix": "/",
    "device-root": "/",
    "listen": "127.0.0.1:29997",
    "listen-names": "",
    "log-format": "text",
    "v": "2",
    "config-file": "",
    "print-config": "",
    "version": "",
}
# Of each flag two values as they are written, and what they mean.
VALUES: list[tuple[str, tuple[str, object], tuple[str, object]]] = [
    (
        "allocation-policy",
        ("balanced", AllocationPolicy.BALANCED),
        ("packed", AllocationPolicy.PACKED),
    ),
    ("allocation-timeout", ("7", 7), ("5000", 5000)),
    ("require-links", ("true", True), ("false", False)),
    ("shared-dev-num", ("10", 10), ("1000", 1000)),
    ("allow-ids", ("0x0bd5,0x0bda", {0x0BD5, 0x0BDA}), ("0x56c0,0x56C1", {0x56C0, 0x56C1})),
    ("deny-ids", ("0x0bd5,0x0bda", {0x0BD5, 0x0BDA}), ("0x56c0,0x56C1", {0x56C0, 0x56C1})),
    ("bypath", ("none", ByPath.NONE), ("all", ByPath.ALL)),
    ("enable-monitoring", ("true", True), ("false", False)),
    ("monitoring-mode", ("split", Monitoring.SPLIT), ("single", Monitoring.SINGLE)),
    ("label-file", ("/a/labels", Path("/a/labels")), ("/b", Path("/b"))),
    ("label-namespace", ("gpu.example.com", "gpu.example.com"), ("example.org", "example.org")),
    ("allocate-env", ("false", False), ("true", True)),
    ("cdi", ("false", False), ("true", True)),
    ("cdi-dir", ("/etc/cdi", Path("/etc/cdi")), ("/b", Path("/b"))),
    ("xpumd-endpoint", ("/run/x.sock", "/run/x.sock"), ("localhost:1", "localhost:1")),
    ("health-severity", ("warning", Threshold.WARNING), ("failed", Threshold.FAILED)),
    ("health-confirmations", ("1", 1), ("1000", 1000)),
    ("socket-name", ("unique", SocketName.UNIQUE), ("default", SocketName.DEFAULT)),
    ("plugin-dir", ("/k", Path("/k")), ("/b", Path("/b"))),
    ("prefix", ("/host", Path("/host")), ("/b", Path("/b"))),
    ("device-root", ("/var/tree", Path("/var/tree")), ("/b", Path("/b"))),
    ("listen", ("[::1]:0", "[::1]:0"), (":1", ":1")),
    ("listen-names", ("node-1.lan,S.svc", {"node-1.lan", "S.svc"}), ("*", {"*"})),
    ("log-format", ("json", LogFormat.JSON), ("text", LogFormat.TEXT)),
    ("v", ("4", 4), ("0", 0)),
]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XELINK_")]:
        monkeypatch.delenv(name)


def value(flag: str, *arguments: str) -> object:
    return getattr(load(PluginSettings, arguments).settings, flag.replace("-", "_"))


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(PluginSettings, arguments)
    return str(caught.value)


def test_the_flags_and_their_defaults() -> None:
    rows = {flag.split()[0][1:]: default for flag, default, _ in flag_rows(PluginSettings)}
    assert rows == DEFAULTS


def test_every_flag_that_lasts_is_in_the_table_of_values() -> None:
    at_once = {"config-file", "print-config", "version"}
    assert {flag for flag, _, _ in VALUES} == DEFAULTS.keys() - at_once


@pytest.mark.parametrize(("flag", "one", "other"), VALUES, ids=[flag for flag, _, _ in VALUES])
def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    flag: str,
    one: tuple[str, object],
    other: tuple[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{flag}: '{one[0]}'\n")
    from_file = f"-config-file={file}"
    assert value(flag, from_file) == one[1]
    monkeypatch.setenv(f"{PREFIX}{flag.replace('-', '_').upper()}", other[0])
    assert value(flag) == other[1]
    assert value(flag, from_file) == other[1]
    assert value(flag, from_file, f"-{flag}={one[0]}") == one[1]
    assert value(flag, from_file, f"--{flag}={one[0]}") == one[1]


@pytest.mark.parametrize("flag", [flag for flag, _, _ in VALUES])
def test_what_is_printed_is_read_again(flag: str, tmp_path: Path) -> None:
    (one,) = (one for name, one, _ in VALUES if name == flag)
    loaded = load(PluginSettings, [f"-{flag}={one[0]}"])
    (line,) = (row for row in print_config(loaded).splitlines() if row.startswith(f"{flag}: "))
    assert line.endswith("# flag")
    file = tmp_path / "config.yaml"
    file.write_text(print_config(loaded))
    assert value(flag, f"-config-file={file}") == one[1]
    again = load(PluginSettings, [f"-config-file={file}"]).settings
    assert again.model_dump(exclude={"config_file"}) == loaded.settings.model_dump(
        exclude={"config_file"}
    )


# Names


def test_names_may_be_a_list_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("listen-names: [node-1.lan, xelink.monitoring.svc]\n")
    assert value("listen-names", f"-config-file={file}") == {"node-1.lan", "xelink.monitoring.svc"}


@pytest.mark.parametrize(
    "name", ["node-1:29997", "http://node-1", "*.lan", "[::1]", "a b", "a" * 254]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert "should be names without ports" in usage_error(f"-listen-names={name}")


# Device ids


@pytest.mark.parametrize("flag", ["allow-ids", "deny-ids"])
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param("0x0bd5", {0x0BD5}, id="one"),
        pytest.param("0x0BD5,0x0bda", {0x0BD5, 0x0BDA}, id="two, in either case"),
        pytest.param(" 0x0bd5 , 0x0bda ", {0x0BD5, 0x0BDA}, id="spaces around"),
        pytest.param("0x0bd5,0x0bd5,", {0x0BD5}, id="twice, and a comma too many"),
        pytest.param("0x0000,0xffff", {0, 0xFFFF}, id="least and greatest"),
        pytest.param("", set(), id="none"),
    ],
)
def test_device_ids_are_written_as_lspci_prints_them(flag: str, text: str, ids: set[int]) -> None:
    assert value(flag, f"-{flag}={text}") == ids


@pytest.mark.parametrize("flag", ["allow-ids", "deny-ids"])
def test_a_single_device_id_that_was_printed_is_read_again(flag: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(print_config(load(PluginSettings, [f"-{flag}=0x0BD5"])))
    assert value(flag, f"-config-file={file}") == {0x0BD5}


@pytest.mark.parametrize("flag", ["allow-ids", "deny-ids"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("'0x0bd5,0x0bda'", id="a text"),
        pytest.param("0x0bd5,0x0bda", id="a bare text"),
        pytest.param("[0x0bd5, 0x0bda]", id="a list of numbers"),
        pytest.param("['0x0bd5', '0x0bda']", id="a list of texts"),
    ],
)
def test_device_ids_in_a_file_may_be_a_list(flag: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{flag}: {content}\n")
    assert value(flag, f"-config-file={file}") == {0x0BD5, 0x0BDA}


@pytest.mark.parametrize("flag", ["allow-ids", "deny-ids"])
def test_one_bare_device_id_in_a_file_is_that_id(flag: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{flag}: 0x0bd5\n")
    assert value(flag, f"-config-file={file}") == {0x0BD5}


@pytest.mark.parametrize("flag", ["allow-ids", "deny-ids"])
@pytest.mark.parametrize(
    "text", ["0bd5", "0x0bd", "0x0bd55", "0X0bd5", "0x0bdg", "0x0bd5 0x0bda", "0x0bd5;0x0bda", "-1"]
)
def test_anything_else_is_no_device_id(flag: str, text: str) -> None:
    said = usage_error(f"-{flag}={text}")
    assert said.startswith(f"-{flag}: '{text}' should be PCI device ids, 0x and four hexadecimal")


@pytest.mark.parametrize(
    "content", ["[99999999]", "[0x10000]", "[-1]", "[null]", "{}", "true", "1234", "[0x0bd5, 0010]"]
)
def test_a_file_with_anything_else_is_one_line_too(content: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"allow-ids: {content}\n")
    said = usage_error(f"-config-file={file}")
    assert ("takes one value" if content == "{}" else "should be PCI device ids") in said


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_allowing_and_denying_exclude_each_other(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["-allow-ids=0x0bd5,0x0bda"]
    match source:
        case "flags":
            arguments.append("-deny-ids=0x56c0,0x56c1")
        case "environment":
            monkeypatch.setenv(f"{PREFIX}DENY_IDS", "0x56c0,0x56c1")
        case _:
            file = tmp_path / "config.yaml"
            file.write_text("deny-ids: [0x56c0]\n")
            arguments.append(f"-config-file={file}")
    assert usage_error(*arguments) == "-allow-ids and -deny-ids exclude each other; see -h"


def test_an_empty_list_excludes_nothing() -> None:
    assert value("deny-ids", "-allow-ids=", "-deny-ids=0x0bd5,0x0bda") == {0x0BD5, 0x0BDA}


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("-allocation-policy=best", ["'best'", "topology", "balanced", "packed", "none"]),
        ("-allocation-timeout=0", ["'0'", "greater than or equal to 1"]),
        ("-allocation-timeout=5001", ["'5001'", "less than or equal to 5000"]),
        ("-allocation-timeout=1.5", ["'1.5'", "a whole number"]),
        ("-shared-dev-num=0", ["'0'", "greater than or equal to 1"]),
        ("-shared-dev-num=1001", ["'1001'", "less than or equal to 1000"]),
        ("-shared-dev-num many", ["'many'", "a whole number"]),
        ("-bypath=some", ["'some'", "single", "none", "all"]),
        ("-enable-monitoring=maybe", ["'maybe'", "true or false"]),
        ("-monitoring-mode=both", ["'both'", "single", "split"]),
        ("-label-namespace=GPU", ["'GPU'", "lower-case"]),
        ("-label-namespace=kubernetes.io", ["'kubernetes.io'", "Kubernetes"]),
        ("-allocate-env=maybe", ["'maybe'", "true or false"]),
        ("-cdi=maybe", ["'maybe'", "true or false"]),
        ("-health-severity=ok", ["'ok'", "warning", "critical", "failed"]),
        ("-health-confirmations=0", ["'0'", "greater than or equal to 1"]),
        ("-health-confirmations=1001", ["'1001'", "less than or equal to 1000"]),
        ("-socket-name=mine", ["'mine'", "default", "unique"]),
        ("-device-root=tree", ["'tree'", "an absolute path"]),
        ("-device-root=", ["''"]),
        ("-listen=29997", ["'29997'", "host:port"]),
        ("-listen=localhost:65536", ["'localhost:65536'", "host:port"]),
        ("-log-format=xml", ["'xml'", "text", "json"]),
        ("-v=loud", ["'loud'", "a whole number"]),
        ("-shared-dev-num", ["needs a value", "(default 1)"]),
        ("-shared-dev=2", ["did you mean -shared-dev-num?"]),
        ("-resource-manager", ["there is no flag", "-h"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_with_flag_value_and_what_is_allowed_and_exit_code_2(
    arguments: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(arguments)
    assert parse_command_line(PluginSettings, words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("xelink-device-plugin: ")
    assert told.err.count("\n") == 1
    assert told.err.endswith("\n")
    flag = words[0].partition("=")[0]
    assert [part for part in (flag, *parts) if part not in told.err] == []


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}SHARED_DEV_NUM", "0")
    assert f"{PREFIX}SHARED_DEV_NUM" in usage_error()


# Help


@pytest.mark.parametrize("flag", ["-h", "--h", "-help", "--help"])
def test_help_is_asked_for_in_four_ways(flag: str) -> None:
    with pytest.raises(HelpRequested):
        parse(["-cdi", flag], PluginSettings)


@pytest.mark.parametrize("columns", [100, 300])
def test_help_names_every_flag_with_its_default_in_100_columns(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(PluginSettings)
    lines = text.splitlines()
    assert [flag for flag, _, _ in flag_rows(PluginSettings) if f"  {flag}" not in lines] == []
    words = " ".join(text.split())
    told = (
        f"{said} (default {default})" for _, default, said in flag_rows(PluginSettings) if default
    )
    assert [line for line in told if line not in words] == []
    assert [line for line in lines if len(line) > 100] == []


def test_klog_s_flags_of_intel_s_plugin_are_taken_without_effect() -> None:
    loaded = load(PluginSettings, ["-logtostderr", "-v=4", "-vmodule=x=1"])
    assert loaded.settings.debug
    assert [warning.split()[0] for warning in loaded.warnings] == ["-logtostderr", "-vmodule"]
