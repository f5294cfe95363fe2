"""Flow control of one connection, both directions (RFC 9113 5.2, 6.9).

*Receiving.* Bytes handed up are owed to the peer until they are credited, which is when the application took
them; a WINDOW_UPDATE is sent by the quarter window. *Sending.* Both windows, the stream's and the
connection's, are charged with each DATA frame. A stream's may become negative: the peer may lower the size
they begin with.
"""

from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.frames import LARGEST_WINDOW, Outgoing
from ztunnel_trio.wire.http2.streams import Stream

DEFAULT_WINDOW: Final = 65_535  # RFC 9113 6.9.2


class Windows:
    """The connection's own two windows, and how a stream's are used.

    `initial_send` and `initial_receive` are what a stream's windows begin with. `sent` counts the DATA
    frames that are charged.
    """

    __slots__ = (
        "_connection_quarter",
        "_out",
        "_owed",
        "_stream_quarter",
        "initial_receive",
        "initial_send",
        "receive",
        "send",
        "sent",
    )

    def __init__(self, out: Outgoing, *, stream_window: int, connection_window: int) -> None:
        self._out = out
        self.send = DEFAULT_WINDOW
        self.receive = connection_window
        self.initial_send = DEFAULT_WINDOW
        self.initial_receive = stream_window
        self.sent = 0
        self._owed = 0
        self._stream_quarter = max(1, stream_window // 4)
        self._connection_quarter = max(1, connection_window // 4)

    def credit(self, stream: Stream, taken: int) -> None:
        """Return bytes of a stream that runs; one that is over only owes them to the connection."""
        stream.held -= taken
        stream.owed += taken
        if stream.owed >= self._stream_quarter and stream.may_receive:
            stream.receive_window += stream.owed
            self._out.credit(stream.stream_id, stream.owed)
            stream.owed = 0
        self._owed += taken  # `credit_connection`, at the price of no call: this is done for each frame
        if self._owed >= self._connection_quarter:
            self.credit_connection(0)

    def credit_connection(self, taken: int) -> None:
        """Return bytes to the connection."""
        self._owed += taken
        if self._owed >= self._connection_quarter:
            self.receive += self._owed
            self._out.credit(0, self._owed)
            self._owed = 0

    def widen(self, stream: Stream | None, increment: int) -> ErrorCode | None:
        """The peer's WINDOW_UPDATE, None being the connection. Returns what is wrong with it, if anything."""
        if increment == 0:
            return ErrorCode.PROTOCOL_ERROR  # RFC 9113 6.9
        if stream is None:
            self.send += increment
            window = self.send
        else:
            stream.send_window += increment
            window = stream.send_window
        return ErrorCode.FLOW_CONTROL_ERROR if window > LARGEST_WINDOW else None  # RFC 9113 6.9.1

    def resize(self, initial: int, streams: "list[Stream]") -> None:
        """The peer's SETTINGS_INITIAL_WINDOW_SIZE: windows of open streams move with it (RFC 9113 6.9.2).

        Raises:
            PeerBrokeProtocol: one of them got too large.
        """
        grown = initial - self.initial_send
        if not grown:
            return
        self.initial_send = initial
        for stream in streams:
            stream.send_window += grown
            if stream.send_window > LARGEST_WINDOW:
                raise PeerBrokeProtocol("a window past its limit", ErrorCode.FLOW_CONTROL_ERROR)
