"""What of the simulators others may rely on: it is listed, documented, and works as shown."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.patience import PATIENCE

PAGE = (Path(__file__).parents[2] / "docs" / "simulators.md").read_text()
LISTED = {
    module: set(re.findall(r"`(\w+)`", told.rpartition("(")[2]))
    for module, told in re.findall(r"^\| `([\w.]+)` \| (.+) \|$", PAGE, re.MULTILINE)
}


@pytest.mark.parametrize("module", LISTED)
def test_what_is_public_is_listed_and_documented(module: str) -> None:
    found = import_module(module)
    assert set(found.__all__) == LISTED[module]
    for name in found.__all__:
        assert name.isupper() or getattr(found, name).__doc__


def test_every_simulator_has_a_row() -> None:
    folder = Path(__file__).parents[2] / "xelink" / "simulators"
    packages = {path.parent.name for path in folder.glob("*/__init__.py")} | {"xpumd"}
    assert {module.rpartition(".")[2] for module in LISTED} == packages


def test_the_program_of_the_page_prints_what_it_says() -> None:
    program = PAGE.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    (shown,) = re.findall(r"^print\(.*  # (.+)$", program, re.MULTILINE)
    assert (done.stdout, done.stderr, done.returncode) == (f"{shown}\n", "", 0)
