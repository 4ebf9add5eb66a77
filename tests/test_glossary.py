"""docs/glossary.md: a word that has been replaced is in no code, page or output any more."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
SUFFIXES = {"", ".py", ".md", ".json", ".yaml", ".toml", ".txt", ".sh", ".service", ".proto"}
# These name the words: what they replace, and what was renamed.
NAMES_THEM = {"docs/glossary.md", "CHANGELOG.md"}
# Written by others, or made from what others wrote.
FOREIGN = re.compile(r"_pb2|\.lock$|^requirements|^LICENSE$|^xelink/api/.*\.proto$")

# The phrases in which one of these words means something else.
OTHER_MEANINGS = (
    "def offer",
    "best.offer",
    "must offer TLS",
    "tests.patience import PATIENCE",
    "RECOVERY = PATIENCE",
    "tests.device_plugin.test_story",
)


def rows(title: str) -> list[list[str]]:
    """Return the cells of each row of the table below a title."""
    section = GLOSSARY.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


REPLACED = {word.strip(): use for words, use in rows("Replaced words") for word in words.split(",")}


def spelling(word: str) -> str:
    """Return an expression for a word in a sentence, in snake_case, and in kebab-case."""
    return r"[\s_-]+".join(map(re.escape, word.split()))  # `given_again` is that name alone


ANY = re.compile(
    rf"(?<![A-Za-z])(?:{'|'.join(spelling(word) for word in REPLACED)})(?![A-Za-z])", re.IGNORECASE
)


def found(text: str) -> Iterator[tuple[int, str]]:
    """Return line and word of each replaced word in a text."""
    for phrase in OTHER_MEANINGS:
        text = re.sub(rf"\b{spelling(phrase)}\b", lambda own: "\n" * own[0].count("\n"), text)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)  # CamelCase
    for match in ANY.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        word = match[0].lower()
        yield line, word if word in REPLACED else " ".join(re.split(r"[\s_-]+", word))


def ours() -> list[Path]:
    """Return the files that are read: product, docs, tools, and recorded outputs."""
    listed = subprocess.run(
        ["/usr/bin/git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        Path(name)
        for name in listed
        if Path(name).suffix in SUFFIXES
        and name not in NAMES_THEM
        and not FOREIGN.search(name)
        and (not name.startswith("tests/") or "/golden/" in name)
        and not name.startswith(".")
    ]


def test_no_file_has_a_replaced_word() -> None:
    assert [
        f"{path}:{line - 1}: {word}: {REPLACED[word]}"  # line 0 is its name
        for path in ours()
        for line, word in found(f"{path}\n{(ROOT / path).read_text()}")
    ] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("decided by wish 9", ["wish"]),
        ("def by_wish(WISHES: Wish)", ["wish", "wishes", "wish"]),
        ("class OtherWish:", ["wish"]),
        ("links_held_back, held\nback", ["held back", "held back"]),
        ("wishful, houses, a swish", []),
    ],
)
def test_a_word_is_found_in_each_spelling_and_in_no_other_word(text: str, words: list[str]) -> None:
    assert [word for _, word in found(text)] == words


def test_each_replaced_word_has_another_and_each_word_one_meaning() -> None:
    assert len(REPLACED) > 50
    assert all(REPLACED.values())
    words = [word.strip() for names, _ in rows("Words") for word in names.split(",")]
    assert len(words) == len({*words}) > 30
    meanings = [meaning for _, meaning in rows("Words")]
    assert not [meaning for meaning in meanings if ANY.search(meaning)]


@pytest.mark.parametrize("phrase", OTHER_MEANINGS)
def test_each_other_meaning_is_that_of_a_replaced_word_and_is_needed(phrase: str) -> None:
    assert ANY.search(phrase)
    texts = [(ROOT / path).read_text() for path in ours()]
    assert any(re.search(rf"\b{spelling(phrase)}\b", text) for text in texts)
