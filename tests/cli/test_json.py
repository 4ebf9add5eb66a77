"""docs/json.md has every key of what the tool prints as JSON, and no other."""

import json

import pytest

from tests.cli.commands import EXAMPLES, Xelink
from tests.documented import documented, keys
from xelink.daemon.version import FORMAT_VERSION

EIGHT = f"--features={EXAMPLES / 'eight.txt'}"
TWO = ("explain", "--want=2", EIGHT)
CALLS: dict[str, list[tuple[str, ...]]] = {
    "xelink show": [
        ("show", EIGHT),
        ("show", f"--node-json={EXAMPLES / 'nodes.json'}"),
    ],
    "xelink explain": [TWO, (*TWO, "--policy=packed", "--used=card2")],
    "xelink doctor": [("doctor",)],
    "xelink simulate": [
        ("simulate", "islands"),
        ("simulate", "--random=1", "--runs=5"),
        ("simulate", "crossed-islands"),
        ("simulate", "--random=41", "--runs=8"),
    ],
}


@pytest.mark.parametrize("title", CALLS)
def test_every_key_is_documented_and_every_documented_key_is_printed(
    xelink: Xelink, title: str
) -> None:
    known = documented(title)
    found: set[str] = set()
    for call in CALLS[title]:
        facts = json.loads(xelink(*call, "--output=json").out)
        assert next(iter(facts.items())) == ("format_version", FORMAT_VERSION)
        found.update(keys(facts, known))
    assert found == known
