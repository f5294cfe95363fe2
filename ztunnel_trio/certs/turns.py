"""Whose fetch is next: a limited number of places, given by urgency."""

from dataclasses import dataclass, field
from enum import IntEnum

import trio


class Priority(IntEnum):
    """Who is served first when fetches wait; the higher the sooner."""

    BACKGROUND = 0
    WARMUP = 1
    REAL_TIME = 2


@dataclass(slots=True, eq=False)
class FetchTurn:
    """One fetch's place, or its wait for one."""

    priority: Priority
    has_come: trio.Event = field(default_factory=trio.Event)


class FetchTurns:
    """A limited number of places, given to the most urgent in line, by order of joining."""

    __slots__ = ("_free", "_in_line")

    def __init__(self, places: int) -> None:
        assert places > 0
        self._free = places
        self._in_line: dict[FetchTurn, None] = {}

    def join(self, priority: Priority) -> FetchTurn:
        """Stand in line. Every join needs its `leave`."""
        turn = FetchTurn(priority)
        if self._free:
            self._free -= 1
            turn.has_come.set()
        else:
            self._in_line[turn] = None
        return turn

    def leave(self, turn: FetchTurn) -> None:
        """Give the place back, or leave the line."""
        if turn in self._in_line:
            del self._in_line[turn]
        elif not self._in_line:
            self._free += 1
        else:
            first = max(self._in_line, key=lambda one: one.priority)  # the first of the most urgent
            del self._in_line[first]
            first.has_come.set()
