"""One HTTP/2 connection that carries CONNECT tunnels, client or server, without I/O.

Commands are methods; what has to be written for them, in order, lies in `outgoing` and must be written
before later DATA. `receive` walks a buffer of any cut and tells events. What the peer did wrong to one stream
is answered with RST_STREAM and told as `StreamFailed`; what it did wrong to the connection raises
`PeerBrokeProtocol` with the code of RFC 9113 7, the GOAWAY already in `outgoing`.

*Turns.* One `receive` acts on few frames, whatever there is: `taken` tells how far it came, and the rest is
for the caller to hand in again when others have had their turn.

*The usual DATA frame* is one that is whole, unpadded, within all limits, and of a stream that takes it. It is
handled where it is found, in `_walk`, because each costs us; everything else is found out by `payload`.

*Credit.* Bytes handed up are owed to the peer until `credit` says that the application took them. `room` is
how many payload bytes may go now, `put_data_header` charges them and writes the nine bytes before them.
"""

from collections.abc import Sequence
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable, WeBrokeProtocol
from ztunnel_trio.wire.http2.answers import Answers
from ztunnel_trio.wire.http2.blocks import HeaderBlocks
from ztunnel_trio.wire.http2.budgets import Budgets
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.control import Control
from ztunnel_trio.wire.http2.events import DataReceived, Event
from ztunnel_trio.wire.http2.frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    LARGEST_STREAM_ID,
    PADDED,
    Gathered,
)
from ztunnel_trio.wire.http2.goaway import Farewell
from ztunnel_trio.wire.http2.ledger import Ledger
from ztunnel_trio.wire.http2.order import ANY, Order
from ztunnel_trio.wire.http2.payload import Payload
from ztunnel_trio.wire.http2.requests import Requests
from ztunnel_trio.wire.http2.settings import Http2Settings
from ztunnel_trio.wire.http2.streams import State

DATA_A_STEP: Final = 64  # what one `receive` acts on
_OTHERS_COST: Final = 16  # as many DATA frames as another one counts: it may make somebody work


class Http2Connection:
    """One connection. See the module's text. `taken` is how much of its input `receive` has used."""

    __slots__ = (
        "_blocks",
        "_budgets",
        "_by_id",
        "_control",
        "_farewell",
        "_frame_limit",
        "_gathered",
        "_headers",
        "_is_within",
        "_ledger",
        "_order",
        "_out",
        "_payload",
        "_windows",
        "taken",
    )

    def __init__(self, settings: Http2Settings) -> None:
        self._ledger = ledger = Ledger(
            is_client=settings.is_client,
            stream_window=settings.stream_window,
            connection_window=settings.connection_window,
            allowances=settings.allowances,
        )
        # At hand, since each DATA frame asks for them.
        self._by_id, self._windows = ledger.streams.by_id, ledger.windows
        self._out, self._budgets = ledger.out, ledger.budgets
        self._farewell = Farewell(ledger)
        self._blocks = HeaderBlocks(ledger.budgets, settings.header_list_size)
        self._control = Control(ledger, self._farewell)
        self._payload = Payload(ledger, settings.frame_size)
        self._headers: Answers | Requests
        if settings.is_client:
            self._headers = Answers(ledger, self._blocks)
        else:
            self._headers = Requests(ledger, self._blocks, self._farewell, settings.max_streams)
        self._gathered = Gathered()
        self._order = Order(self._blocks, settings.frame_size, is_client=settings.is_client)
        self._is_within = False  # in the middle of a frame
        self._frame_limit = settings.frame_size
        self.taken = 0
        settings.greet(ledger.out)

    # -- output

    def outgoing(self) -> bytes:
        """Take what has to be written, in order; empty when there is nothing."""
        return self._out.take() if self._out.pending else b""

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` has something."""
        return bool(self._out.pending)

    @property
    def open_streams(self) -> int:
        """Streams that are not closed."""
        return self._ledger.streams.alive

    @property
    def can_open(self) -> bool:
        """Whether there is a stream id left for a request."""
        return self._ledger.streams.has_ids

    @property
    def is_drained(self) -> bool:
        """Whether the last GOAWAY has been sent and the last stream has ended."""
        return self._farewell.is_said and not self._ledger.streams.alive

    @property
    def budgets(self) -> Budgets:
        """What the peer has used of its budgets."""
        return self._budgets

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream is not closed."""
        return self._ledger.streams.get_alive(stream_id) is not None

    # -- commands

    def open_stream(self, authority: str, headers: Sequence[Field]) -> int:
        """Ask for a tunnel; client only.

        Raises:
            Unavailable: all stream ids have been used.
        """
        if not self.can_open:
            raise Unavailable("no stream ids left")
        stream_id = self._ledger.streams.next_id
        self._ledger.say(stream_id, [(b":method", b"CONNECT"), (b":authority", authority.encode()), *headers])
        self._ledger.begin(stream_id)
        return stream_id

    def accept(self, stream_id: int, headers: Sequence[Field]) -> None:
        """Answer 200; a stream that is closed by now is left alone."""
        stream = self._ledger.streams.get_alive(stream_id)
        if stream is None:
            return
        if stream.answered:
            raise WeBrokeProtocol("a request answered twice")
        stream.answered = True
        self._ledger.say(stream_id, [(b":status", b"200"), *headers])

    def refuse(self, stream_id: int, status: int) -> None:
        """Answer with a status and nothing else, and end the stream both ways; a closed one is left alone."""
        stream = self._ledger.streams.get_alive(stream_id)
        if stream is None:
            return
        if stream.answered:
            raise WeBrokeProtocol("a request answered twice")
        stream.answered = True
        self._ledger.say(stream_id, [(b":status", b"%d" % status)], ends_stream=True)
        if stream.may_receive:
            self._ledger.reset(stream, ErrorCode.NO_ERROR)
        else:
            self.credit(stream_id, stream.held)  # nobody will take it
            self._ledger.streams.we_ended(stream)

    def end(self, stream_id: int) -> None:
        """Send END_STREAM; a closed or ended stream is left alone."""
        stream = self._ledger.streams.by_id.get(stream_id)
        if stream is not None and stream.may_send:
            self._ledger.out.put(DATA, END_STREAM, stream_id, b"")
            self._ledger.streams.we_ended(stream)

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM; a closed stream is left alone."""
        stream = self._ledger.streams.get_alive(stream_id)
        if stream is not None:
            self._ledger.reset(stream, code)

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; the answer is `PingAcked` with these eight bytes."""
        self._control.ping(payload)

    def drain(self) -> None:
        """Server: announce the end (RFC 9113 6.8): GOAWAY(2^31-1) and PING, GOAWAY(last) on its ack."""
        self._control.announce_end()

    def go_away(self, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Say the last word; `debug` is a reason for the peer's operator."""
        self._farewell.say(code, debug)

    # -- payload

    def room(self, stream_id: int) -> int:
        """How many bytes of payload may be sent on a stream in one frame now."""
        stream = self._by_id.get(stream_id)
        if stream is None or not stream.may_send:
            return 0
        windows, room = self._windows, stream.send_window
        if windows.send < room:
            room = windows.send
        if self._out.frame_size < room:
            room = self._out.frame_size
        if room < 0:  # the peer made its windows smaller
            return 0
        return room

    def put_data_header(self, buffer: memoryview, stream_id: int, length: int) -> None:
        """Write the header of a DATA frame into the first nine bytes of `buffer` and charge both windows."""
        windows = self._windows
        self._by_id[stream_id].send_window -= length
        windows.send -= length
        windows.sent += 1
        HEADER.pack_into(buffer, 0, length >> 8, length & 0xFF, DATA, 0, stream_id)

    def credit(self, stream_id: int, taken: int) -> None:
        """The application took so many bytes: return them to the peer, a quarter window at a time."""
        stream = self._by_id.get(stream_id)
        if stream is not None:  # what a reset one held was returned when it was reset
            if stream.state is State.LINGERING:
                self._windows.credit_connection(self._ledger.streams.release(stream, taken))
            else:
                self._windows.credit(stream, taken)

    # -- input

    def receive(self, view: memoryview, now: float) -> list[Event]:
        """Take some of what has arrived, as `taken` tells, and say what it meant. `now` in seconds.

        Raises:
            PeerBrokeProtocol: the connection is over; its code is in the GOAWAY that `outgoing` ends with.
        """
        self._budgets.now = now
        events: list[Event] = []
        try:
            self.taken = self._walk(view, events)
        except PeerBrokeProtocol as error:
            self._farewell.say(ErrorCode.PROTOCOL_ERROR if error.code is None else error.code)
            raise
        return events

    def _walk(self, view: memoryview, events: list[Event]) -> int:
        position, size = 0, len(view)
        order = self._order
        if order.preface:
            position = order.take_preface(view)
        by_id, windows, left = self._by_id, self._windows, DATA_A_STEP
        while position < size and left > 0:
            left -= 1
            if self._is_within or size - position < HEADER_BYTES:
                position = self._go_on(view, position, events)
                continue
            high, low, kind, flags, stream_id = HEADER.unpack_from(view, position)
            length = high << 8 | low
            end = position + HEADER_BYTES + length
            if kind == DATA:
                stream = by_id.get(stream_id)
                if (
                    stream is not None
                    and stream.is_plain
                    and (length or flags == END_STREAM)
                    and end <= size
                    and length <= stream.receive_window
                    and length <= windows.receive
                    and length <= self._frame_limit
                    and not flags & PADDED
                    and order.due == ANY
                ):
                    if length:
                        windows.receive -= length
                        stream.receive_window -= length
                        stream.held += length
                        events.append(DataReceived(stream_id, view[position + HEADER_BYTES : end]))
                    position = end
                    if flags & END_STREAM:
                        self._ledger.they_ended(stream, events)
                else:
                    position += HEADER_BYTES
                    self._begin_data(length, flags, stream_id, events)
            elif end > size:
                position = self._go_on(view, position, events)
            else:
                stream_id &= LARGEST_STREAM_ID
                self._order.check(kind, flags, stream_id, length)
                self._frame(kind, flags, stream_id, bytes(view[position + HEADER_BYTES : end]), events)
                position, left = end, left - _OTHERS_COST
        return position

    def _go_on(self, view: memoryview, position: int, events: list[Event]) -> int:
        """With a frame that has not come whole: use what there is of it. Returns where that ends."""
        if self._payload.is_open:
            position = self._payload.take(view, position, events)
        else:
            position = self._gather(view, position, events)
        self._is_within = self._payload.is_open or bool(self._gathered.held)
        return position

    def _gather(self, view: memoryview, position: int, events: list[Event]) -> int:
        """Add to the frame that is gathered, and use it when it is whole."""
        gathered = self._gathered
        position = gathered.add(view, position)
        if not gathered.is_whole:
            return position
        high, low, kind, flags, stream_id = HEADER.unpack_from(gathered.held)
        length = high << 8 | low
        stream_id &= LARGEST_STREAM_ID
        if kind == DATA:
            gathered.take()
            self._begin_data(length, flags, stream_id, events)
        elif gathered.has_payload or not length:
            if not length:
                self._order.check(kind, flags, stream_id, length)
            self._frame(kind, flags, stream_id, gathered.take(), events)
        else:
            self._order.check(kind, flags, stream_id, length)
            gathered.expect(length)
        return position

    def _begin_data(self, length: int, flags: int, stream_id: int, events: list[Event]) -> None:
        self._order.check_kind(DATA, flags, stream_id)
        self._payload.begin(length, flags, stream_id & LARGEST_STREAM_ID, events)
        self._is_within = self._payload.is_open

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """Act on a whole frame that is not DATA."""
        if kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                fields = self._blocks.begin(flags, stream_id, payload)
            else:
                fields = self._blocks.go_on(flags, payload)
            self._order.due = CONTINUATION if fields is None else ANY
            if fields is not None:
                self._headers.block_received(stream_id, fields, events)
            return
        self._order.due = ANY
        if kind == GOAWAY:
            self._farewell.received(stream_id, payload, events)
        else:
            self._control.received(kind, flags, stream_id, payload, events)
