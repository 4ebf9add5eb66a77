"""The release, and the version of the JSON format.

Constants, because reading the metadata of the package takes 30 ms.
"""

from collections.abc import Mapping
from typing import Any

VERSION = "0.1.0"

FORMAT_VERSION = 1
"""Version of all JSON and YAML of xelink. It grows when a key is renamed or removed, or changes its
meaning, and stays when a key is added. docs/json.md has every key."""


def versioned(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts, preceded by the version of their format."""
    return {"format_version": FORMAT_VERSION, **facts}
