"""kubelet and the plugin go and come back: nobody notices who need not."""

import math
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import Tell
from tests.e2e.gpus import Companions, plugin
from tests.e2e.kubelet import Kubelet
from tests.e2e.load import Fate, Load, Timeline
from tests.e2e.pods import Pods
from tests.e2e.programs import monotonic, until

TIMES = 10
UPGRADES = 10
DROPPED = ("no healthy devices present", "the client connection is closing")


@pytest.fixture(autouse=True)
def bystander(companions: Companions, kubelet: Kubelet, pods: Pods) -> Iterator[None]:
    """A Pod with two GPUs that runs through the whole story, untouched."""
    kubelet.await_allocatable(8)
    before = pods.run("bystander", 2)
    container = container_of(pods)
    yield
    kubelet.await_allocatable(8)
    assert container_of(pods) == container
    assert pods.report("bystander") == before
    assert companions.plugin.process


def container_of(pods: Pods) -> Any:  # noqa: ANN401 - JSON
    status = pods.get("bystander")["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0
    return status["containerID"], status["state"]


@pytest.fixture
def timeline(kubelet: Kubelet) -> Iterator[Timeline]:
    """What the node said of its GPUs through the whole story."""
    with Timeline(kubelet.cluster.api) as timeline:
        yield timeline


class Life(NamedTuple):
    """One restart, by the monotonic clock: the old one was stopped, the new one started, and
    kubelet knew the plugin again."""

    stopped: float
    started: float
    registered: float


def instant(line: str) -> float:
    """Give when a line was logged, by the monotonic clock."""
    return monotonic(datetime.fromisoformat(line.split("timestamp=")[1].split(maxsplit=1)[0]))


def back(companions: Companions, pods: Pods, number: int) -> float:
    """See the plugin registered, and a Pod let in; give the instant of the registration."""
    line = companions.plugin.wait_for("registered")
    pods.let_in(f"after-{number}", 1)
    return instant(line)


def handles_pods_again(pods: Pods, number: int) -> None:
    """See kubelet run a Pod without GPU.

    While it starts, it counts the devices of Pods that ended since its last allocation as taken:
    until it has handled the first Pods that it hears of, one that asks for a GPU may be refused.
    """
    pods.let_in(f"canary-{number}", 0)


def assert_whole(timeline: Timeline, begin: float, end: float) -> None:
    """See all GPUs in each status, but in the first: kubelet may be about to hear of them."""
    settled = timeline.between(begin, end)[1:]
    assert all(status.allocatable == 8 for status in settled), (begin, end, settled)


def judge(timeline: Timeline, lives: list[Life], tell: Tell) -> None:
    """See that all GPUs were allocatable soon after each registration."""
    until(lambda: timeline.between(lives[-1].registered)[1:], "kubelet reports its status twice")
    ends = [*(life.stopped for life in lives[1:]), math.inf]
    for life, end in zip(lives, ends, strict=True):
        assert_whole(timeline, life.registered, end)
    took = [life.registered - life.started for life in lives]
    tell(f"registered {min(took):.1f} to {max(took):.1f} s after the start")
    tell(
        f"allocatable was {timeline.lowest()} at the least,"
        f" and below 8 for {timeline.longest_without(8):.1f} s at most"
    )


def test_kubelet_restarts_ten_times(
    companions: Companions, kubelet: Kubelet, pods: Pods, timeline: Timeline, tell: Tell
) -> None:
    lives = []
    for number in range(TIMES):
        companions.plugin.forget()
        stopped = time.monotonic()
        kubelet.program.stop()
        started = time.monotonic()
        kubelet.program.start()
        handles_pods_again(pods, number)
        lives.append(Life(stopped, started, back(companions, pods, number)))
    judge(timeline, lives, tell)


def test_the_plugin_restarts_ten_times(
    companions: Companions, pods: Pods, timeline: Timeline, tell: Tell
) -> None:
    lives = []
    for number in range(TIMES):
        stopped = time.monotonic()
        companions.plugin.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
        started = time.monotonic()
        companions.plugin.start()
        lives.append(Life(stopped, started, back(companions, pods, number)))
    judge(timeline, lives, tell)


def test_both_restart_at_once_ten_times(
    companions: Companions, kubelet: Kubelet, pods: Pods, timeline: Timeline, tell: Tell
) -> None:
    lives = []
    for number in range(TIMES):
        stopped = time.monotonic()
        companions.plugin.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
        kubelet.program.stop()
        both = [companions.plugin, kubelet.program]
        started = time.monotonic()
        for program in both if number % 3 else reversed(both):
            program.start()
        handles_pods_again(pods, number)
        lives.append(Life(stopped, started, back(companions, pods, number)))
    judge(timeline, lives, tell)


class Gap(NamedTuple):
    """While kubelet had no plugin, by the monotonic clock: it hung up, it listened again."""

    begin: float
    end: float

    def meets(self, fate: Fate) -> bool:
        """Tell whether a Pod can have been refused in it."""
        return fate.created <= self.end and self.begin <= fate.ended


def test_the_plugin_is_upgraded_under_load(
    companions: Companions, kubelet: Kubelet, timeline: Timeline, tell: Tell
) -> None:
    companions.start_plugin("-socket-name=unique")
    kubelet.await_allocatable(8)
    upgraded = time.monotonic()
    with Load(kubelet.cluster.api) as load:
        gaps = [upgrade(companions, number) for number in range(UPGRADES)]
        load.settle()
    refused = load.failed()
    longest = max(gap.end - gap.begin for gap in gaps)
    tell(
        f"{len(load.succeeded())} of {len(load.fates)} Pods got a GPU, {len(refused)} were refused"
    )
    tell(f"kubelet had dropped the successor for {longest:.3f} s at most")
    tell(f"allocatable was below 8 for {timeline.longest_without(8, upgraded):.1f} s at most")
    # Only kubelet's own mistake: while it has dropped the successor.
    for fate in refused:
        assert any(gap.meets(fate) for gap in gaps), (fate, gaps)
        assert any(reason in fate.reason for reason in DROPPED), fate
    until(lambda: timeline.between(gaps[-1].end)[1:], "kubelet reports its status twice")
    ends = [*(gap.begin for gap in gaps), math.inf]
    for begin, end in zip([upgraded, *(gap.end for gap in gaps)], ends, strict=True):
        assert_whole(timeline, begin, end)
    companions.start_plugin()


def upgrade(companions: Companions, number: int) -> Gap:
    """Start a successor, stop the predecessor; give while kubelet had neither.

    When the predecessor's stream ends, kubelet closes the connection that is registered under the
    resource's name by then: the successor's. It has to register again.
    """
    successor = plugin(
        companions.logs, companions.gpus, "-socket-name=unique", name=f"successor-{number}"
    ).start()
    successor.wait_for('event="ListAndWatch stream opened"')
    assert companions.plugin.stop() == 0
    companions.plugin = successor
    dropped = instant(successor.wait_for("ListAndWatch stream closed"))
    listens = instant(successor.wait_for('event="ListAndWatch stream opened"'))
    # No second try: the gap is as long as one registration takes.
    assert successor.said("cannot register") == 0
    assert successor.said("event=registered") <= 2
    return Gap(dropped, listens)
