"""How much of the loop's time one pod's questions may take.

Theory of operation. Questions are read in turns; no turn is longer than `TURN_SECONDS`, then everybody else
runs. While nothing else moves on the node that is all. While something moves, turns are short and each pod
has a part of the time: what its questions take is spent from an allowance that fills up as time passes, and
who has spent it waits until it is full enough again. All pods together have a larger part. What comes
meanwhile stays with the kernel, which keeps what its buffer holds and drops the rest unread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.supervise.pace import nothing_moves

TURN_SECONDS: Final = 0.0008  # the last question of a turn may take it to 1 ms
BUSY_TURN_SECONDS: Final = 0.0002
BUSY_FOR_SECONDS: Final = 0.1  # after something has moved
PART_OF_A_POD: Final = 0.15  # of the loop's time, while something else moves
PART_OF_ALL_PODS: Final = 0.3
SAVED_SECONDS: Final = 0.01  # of an allowance: a burst of some hundred questions


@dataclass(slots=True, eq=False)
class LoopAllowance:
    """Seconds that may be spent: so large a part of the time that passes; below zero they are owed."""

    part: float
    seconds: float = SAVED_SECONDS
    filled_at: float = 0.0

    def owed(self, now: float) -> float:
        """Fill it up; how long to wait until nothing is owed."""
        self.seconds = min(SAVED_SECONDS, self.seconds + (now - self.filled_at) * self.part)
        self.filled_at = now
        return max(0.0, -self.seconds / self.part)


@dataclass(slots=True, eq=False)
class Share:
    """One pod's share. `activity` counts what else moves, `now` is in real seconds,
    `worked` in seconds of processor time: what is spent is our own work, however busy the machine is.

    What is between `begin` and `end` must not await.
    """

    whole: LoopAllowance
    activity: Callable[[], int] = nothing_moves
    now: Callable[[], float] = time.perf_counter
    worked: Callable[[], float] = time.thread_time
    _began: float = 0.0
    _until: float = 0.0
    _charged: float = 0.0
    _moved: int = 0
    _busy_until: float = 0.0
    _own: LoopAllowance = field(default_factory=lambda: LoopAllowance(PART_OF_A_POD))

    def begin(self) -> None:
        """A turn begins."""
        now, self._began = self.now(), self.worked()
        moved = self.activity()
        if moved != self._moved:
            self._moved, self._busy_until = moved, now + BUSY_FOR_SECONDS
        self._until = now + (BUSY_TURN_SECONDS if now < self._busy_until else TURN_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether the turn has lasted long enough, with what was charged."""
        return self.now() + self._charged >= self._until

    def charge(self, seconds: float) -> None:
        """Something was begun that will take so long outside the turn."""
        self._charged += seconds

    def end(self) -> float:
        """The turn is over; returns for how many seconds the pod is to wait."""
        now = self.now()
        spent, self._charged = self.worked() - self._began + self._charged, 0.0
        self._own.seconds -= spent
        self.whole.seconds -= spent
        wait = max(self._own.owed(now), self.whole.owed(now))
        if now < self._busy_until:
            return wait
        self._own.seconds = max(0.0, self._own.seconds)  # nobody was kept waiting
        self.whole.seconds = max(0.0, self.whole.seconds)
        return 0.0

    async def rest(self) -> None:
        """End the turn, and let others run for as long as it takes."""
        wait = self.end()
        if wait > 0.0:
            await trio.sleep(wait)
        else:
            await trio.lowlevel.checkpoint()
