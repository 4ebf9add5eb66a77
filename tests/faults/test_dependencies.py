"""What docs/security.md says of the dependencies is so: audited offline, from what is installed."""

import re
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
SAID = " ".join((ROOT / "docs" / "security.md").read_text().split())
PINNED = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", LOCK, re.MULTILINE))
COPYLEFT = re.compile("GPL|MPL|EUPL|CDDL|EPL")


def test_every_package_is_pinned_by_its_hash_and_comes_from_no_other_place() -> None:
    blocks = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(blocks) == len(PINNED)
    assert not [block for block in blocks if "--hash=sha256:" not in block or "@" in block]


def test_what_is_installed_is_what_is_pinned_and_what_the_review_counts() -> None:
    assert {name: distribution(name).version for name in PINNED} == PINNED
    assert f"{len(PINNED)} packages run" in SAID


def test_native_code_and_copyleft_are_where_the_review_says() -> None:
    native, copyleft = set[str](), set[str]()
    for name in PINNED:
        found = distribution(name)
        if any(file.suffix == ".so" for file in found.files or ()):
            native.add(name)
        fields = ("License-Expression", "License", "Classifier")
        told = [text for field in fields for text in found.metadata.get_all(field) or ()]
        if any(COPYLEFT.search(text) for text in told if "\n" not in text):  # not a whole license
            copyleft.add(name)
    listed = re.search(r"Native code is in four of them: (.+?)\. ", SAID)
    assert listed
    assert {name.lower() for name in re.split(r", | and ", listed[1])} == native
    assert f"(MPL-2.0: {', '.join(sorted(copyleft))})" in SAID
