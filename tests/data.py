"""The body and vector files beside the repository, where they exist; tests without them skip."""

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
BODIES = DATA / "xpum"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder with real bodies is not here")


def vectors(name: str) -> list[Any]:
    """Give the cases of a vector file, each with its name as id; one skipped case without it."""
    path = DATA / "vectors" / name
    if not path.is_file():
        return [pytest.param({}, marks=needs_data, id="no data")]
    return [pytest.param(case, id=case["name"]) for case in json.loads(path.read_text())]
