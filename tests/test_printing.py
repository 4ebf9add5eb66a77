"""Where nothing can be printed: one line, and an exit code that says so."""

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
