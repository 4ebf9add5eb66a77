"""The corpus and what is like it: `make soak` looks for more, and keeps what it finds here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import NAMES
from tests.fuzz.__main__ import guess
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import CORPUS, RPC, TARGETS, Target, cases, serving_rpc


@pytest.fixture(scope="module")
def rpc() -> Iterator[Target]:
    with serving_rpc() as target:
        yield target


def every_case() -> list[object]:
    return [
        pytest.param(name, path, id=f"{name}-{path.name}") for name in NAMES for path in cases(name)
    ]


def test_each_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*NAMES}


@pytest.mark.parametrize(("name", "path"), every_case())
def test_every_case_is_survived(name: str, path: Path, rpc: Target) -> None:
    (rpc if name == RPC else TARGETS[name])(path.read_bytes())


def test_what_breaks_a_reader_is_found_and_kept(tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    sound.write_bytes(b"a body that can be read\n" * 5)

    def breaks(data: bytes) -> None:
        assert b"NaN" not in data

    assert guess(breaks, tmp_path, 60.0, 1) == 1
    (kept,) = tmp_path.glob("found-*")
    assert b"NaN" in kept.read_bytes()
    assert kept.stat().st_size <= sound.stat().st_size + 3  # no larger than need be


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_is_like_the_corpus_is_survived(name: str, rpc: Target, data: st.DataObject) -> None:
    corpus = [path.read_bytes() for path in cases(name)]
    (rpc if name == RPC else TARGETS[name])(data.draw(mutated(corpus)))
