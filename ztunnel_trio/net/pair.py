"""Two ends and what runs between them: the frame that both kinds of relay share.

How it ends is one `Ending`. Both sockets are armed (`net.failures`) from the start: whatever ends the pair
other than the end of both directions - a failure, `cut`, cancellation, the death of the process - resets
the applications' connections, and only a clean end disarms them.
"""

import socket
from typing import Final, Protocol

import trio

from ztunnel_trio.model.ending import CLEAN, ApplicationReset, DirectionFailed, Ending, Flow
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.failures import reset_socket, unsent_bytes, writes

_LAST_BYTES_SECONDS: Final = 30.0  # for a reader that takes what came before the reset, however slowly
_STALLED_SECONDS: Final = 0.5  # and for one that takes nothing: it is told within a second
_POLL_SECONDS: Final = 0.05


class ByteCounts(Protocol):
    """Where bytes are counted, live: towards the destination and back to the source."""

    to_destination: int
    to_source: int


class Pair:
    """A connection's two ends, which it owns: `run` once, at once, by the connection's task.

    While `run` waits, pumps move the bytes. They set `done` when both directions have ended, `bug` when one
    of them raised, and `owes_reset` when that socket is to be reset as soon as its peer has all that was
    written to it; `is_whole`, when what is still to be sent to it may be all there is: one that neither reads
    nor writes is not hurried then. `ending` is how it ends, as far as that is known.
    """

    __slots__ = ("_engine", "_is_cut", "_traffic", "bug", "done", "ending", "is_whole", "owes_reset")

    def __init__(self, engine: Engine, traffic: ByteCounts) -> None:
        self._engine = engine
        self._traffic = traffic
        self._is_cut = False
        self.bug: Exception | None = None
        self.done = Once(engine)
        self.ending: Ending = CLEAN
        self.owes_reset: socket.socket | None = None
        self.is_whole = False

    async def run(self) -> Ending:
        """Copy both ways until both have ended; returns how they did.

        Closes both ends on every way out.
        """
        try:
            self._arm()
            if not self._is_cut:
                self._start()
            await self.done.wait()
            if self.owes_reset is not None:
                await self._reset_when_sent(self.owes_reset)
        finally:
            self._close()
        if self.bug is not None:
            raise self.bug
        return self.ending

    def cut(self, ending: Ending) -> None:
        """End both directions now, for this reason; `run` returns it at once. The first reason stays."""
        if self._is_cut:
            return
        self._is_cut = True
        self.ending = ending
        self._stop_pumps()
        self.done.set()

    async def _reset_when_sent(self, sock: socket.socket) -> None:
        """Reset the socket once its peer has all that was to be sent to it: a reset throws away the rest."""
        began = moved_at = trio.current_time()
        left = self._left_for(sock)
        while left and not self._is_cut:  # the queue of a socket raises no event
            await trio.sleep(_POLL_SECONDS)
            before, left, now = left, self._left_for(sock), trio.current_time()
            if left < before:
                moved_at = now
            elif now - moved_at >= _STALLED_SECONDS and (not self.is_whole or writes(sock)):
                break
            if now - began >= _LAST_BYTES_SECONDS:
                break
        if not self._is_cut and sock.fileno() >= 0:
            reset_socket(sock)

    def _left_for(self, sock: socket.socket) -> int:
        """How much is still to be sent to a socket that is to be reset."""
        return unsent_bytes(sock) if sock.fileno() >= 0 else 0

    # -- for the kinds

    def _failed(self, failure: DirectionFailed) -> None:
        """Note a direction's failure; of two the one towards the destination is told (src/copy.rs)."""
        match self.ending:
            case DirectionFailed(Flow.TO_SOURCE) if failure.flow is Flow.TO_DESTINATION:
                self.ending = failure
            case ending if ending is CLEAN:
                self.ending = failure

    def _was_reset(self) -> None:
        """Note that an application reset its connection."""
        if self.ending is CLEAN:
            self.ending = ApplicationReset()

    def _arm(self) -> None:
        """See `net.failures`: from now on no way out looks like an end of data."""
        raise NotImplementedError

    def _start(self) -> None:
        """Register what moves the bytes."""
        raise NotImplementedError

    def _stop_pumps(self) -> None:
        """Move nothing any more."""
        raise NotImplementedError

    def _close(self) -> None:
        """Unregister and close both ends."""
        raise NotImplementedError

    # -- called by the engine

    def broke(self, error: Exception) -> None:
        """A pump raised."""
        self.bug = error
        self._stop_pumps()
        self.done.set()
