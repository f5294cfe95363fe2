"""What a header block means at the server: a request, trailers, or nothing any more."""

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.blocks import HeaderBlocks
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.events import Event, StreamEnded, TunnelRequested
from ztunnel_trio.wire.http2.fields import check_trailers, read_request
from ztunnel_trio.wire.http2.goaway import Farewell
from ztunnel_trio.wire.http2.ledger import Ledger
from ztunnel_trio.wire.http2.streams import Input, Stream

TOO_LARGE = b"431"  # RFC 6585 5, which RFC 9113 10.5.1 asks for


class Requests:
    """The server's reading of header blocks."""

    __slots__ = ("_blocks", "_farewell", "_ledger", "_max_streams")

    def __init__(self, ledger: Ledger, blocks: HeaderBlocks, farewell: Farewell, max_streams: int) -> None:
        self._ledger = ledger
        self._blocks = blocks
        self._farewell = farewell
        self._max_streams = max_streams

    def block_received(self, stream_id: int, fields: list[Field], events: list[Event]) -> None:
        """A whole block has come.

        Raises:
            PeerBrokeProtocol: for a stream no client can open, or too many errors of single streams.
        """
        streams = self._ledger.streams
        if stream_id % 2 and stream_id > streams.highest:
            self._requested(self._ledger.begin(stream_id), fields, events)
        elif stream_id % 2 == 0:
            raise PeerBrokeProtocol("a stream id no client has", ErrorCode.PROTOCOL_ERROR)
        elif (stream := self._ledger.hear(stream_id, Input.HEADERS, events)) is not None:
            trailers_received(self._ledger, self._blocks, stream, fields, events)

    def _requested(self, stream: Stream, fields: list[Field], events: list[Event]) -> None:
        ledger = self._ledger
        if stream.stream_id > self._farewell.last or ledger.streams.alive > self._max_streams:
            ledger.reset(stream, ErrorCode.REFUSED_STREAM)
            # A client may have opened these before it knew; one that goes on is told by the budget.
            ledger.budgets.check(Excess.UNANSWERED_RESETS)
            return
        if self._blocks.is_too_long:
            stream.answered = True
            ledger.say(stream.stream_id, [(b":status", TOO_LARGE)], ends_stream=True)
            ledger.reset(stream, ErrorCode.PROTOCOL_ERROR)
            ledger.budgets.spend(Excess.STREAM_ERRORS)
            return
        try:
            request = read_request(fields)
        except PeerBrokeProtocol:
            ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        ends = self._blocks.ends_stream
        if ends and request.content_length > 0:
            ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.expected = request.content_length
        stream.is_plain = request.content_length < 0
        events.append(TunnelRequested(stream.stream_id, request.method, request.authority, request.headers))
        if ends:
            ledger.streams.they_ended(stream)
            events.append(StreamEnded(stream.stream_id))


def trailers_received(
    ledger: Ledger, blocks: HeaderBlocks, stream: Stream, fields: list[Field], events: list[Event]
) -> None:
    """A second header block of a stream, at either end (RFC 9113 8.1)."""
    try:
        check_trailers(fields)
    except PeerBrokeProtocol:
        ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
        return
    if blocks.ends_stream and not blocks.is_too_long:
        stream.expected = -1  # a length is held to by DATA with END_STREAM only
        ledger.they_ended(stream, events)
    else:
        ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
