"""Whatever a text of others holds, what we print of it is lines that a terminal may show.

One property over everything that writes: logs, error lines, the tool's outputs, YAML.
"""

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.settings import SidecarSettings
from tests.processes import Running
from xelink.cli import readings
from xelink.cli.exit_codes import FailedError
from xelink.cli.main import main
from xelink.cli.show.command import json_text, yaml_text
from xelink.cli.show.text import cluster_page, node_page
from xelink.cli.tables import aligned, show
from xelink.daemon.command_line import parse_command_line
from xelink.daemon.flags import UsageError, print_config
from xelink.daemon.loaded_settings import Loaded
from xelink.daemon.logs import logger_to_stderr
from xelink.daemon.setting_types import LogFormat
from xelink.daemon.stdio import write_stderr, write_stdout
from xelink.inventory import health
from xelink.nfd.reader import Look, read
from xelink.topology.text import printable, printable_lines
from xelink.view.node_view import NodeState, NodeView
from xelink.view.svg import svg
from xelink.xpu_manager.errors import ErrorCode, ScrapeError

EVIL = "\x1b[31m\x07\r\n\x7f\x85\u2028\u202e\udcff\x00"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = st.text(
    st.one_of(st.sampled_from(EVIL), st.characters(max_codepoint=0x2FFF), st.characters()),
    max_size=40,
).map(lambda text: f"a{text}b")


def captured(write: Callable[[], object]) -> str:
    """Give what is written to both streams, which take UTF-8 only, as those of a process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        write()
    told = ""
    for stream in streams:
        stream.flush()
        stream.seek(0)
        told += stream.buffer.read().decode()  # not `read`, which would turn \r into \n
    return told


def logged(log_format: LogFormat) -> Callable[[str], str]:
    def write(text: str) -> str:
        return captured(lambda: logger_to_stderr(log_format).warning(text, path=text, n=1))

    return write


def traced(log_format: LogFormat) -> Callable[[str], str]:
    def log(text: str) -> None:
        try:
            int(f"{text}x")
        except ValueError:
            logger_to_stderr(log_format).exception("it failed")

    return lambda text: captured(lambda: log(text))


def configured(text: str) -> str:
    values: dict[str, Any] = {"username": text, "password_file": "file"}
    settings = SidecarSettings(**values)
    return print_config(Loaded(settings, {"username": f"file {text}"}, ()))


def called(*words: str) -> Callable[[str], str]:
    def call(text: str) -> str:
        with suppress(SystemExit):
            return captured(lambda: main([*words, text]))
        return ""

    return call


def node(text: str) -> NodeView:
    return NodeView(text, name=text, reason=text, state=NodeState.UNKNOWN, remarks=(text,))


ONE_LINE: dict[str, Callable[[str], str]] = {
    "printable": printable,
    "log as text": logged(LogFormat.TEXT),
    "log as JSON": logged(LogFormat.JSON),
    "traceback as text": traced(LogFormat.TEXT),
    "traceback as JSON": traced(LogFormat.JSON),
    "error line": lambda text: captured(lambda: write_stderr(f"program: {text}")),
    "usage error": lambda text: str(UsageError(text)),
    "scrape error": lambda text: str(ScrapeError(ErrorCode.TLS_FILE, text, cause=text)),
    "tool's error": lambda text: str(FailedError(text)),
    "wrong flag": lambda text: captured(lambda: parse_command_line(SidecarSettings, [f"-{text}"])),
    "wrong value": lambda text: captured(
        lambda: parse_command_line(SidecarSettings, ["-interval", text])
    ),
    "wrong file": lambda text: captured(
        lambda: parse_command_line(
            SidecarSettings, [f"-config-file=/nowhere/{text.replace(chr(0), '')}"]
        )
    ),
    "health": health.one_line,
    "feature file": lambda text: (
        read(
            Look((1,), f"# +{text}".encode(errors="surrogatepass"), None), "gpu.intel.com", NOW
        ).reason
    ),
    "reading": readings.line,
}
LINES: dict[str, Callable[[str], str]] = {
    "lines": printable_lines,
    "output": lambda text: captured(lambda: write_stdout(f"{text}\nmore\n")),
    "settings in force": configured,
    "table": lambda text: captured(lambda: show(aligned([[text, "x"]]))),
    "page of a node": lambda text: captured(lambda: show(node_page(node(text), "matrix"))),
    "page of a cluster": lambda text: captured(lambda: show(cluster_page([node(text)] * 2))),
    "YAML": lambda text: captured(lambda: write_stdout(yaml_text({"a": text}))),
    "JSON": lambda text: captured(lambda: write_stdout(json_text({"a": text}))),
    "picture": lambda text: captured(lambda: write_stdout(svg(node(text)))),
    "show": called("show", "--features"),
    "explain": called("explain", "--want=2", "--metrics"),
    "simulate": called("simulate"),
    "wrong command": called("show", "--view"),
    "no command": called(),
}


@pytest.mark.parametrize("write", ONE_LINE.values(), ids=ONE_LINE)
@given(text=TEXTS)
def test_one_line_stays_one_line_that_can_be_printed(
    write: Callable[[str], str], text: str
) -> None:
    told = write(text)
    assert told.removesuffix("\n").isprintable()


@pytest.mark.parametrize("write", LINES.values(), ids=LINES)
@given(text=TEXTS)
def test_lines_can_be_printed(write: Callable[[str], str], text: str) -> None:
    told = write(text)
    assert told.replace("\n", "").isprintable()


@given(TEXTS)
def test_what_can_be_printed_stays(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_are_told_as_bytes(name: bytes) -> None:
    told = printable(os.fsdecode(name))
    assert told.isprintable()
    if name in {b"\xff", b"\x80"}:
        assert told == repr(name)[2:-1]


@given(TEXTS)
def test_settings_in_force_are_still_a_file_of_settings(text: str) -> None:
    told = yaml.safe_load(configured(text))
    assert told["interval"] == 10
    assert set(told) <= {name.replace("_", "-") for name in SidecarSettings.model_fields}


@given(TEXTS)
def test_a_log_line_in_json_says_what_was_logged(text: str) -> None:
    text = text.encode(errors="replace").decode()
    assert json.loads(logged(LogFormat.JSON)(text))["path"] == text


@pytest.mark.parametrize("module", ["sidecar", "device_plugin", "xelink"])
def test_a_program_prints_no_control_character_of_its_arguments(module: str) -> None:
    evil = "".join(letter for letter in EVIL if letter != "\0")
    with Running(module, f"-{evil}", env={"PYTHONIOENCODING": "utf-8"}) as process:
        assert process.wait() == 2
        assert process.lines
        for line in process.lines:
            assert line.isprintable()
