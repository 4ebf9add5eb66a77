"""`make soak` runs: some seconds of it, and its table."""

import re
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def test_a_short_soak_ends_well_with_its_table() -> None:
    done = subprocess.run(
        [sys.executable, "tools/soak.py", "--minutes=0.1", "--seed=3"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"COVERAGE_PROCESS_CONFIG": "", "PATH": "/usr/bin:/bin"},
        timeout=4 * PATIENCE,  # it starts and kills daemons, and fuzzes
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^no label is wrong +[1-9]\d* +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^no input breaks a reader +6 +0$", done.stdout, re.MULTILINE)
