"""The watchdog behind /healthz, and the ticks that it watches: on a clock of the test's own."""

from collections.abc import Sequence

import pytest
import structlog
from structlog.testing import LogCapture

from sidecar.pulse import Pulse, ticks
from sidecar.settings import SidecarSettings
from xelink.daemon.flags import load
from xelink.topology.model import Topology
from xelink.topology.observation import Observation, ObservedLinks, Unknown
from xelink.xpu_manager.reasons import ScrapeReason

SEEN = ObservedLinks(Topology())
UNKNOWN = Unknown(ScrapeReason.TIMEOUT, "no whole answer")


class Daemon:
    """Ticks that end as the test wants, each after a time of its own."""

    def __init__(self, *arguments: str) -> None:
        self.now = 1000.0
        self.settings = load(SidecarSettings, arguments).settings
        self.pulse = Pulse(self.settings, lambda: self.now)
        self.logs = LogCapture()
        self.waited: list[float] = []

    def run(
        self, answers: Sequence[Observation | Exception], took: float = 0.0
    ) -> Observation | None:
        """Tick as often as there are answers; then the end is asked for."""
        left = list(answers)

        def wait(seconds: float) -> bool:
            self.waited.append(seconds)
            self.now += seconds
            return not left

        def tick() -> Observation:
            self.now += took
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        log = structlog.wrap_logger(None, processors=[self.logs])
        return ticks(self.settings, tick, wait, self.pulse.beat, log)


@pytest.mark.parametrize(
    ("arguments", "patience"),
    [
        pytest.param(
            ["-startup-delay=0"], 80, id="three intervals, a timeout and four looks at a file"
        ),
        pytest.param(["-startup-delay=0", "-interval=1"], 53, id="a scrape may take its time"),
        pytest.param(["-startup-delay=0", "-timeout=1"], 51, id="intervals count, too"),
        pytest.param(["-startup-delay=600"], 680, id="no tick is due before the delay is over"),
    ],
)
def test_the_loop_is_dead_when_no_tick_came_for_too_long(
    arguments: list[str], patience: float
) -> None:
    daemon = Daemon(*arguments)
    daemon.now += patience
    assert daemon.pulse.problem() is None
    daemon.now += 1
    assert "the loop has not ticked for" in str(daemon.pulse.problem())


def test_a_beat_is_heard_whenever_it_comes() -> None:
    daemon = Daemon("-startup-delay=600")
    daemon.pulse.beat()
    daemon.now += 81
    assert daemon.pulse.problem() == "the loop has not ticked for 81 s"
    daemon.pulse.beat()
    assert daemon.pulse.problem() is None


def test_scrapes_that_take_their_whole_time_are_no_silence() -> None:
    daemon = Daemon("-startup-delay=0", "-interval=1", "-timeout=30")
    for _ in range(10):
        daemon.run([UNKNOWN], took=30)
        assert daemon.pulse.problem() is None


def test_a_daemon_whose_every_tick_fails_is_dead() -> None:
    daemon = Daemon("-startup-delay=0", "-interval=1", "-timeout=1")
    daemon.run([SEEN])
    assert daemon.pulse.problem() is None
    daemon.run([ZeroDivisionError()] * 3)
    assert daemon.pulse.problem() is None
    daemon.run([ZeroDivisionError()] * 23)
    assert "the loop has not ticked for" in str(daemon.pulse.problem())
    assert {entry["event"] for entry in daemon.logs.entries} == {
        "a tick failed: the published labels stay"
    }
    daemon.run([UNKNOWN])
    assert daemon.pulse.problem() is None


def test_the_delay_comes_first_and_the_interval_after_each_tick() -> None:
    daemon = Daemon("-startup-delay=7", "-interval=5")
    assert daemon.run([SEEN, ZeroDivisionError(), UNKNOWN]) is None
    assert daemon.waited == [7, 5, 5, 5]


def test_no_tick_begins_after_the_end_was_asked_for() -> None:
    daemon = Daemon("-startup-delay=7")
    assert daemon.run([]) is None
    assert daemon.waited == [7]


@pytest.mark.parametrize("answer", [SEEN, UNKNOWN], ids=["seen", "unknown"])
def test_one_tick_is_all_with_oneshot_and_nothing_is_waited_for(answer: Observation) -> None:
    daemon = Daemon("-oneshot", "-startup-delay=7")
    assert daemon.run([answer, answer]) is answer
    assert daemon.waited == [0]


def test_a_fault_of_the_only_tick_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Daemon("-oneshot").run([ZeroDivisionError()])
