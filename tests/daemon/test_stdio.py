"""A daemon's command with standard streams that are closed or full: one line, a fitting code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from xelink.simulators.xpu_manager import Blueprint, Simulator


def called(redirected: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call with streams as a shell redirects them."""
    command = ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", module]
    return subprocess.run(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("module", ["sidecar", "device_plugin"])
@pytest.mark.parametrize(
    ("redirected", "argument", "code", "said"),
    [
        (">&-", "-version", 1, "cannot print: Bad file descriptor\n"),
        ("<&- >&-", "-version", 1, "cannot print: Bad file descriptor\n"),
        ("<&- >&- 2>&-", "-version", 1, ""),
        (">/dev/full", "-h", 1, "cannot print: No space left on device\n"),
        (">/dev/full", "-print-config", 1, "cannot print: No space left on device\n"),
        ("2>&-", "-no-such-flag", 2, ""),
        ("2>/dev/full", "-no-such-flag", 2, ""),
        ("<&- >&-", "-no-such-flag", 2, "there is no flag -no-such-flag; see -h\n"),
    ],
)
def test_what_is_answered_at_once(
    module: str, redirected: str, argument: str, code: int, said: str
) -> None:
    ended = called(redirected, module, argument)
    assert ended.returncode == code
    assert ended.stderr == (f"xelink-{module.replace('_', '-')}: {said}" if said else "")


@pytest.mark.parametrize("redirected", ["<&- >&- 2>&-", "</dev/null >/dev/null 2>/dev/full"])
def test_a_daemon_whose_log_nobody_can_read_publishes(redirected: str, tmp_path: Path) -> None:
    with Simulator(Blueprint(gpus=2, tiles=2).build()) as xpum:
        ended = called(
            redirected,
            "sidecar",
            f"-xpum-port={xpum.port}",
            f"-tmp-dir-prefix={tmp_path}",
            f"-dst-file-path={tmp_path}/labels",
            "-oneshot",
        )
    assert ended.returncode == 0
    assert "xe-links" in (tmp_path / "labels").read_text()


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-"])
def test_a_dry_run_that_cannot_print_was_not_published(redirected: str, tmp_path: Path) -> None:
    with Simulator(Blueprint(gpus=2, tiles=2).build()) as xpum:
        options = f"-tmp-dir-prefix={tmp_path}", f"-dst-file-path={tmp_path}/labels"
        ended = called(
            redirected, "sidecar", f"-xpum-port={xpum.port}", *options, "-oneshot", "-dry-run"
        )
    assert ended.returncode == 5
    assert "cannot print: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [*tmp_path.iterdir()] == []
