"""An error of a scrape has a code and a subject; whoever has flags puts it in words."""

import ast
import re
from pathlib import Path

import pytest

from sidecar.settings import SidecarSettings
from sidecar.xpu_manager_source import OPTIONS as SIDECAR
from xelink.cli.doctor.inspection import OPTIONS as DOCTOR
from xelink.cli.live import OPTIONS as TOOL
from xelink.xpu_manager.errors import ErrorCode, ScrapeError
from xelink.xpu_manager.wording import Options, words

XELINK = Path(__file__).parents[2] / "xelink"
LIBRARY = [
    path for name in ("nfd", "topology", "xpu_manager") for path in (XELINK / name).glob("*.py")
]
_NAMES = "|".join(name.replace("_", "-") for name in SidecarSettings.model_fields)
FLAG = re.compile(rf"(?<![\w-])--?(?:{_NAMES})(?![\w-])")
NAMELESS = Options("", "--", "")


def error(code: ErrorCode) -> ScrapeError:
    return ScrapeError(code, "one", "two", cause="three", seconds=60)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(XELINK)))
def test_no_text_of_a_library_names_a_flag(path: Path) -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in texts if FLAG.search(text)] == []


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.name)
@pytest.mark.parametrize("options", [SIDECAR, TOOL, DOCTOR], ids=["sidecar", "tool", "doctor"])
def test_every_error_is_a_line_in_the_names_of_the_program(
    options: Options, code: ErrorCode
) -> None:
    said = str(words(error(code), options))
    assert said
    assert said.isprintable()
    assert {*FLAG.findall(said)} <= {*options.names.values()}


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.name)
def test_an_advice_that_needs_what_a_program_has_not_is_left_out(code: ErrorCode) -> None:
    advice = words(error(code), NAMELESS).advice
    needs = FLAG.findall(words(error(code), SIDECAR).advice)
    assert not (advice and {"-xpum-port", "-max-body"} & {*needs})
    assert "()" not in advice


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.name)
def test_only_a_program_that_asks_again_says_when(code: ErrorCode) -> None:
    assert "asked again in" not in str(words(error(code), TOOL))


def test_the_sidecar_says_when_it_asks_again() -> None:
    said = words(ScrapeError(ErrorCode.PASSWORD_WANTED, cause="401", seconds=60), SIDECAR)
    assert str(said) == "401; give -username and -password-file; asked again in 60 s"


def test_what_others_said_is_no_template() -> None:
    said = words(ScrapeError(ErrorCode.STATUS, cause="{cert} {0} {nothing}"), SIDECAR)
    assert said.what == "{cert} {0} {nothing}"


def test_an_address_is_named_that_was_scraped() -> None:
    advice = words(error(ErrorCode.NO_ADDRESS), TOOL._replace(host="192.0.2.1")).advice
    assert advice == "it needs subjectAltName=IP:192.0.2.1"
