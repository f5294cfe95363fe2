"""The one message that asks everything to finish: an event and a grace period."""

import trio


class Drain:
    """Set once, never taken back. Who takes part stops accepting at once and gives what runs the grace.

    `grace_seconds` is the operator's deadline (`CONNECTION_TERMINATION_DEADLINE`), counted from the request.
    """

    __slots__ = ("grace_seconds", "reason", "requested", "requested_at")

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.requested = trio.Event()
        self.requested_at: float | None = None
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask for the drain; only the first request counts, and gives the reason."""
        if not self.requested.is_set():
            self.reason, self.requested_at = reason, trio.current_time()
            self.requested.set()

    @property
    def is_requested(self) -> bool:
        return self.requested.is_set()

    @property
    def deadline(self) -> float:
        """When the grace ends, in Trio's time; infinity while nobody asked."""
        return float("inf") if self.requested_at is None else self.requested_at + self.grace_seconds

    async def lets_come(self, event: trio.Event) -> bool:
        """Wait for an event, but not through a drain; whether it came first."""
        async with trio.open_nursery() as nursery:

            async def wait(either: trio.Event) -> None:
                await either.wait()
                nursery.cancel_scope.cancel(reason="one of the two has come")

            nursery.start_soon(wait, event)
            nursery.start_soon(wait, self.requested)
        return not self.is_requested

    async def leaves_time(self, seconds: float) -> bool:
        """Sleep, but not into a drain; whether all of the time has passed."""
        with trio.move_on_after(seconds):
            await self.requested.wait()
        return not self.is_requested
