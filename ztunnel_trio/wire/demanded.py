"""Keys that were asked for on demand, and when those that stand for nothing are to be forgotten.

A key (`network/ip`, uid or `namespace/hostname`) that the control plane has answered with nothing stays
subscribed, so that what comes to be there is told. Connections ask for whatever a pod dials: what stands for
nothing is therefore forgotten some time after its last use, and only so many are kept. What a key has led to
may go again; then it stands for nothing from then on.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

FORGET_SECONDS: Final = 60.0
EMPTY_KEPT: Final = 10_000


class DemandedKeys:
    """What was asked for. Times are those of the caller's clock, in seconds."""

    __slots__ = ("_empty", "_found", "_kept", "_keys_of", "_resources_of")

    def __init__(self, kept: int = EMPTY_KEPT) -> None:
        self._kept = kept
        self._empty: OrderedDict[str, float] = OrderedDict()  # the last uses of keys that stand for nothing
        self._found: dict[str, float] = {}  # those of the others
        self._resources_of: dict[str, set[str]] = {}  # key to the names of what it led to
        self._keys_of: dict[str, set[str]] = {}  # and back

    def use(self, key: str, now: float) -> None:
        """A connection asks for a key, which stands for nothing until something comes."""
        if key in self._found:
            self._found[key] = now
        else:
            self._empty[key] = now
            self._empty.move_to_end(key)

    def is_found(self, name: str, aliases: Iterable[str]) -> None:
        """A resource came: the keys it answers to stand for something."""
        for key in (name, *aliases):
            used = self._empty.pop(key, None)
            if used is not None:
                self._found[key] = used
            if key in self._found:
                self._resources_of.setdefault(key, set()).add(name)
                self._keys_of.setdefault(name, set()).add(key)

    def is_gone(self, name: str) -> None:
        """A resource is no more: keys that led to nothing else stand for nothing."""
        for key in self._keys_of.pop(name, ()):
            names = self._resources_of[key]
            names.discard(name)
            if not names:
                del self._resources_of[key]
                self._empty[key] = self._found.pop(key)
                self._empty.move_to_end(key, last=False)  # mostly long ago

    def next_forgetting(self) -> float | None:
        """When `forget` will have something to do; None: not before something changes."""
        if len(self._empty) > self._kept:
            return 0.0
        first = next(iter(self._empty.values()), None)
        return None if first is None else first + FORGET_SECONDS

    def forget(self, now: float, most: int) -> list[str]:
        """Forget keys whose time has come, at most so many; they are to be unsubscribed."""
        forgotten: list[str] = []
        while self._empty and len(forgotten) < most:
            key, used = next(iter(self._empty.items()))
            if len(self._empty) <= self._kept and used + FORGET_SECONDS > now:
                break
            del self._empty[key]
            forgotten.append(key)
        return forgotten
