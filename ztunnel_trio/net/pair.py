"""Two ends and what runs between them: the frame that both kinds of relay share."""

import socket
from typing import Final, Protocol

import trio

from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.failures import reset_socket, unsent_bytes

_LAST_BYTES_SECONDS: Final = 30.0  # for a reader that sleeps, between the reset of its peer and its own
_POLL_SECONDS: Final = 0.05


class Traffic(Protocol):
    """Where bytes are counted, live: towards the destination and back to the source."""

    to_destination: int
    to_source: int


class Pair:
    """A connection's two ends, which it owns: `run` once, at once, by the connection's task.

    While `run` waits, pumps move the bytes. They set `done` when both directions have ended, `bug` when one
    of them raised, and `owes_reset` when that socket is to be reset as soon as its peer has all that was
    written to it.
    """

    __slots__ = ("_engine", "_is_cancelled", "_traffic", "bug", "done", "owes_reset")

    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic
        self._is_cancelled = False
        self.bug: Exception | None = None
        self.done = Once(engine)
        self.owes_reset: socket.socket | None = None

    async def run(self) -> str | None:
        """Copy both ways until both have ended; returns None or what the log calls the failure.

        Closes both ends on every way out.
        """
        try:
            if not self._is_cancelled:
                self._start()
            await self.done.wait()
            if self.owes_reset is not None:
                await self._reset_when_sent(self.owes_reset)
        finally:
            self._close()
        if self.bug is not None:
            raise self.bug
        return self._failure()

    def cancel(self, *, reason: str | None = None) -> None:
        """End both directions now; `run` returns at once. Stands in for a cancel scope, at no bytes."""
        self._is_cancelled = True
        self._stop_pumps()
        self.done.set()

    async def _reset_when_sent(self, sock: socket.socket) -> None:
        """Reset the socket once its peer has all that was written to it: a reset throws away the rest."""
        with trio.move_on_after(_LAST_BYTES_SECONDS):
            while sock.fileno() >= 0 and unsent_bytes(sock):  # it raises no event
                if self._is_cancelled:
                    return
                await trio.sleep(_POLL_SECONDS)
        if sock.fileno() >= 0:
            reset_socket(sock)

    # -- for the kinds

    def _start(self) -> None:
        """Register what moves the bytes."""
        raise NotImplementedError

    def _stop_pumps(self) -> None:
        """Move nothing any more."""
        raise NotImplementedError

    def _close(self) -> None:
        """Unregister and close both ends."""
        raise NotImplementedError

    def _failure(self) -> str | None:
        """What went wrong, in the words of the log."""
        raise NotImplementedError

    # -- called by the engine

    def broke(self, error: Exception) -> None:
        """A pump raised."""
        self.bug = error
        self._stop_pumps()
        self.done.set()
