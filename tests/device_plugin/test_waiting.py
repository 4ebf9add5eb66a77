"""Waiting until something is so."""

import asyncio

import pytest

from device_plugin.waiting import first_of, until


def test_one_looks_after_each_pause_until_it_holds() -> None:
    async def story() -> None:
        told = iter((False, False, True))
        await asyncio.wait_for(until(lambda: next(told), lambda: 0.001), 5.0)
        assert next(told, None) is None, "looked at just as often"

    asyncio.run(story())


def test_the_first_look_comes_after_the_first_pause() -> None:
    async def story() -> None:
        looks = iter((True,))
        assert not await first_of(until(lambda: next(looks), lambda: 60.0), seconds=0.0)
        assert next(looks), "nobody has looked"

    asyncio.run(story())


def test_what_the_condition_raises_is_raised() -> None:
    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(until(lambda: 1 // 0 > 0, lambda: 0.0), 5.0)

    asyncio.run(story())


def test_who_has_given_up_looks_no_more() -> None:
    async def story() -> None:
        looks = 0

        def look() -> bool:
            nonlocal looks
            looks += 1
            return False

        other = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, other.set)
        await first_of(until(look, lambda: 0.001), other.wait())
        assert looks
        before = looks
        await first_of(asyncio.Event().wait(), seconds=0.02)
        assert looks == before

    asyncio.run(story())
