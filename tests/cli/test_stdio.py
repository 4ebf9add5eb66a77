"""Standard streams that are closed, full or read by nobody: one line, and a fitting exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import EXAMPLES
from tests.patience import PATIENCE

EIGHT = str(EXAMPLES / "eight.txt")
NOTHING = str(EXAMPLES / "nothing")
PRINTING = (
    ("-h",),
    ("--version",),
    ("show", "-h"),
    ("show", "--features", EIGHT),
    ("show", "--features", EIGHT, "--output", "svg"),
    ("explain", "--want", "2", "--features", EIGHT),
    ("simulate", "mesh"),
    ("doctor", "--only", "consistent", "--feature-file", EIGHT),
    ("demo",),
    ("completion", "bash"),
)
READING = (
    ("show", "--metrics", "-"),
    ("show", "--features", "-"),
    ("show", "--node-json", "-"),
    ("explain", "--want", "2", "--metrics", "-"),
    ("simulate", "-"),
)
UNKNOWN = ("explain", "--want", "2", "--metrics", "/dev/null")
ENDS = {
    0: ("show", "--features", EIGHT),
    1: ("show", "--features", NOTHING),
    2: ("show", "--features", EIGHT, "--view", "nothing"),
    4: UNKNOWN,
}


def called(redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call with streams as a shell redirects them."""
    return subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'exec "$@" {redirected}',
            "sh",
            sys.executable,
            "-m",
            "xelink",
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def program(arguments: tuple[str, ...]) -> str:
    return "xelink" if arguments[0].startswith("-") else f"xelink {arguments[0]}"


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_what_cannot_be_printed_is_one_line(arguments: tuple[str, ...]) -> None:
    for redirected, why in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on")):
        done = called(redirected, *arguments)
        assert done.stderr.startswith(f"{program(arguments)}: cannot print: {why}")
        assert done.stderr.count("\n") == 1
        assert done.returncode == 1


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_closed_standard_input_is_one_line(arguments: tuple[str, ...]) -> None:
    done = called("<&-", *arguments)
    assert done.stdout == ""
    assert done.stderr.startswith(f"{program(arguments)}: ")
    assert done.stderr.endswith(": Bad file descriptor\n")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


@pytest.mark.parametrize("redirected", ["2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize("code", ENDS)
def test_the_exit_code_is_right_where_nobody_can_be_told_why(code: int, redirected: str) -> None:
    done = called(redirected, *ENDS[code])
    assert done.returncode == code
    assert bool(done.stdout) is (code == 0)
    assert done.stderr == ""


def test_with_no_stream_at_all_it_ends_as_it_should() -> None:
    assert called("<&- >&- 2>&-", "show", "--features", EIGHT).returncode == 1
    assert called("<&- >&- 2>&-", *UNKNOWN).returncode == 4


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else the first file that is opened would be standard output, or standard error."""
    path = tmp_path / "labels.txt"
    path.write_bytes(Path(EIGHT).read_bytes())
    for redirected in (">&-", "2>&-", "<&- >&- 2>&-"):
        called(redirected, "show", "--features", str(path), "--output", "json")
        called(redirected, "show", "--features", str(path), "--view", "nothing")
    assert path.read_bytes() == Path(EIGHT).read_bytes()


@pytest.mark.parametrize(("check", "code"), [("features.d", 1), ("tls", 3)])
def test_a_finding_counts_where_nobody_reads_on(tmp_path: Path, check: str, code: int) -> None:
    command = [sys.executable, "-m", "xelink", "doctor", f"--prefix={tmp_path}", f"--only={check}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == code
