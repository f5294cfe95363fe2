"""DATA that is not the usual frame (RFC 9113 6.1): cut, padded, empty, late, or of a stream with a length.

What comes of a payload is passed on as it comes. The frame's whole length is charged to both windows when
its header has been read; what nobody is handed is returned at once.
"""

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import DataReceived, Event
from ztunnel_trio.wire.http2.frames import END_STREAM, PADDED
from ztunnel_trio.wire.http2.ledger import Ledger
from ztunnel_trio.wire.http2.streams import Input, Stream


class Payload:
    """The DATA frame we are in, if any. `limit` is the longest frame we take."""

    __slots__ = (
        "_ends_stream",
        "_ledger",
        "_left",
        "_limit",
        "_padding",
        "_stream_id",
        "_wants_pad",
        "is_open",
    )

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self._ledger = ledger
        self._limit = limit
        self.is_open = False
        self._left = 0  # payload still to come …
        self._padding = 0  # … and padding behind it
        self._wants_pad = False  # the octet with the padding's length comes next
        self._ends_stream = False
        self._stream_id = 0  # 0: nobody wants it

    def begin(self, length: int, flags: int, stream_id: int, events: list[Event]) -> None:
        """The header of a DATA frame.

        Raises:
            PeerBrokeProtocol: as RFC 9113 says of such a frame.
        """
        if length > self._limit:
            raise PeerBrokeProtocol("a frame over the limit", ErrorCode.FRAME_SIZE_ERROR)
        windows = self._ledger.windows
        if length > windows.receive:
            raise PeerBrokeProtocol("the connection's window overrun", ErrorCode.FLOW_CONTROL_ERROR)
        if flags & PADDED and not length:
            raise PeerBrokeProtocol("a padded frame without its pad length", ErrorCode.FRAME_SIZE_ERROR)
        stream = self._ledger.hear(stream_id, Input.DATA, events)
        if stream is not None and self._ledger.is_client and not stream.answered:
            raise PeerBrokeProtocol("DATA before the answer", ErrorCode.PROTOCOL_ERROR)
        windows.receive -= length
        if stream is not None:
            if length > stream.receive_window:
                self._ledger.fail(stream, ErrorCode.FLOW_CONTROL_ERROR, events)
                stream = None
            else:
                stream.receive_window -= length
        self._stream_id = 0 if stream is None else stream_id
        self._left, self._padding = length, 0
        self._wants_pad = bool(flags & PADDED)
        self._ends_stream = bool(flags & END_STREAM)
        self.is_open = True
        if not length:
            if not self._ends_stream:
                self._ledger.budgets.spend(Excess.EMPTY_DATA)
            self._end(events)

    def take(self, view: memoryview, position: int, events: list[Event]) -> int:
        """Use what there is of it, from `position` on. Returns where it ends.

        Raises:
            PeerBrokeProtocol: padding longer than the frame.
        """
        size = len(view)
        if self._wants_pad:
            self._read_padding(view[position])
            position += 1
        here = min(self._left, size - position)
        if here:
            self._left -= here
            self._deliver(view[position : position + here], here, events)
            position += here
        if not self._left:
            here = min(self._padding, size - position)
            self._padding -= here
            position += here
            if not self._padding:
                self._end(events)
        return position

    def _read_padding(self, padding: int) -> None:
        self._wants_pad = False
        self._left -= 1
        if padding > self._left:
            raise PeerBrokeProtocol("padding longer than the frame", ErrorCode.PROTOCOL_ERROR)
        if padding == self._left and not self._ends_stream:
            self._ledger.budgets.spend(Excess.EMPTY_DATA)
        self._left -= padding
        self._padding = padding
        stream = self._wanted()
        if stream is None:
            self._ledger.windows.credit_connection(1 + padding)
        else:
            stream.held += 1 + padding
            self._ledger.windows.credit(stream, 1 + padding)

    def _wanted(self) -> Stream | None:
        """The stream, unless it was forgotten, perhaps in the middle of this frame."""
        return self._ledger.streams.get_alive(self._stream_id)

    def _deliver(self, data: memoryview, length: int, events: list[Event]) -> None:
        stream = self._wanted()
        if stream is None:
            self._ledger.windows.credit_connection(length)
            return
        stream.held += length
        if stream.expected >= 0:
            stream.expected -= length
            if stream.expected < 0:  # RFC 9113 8.1.1
                self._ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
                return
        events.append(DataReceived(self._stream_id, data))

    def _end(self, events: list[Event]) -> None:
        self.is_open = False
        if self._ends_stream and (stream := self._wanted()) is not None:
            self._ledger.they_ended(stream, events)
