"""Values under small numbers, so that many records can name them in four bytes."""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Numbered(Generic[K, V]):
    """Values under small numbers, equal keys under the same one, each until its last holder lets go.

    `number` gives the number of a key, if it has one. Who keeps a number counts itself in `holders`.
    """

    __slots__ = ("_free", "_keys", "_numbers", "holders", "number", "values")

    def __init__(self) -> None:
        self.values: list[V | None] = []
        self.holders: list[int] = []
        self._keys: list[K | None] = []
        self._numbers: dict[K, int] = {}
        self._free: list[int] = []
        self.number: Final = self._numbers.get

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> V:
        value = self.values[number]
        assert value is not None, "a number is used by its holders only"
        return value

    def add(self, key: K, value: V) -> int:
        """A number for a new key; nobody holds it yet."""
        if self._free:
            number = self._free.pop()
            self.values[number], self._keys[number] = value, key
        else:
            number = len(self.values)
            self.values.append(value)
            self._keys.append(key)
            self.holders.append(0)
        self._numbers[key] = number
        return number

    def release(self, number: int) -> V | None:
        """One holder fewer; the value, if that was the last."""
        self.holders[number] -= 1
        if self.holders[number]:
            return None
        key, value = self._keys[number], self.values[number]
        assert key is not None
        del self._numbers[key]
        self._keys[number] = self.values[number] = None
        self._free.append(number)
        return value
