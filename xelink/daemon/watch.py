"""The latest value of something that changes, for those who wait for the next one."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """A value that is replaced, and any number of tasks that wait for the next one.

    Each waiter goes at its own pace and finds the latest value: what was replaced before it looked
    is skipped, so that a slow one never holds up the others and nothing piles up. For one loop.
    """

    def __init__(self, first: T) -> None:
        self._current = first
        self._replaced = asyncio.Event()

    @property
    def current(self) -> T:
        """The latest value."""
        return self._current

    def replace(self, value: T) -> None:
        """Put another value in its place and wake everybody; an equal one wakes nobody."""
        news = value != self._current
        self._current = value
        if news:
            self._replaced.set()
            self._replaced = asyncio.Event()

    async def next(self, seen: T) -> T:
        """Wait until there is another value than `seen`, and give it."""
        while self._current == seen:
            await self._replaced.wait()
        return self._current
