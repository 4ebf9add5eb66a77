"""A dump of frames: the same look again, on any machine."""

from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iaf.drivers import EVERYTHING, on_bus, topology, without_uuids
from tests.patience import Clock
from xelink.iaf.dump import HEADING, SIZE_LIMIT, Dump, DumpError, Exchanged, read, write
from xelink.iaf.reasons import DriverReason
from xelink.iaf.recording import Recorder, Replay
from xelink.iaf.source import DriverSource
from xelink.simulators.iaf import Behavior, FrameFault
from xelink.simulators.iaf.driver import reply
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.observation import Observation, Unknown

NODE = Blueprint(gpus=4, tiles=2, igpu=True).build()


class Channel:
    """A driver without a socket."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        self._reply: bytes | None = None

    def send(self, frame: bytes, _seconds: float) -> None:
        self._reply = reply(self._behavior, frame)

    def receive(self, _seconds: float) -> bytes | None:
        if self._reply is None:
            raise TimeoutError
        return self._reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def observed(channel: Channel | Recorder | Replay) -> Observation:
    source = DriverSource(
        lambda: channel,
        lambda: on_bus(NODE),
        EVERYTHING,
        seconds=1.0,
        sleep=lambda _: None,
        monotonic=Clock(),
    )
    return source.observe()


def recorded(behavior: Behavior) -> tuple[Dump, Observation]:
    recorder = Recorder(Channel(behavior))
    observation = observed(recorder)
    return Dump(("kernel 6.5",), tuple(on_bus(NODE).gpus), tuple(recorder.frames)), observation


@pytest.mark.parametrize(
    "behavior",
    [
        pytest.param(Behavior(NODE), id="well"),
        pytest.param(Behavior(NODE, result=1), id="an error"),
        pytest.param(Behavior(NODE, has_family=False), id="no family"),
        pytest.param(Behavior(NODE, frames=FrameFault.CUT), id="cut"),
        pytest.param(Behavior(NODE, frames=FrameFault.SILENCE), id="silence"),
    ],
)
def test_a_dump_proves_what_was_observed(behavior: Behavior) -> None:
    dump, observation = recorded(behavior)
    assert read(write(dump)) == dump
    assert observed(Replay(dump.frames)) == observation


def test_the_links_of_a_dump_are_those_of_the_node() -> None:
    dump, _ = recorded(Behavior(NODE))
    assert topology(observed(Replay(dump.frames))) == without_uuids(NODE.topology)


def test_what_was_not_asked_when_it_was_made_is_unknown() -> None:
    dump, _ = recorded(Behavior(NODE))
    found = observed(Replay(dump.frames[:5]))
    assert isinstance(found, Unknown)
    assert found.reason == DriverReason.TIMEOUT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "its first line is not", id="nothing"),
        pytest.param("# xelink fabric dump 2\n", "its first line is not", id="another version"),
        pytest.param(f"{HEADING}\n< 00\n", "line 2: pop from empty list", id="no request"),
        pytest.param(f"{HEADING}\n> 0\n", "line 2: ", id="half a byte"),
        pytest.param(f"{HEADING}\n> {'00' * 70000}\n", "a frame that is too long", id="long"),
        pytest.param(f"{HEADING}\nhello\n", "line 2: neither a fact nor a frame", id="text"),
        pytest.param(f"{HEADING}\n# gpu []\n", "line 2: ", id="no GPU"),
        pytest.param(f'{HEADING}\n# gpu {{"id":"0"}}\n', "not a number", id="no id"),
        pytest.param(f'{HEADING}\n# gpu {{"id":0,"pci":"x"}}\n', "line 2: ", id="no address"),
        pytest.param(
            f'{HEADING}\n# gpu {{"id":0,"pci":"0000:29:00.0","tiles":3000000}}\n',
            "than any node has",
            id="too many tiles",
        ),
        pytest.param(" " * (SIZE_LIMIT + 1), f"more than {SIZE_LIMIT}", id="too long"),
    ],
)
def test_what_is_no_dump_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(DumpError, match=reason):
        read(text)


@given(st.text(max_size=200))
def test_any_text_is_a_dump_or_refused(text: str) -> None:
    try:
        read(f"{HEADING}\n{text}")
    except DumpError:
        return


@given(st.lists(st.tuples(st.binary(max_size=20), st.none() | st.binary(max_size=20))))
def test_a_dump_is_read_as_it_was_written(frames: list[tuple[bytes, bytes | None]]) -> None:
    dump = Dump((), (), tuple(Exchanged(*pair) for pair in frames))
    assert read(write(dump)) == dump
