"""Work that hangs is left, and nothing else is begun in its lane until it has ended."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.patience import PATIENCE, Clock
from xelink.daemon.hanging_work import HungError, SerialWorker


def test_work_is_done_one_piece_at_a_time_whoever_asks() -> None:
    lane, busy, most = SerialWorker(PATIENCE), [0], [0]

    def work() -> int:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        threading.Event().wait(0.001)
        busy[0] -= 1
        return threading.get_ident()

    with ThreadPoolExecutor(8) as pool:
        assert len([*pool.map(lambda _: lane(work), range(64))]) == 64
    assert most == [1]


def test_what_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        SerialWorker(PATIENCE)(lambda: 1 // 0)


def test_the_thread_of_a_lane_ends_with_it() -> None:
    lane = SerialWorker(PATIENCE)
    thread = lane(threading.current_thread)
    assert thread.is_alive()
    del lane
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_nothing_is_begun_before_what_hangs_has_ended() -> None:
    lane, answers, ended = SerialWorker(0.05), threading.Event(), threading.Event()
    begun: list[str] = []

    def hang() -> None:
        begun.append("first")
        assert answers.wait(PATIENCE)
        ended.set()

    for work in (hang, lambda: begun.append("second"), lambda: begun.append("third")):
        with pytest.raises(HungError) as hung:
            lane(work)
        assert hung.value.strerror == "not done within 0.05 s: its file system does not answer"
    assert begun == ["first"]
    answers.set()
    assert ended.wait(PATIENCE)
    for _ in range(100):  # its thread has still to say that it has ended
        try:
            lane(lambda: begun.append("fourth"))
            break
        except HungError:
            threading.Event().wait(0.01)
    assert begun == ["first", "fourth"]


def test_who_had_to_wait_for_a_turn_has_all_the_time_for_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()

    class Turn:
        """One that is had just before the time for it is up."""

        def acquire(self, *, timeout: float) -> bool:
            clock.now += timeout
            return True

        def release(self) -> None: ...

    lane, go_on = SerialWorker(PATIENCE), threading.Event()
    monkeypatch.setattr(lane, "_turn", Turn())
    monkeypatch.setattr("xelink.daemon.hanging_work.time.monotonic", clock)
    threading.Timer(0.1, go_on.set).start()
    assert lane(lambda: go_on.wait(PATIENCE))


def test_who_waits_for_a_turn_waits_no_longer_than_for_the_work() -> None:
    lane, answers, begun = SerialWorker(0.2), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        answers.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lane, hang)
        assert begun.wait(PATIENCE)
        with pytest.raises(HungError):
            lane(lambda: None)
        with pytest.raises(HungError):
            first.result(PATIENCE)
    answers.set()


def test_where_no_thread_is_to_be_had_an_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lane = SerialWorker(PATIENCE)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="not started: can't start new thread"):
            lane(lambda: None)
    assert lane(lambda: 1) == 1
