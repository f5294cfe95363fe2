"""How long bulk work may hold the event loop before everybody else gets a turn.

Theory of operation. Bulk work is done in slices: `begin`, work until `is_over`, `rest`. While nobody else has
anything to do a slice is long, as every turn of the loop costs something. As soon as a turn shows that others
are at work, which is seen by the time it took, slices are short for a while, and each is followed by turns
until one finds nothing to do: a byte that passes the loop four times is then late by one short slice, not by
four long ones. Under steady load the work keeps a share of the time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

LONG_SECONDS: Final = 0.001
SHORT_SECONDS: Final = 0.0001
BUSY_TURN_SECONDS: Final = 0.000_050  # a turn of the loop with nothing in it takes 15 to 30 µs
BUSY_FOR_SECONDS: Final = 0.1
TURNS_AT_MOST: Final = 8
_PART_OF_REST: Final = 0.25


@dataclass(slots=True, eq=False)
class Pace:
    """The clock of one piece of bulk work, for one task. `now` counts real seconds."""

    now: Callable[[], float] = time.perf_counter
    _until: float = 0.0
    _busy_until: float = 0.0
    _rested: float = 0.0

    def begin(self) -> None:
        """A slice begins."""
        now = self.now()
        if now < self._busy_until:
            self._until = now + min(LONG_SECONDS, max(SHORT_SECONDS, self._rested * _PART_OF_REST))
        else:
            self._until = now + LONG_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether the slice has lasted long enough."""
        return self.now() >= self._until

    async def rest(self) -> None:
        """Let others run: one turn of the loop, or several while they have something to do."""
        began = before = self.now()
        for _ in range(TURNS_AT_MOST):
            await trio.lowlevel.checkpoint()
            now = self.now()
            if now - before < BUSY_TURN_SECONDS:
                break
            before = now
            self._busy_until = now + BUSY_FOR_SECONDS
        self._rested = self.now() - began
