"""The watch over requests that wait for an answer: one timer a tunnel, where a deadline for each request
would cost two cancel scopes (24 µs a connection)."""

from collections import deque
from math import inf

import trio

from ztunnel_trio.net.engine import Once


class AnswerDeadlines:
    """State: who waits, oldest first. All wait equally long, so the first is the first to be told."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, Once]] = deque()
        self._timer: trio.CancelScope | None = None  # deadline: none, or not after the first one's

    def add(self, answer: Once, now: float) -> None:
        """Set `answer` after the time allowed from `now` (Trio's), unless that has happened by then."""
        waiting = self._waiting
        while waiting and waiting[0][1].is_set:
            waiting.popleft()
        deadline = now + self._seconds
        waiting.append((deadline, answer))
        if self._timer is not None and self._timer.deadline == inf:
            self._timer.deadline = deadline

    async def watch(self) -> None:
        """Tell those whose time is over; never returns. Nobody is told while this does not run."""
        waiting = self._waiting
        while True:
            with trio.CancelScope(deadline=waiting[0][0] if waiting else inf) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            while waiting and (waiting[0][0] <= now or waiting[0][1].is_set):
                waiting.popleft()[1].set()
