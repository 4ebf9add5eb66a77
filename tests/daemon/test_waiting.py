"""Waiting until something is so."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE
from xelink.daemon.polling import first_of, next_poll, poll_duration, until


def test_one_looks_after_each_pause_until_it_holds() -> None:
    async def story() -> None:
        told = iter((False, False, True))
        await asyncio.wait_for(until(lambda: next(told), lambda: 0.001), PATIENCE)
        assert next(told, None) is None, "looked at just as often"

    asyncio.run(story())


def test_the_first_look_comes_with_the_first_pause() -> None:
    async def story() -> None:
        looks = iter((True,))
        assert not await first_of(until(lambda: next(looks), lambda: 1e6), seconds=0.0)
        assert next(looks), "nobody has looked"

    asyncio.run(story())


def test_who_waits_longer_does_not_keep_others_waiting() -> None:
    async def story() -> None:
        long = asyncio.create_task(until(lambda: True, lambda: 1e6))
        await asyncio.sleep(0)
        await asyncio.wait_for(until(lambda: True, lambda: 0.001), PATIENCE)
        assert not long.done()
        long.cancel()

    asyncio.run(story())


@given(st.floats(0, 1e9), st.sampled_from((0.25, 0.5, 1.0, 3.0)))
def test_looks_come_with_beats_that_those_of_twice_the_pause_share(
    now: float, pause: float
) -> None:
    due = next_poll(now, pause)
    assert now < due <= now + pause
    assert next_poll(now, 2 * pause) in {due, due + pause}
    assert next_poll(due, pause) == due + pause


@given(st.floats(0, 1e9), st.floats(0, 0.249))
def test_a_short_pause_is_taken_as_it_is(now: float, pause: float) -> None:
    assert next_poll(now, pause) == now + pause


def test_a_look_that_hangs_is_told() -> None:
    async def story() -> None:
        held, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def look() -> bool:
            loop.call_soon_threadsafe(held.set)
            return go_on.wait(PATIENCE)

        task = asyncio.create_task(until(look, lambda: 0.001))
        await held.wait()
        before = poll_duration()
        assert before > 0
        assert poll_duration() > before
        go_on.set()
        await task
        await asyncio.wait_for(until(lambda: poll_duration() > 0, lambda: 0.001), PATIENCE)

    asyncio.run(story())


def test_a_condition_may_raise_anything_and_others_are_looked_for_on() -> None:
    async def story() -> None:
        with pytest.raises(GeneratorExit):
            await until(_leave, lambda: 0.001)
        await asyncio.wait_for(until(lambda: True, lambda: 0.001), PATIENCE)

    asyncio.run(story())


def _leave() -> bool:
    raise GeneratorExit


def test_there_is_one_thread_for_all_and_none_for_nobody() -> None:
    async def story() -> None:
        seen: set[str] = set()

        def look() -> bool:
            seen.add(threading.current_thread().name)
            return len(threading.enumerate()) > 0

        await asyncio.gather(*(until(look, lambda: 0.001) for _ in range(20)))
        assert seen == {"poller"}

    asyncio.run(story())
    for thread in threading.enumerate():
        if thread.name == "poller":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_what_the_condition_raises_is_raised() -> None:
    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(until(lambda: 1 // 0 > 0, lambda: 0.0), PATIENCE)

    asyncio.run(story())


def test_who_has_given_up_looks_no_more() -> None:
    async def story() -> None:
        looks = 0

        other = asyncio.Event()
        loop = asyncio.get_running_loop()

        def look() -> bool:
            nonlocal looks
            looks += 1
            loop.call_soon_threadsafe(other.set)
            return False

        await first_of(until(look, lambda: 0.001), other.wait())
        assert looks
        before = looks
        await first_of(asyncio.Event().wait(), seconds=0.02)
        assert looks <= before + 1, "the one that was under way"

    asyncio.run(story())


def test_who_gives_up_amid_a_look_is_looked_for_no_more() -> None:
    begun, go_on = threading.Event(), threading.Event()
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        begun.set()
        assert go_on.wait(PATIENCE)
        return looks > 1  # or it would go on for ever

    async def story() -> None:
        waiting = asyncio.create_task(until(look, lambda: 0.001))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        waiting.cancel()
        await asyncio.wait([waiting])
        go_on.set()

    asyncio.run(story())
    for thread in threading.enumerate():
        if thread.name == "poller":
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert looks == 1
