"""The latest value for many waiters; values in between may never be seen."""

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Watch(Generic[T]):
    """A value and its version, which counts up by one with each `publish`, from 0."""

    __slots__ = ("_changed", "value", "version")

    def __init__(self, value: T) -> None:
        self.value = value
        self.version = 0
        self._changed = trio.Event()

    def publish(self, value: T) -> None:
        """Replace the value and wake everyone who waits for a newer one."""
        self.value, self.version = value, self.version + 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def newer_than(self, version: int) -> tuple[int, T]:
        """Wait until the version exceeds the given one; returns the version and value then current."""
        await trio.lowlevel.checkpoint()
        while self.version <= version:
            await self._changed.wait()
        return self.version, self.value
