"""How the end of a connection is announced (RFC 9113 6.8), by us and by the peer."""

from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import Event, GoAwayReceived
from ztunnel_trio.wire.http2.frames import GOAWAY, GOAWAY_BODY, LARGEST_STREAM_ID, PING
from ztunnel_trio.wire.http2.ledger import Ledger

DRAIN_PING: Final = b"drain\0\0\0"
_KEPT_DEBUG: Final = 128  # bytes of a peer's reason that are worth a line


class Farewell:
    """Our GOAWAYs, and what the peer's mean. `last` is what our latest one named."""

    __slots__ = ("_is_announced", "_ledger", "last")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_announced = False
        self.last = LARGEST_STREAM_ID

    @property
    def is_said(self) -> bool:
        """Whether the last word has been said."""
        return self.last != LARGEST_STREAM_ID

    def announce(self) -> None:
        """Server: GOAWAY(2^31-1) and PING; on its acknowledgement GOAWAY(last). Once."""
        if not self._is_announced:
            self._is_announced = True
            out = self._ledger.out
            out.put(GOAWAY, 0, 0, GOAWAY_BODY.pack(LARGEST_STREAM_ID, ErrorCode.NO_ERROR))
            out.put(PING, 0, 0, DRAIN_PING)

    def ping_acked(self) -> None:
        """The peer knows that we drain: whatever it opened before has come."""
        if self._is_announced and not self.is_said:
            self.say(ErrorCode.NO_ERROR)

    def say(self, code: int, debug: bytes = b"") -> None:
        """The last word. A client names stream 0, since a server opens none."""
        self.last = 0 if self._ledger.is_client else min(self._ledger.streams.highest, self.last)
        self._ledger.out.put(GOAWAY, 0, 0, GOAWAY_BODY.pack(self.last, code) + debug)

    def received(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """The peer's.

        Raises:
            PeerBrokeProtocol: not as RFC 9113 6.8 has it, or one after the other.
        """
        if stream_id:
            raise PeerBrokeProtocol("GOAWAY on a stream", ErrorCode.PROTOCOL_ERROR)
        if len(payload) < GOAWAY_BODY.size:
            raise PeerBrokeProtocol("GOAWAY of a length it cannot have", ErrorCode.FRAME_SIZE_ERROR)
        ledger = self._ledger
        ledger.budgets.spend(Excess.GOAWAYS)
        last, code = GOAWAY_BODY.unpack_from(payload)
        last &= LARGEST_STREAM_ID
        above = []
        if ledger.is_client:
            above = [stream for stream in ledger.streams if stream.stream_id > last]
        for stream in above:
            ledger.was_reset(stream)
        debug = payload[GOAWAY_BODY.size : GOAWAY_BODY.size + _KEPT_DEBUG]
        events.append(GoAwayReceived(last, code, tuple([stream.stream_id for stream in above]), debug))
