"""What a header block means at the client: an answer, an informational one, trailers, or nothing any more."""

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.blocks import HeaderBlocks
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.events import Event, StreamEnded, TunnelAnswered
from ztunnel_trio.wire.http2.fields import read_answer
from ztunnel_trio.wire.http2.ledger import Ledger
from ztunnel_trio.wire.http2.requests import trailers_received
from ztunnel_trio.wire.http2.streams import Input, State, Stream

_LEAST_FINAL = 200


class Answers:
    """The client's reading of header blocks."""

    __slots__ = ("_blocks", "_ledger")

    def __init__(self, ledger: Ledger, blocks: HeaderBlocks) -> None:
        self._ledger = ledger
        self._blocks = blocks

    def block_received(self, stream_id: int, fields: list[Field], events: list[Event]) -> None:
        """A whole block has come.

        Raises:
            PeerBrokeProtocol: for a stream we did not open, or too much of what carries nothing.
        """
        ledger = self._ledger
        if ledger.streams.get_alive(stream_id) is None:
            if ledger.streams.state_of(stream_id) is State.IDLE:
                raise PeerBrokeProtocol("HEADERS on an idle stream", ErrorCode.PROTOCOL_ERROR)
            return  # late: compression is all that mattered
        stream = ledger.hear(stream_id, Input.HEADERS, events)
        if stream is None:
            return
        if stream.answered:
            trailers_received(ledger, self._blocks, stream, fields, events)
        elif self._blocks.is_too_long:
            ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
        else:
            self._answered(stream, fields, events)

    def _answered(self, stream: Stream, fields: list[Field], events: list[Event]) -> None:
        ledger, ends = self._ledger, self._blocks.ends_stream
        try:
            answer = read_answer(fields)
        except PeerBrokeProtocol:
            ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        if answer.status < _LEAST_FINAL:  # informational; it cannot end a stream (RFC 9113 8.1)
            ledger.budgets.spend(Excess.INFORMATIONAL_ANSWERS)
            if ends:
                ledger.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.answered = True
        stream.expected = answer.content_length
        stream.is_plain = answer.content_length < 0
        events.append(TunnelAnswered(stream.stream_id, answer.status, answer.headers))
        if ends:  # a length beside it is that of an answer to another method (RFC 9113 8.1.1)
            ledger.streams.they_ended(stream)
            events.append(StreamEnded(stream.stream_id))
