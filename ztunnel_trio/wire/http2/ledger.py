"""What the parts of one connection share, and the steps that touch several of them at once."""

from collections.abc import Mapping, Sequence

from ztunnel_trio.wire.http2.budgets import Allowance, Budgets, Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field, PlainEncoder
from ztunnel_trio.wire.http2.events import Event, StreamEnded, StreamFailed
from ztunnel_trio.wire.http2.frames import Outgoing
from ztunnel_trio.wire.http2.streams import Fault, Input, Stream, Streams
from ztunnel_trio.wire.http2.windows import Windows


class Ledger:
    """Streams, windows, budgets and output of one connection."""

    __slots__ = ("budgets", "encoder", "is_client", "out", "streams", "windows")

    def __init__(
        self,
        *,
        is_client: bool,
        stream_window: int,
        connection_window: int,
        allowances: Mapping[Excess, Allowance],
    ) -> None:
        self.is_client = is_client
        self.out = Outgoing()
        self.budgets = Budgets(allowances)
        self.streams = Streams(self.out, self.budgets)
        self.windows = Windows(self.out, stream_window=stream_window, connection_window=connection_window)
        self.encoder = PlainEncoder()

    def begin(self, stream_id: int) -> Stream:
        """A new stream, for a request of either end."""
        windows = self.windows
        return self.streams.begin(stream_id, windows.initial_send, windows.initial_receive)

    def say(self, stream_id: int, fields: Sequence[Field], *, ends_stream: bool = False) -> None:
        """Send a header block."""
        self.out.put_block(stream_id, self.encoder.encode_fields(fields), ends_stream=ends_stream)

    def hear(self, stream_id: int, what: Input, events: list[Event]) -> Stream | None:
        """The stream an input of the peer's is for; None where it has been dealt with.

        Raises:
            PeerBrokeProtocol: it ends the connection.
        """
        heard = self.streams.hear(stream_id, what)
        if isinstance(heard, Fault):
            self.fail(self.streams.by_id[stream_id], heard.code, events)
            return None
        return heard

    def reset(self, stream: Stream, code: int) -> None:
        """Send RST_STREAM and forget the stream; one nobody had answered counts (CVE-2025-8671)."""
        if not stream.answered and not self.is_client:
            self.budgets.charge(Excess.UNANSWERED_RESETS)
        self.windows.credit_connection(self.streams.reset(stream, code))

    def fail(self, stream: Stream, code: ErrorCode, events: list[Event]) -> None:
        """A stream error of the peer's (RFC 9113 5.4.2).

        Raises:
            OverBudget: one after the other.
        """
        self.reset(stream, code)
        events.append(StreamFailed(stream.stream_id, code))
        self.budgets.spend(Excess.STREAM_ERRORS)
        self.budgets.check(Excess.UNANSWERED_RESETS)

    def was_reset(self, stream: Stream) -> None:
        """RST_STREAM of the peer's; one before the answer counts (CVE-2023-44487).

        Raises:
            OverBudget: requests only to reset them.
        """
        self.windows.credit_connection(self.streams.was_reset(stream))
        if not stream.answered and not self.is_client:
            self.budgets.spend(Excess.UNANSWERED_RESETS)

    def they_ended(self, stream: Stream, events: list[Event]) -> None:
        """END_STREAM of the peer's, which must not come before what its content-length promised."""
        if stream.expected > 0:
            self.fail(stream, ErrorCode.PROTOCOL_ERROR, events)
        else:
            self.streams.they_ended(stream)
            events.append(StreamEnded(stream.stream_id))
