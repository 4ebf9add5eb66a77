"""The release, and the form of what is told, for the programs.

Said here once: the metadata of the package take 30 ms to read.
"""

from collections.abc import Mapping
from typing import Any

VERSION = "0.1.0"

FORMAT_VERSION = 1
"""Of all JSON and YAML that xelink prints or serves: it grows when a key is renamed, removed or
changes its meaning, and stays when one is added. docs/json.md has every key."""


def versioned(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with the version of their form before them."""
    return {"format_version": FORMAT_VERSION, **facts}
