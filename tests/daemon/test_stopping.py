"""A stop ends every wait at once, a bounded block ends in time, and nothing fires afterwards."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE, Clock
from xelink.daemon.stopping import Stop, Stopped

OFF = (0.0, 0.0)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class Leaping(Clock):
    """Time that goes by, and leaps to the end of every limit when a test has it run out."""

    def __call__(self) -> float:
        return time.monotonic() + self.now


@pytest.fixture
def clock() -> Clock:
    return Leaping()


@contextmanager
def installed(stop: Stop) -> Iterator[Stop]:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop.install()
    try:
        yield stop
        assert signal.getitimer(signal.ITIMER_REAL) == OFF
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        stop.close()
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.fixture
def stop(clock: Clock) -> Iterator[Stop]:
    with installed(Stop(clock)) as stop:
        yield stop


class Silence:
    """Something to wait for that never comes; who listens knows when the waiting begins."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.ours.settimeout(PATIENCE)

    def wait(self) -> None:
        self.ours.send(b"\0")
        self.ours.recv(1)

    def then(self, act: Callable[[], object]) -> Callable[[], None]:
        def listen() -> None:
            self._theirs.recv(1)
            act()

        return listen

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def silence() -> Iterator[Silence]:
    with closing(Silence()) as silence:
        yield silence


@pytest.fixture(autouse=True)
def no_wait_was_waited_out() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PATIENCE


class Soon:
    """Does something in another thread, once this one is about to wait or waits already."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=act)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_wakes_a_wait(stop: Stop, number: signal.Signals) -> None:
    assert not stop.is_set()
    with Soon(send(number)):
        assert stop.wait(PATIENCE)
    assert stop.is_set()


def test_a_signal_that_interrupts_nobody_wakes_a_wait(stop: Stop) -> None:
    """As one that comes just before a wait: here it is another thread that it interrupts."""
    state = Path(f"/proc/self/task/{threading.get_native_id()}/stat")

    def send_late() -> None:
        seen = 0
        while seen < 300:  # in a row: so it sleeps, and does not only let this thread go first
            seen = seen + 1 if state.read_text().rpartition(")")[2].split()[0] == "S" else 0
        os.kill(os.getpid(), signal.SIGTERM)

    with Soon(send_late):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            assert stop.wait(PATIENCE)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_the_timer_of_a_block_ends_no_wait_in_it(stop: Stop) -> None:
    with stop.bounded(PATIENCE):
        assert not stop.wait(0.35)


def test_setting_from_a_thread_wakes_a_wait(stop: Stop) -> None:
    with Soon(stop.set):
        assert stop.wait(PATIENCE)


def test_once_set_every_wait_returns_at_once_and_setting_again_is_nothing(stop: Stop) -> None:
    for _ in range(3):
        stop.set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(PATIENCE)
        assert stop.is_set()


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.001])
def test_a_wait_without_a_stop_ends_by_itself(stop: Stop, seconds: float) -> None:
    assert not stop.wait(seconds)


def test_the_time_of_a_block_ends_what_it_waits_for(stop: Stop, silence: Silence) -> None:
    with pytest.raises(TimeoutError), stop.bounded(0.05):
        silence.wait()
    assert signal.getitimer(signal.ITIMER_REAL) == OFF
    assert not stop.is_set()


def test_a_sleep_in_a_block_ends_in_time(stop: Stop) -> None:
    with pytest.raises(TimeoutError), stop.bounded(0.05):
        stop.wait(PATIENCE)


def test_a_loop_in_a_block_ends_in_time(stop: Stop) -> None:
    def loop() -> None:
        while True:
            pass

    with pytest.raises(TimeoutError), stop.bounded(0.05):
        loop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_a_block_waits_for(
    stop: Stop, silence: Silence, number: signal.Signals
) -> None:
    with Soon(silence.then(send(number))), pytest.raises(Stopped), stop.bounded(PATIENCE):
        silence.wait()
    assert signal.getitimer(signal.ITIMER_REAL) == OFF
    assert stop.wait(PATIENCE)


def test_a_signal_ends_a_block_before_its_timer_would_fire_again() -> None:
    def be_told() -> None:
        for _ in range(50):  # once is enough, unless the machine pauses in the signal's handler
            signal.raise_signal(signal.SIGTERM)
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                pass

    with (
        installed(Stop(repeat=PATIENCE)) as stop,
        pytest.raises(Stopped),
        stop.bounded(PATIENCE),
    ):
        be_told()


def test_a_signal_that_interrupts_nobody_ends_a_block_all_the_same(
    stop: Stop, silence: Silence
) -> None:
    """As one that comes just before a call blocks: here it is another thread that it interrupts."""
    with Soon(silence.then(send(signal.SIGTERM))):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with pytest.raises(Stopped), stop.bounded(PATIENCE):
                silence.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_a_stop_set_in_a_thread_is_noticed_when_the_timer_fires_next(
    stop: Stop, silence: Silence
) -> None:
    with Soon(silence.then(stop.set)), pytest.raises(Stopped), stop.bounded(PATIENCE):
        silence.wait()


def test_no_block_is_entered_after_a_stop(stop: Stop) -> None:
    stop.set()
    with pytest.raises(Stopped), stop.bounded(PATIENCE):
        pytest.fail("entered")


@pytest.mark.parametrize("error", [ValueError, TimeoutError, KeyboardInterrupt])
def test_an_error_leaves_a_block_as_it_is_and_disarms_the_timer(
    stop: Stop, error: type[BaseException]
) -> None:
    with pytest.raises(error, match="mine"), stop.bounded(PATIENCE):
        raise error("mine")
    assert signal.getitimer(signal.ITIMER_REAL) == OFF


def test_a_block_that_ends_in_time_is_not_interrupted_later(stop: Stop) -> None:
    for _ in range(3):
        with suppress(TimeoutError), stop.bounded(0.01):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == OFF
        assert not stop.wait(0.02)


def test_a_stray_alarm_outside_of_a_block_is_nothing(stop: Stop) -> None:
    signal.raise_signal(signal.SIGALRM)
    assert not stop.wait(0)


_EDGE = """
import signal
from xelink.daemon.stopping import Stop

OFF = (0.0, 0.0)
stop = Stop()
stop.install()
for attempt in range(8000):
    try:
        with stop.bounded(attempt % 100 * 1e-6):
            for _ in range(attempt % 70):
                pass
    except TimeoutError:
        # While it is handled, too: what fires here would escape from the handler.
        assert signal.getitimer(signal.ITIMER_REAL) == OFF
    assert signal.getitimer(signal.ITIMER_REAL) == OFF
"""


def test_a_block_left_in_the_moment_its_time_is_up_leaves_nothing_armed() -> None:
    # In a process without coverage, whose tracer takes a lock that no signal may interrupt.
    env = {name: value for name, value in os.environ.items() if "COV" not in name}
    subprocess.run([sys.executable, "-c", _EDGE], env=env, timeout=PATIENCE, check=True)


class Swallows:
    """Waits in a finalizer, where Python can only report an exception, not raise it."""

    def __init__(self, silence: Silence) -> None:
        self._silence = silence

    def __del__(self) -> None:
        self._silence.wait()


@pytest.mark.parametrize("stopping", [False, True])
def test_what_a_finalizer_swallows_is_raised_again(
    stop: Stop,
    silence: Silence,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stopping: bool,
) -> None:
    swallowed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_type))
    expected = Stopped if stopping else TimeoutError

    def wait() -> None:
        Swallows(silence)
        silence.wait()

    with (
        Soon(silence.then(send(signal.SIGTERM) if stopping else clock.run_out)),
        pytest.raises(expected),
        stop.bounded(PATIENCE),
    ):
        wait()
    assert swallowed == [expected]


def test_what_a_broad_except_swallows_is_raised_again(
    stop: Stop, silence: Silence, clock: Clock
) -> None:
    def wait() -> None:
        with suppress(OSError):  # as TimeoutError is one
            silence.wait()
        silence.wait()

    with (
        Soon(silence.then(clock.run_out)),
        pytest.raises(TimeoutError),
        stop.bounded(PATIENCE),
    ):
        wait()


def test_closing_gives_the_signals_their_default_meaning(stop: Stop) -> None:
    stop.close()
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 3
    assert signal.set_wakeup_fd(-1) == -1, "who has this descriptor next gets no bytes of signals"


PROGRAM = """
import os, sys
from xelink.daemon.stopping import Stop
stop = Stop()
stop.install()
print("ready", flush=True)
while not stop.wait(600):
    pass
print("clean", flush=True)
stop.close()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_ends_cleanly_on_a_storm_of_signals(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "clean\n"
        assert process.wait(PATIENCE) == 0


@given(st.integers(1, 9))
def test_however_often_a_stop_is_asked_for_it_is_one(times: int) -> None:
    with closing(Stop()) as stop:
        for _ in range(times):
            stop.set()
        assert stop.wait(0)
        assert stop.wait(0)


def test_nobody_is_called_within_the_collector_where_what_a_signal_raises_is_lost() -> None:
    """hypothesis is, from its first test in a process on: as the one above."""
    assert gc.callbacks == []
