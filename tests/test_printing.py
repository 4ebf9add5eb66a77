"""Where nothing can be printed: one line, and an exit code that says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

EXAMPLES = Path(__file__).parents[1] / "xelink" / "examples"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("module", "arguments", "name"),
    [
        ("xelink", ["show", "--features", str(EXAMPLES / "eight.txt")], "xelink show"),
        ("sidecar", ["-print-config"], "xelink-sidecar"),
        ("device_plugin", ["-h"], "xelink-device-plugin"),
    ],
)
def test_what_cannot_be_printed_is_one_line(module: str, arguments: list[str], name: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert done.stderr == f"{name}: cannot print: No space left on device\n"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("xelink.simulators.xpu_manager", ["--{}"]),
        ("xelink.simulators.xpu_manager", ["--wiring={}"]),
        ("xelink.simulators.node", ["--root=tree", "--{}"]),
        ("xelink.simulators.node", ["--root=/dev/null/{}"]),
        ("xelink.simulators.node", ["--root=tree{}", "--gpus=1"]),
        ("xelink", ["show", "--{}"]),
        ("xelink", ["doctor", "--feature-file={}", "--only=fresh"]),
        ("sidecar", ["-{}"]),
        ("device_plugin", ["-config-file={}"]),
    ],
)
def test_no_control_character_of_a_call_is_printed_raw(
    tmp_path: Path, module: str, arguments: list[str]
) -> None:
    bad = "a\x1b[31mb\rc\u202ed"
    done = subprocess.run(
        [sys.executable, "-m", module, *(argument.format(bad) for argument in arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1]), "PYTHONUTF8": "1"},
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    said = (done.stdout + done.stderr).decode()
    assert r"a\x1b[31mb" in said
    assert not [letter for letter in said if not letter.isprintable() and letter != "\n"]
