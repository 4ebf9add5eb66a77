"""In CI a test that is skipped without leave fails the run."""

from pathlib import Path

import pytest

from tests.skips import MalformedError, parse, unexpected

ROOT = Path(__file__).parents[1]
SUITE = """
import pytest

@pytest.mark.skipif(True, reason="there is no compass")
@pytest.mark.parametrize("way", ["north", "south"])
def test_way(way): ...

def test_here():
    pytest.skip("nowhere in particular")
"""


@pytest.mark.parametrize(
    ("allowed", "lines"),
    [
        pytest.param("", ["2 x there is no compass", "1 x nowhere in particular"], id="nothing"),
        pytest.param("2 there is no .*\n1 nowhere .*", [], id="all of them"),
        pytest.param(
            "# lost\n\n1 there is no .*\n9 nowhere .*",
            ["2 x there is no .*: 1 are allowed"],
            id="too many of one",
        ),
        pytest.param(
            "9 nowhere",
            ["2 x there is no compass", "1 x nowhere in particular"],
            id="a part of a reason",
        ),
    ],
)
def test_what_may_be_skipped_is_counted_by_reason(allowed: str, lines: list[str]) -> None:
    reasons = ["there is no compass", "nowhere in particular", "there is no compass"]
    assert unexpected(reasons, parse(allowed)) == lines


@pytest.mark.parametrize("line", ["there is no compass", "3", "-1 why"])
def test_a_line_that_says_no_count_or_no_reason_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="want `count reason`"):
        parse(line)


@pytest.mark.parametrize(
    ("allowed", "code"),
    [("2 there is no compass\n1 nowhere in particular\n", 0), ("2 there is no compass\n", 1)],
    ids=["allowed", "not allowed"],
)
def test_a_run_with_a_skip_that_is_not_allowed_fails_and_says_which(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, allowed: str, code: int
) -> None:
    pytester.makepyfile(SUITE)
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XELINK_ALLOWED_SKIPS", str(pytester.makefile(".skips", allowed)))
    result = pytester.runpytest_subprocess("-p", "xdist", "-n2")
    assert result.ret == code
    told = [line for line in result.outlines if "skipped and not allowed by" in line]
    assert [line.rpartition(": ")[2] for line in told] == ["1 x nowhere in particular"] * code
