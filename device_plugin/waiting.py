"""Waiting for whichever comes first."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> bool:
    """Wait until one of them is done; False when the time was up before. The others are canceled.

    Raises what the first one raises.
    """
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], pause: Callable[[], float]) -> None:
    """Wait until a condition holds, at which one looks after each pause, of so many seconds.

    One callback of the loop for each look: a task that wakes up to look takes ten times as long.
    Raises what `condition` raises.
    """
    loop = asyncio.get_running_loop()
    holds = loop.create_future()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        if holds.done():
            return
        try:
            if condition():
                holds.set_result(None)
            else:
                timer = loop.call_later(pause(), look)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            holds.set_exception(error)

    timer = loop.call_later(pause(), look)
    try:
        await holds
    finally:
        timer.cancel()
