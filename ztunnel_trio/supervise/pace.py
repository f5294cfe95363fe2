"""How long bulk work may hold the event loop before everybody else gets a turn.

Theory of operation. Bulk work is done in slices: `begin`, work until `is_over`, `rest`. While nothing else
moves a slice is long and a turn of the loop is rest enough, as every turn costs something. As soon as
something has moved in a turn, slices are short for a while and the rests longer than they: a byte that passes
the loop several times is then late by one short slice at most, mostly by none. Under heavy load, where turns
take long, the work keeps a share of the time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

LONG_SECONDS: Final = 0.002
SHORT_SECONDS: Final = 0.00004
REST_SECONDS: Final = 0.0003
BUSY_FOR_SECONDS: Final = 0.1
_PART_OF_REST: Final = 0.1


def nothing_moves() -> int:
    """The activity of a process that does nothing but the bulk work."""
    return 0


@dataclass(slots=True, eq=False)
class Pace:
    """The clock of one piece of bulk work, for one task.

    `activity` counts what else moves; `now` real seconds.
    """

    activity: Callable[[], int] = nothing_moves
    now: Callable[[], float] = time.perf_counter
    _until: float = 0.0
    _busy_until: float = 0.0
    _rested: float = 0.0

    def begin(self, part: float = 1.0) -> None:
        """A slice begins; `is_over` is to be true when that part of it has passed."""
        now = self.now()
        seconds = LONG_SECONDS
        if now < self._busy_until:
            seconds = min(LONG_SECONDS, max(SHORT_SECONDS, self._rested * _PART_OF_REST))
        self._until = now + seconds * part

    @property
    def is_busy(self) -> bool:
        """Whether something else has moved lately."""
        return self.now() < self._busy_until

    @property
    def is_over(self) -> bool:
        """Whether the slice has lasted long enough."""
        return self.now() >= self._until

    async def rest(self) -> None:
        """Let others run: for a turn of the loop, or for longer while something moves."""
        began, before = self.now(), self.activity()
        if began < self._busy_until:
            await trio.sleep(REST_SECONDS)
        else:
            await trio.lowlevel.checkpoint()
        now = self.now()
        if self.activity() != before:
            self._busy_until = now + BUSY_FOR_SECONDS
        self._rested = now - began
