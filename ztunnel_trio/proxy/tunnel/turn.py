"""What one tunnel may do before the others have their turn."""

import time
from typing import Final

from ztunnel_trio.net.engine import SHARE_SECONDS

EVENTS: Final = 200
TASK_EVENTS: Final = 25  # what an event counts that makes a task run, whose work comes behind the turn
REQUEST_EVENTS: Final = 50  # and one that makes a new task, which decides and dials


class Turn:
    """One turn: over after so many events, or so much of this thread's own processor time."""

    __slots__ = ("_began", "_left")

    def __init__(self) -> None:
        self._left = EVENTS
        self._began = time.thread_time()

    def spend(self, events: int) -> None:
        """So much was done."""
        self._left -= events

    @property
    def is_over(self) -> bool:
        """Whether the others are to have theirs."""
        return self._left <= 0 or time.thread_time() - self._began >= SHARE_SECONDS
