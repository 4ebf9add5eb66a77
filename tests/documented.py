"""The keys of a JSON document, and what docs/json.md says of them."""

import re
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "json.md"


def documented(title: str) -> set[str]:
    """Return the paths of keys below a title of the page.

    `a.b` is a key in an object, `a[]` each entry of a list, `a.{name}` each value of an object
    whose keys are names.
    """
    sections = dict(
        re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )
    found = re.findall(r"^\| `([^`]+)` \|", sections[title], re.MULTILINE)
    assert len(found) == len({*found})
    return {*found}


def keys(value: object, known: set[str], path: str = "") -> Iterator[str]:
    """Give the path of every key in a document."""
    match value:
        case dict():
            names = next((each for each in known if each.startswith(f"{path}.{{")), None)
            for key, inner in value.items():
                below = f"{path}.{key}".removeprefix(".")
                if names:
                    below = path + re.match(r"\.\{[^}]+\}", names[len(path) :])[0]  # type: ignore[index] # it was found
                yield below
                yield from keys(inner, known, below)
        case list():
            for inner in value:
                yield from keys(inner, known, f"{path}[]")
