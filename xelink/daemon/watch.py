"""The latest value of something that changes, for tasks that wait for the next one."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """A value that is replaced, and any number of tasks that wait for the next one.

    A waiting task gets the latest value and skips those that were replaced before. A slow task
    therefore never delays the others, and no queue grows. For one event loop.
    """

    def __init__(self, first: T) -> None:
        self._current = first
        self._replaced = asyncio.Event()

    @property
    def current(self) -> T:
        """The latest value."""
        return self._current

    def replace(self, value: T) -> None:
        """Replace the value and wake all waiting tasks, unless the value is equal."""
        news = value != self._current
        self._current = value
        if news:
            self._replaced.set()
            self._replaced = asyncio.Event()

    async def next(self, last: T) -> T:
        """Wait until the value differs from `last`, and return it."""
        while self._current == last:
            await self._replaced.wait()
        return self._current
