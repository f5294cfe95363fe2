"""One key's worker: where it stands in line, and when its next fetch is due."""

from dataclasses import dataclass, field
from datetime import datetime

import trio

from ztunnel_trio.certs.entries import Entry, lifetime_of
from ztunnel_trio.certs.turns import FetchTurn
from ztunnel_trio.model.certificate import WorkloadCertificate


@dataclass(slots=True, eq=False)
class Worker:
    """The task that serves a key. `entry` is None when it was forgotten during a fetch."""

    entry: Entry | None
    turn: FetchTurn | None  # while in line for a place or holding one
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_fetching: bool = False
    newest: WorkloadCertificate | None = None
    rest: trio.CancelScope | None = None  # while it waits for the time of its next fetch
    due: datetime | None = None  # that time, on the wall clock
    is_retry: bool = False

    def wake(self) -> None:
        """Fetch now, if it is not at it."""
        if self.rest is not None:
            self.rest.cancel(reason="a certificate is needed now")

    def look_again(self, now: datetime) -> None:
        """The wall clock has stepped: rest until the same wall-clock time, but retry no later than before."""
        if self.rest is None or self.due is None:
            return
        left = max(0.0, (self.due - now).total_seconds())
        if self.newest is not None and lifetime_of(self.newest).skew_seconds(now):
            left = 0.0
        deadline = trio.current_time() + left
        self.rest.deadline = min(self.rest.deadline, deadline) if self.is_retry else deadline
