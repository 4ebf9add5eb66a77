"""The flags of a daemon, on the sidecar's own settings: the reference's arguments must work."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.settings import SidecarSettings
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
from xelink.nfd.writer import OnExit

REFERENCE_FLAGS = {
    "lane-count": "4",
    "interval": "10",
    "startup-delay": "10",
    "label-namespace": "gpu.intel.com",
    "allow-subdeviceless-links": "",
    "cert": "",
    "xpum-port": "29999",
    "tmp-dir-prefix": "/etc/kubernetes/node-feature-discovery/features.d",
    "dst-file-path": "/etc/kubernetes/node-feature-discovery/features.d/xpum-sidecar-labels.txt",
}


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XELINK_")]:
        monkeypatch.delenv(name)


def settings(*arguments: str) -> SidecarSettings:
    return load(SidecarSettings, arguments).settings


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(SidecarSettings, arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_flags_and_defaults_of_the_reference_are_ours() -> None:
    rows = {flag.split()[0][1:]: default for flag, default, _ in flag_rows(SidecarSettings)}
    assert {name: rows[name] for name in REFERENCE_FLAGS} == REFERENCE_FLAGS


@pytest.mark.parametrize(
    "arguments",
    [["-lane-count", "8"], ["-lane-count=8"], ["--lane-count", "8"], ["--lane-count=8"]],
)
def test_every_form_of_a_flag_works(arguments: list[str]) -> None:
    assert settings(*arguments).lane_count == 8


@pytest.mark.parametrize("value", ["true", "1", "t", "T", "TRUE", "True"])
def test_go_s_true(value: str) -> None:
    assert settings(f"-allow-subdeviceless-links={value}").allow_subdeviceless_links


@pytest.mark.parametrize("value", ["false", "0", "f", "F", "FALSE", "False"])
def test_go_s_false(value: str) -> None:
    assert not settings(f"--summary-labels={value}").summary_labels


def test_a_bare_boolean_is_true_and_takes_no_value() -> None:
    assert settings("-dry-run", "-oneshot").dry_run
    assert "'false'" in usage_error("-dry-run", "false")


def test_the_last_of_equal_flags_counts() -> None:
    assert settings("-interval=5", "--interval", "7").interval == 7


def test_a_value_may_look_like_a_flag() -> None:
    assert settings("-dst-file-path", "-odd").dst_file_path == Path("-odd")


def test_klog_s_verbosity_is_ours_and_the_rest_of_it_is_told() -> None:
    loaded = load(
        SidecarSettings,
        ["-v=2", "-logtostderr", "-stderrthreshold=INFO", "--log_dir=/x", "-use-https"],
    )
    assert not loaded.settings.debug
    assert [warning.split()[0] for warning in loaded.warnings] == [
        "-logtostderr",
        "-stderrthreshold",
        "-log-dir",
        "-use-https",
    ]
    assert settings("-v", "4").debug


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-nonsense"], ["-nonsense", "-h"]),
        (["-lane"], ["-lane"]),  # no abbreviations: -lane is not -lane-count
        (["-lane-count", "many"], ["-lane-count", "'many'", "a whole number"]),
        (["-lane-count", "-1"], ["-lane-count", "'-1'", "greater than or equal to 0"]),
        (["-interval", "0"], ["-interval", "'0'", "greater than or equal to 1"]),
        (["-startup-delay=-1"], ["-startup-delay", "'-1'", "greater than or equal to 0"]),
        (["-xpum-port=70000"], ["-xpum-port", "'70000'", "65535"]),
        (["-timeout=0"], ["-timeout", "'0'", "greater than 0"]),
        (["-timeout=86401"], ["-timeout", "'86401'", "less than or equal to 86400"]),
        (["-timeout=nan"], ["-timeout", "'nan'"]),
        (["-interval=86401"], ["-interval", "'86401'", "less than or equal to 86400"]),
        (["-startup-delay=86401"], ["-startup-delay", "less than or equal to 86400"]),
        (["-lane-count=1000000000"], ["-lane-count", "less than 1000000000"]),
        (["-xpum-port=0"], ["-xpum-port", "greater than or equal to 1"]),
        (["-max-body=0"], ["-max-body", "greater than or equal to 1"]),
        (["-confirmations=0"], ["-confirmations", "greater than or equal to 1"]),
        (["-confirmations=1001"], ["-confirmations", "less than or equal to 1000"]),
        (["-expiry=-1"], ["-expiry", "greater than or equal to 0"]),
        (["-expiry=31536001"], ["-expiry", "less than or equal to 31536000"]),
        (["-on-exit=explode"], ["-on-exit", "'explode'", "expire", "remove", "keep"]),
        (["-log-format", "xml"], ["-log-format", "'xml'", "text", "json"]),
        (["-label-namespace=GPU"], ["-label-namespace", "'GPU'", "lower-case"]),
        (["-lane-cnt=4"], ["-lane-cnt", "did you mean -lane-count?"]),
        (["-summary-labels", "false"], ["'false'", "-summary-labels=false"]),
        (["-label-namespace=kubernetes.io"], ["-label-namespace", "belongs to Kubernetes"]),
        (["-listen", "29998"], ["-listen", "'29998'", "host:port"]),
        (["-listen", "127.0.0.1:99999"], ["-listen", "host:port"]),
        (["-dst-file-path="], ["-dst-file-path", "path of a file"]),
        (["-cert"], ["-cert needs a value"]),
        (["-client-cert=x"], ["-client-cert needs -cert"]),
        (["-cert=x", "-client-key=y"], ["-client-key needs -client-cert"]),
        (["-username=x"], ["-username and -password-file"]),
        (["stray"], ["'stray'", "flags"]),
        (["--", "stray"], ["'stray'"]),
        (["--", "-interval=5"], ["unexpected argument '-interval=5'"]),
        (["-listen", "::1:80"], ["-listen", "[host]:port"]),
        (["-listen", "[::1:80"], ["-listen", "[host]:port"]),
        (["-"], ["'-'"]),
        (["---interval=1"], ["--interval"]),
        (["-=1"], ["there is no flag -"]),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_one_line_with_flag_value_and_what_is_allowed(
    arguments: list[str], parts: list[str]
) -> None:
    text = usage_error(*arguments)
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize("flag", ["-h", "--h", "-help", "--help"])
def test_help_is_asked_for_in_four_ways(flag: str) -> None:
    with pytest.raises(HelpRequested):
        parse(["-interval", "5", flag], SidecarSettings)


def test_help_names_every_flag_with_its_default() -> None:
    text = help_text(SidecarSettings)
    assert [flag for flag, _, _ in flag_rows(SidecarSettings) if f"  {flag}" not in text] == []
    assert "(default 29999)" in text
    assert "-logtostderr" in text


def test_flag_environment_file_default_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lane-count: 1\ninterval: 1\nxpum_port: 1\n")
    monkeypatch.setenv("XELINK_SIDECAR_LANE_COUNT", "2")
    monkeypatch.setenv("XELINK_SIDECAR_INTERVAL", "2")
    monkeypatch.setenv("XELINK_SIDECAR_CONFIG_FILE", str(file))
    loaded = load(SidecarSettings, ["-lane-count=3"])
    found = loaded.settings
    assert (found.lane_count, found.interval, found.xpum_port, found.confirmations) == (3, 2, 1, 2)
    printed = [line.split() for line in print_config(loaded).splitlines()]
    assert printed[1] == ["lane-count:", "3", "#", "flag"]
    assert ["interval:", "2", "#", "environment", "XELINK_SIDECAR_INTERVAL"] in printed
    assert ["xpum-port:", "1", "#", "file", str(file)] in printed
    assert ["confirmations:", "2", "#", "default"] in printed


# A few lines that stand for 10 ** 9 texts
BOMB = (
    "[&a [x,x,x,x,x,x,x,x,x,x]"
    + "".join(
        f", &{name} [{','.join([f'*{before}'] * 10)}]" for before, name in pairwise("abcdefghi")
    )
    + "]"
)


def test_what_is_printed_is_a_configuration_file(tmp_path: Path) -> None:
    loaded = load(SidecarSettings, ["-expiry=60", "-on-exit=keep", "-listen=", "-timeout=2.5"])
    file = tmp_path / "config.yaml"
    file.write_text(print_config(loaded))
    again = settings("-config-file", str(file))
    assert again.model_dump(exclude={"config_file"}) == loaded.settings.model_dump(
        exclude={"config_file"}
    )
    assert again.on_exit is OnExit.KEEP


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("lanes: 4\n", "'lanes' is no setting"),
        ("username: 0123", "username: 0123 is a number to YAML; quote it: username: '0123'"),
        ("listen: 29998", "listen: 29998 is a number to YAML; quote it: listen: '29998'"),
        ("username: no", "username: no is a boolean to YAML; quote it: username: 'no'"),
        ("username: 1:30", "username: 1:30 is a number to YAML; quote it: username: '1:30'"),
        ("password-file: 2026-01-31", "2026-01-31 is a date to YAML; quote it"),
        ("on-exit: 5", "quote it: on-exit: '5'"),
        ("listen-names: [a.b, 0123]", "listen-names: 0123 is a number to YAML; quote it: '0123'"),
        ("listen-names: no", "listen-names: no is a boolean to YAML; quote it: 'no'"),
        ("interval: 010", "interval: 010 is 8 to YAML; write a plain decimal number"),
        ("interval: 1:30", "interval: 1:30 is 90 to YAML; write a plain decimal number"),
        ("xpum-port: 0x10", "xpum-port: 0x10 is 16 to YAML; write a plain decimal number"),
        ("expiry: 3_600", "expiry: 3_600 is 3600 to YAML; write a plain decimal number"),
        ("timeout: 1:30.5", "timeout: 1:30.5 is 90.5 to YAML; write a plain decimal number"),
        ("interval: [1]", "'interval' takes one value"),
        (f"username: {BOMB}", "'username' takes one value"),
        ("#" * ((1 << 16) + 1), "config.yaml: more than 65536 bytes"),
        ("config-file: x\n", "'config-file' is no setting"),
        ("[1, 2]\n", "flag: value"),
        ("a: b: c\n", "mapping values"),
        ("interval: soon\n", "file"),
        ("interval: true\n", "'true' should be a whole number"),
        ("timeout: false\n", "'false' should be a number"),
        ("lane-count: 4\nlane-count: 5\n", "'lane-count' is given twice, in lines 1 and 2"),
        ("lane-count: 4\nlane_count: 5\n", "'lane_count' is given twice, in lines 1 and 2"),
        (
            "lane_count: 4\n\ninterval: 5\nlane-count: 4\n",
            "'lane-count' is given twice, in lines 1 and 4",
        ),
        ("{lane-count: 4, lane-count: 4}", "'lane-count' is given twice, in lines 1 and 1"),
        ("<<: {interval: 010}", "'<<' in line 1: write each key out"),
        ("interval: 5\n<<: {allow-ids: 5600}", "'<<' in line 2: write each key out"),
        ('interval: !!str {=: "5", a: [b, c]}', "'interval' takes one value"),
        (f'interval: !!str {{=: "5", a: {BOMB}}}', "'interval' takes one value"),
        ("a: {b: 1,\n b: 2}", "'b' is given twice, in lines 1 and 2"),
        ("a: &x [{b: 1}, *x]\nc: *x\nc: 1", "'c' is given twice, in lines 2 and 3"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str, part: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert part in usage_error("-config-file", str(file))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+5", 5.0),
        ("5.0", 5.0),
        ("1.5e+2", 150),
    ],
)
def test_a_plain_number_is_read_as_it_is(tmp_path: Path, content: str, value: float) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"timeout: {content}\n")
    assert settings("-config-file", str(file)).timeout == value


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in usage_error("-config-file", str(tmp_path / "nothing"))


def test_a_setting_is_one_line_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a name with blanks in it" / ("and another, which is longer " * 5).strip()
    loaded = load(SidecarSettings, [f"-dst-file-path={path}"])
    printed = print_config(loaded).splitlines()
    assert len(printed) == len(print_config(load(SidecarSettings, [])).splitlines())
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(printed))
    assert settings("-config-file", str(file)).dst_file_path == path


def test_what_has_no_effect_is_told_beside_the_printed_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse_command_line(SidecarSettings, ["-print-config", "-logtostderr"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("xelink-sidecar: -logtostderr has no effect: ")
    assert "logtostderr" not in told.out


def test_a_wrong_variable_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XELINK_SIDECAR_INTERVAL", "0")
    assert "XELINK_SIDECAR_INTERVAL" in usage_error()


def test_variables_that_are_no_setting_are_told_but_not_those_of_kubernetes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XELINK_SIDECAR_LANES", "3")
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_METRICS": "80",
        "PORT": "tcp://10.0.0.1:80",
        "PORT_80_TCP": "tcp://10.0.0.1:80",
        "PORT_80_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(f"XELINK_SIDECAR_{name}", value)
    assert load(SidecarSettings, []).warnings == (
        "the environment variable XELINK_SIDECAR_LANES is no setting: ignored",
    )


@pytest.mark.parametrize("value", ["1.2.3", "true", "", "v0.9-rc1"])
@pytest.mark.parametrize("name", ["VERSION", "PRINT_CONFIG"])
def test_what_an_image_may_have_set_neither_ends_nor_refuses_a_daemon(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"XELINK_SIDECAR_{name}", value)
    loaded = parse_command_line(SidecarSettings, ["-interval=7"])
    assert not isinstance(loaded, int)
    assert loaded.settings.interval == 7
    assert loaded.warnings == ()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0x10", 16),
        ("0X1f", 31),
        ("0b101", 5),
        ("0B11", 3),
        ("0o17", 15),
        ("0O7", 7),
        ("+0x10", 16),
        ("+12", 12),
        ("10", 10),
    ],
)
def test_numbers_are_read_as_go_reads_them(
    monkeypatch: pytest.MonkeyPatch, value: str, number: int
) -> None:
    assert settings("-interval", value).interval == number
    assert settings(f"-expiry={value}").expiry == number
    monkeypatch.setenv("XELINK_SIDECAR_INTERVAL", value)
    assert settings().interval == number


@pytest.mark.parametrize(
    "value", ["0x", "0xg", "0b2", "0o8", "x10", "0x1.0", "0d10", "\u0661\u0662x"]
)
def test_what_only_looks_like_a_number_of_go_s_is_refused(value: str) -> None:
    assert f"-interval: {value!r} should be a whole number" in usage_error(f"-interval={value}")


def test_a_negative_number_is_negative_in_any_base() -> None:
    assert "greater than or equal to 0" in usage_error("-lane-count=-0x1")


def test_a_number_in_another_base_is_none_where_a_text_is_wanted() -> None:
    assert settings("-username=0x10", "-password-file=0x11").username == "0x10"


def test_empty_paths_are_none() -> None:
    assert settings("-cert=", "-password-file=").cert is None


@pytest.mark.parametrize(
    ("arguments", "life"),
    [([], 300), (["-interval=60"], 360), (["-expiry=42"], 42), (["-expiry=0"], 0)],
)
def test_the_life_of_the_labels(arguments: list[str], life: int) -> None:
    assert settings(*arguments).life == life


def test_a_life_that_is_too_short_to_be_renewed_is_told() -> None:
    assert "-expiry=5" in settings("-expiry=5", "-interval=2").warnings[0]
    assert settings("-expiry=6", "-interval=2").warnings == ()
    assert settings("-expiry=0").warnings == ()


FLAGS = [f"-{name}" for name in SidecarSettings.model_fields if name != "config_file"]
WORDS = (
    st.text(max_size=12)
    | st.sampled_from(FLAGS)
    | st.builds("{}={}".format, st.sampled_from(FLAGS), st.text(max_size=12))
)


def lines(arguments: list[str]) -> list[str]:
    """What is said of arguments: one line where they are refused."""
    try:
        return [*load(SidecarSettings, arguments).warnings]
    except HelpRequested:
        return [help_text(SidecarSettings).splitlines()[0]]
    except UsageError as error:
        return [str(error)]


@given(st.lists(WORDS, max_size=5))
def test_any_arguments_give_settings_or_one_line(arguments: list[str]) -> None:
    assert all(line and line.isprintable() for line in lines(arguments))


def test_what_cannot_be_printed_does_not_break_the_line() -> None:
    assert "-a\\nb" in usage_error("-a\nb")


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["-h"], 0, "xelink-sidecar: publishes"),
        (["-version"], 0, "xelink-sidecar 0."),
        (["-print-config"], 0, "lane-count: 4"),
        (["-interval=0"], 2, ""),
    ],
)
def test_exit_codes_of_what_is_answered_at_once(
    arguments: list[str], code: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_command_line(SidecarSettings, arguments) == code
    assert output in capsys.readouterr().out
