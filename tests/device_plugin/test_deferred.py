"""What is written down after an answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial

import pytest

from device_plugin.deferred import DeferredWork
from tests.patience import PATIENCE
from xelink.daemon.worker_threads import NoThreadError, WorkerThreads


def tell(story: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a story, and see its threads end."""
    before = {*threading.enumerate()}
    asyncio.run(story())
    for thread in {*threading.enumerate()} - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_work_is_done_in_order_and_a_close_waits_for_it() -> None:
    async def story() -> None:
        done: list[int] = []
        journal = DeferredWork()
        for round_ in (0, 50):
            for number in range(round_, round_ + 50):
                assert journal.add(partial(done.append, number))
            await journal.close(PATIENCE)
            assert done == list(range(round_ + 50))

    tell(story)


def test_nothing_to_do_needs_no_thread_and_no_wait() -> None:
    async def story() -> None:
        journal = DeferredWork()
        await journal.close(PATIENCE)

    tell(story)


def test_what_is_too_much_is_refused_and_a_close_waits_no_longer_than_it_may() -> None:
    held, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(PATIENCE)

    async def story() -> None:
        journal = DeferredWork(room=2)
        assert journal.add(hold)
        assert await asyncio.to_thread(held.wait, PATIENCE)
        assert [journal.add(done.set) for _ in range(3)] == [True, True, False]
        start = time.monotonic()
        await journal.close(0.05)
        assert time.monotonic() - start > 0.04
        assert not done.is_set()
        go_on.set()
        assert await asyncio.to_thread(done.wait, PATIENCE), "it goes on all the same"

    asyncio.run(story())


# Work beside the loop


def test_so_many_threads_and_no_more_until_one_ends() -> None:
    go_on = threading.Event()

    async def story() -> None:
        asides = WorkerThreads(2)
        first, second = (
            asyncio.create_task(asides.run(lambda: go_on.wait(PATIENCE))) for _ in range(2)
        )
        await asyncio.sleep(0)  # both begin
        with pytest.raises(NoThreadError):
            await asides.run(lambda: None)
        go_on.set()
        assert await first
        assert await second
        assert await asides.run(lambda: 7) == 7

    asyncio.run(story())


def test_what_fails_makes_room_too() -> None:
    async def story() -> None:
        asides = WorkerThreads(1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await asides.run(lambda: 1 // 0)

    asyncio.run(story())
