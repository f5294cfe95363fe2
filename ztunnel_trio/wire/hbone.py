"""HBONE: HTTP/2 CONNECT tunnels over one connection, both roles, without I/O.

Streams are ours: their states, windows and header blocks, with every check of RFC 9113 on them, because
payload is handed up as views of the reader's buffer and a stream has to cost microseconds. hpack compresses,
`wire.connect_fields` reads the fields. h2 keeps the book of what belongs to the connection and is rare:
SETTINGS and PING.

*Receiving.* `receive` walks a buffer of any cut. A DATA payload is passed on piece by piece as it comes,
never gathered; any other frame is gathered whole. What the peer did wrong to one
stream is answered with RST_STREAM and told as `StreamFailed`; what it did wrong to the connection raises
`PeerBrokeProtocol` with the code of RFC 9113 7, the GOAWAY already in `outgoing`.

*Credit.* Bytes handed up are owed to the peer until `credit` says that the application took them;
WINDOW_UPDATEs are sent by the quarter window. What a reset stream held is returned to the connection at once,
what an ended one holds when it is taken.

*Sending.* `room` is how many payload bytes may go now, `put_data_header` charges them and writes the nine
bytes before them. Everything else lies in `outgoing`, which must be written before later DATA.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import h2.events
import h2.exceptions
import h2.settings
import hpack

from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable, WeBrokeProtocol
from ztunnel_trio.wire.connect_fields import (
    Field,
    check_trailers,
    list_size,
    read_answer,
    read_request,
)
from ztunnel_trio.wire.hbone_book import HEADER_BLOCK_FACTOR, PREFACE, HboneSettings, make_book
from ztunnel_trio.wire.hbone_events import (
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    PingAcked,
    SettingsReceived,
    StreamEnded,
    StreamFailed,
    StreamReset,
    TunnelAnswered,
    TunnelRequested,
    WindowOpened,
)

HEADER_BYTES: Final = 9
LARGEST_WINDOW: Final = 2**31 - 1
LARGEST_STREAM_ID: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535  # RFC 9113 6.9.2
DEFAULT_FRAME: Final = 16_384  # RFC 9113 6.5.2

_HEADER = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")
_GOAWAY = struct.Struct(">II")

_RECENT = 16  # closed streams whose late frames are still understood
_CONTROL_FRAME_LIMIT = 16_384  # SETTINGS, PING and the like: nobody needs more
_TABLE_BYTES = 4096  # what our encoder remembers, whatever the peer offers
_DRAIN_PING = b"drain\0\0\0"


class _Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


_DATA, _HEADERS, _RST, _SETTINGS = (
    int(_Kind.DATA),
    int(_Kind.HEADERS),
    int(_Kind.RST_STREAM),
    int(_Kind.SETTINGS),
)
_PUSH, _PING, _GO = int(_Kind.PUSH_PROMISE), int(_Kind.PING), int(_Kind.GOAWAY)
_WINDOW, _CONTINUATION = int(_Kind.WINDOW_UPDATE), int(_Kind.CONTINUATION)
_FIXED_LENGTH = {int(_Kind.PRIORITY): 5, _RST: 4, _PING: 8, _WINDOW: 4}  # RFC 9113 6.3, 6.4, 6.7, 6.9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_CONTINUATIONS = 64  # frames of one header block, however small (CVE-2024-27316)


class _Stream:
    """The book of one stream that is not closed."""

    __slots__ = (
        "answered",
        "expected",
        "held",
        "local_ended",
        "owed",
        "receive_window",
        "remote_ended",
        "send_window",
    )

    def __init__(self, send_window: int, receive_window: int) -> None:
        self.send_window = send_window
        self.receive_window = receive_window
        self.held = 0  # handed up, not credited yet
        self.owed = 0  # credited, not announced yet
        self.expected = -1  # what is left of a content-length
        self.answered = False  # the final HEADERS of the answer have passed
        self.local_ended = False
        self.remote_ended = False


class HboneConnection:
    """One HBONE connection, client or server. See the module's text."""

    def __init__(self, settings: HboneSettings) -> None:
        self._settings = settings
        self._is_client = settings.is_client
        self._h2 = make_book(settings)
        self._out = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._lingering: dict[int, int] = {}  # ended streams whose last bytes nobody has taken yet
        self._recent: dict[int, bool] = {}  # id -> we reset it; the last few that were closed
        self.can_open = True  # there is a stream id left for a request
        self._highest = 0  # the largest stream id a client has used, whichever end that is
        self._goaway_last = LARGEST_STREAM_ID  # what our latest GOAWAY named
        # receiving
        self._preface = b"" if settings.is_client else PREFACE
        self._settings_seen = False
        self._partial = bytearray()  # a frame that has not come whole
        self._needed = HEADER_BYTES  # and how long it has to become
        self._body_left = 0  # of the DATA frame we are in: payload …
        self._padding_left = 0  # … and padding still to come
        self._wants_pad_length = False
        self._body_ends_stream = False
        self._body_stream_id = 0  # 0: nobody wants the payload
        self._block_stream_id = 0  # in the middle of a header block of this stream
        self._block_bytes = 0
        self._block_frames = 0
        self._block = b""  # what has come of it
        self._block_ends_stream = False
        self._in_body = False
        self._connection_receive = settings.connection_window
        self._connection_owed = 0
        self._stream_quarter = max(1, settings.stream_window // 4)
        self._connection_quarter = max(1, settings.connection_window // 4)
        # sending
        self._connection_send = DEFAULT_WINDOW
        self._peer_window = DEFAULT_WINDOW
        self.peer_frame_size = DEFAULT_FRAME
        # abuse
        self._unserved: set[int] = set()  # requests nobody has looked at yet
        self._reset_unserved = 0
        self._stream_errors = 0
        self._draining = False
        self._write_preface()

    # -- output

    def outgoing(self) -> bytes:
        """Take what has to be written, in order; empty when there is nothing."""
        if not self._out:
            return b""
        out = bytes(self._out)
        self._out.clear()
        return out

    @property
    def has_outgoing(self) -> bool:
        """Whether `outgoing` has something."""
        return bool(self._out)

    @property
    def open_streams(self) -> int:
        """Streams that are not closed."""
        return len(self._streams)

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream is not closed."""
        return stream_id in self._streams

    # -- commands

    def open_stream(self, authority: str, headers: Sequence[Field]) -> int:
        """Ask for a tunnel; client only.

        Raises:
            Unavailable: all stream ids have been used.
        """
        if not self.can_open:
            raise Unavailable("no stream ids left")
        stream_id = self._highest + 2 if self._highest else 1
        fields: list[Field] = [(b":method", b"CONNECT"), (b":authority", authority.encode()), *headers]
        self._send_headers(stream_id, fields)
        self._highest = stream_id
        self.can_open = stream_id < LARGEST_STREAM_ID - 1
        self._streams[stream_id] = _Stream(self._peer_window, self._settings.stream_window)
        return stream_id

    def served(self, stream_id: int) -> None:
        """Somebody is looking at this request now."""
        if stream_id in self._unserved:
            self._unserved.discard(stream_id)
            if stream_id not in self._streams:
                self._reset_unserved -= 1

    def accept(self, stream_id: int, headers: Sequence[Field]) -> None:
        """Answer 200; a stream that is closed by now is left alone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.answered:
            raise WeBrokeProtocol("a request answered twice")
        stream.answered = True
        self._send_headers(stream_id, [(b":status", b"200"), *headers])

    def refuse(self, stream_id: int, status: int) -> None:
        """Answer with a status and nothing else, and end the stream both ways; a closed one is left alone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.answered:
            raise WeBrokeProtocol("a request answered twice")
        self._send_headers(stream_id, [(b":status", b"%d" % status)], end=True)
        self._close(stream_id, None if stream.remote_ended else ErrorCode.NO_ERROR)

    def end(self, stream_id: int) -> None:
        """Send END_STREAM; a closed or ended stream is left alone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_ended:
            return
        stream.local_ended = True
        self._out += _HEADER.pack(0, 0, _DATA, _END_STREAM, stream_id)
        if stream.remote_ended:
            self._forget(stream_id, lingers=True)

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM; a closed stream is left alone."""
        if stream_id in self._streams:
            self._close(stream_id, code)

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; the answer is `PingAcked` with these eight bytes."""
        self._put(_PING, 0, 0, payload)

    def drain(self) -> None:
        """Server: announce the end (RFC 9113 6.8): GOAWAY(2^31-1) and PING, GOAWAY(last) on its ack."""
        if not self._draining:
            self._draining = True
            self._put(_GO, 0, 0, _GOAWAY.pack(LARGEST_STREAM_ID, ErrorCode.NO_ERROR))
            self.ping(_DRAIN_PING)

    def go_away(self, code: int = ErrorCode.NO_ERROR) -> None:
        """Say the last word. A client names stream 0, since a server opens none."""
        self._goaway_last = 0 if self._is_client else min(self._highest, self._goaway_last)
        self._put(_GO, 0, 0, _GOAWAY.pack(self._goaway_last, code))

    @property
    def is_drained(self) -> bool:
        """Whether the last GOAWAY has been sent and the last stream has ended."""
        return self._goaway_last != LARGEST_STREAM_ID and not self._streams

    # -- payload

    def room(self, stream_id: int) -> int:
        """How many bytes of payload may be sent on a stream in one frame now."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_ended:
            return 0
        room = min(stream.send_window, self._connection_send, self.peer_frame_size)
        return max(room, 0)

    def put_data_header(self, buffer: memoryview, stream_id: int, length: int) -> None:
        """Write the header of a DATA frame into the first nine bytes of `buffer` and charge both windows."""
        self._streams[stream_id].send_window -= length
        self._connection_send -= length
        _HEADER.pack_into(buffer, 0, length >> 8, length & 0xFF, _DATA, 0, stream_id)

    def credit(self, stream_id: int, taken: int) -> None:
        """The application took so many bytes: return them to the peer, a quarter window at a time."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self._credit_lingering(stream_id, taken)
            return
        stream.held -= taken
        stream.owed += taken
        if stream.owed >= self._stream_quarter and not stream.remote_ended:
            stream.receive_window += stream.owed
            self._put(_WINDOW, 0, stream_id, _WORD.pack(stream.owed))
            stream.owed = 0
        if self._connection_owed + taken >= self._connection_quarter:
            self._credit_connection(taken)
        else:
            self._connection_owed += taken

    def _credit_lingering(self, stream_id: int, taken: int) -> None:
        """Bytes of a stream that ended before they were taken; those of a reset one were returned at once."""
        held = self._lingering.pop(stream_id, 0)
        if held:
            self._credit_connection(min(taken, held))
            if held > taken:
                self._lingering[stream_id] = held - taken

    def _credit_connection(self, taken: int) -> None:
        self._connection_owed += taken
        if self._connection_owed >= self._connection_quarter:
            self._connection_receive += self._connection_owed
            self._put(_WINDOW, 0, 0, _WORD.pack(self._connection_owed))
            self._connection_owed = 0

    # -- input

    def receive(self, view: memoryview) -> list[Event]:
        """Take what has arrived and tell what it meant.

        Raises:
            PeerBrokeProtocol: the connection is over; its code is in the GOAWAY that `outgoing` ends with.
        """
        events: list[Event] = []
        try:
            self._walk(view, events)
        except PeerBrokeProtocol as error:
            self._h2.clear_outbound_data_buffer()
            self.go_away(error.code if error.code is not None else ErrorCode.PROTOCOL_ERROR)
            raise
        return events

    def _walk(self, view: memoryview, events: list[Event]) -> None:
        position, size = 0, len(view)
        if self._preface:
            position = self._take_preface(view)
        while position < size:
            if self._in_body:
                position = self._take_body(view, position, size, events)
            elif self._partial or size - position < HEADER_BYTES:
                position = self._gather(view, position, events)
            else:
                high, low, kind, flags, stream_id = _HEADER.unpack_from(view, position)
                length = high << 8 | low
                if kind == _DATA:
                    position += HEADER_BYTES
                    stream = self._streams.get(stream_id)
                    if (  # the usual frame, in one go; what is not usual about others is found out below
                        stream is not None
                        and 0 < length <= size - position
                        and length <= stream.receive_window
                        and length <= self._connection_receive
                        and length <= self._settings.frame_size
                        and stream.expected < 0
                        and not flags & _PADDED
                        and not stream.remote_ended
                        and (stream.answered or not self._is_client)
                        and not self._block_stream_id
                        and self._settings_seen
                    ):
                        self._connection_receive -= length
                        stream.receive_window -= length
                        stream.held += length
                        end = position + length
                        events.append(DataReceived(stream_id, view[position:end]))
                        position = end
                        if flags & _END_STREAM:
                            self._peer_ended(stream_id, events)
                        continue
                    self._begin_data(length, flags, stream_id & LARGEST_STREAM_ID, events)
                    continue
                self._check_length(kind, length)
                end = position + HEADER_BYTES + length
                if end > size:
                    self._partial += view[position:]
                    self._needed = HEADER_BYTES + length
                    return
                self._frame(kind, flags, stream_id & LARGEST_STREAM_ID, bytes(view[position:end]), events)
                position = end

    def _take_preface(self, view: memoryview) -> int:
        taken = min(len(self._preface), len(view))
        if self._preface[:taken] != view[:taken]:
            raise PeerBrokeProtocol("no HTTP/2 preface", ErrorCode.PROTOCOL_ERROR)
        self._preface = self._preface[taken:]
        return taken

    def _gather(self, view: memoryview, position: int, events: list[Event]) -> int:
        """Add to the frame that has not come whole, and use it when it has."""
        partial = self._partial
        if not partial:
            self._needed = HEADER_BYTES
        end = position + self._needed - len(partial)
        partial += view[position:end]
        if len(partial) < self._needed:
            return len(view)
        high, low, kind, flags, stream_id = _HEADER.unpack_from(partial)
        length = high << 8 | low
        if kind == _DATA:
            partial.clear()
            self._begin_data(length, flags, stream_id & LARGEST_STREAM_ID, events)
        elif self._needed == HEADER_BYTES and length:
            self._check_length(kind, length)
            self._needed = HEADER_BYTES + length
        else:
            self._check_length(kind, length)
            frame = bytes(partial)
            partial.clear()
            self._frame(kind, flags, stream_id & LARGEST_STREAM_ID, frame, events)
        return end

    def _check_length(self, kind: int, length: int) -> None:
        if length > self._settings.frame_size:
            raise PeerBrokeProtocol("a frame over the limit", ErrorCode.FRAME_SIZE_ERROR)
        fixed = _FIXED_LENGTH.get(kind)
        if fixed is not None and length != fixed:
            raise PeerBrokeProtocol("a frame of a length it cannot have", ErrorCode.FRAME_SIZE_ERROR)
        if kind in (_HEADERS, _CONTINUATION):
            if self._block_bytes + length > HEADER_BLOCK_FACTOR * self._settings.header_list_size:
                raise PeerBrokeProtocol("a header block without end", ErrorCode.ENHANCE_YOUR_CALM)
        elif length > _CONTROL_FRAME_LIMIT:
            raise PeerBrokeProtocol("a control frame of absurd length", ErrorCode.ENHANCE_YOUR_CALM)

    # -- DATA

    def _begin_data(self, length: int, flags: int, stream_id: int, events: list[Event]) -> None:
        if self._block_stream_id or not self._settings_seen:
            self._check_order(_DATA, stream_id)
        if stream_id == 0:
            raise PeerBrokeProtocol("DATA on stream 0", ErrorCode.PROTOCOL_ERROR)
        if length > self._settings.frame_size:
            raise PeerBrokeProtocol("a frame over the limit", ErrorCode.FRAME_SIZE_ERROR)
        if length > self._connection_receive:
            raise PeerBrokeProtocol("the connection's window overrun", ErrorCode.FLOW_CONTROL_ERROR)
        self._connection_receive -= length
        stream = self._streams.get(stream_id)
        wanted = stream_id
        if stream is None:
            if self._is_idle(stream_id):
                raise PeerBrokeProtocol("DATA on an idle stream", ErrorCode.PROTOCOL_ERROR)
            if not self._recent.get(
                stream_id, False
            ):  # frames in flight when we reset it are no error (RFC 9113 5.1)
                self._put(_RST, 0, stream_id, _WORD.pack(ErrorCode.STREAM_CLOSED))
            wanted = 0
        elif stream.remote_ended:
            raise PeerBrokeProtocol("DATA after END_STREAM", ErrorCode.STREAM_CLOSED)
        elif self._is_client and not stream.answered:
            raise PeerBrokeProtocol("DATA before the answer", ErrorCode.PROTOCOL_ERROR)
        elif length > stream.receive_window:
            self._fail(stream_id, ErrorCode.FLOW_CONTROL_ERROR, events)
            wanted = 0
        else:
            stream.receive_window -= length
        self._wants_pad_length = bool(flags & _PADDED)
        if self._wants_pad_length and length == 0:
            raise PeerBrokeProtocol("a padded frame without its pad length", ErrorCode.FRAME_SIZE_ERROR)
        self._body_left, self._padding_left = length, 0
        self._body_stream_id = wanted
        self._body_ends_stream = bool(flags & _END_STREAM)
        self._in_body = True
        if length == 0:
            self._end_body(events)

    def _take_body(self, view: memoryview, position: int, size: int, events: list[Event]) -> int:
        """Pass on what there is of a DATA payload."""
        if self._wants_pad_length:
            self._wants_pad_length = False
            padding = view[position]
            position += 1
            self._body_left -= 1
            if padding > self._body_left:
                raise PeerBrokeProtocol("padding longer than the frame", ErrorCode.PROTOCOL_ERROR)
            self._body_left -= padding
            self._padding_left = padding
            self._return(1 + padding)
        here = min(self._body_left, size - position)
        if here:
            self._body_left -= here
            end = position + here
            self._deliver(view[position:end], here, events)
            position = end
        if not self._body_left and self._padding_left:
            here = min(self._padding_left, size - position)
            self._padding_left -= here
            position += here
        if not self._body_left and not self._padding_left:
            self._end_body(events)
        return position

    def _deliver(self, data: memoryview, length: int, events: list[Event]) -> None:
        stream = self._streams.get(self._body_stream_id)
        if stream is None:  # forgotten, perhaps in the middle of this frame
            self._credit_connection(length)
            return
        if stream.expected >= 0:
            stream.expected -= length
            if stream.expected < 0:
                self._credit_connection(length)
                self._fail(self._body_stream_id, ErrorCode.PROTOCOL_ERROR, events)
                return
        stream.held += length
        events.append(DataReceived(self._body_stream_id, data))

    def _return(self, padding: int) -> None:
        """Credit for bytes nobody is handed."""
        if self._body_stream_id in self._streams:
            self._streams[self._body_stream_id].held += padding
            self.credit(self._body_stream_id, padding)
        else:
            self._credit_connection(padding)

    def _end_body(self, events: list[Event]) -> None:
        self._in_body = False
        if self._body_ends_stream and self._body_stream_id in self._streams:
            self._peer_ended(self._body_stream_id, events)

    def _peer_ended(self, stream_id: int, events: list[Event]) -> None:
        stream = self._streams[stream_id]
        if stream.expected > 0:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.remote_ended = True
        events.append(StreamEnded(stream_id))
        if stream.local_ended:
            self._forget(stream_id, lingers=True)

    # -- every other frame

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block_stream_id and (kind != _CONTINUATION or stream_id != self._block_stream_id):
            raise PeerBrokeProtocol("a header block interrupted", ErrorCode.PROTOCOL_ERROR)
        if not self._settings_seen and kind != _SETTINGS:
            raise PeerBrokeProtocol("a connection that begins without SETTINGS", ErrorCode.PROTOCOL_ERROR)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id % 2 == 0 or stream_id > self._highest

    def _frame(self, kind: int, flags: int, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if self._block_stream_id or not self._settings_seen:
            self._check_order(kind, stream_id)
        if kind in (_HEADERS, _CONTINUATION):
            self._headers(kind, flags, stream_id, frame, events)
        elif kind == _WINDOW:
            self._window_update(stream_id, _WORD.unpack_from(frame, HEADER_BYTES)[0] & LARGEST_WINDOW, events)
        elif kind == _GO:
            self._go_away_received(stream_id, frame, events)
        elif kind == _RST:
            self._reset_received(stream_id, frame, events)
        elif kind == _SETTINGS:
            self._settings_received(flags, len(frame) - HEADER_BYTES, frame, events)
        elif kind == _PING:
            for event in self._feed(frame):
                if isinstance(event, h2.events.PingAckReceived):
                    self._ping_acked(event.ping_data, events)
        elif kind == _PUSH:
            raise PeerBrokeProtocol("a push nobody allowed", ErrorCode.PROTOCOL_ERROR)
        elif kind == _Kind.PRIORITY and (
            stream_id == 0 or _WORD.unpack_from(frame, HEADER_BYTES)[0] & LARGEST_STREAM_ID == stream_id
        ):
            raise PeerBrokeProtocol("a stream that depends on itself", ErrorCode.PROTOCOL_ERROR)
        # other kinds and PRIORITY mean nothing to us (RFC 9113 5.3.2, 5.5)
        if len(self._out) > self._settings.max_control_backlog:
            raise PeerBrokeProtocol("more questions than it takes answers", ErrorCode.ENHANCE_YOUR_CALM)

    def _ping_acked(self, payload: bytes | None, events: list[Event]) -> None:
        if payload != _DRAIN_PING:
            events.append(PingAcked(payload or b""))
        elif self._draining and self._goaway_last == LARGEST_STREAM_ID:
            self.go_away()

    def _settings_received(self, flags: int, length: int, frame: bytes, events: list[Event]) -> None:
        if length % 6 or (flags & _ACK and length):
            raise PeerBrokeProtocol("SETTINGS of a length they cannot have", ErrorCode.FRAME_SIZE_ERROR)
        if not self._settings_seen and flags & _ACK:
            raise PeerBrokeProtocol("a connection that begins without SETTINGS", ErrorCode.PROTOCOL_ERROR)
        self._settings_seen = True
        self._feed(frame)
        if flags & _ACK:
            return
        theirs = self._h2.remote_settings
        if self._h2.encoder.header_table_size > _TABLE_BYTES:
            self._h2.encoder.header_table_size = _TABLE_BYTES
        self.peer_frame_size = theirs.max_frame_size
        grown = theirs.initial_window_size - self._peer_window
        self._peer_window = theirs.initial_window_size
        if grown:
            for stream in self._streams.values():  # RFC 9113 6.9.2: windows may become negative
                stream.send_window += grown
                if stream.send_window > LARGEST_WINDOW:
                    raise PeerBrokeProtocol("a window past its limit", ErrorCode.FLOW_CONTROL_ERROR)
        events.append(SettingsReceived(theirs.get(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS)))
        events.append(WindowOpened(0))

    def _window_update(self, stream_id: int, increment: int, events: list[Event]) -> None:
        if stream_id == 0:
            if increment == 0:
                raise PeerBrokeProtocol("a WINDOW_UPDATE of nothing", ErrorCode.PROTOCOL_ERROR)
            self._connection_send += increment
            if self._connection_send > LARGEST_WINDOW:
                raise PeerBrokeProtocol("a window past its limit", ErrorCode.FLOW_CONTROL_ERROR)
            events.append(WindowOpened(0))
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise PeerBrokeProtocol("WINDOW_UPDATE on an idle stream", ErrorCode.PROTOCOL_ERROR)
            return
        stream.send_window += increment
        if increment == 0:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
        elif stream.send_window > LARGEST_WINDOW:
            self._fail(stream_id, ErrorCode.FLOW_CONTROL_ERROR, events)
        else:
            events.append(WindowOpened(stream_id))

    def _go_away_received(self, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if stream_id:
            raise PeerBrokeProtocol("GOAWAY on a stream", ErrorCode.PROTOCOL_ERROR)
        if len(frame) < HEADER_BYTES + 8:
            raise PeerBrokeProtocol("GOAWAY of a length it cannot have", ErrorCode.FRAME_SIZE_ERROR)
        last, code = _GOAWAY.unpack_from(frame, HEADER_BYTES)
        events.append(GoAwayReceived(last & LARGEST_STREAM_ID, code))

    def _reset_received(self, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if stream_id == 0 or self._is_idle(stream_id):
            raise PeerBrokeProtocol("RST_STREAM on an idle stream", ErrorCode.PROTOCOL_ERROR)
        if stream_id not in self._streams:
            return
        if stream_id in self._unserved:
            self._reset_unserved += 1
            if self._reset_unserved > self._settings.max_resets_before_service:  # CVE-2023-44487
                raise PeerBrokeProtocol("requests only to reset them", ErrorCode.ENHANCE_YOUR_CALM)
        self._forget(stream_id)
        events.append(StreamReset(stream_id, _WORD.unpack_from(frame, HEADER_BYTES)[0]))

    # -- HEADERS

    def _headers(self, kind: int, flags: int, stream_id: int, frame: bytes, events: list[Event]) -> None:
        if kind == _HEADERS:
            self._check_new_block(stream_id)
            fragment = _fragment(flags, stream_id, frame)
            self._block_ends_stream = bool(flags & _END_STREAM)
        elif not self._block_stream_id:
            raise PeerBrokeProtocol("CONTINUATION of nothing", ErrorCode.PROTOCOL_ERROR)
        else:
            self._block_frames += 1
            if self._block_frames > _CONTINUATIONS:
                raise PeerBrokeProtocol("a header block in too many pieces", ErrorCode.ENHANCE_YOUR_CALM)
            fragment = self._block + frame[HEADER_BYTES:]
        if not flags & _END_HEADERS:
            self._block_bytes += len(frame) - HEADER_BYTES
            self._block_stream_id, self._block = stream_id, fragment
            return
        self._block_stream_id = self._block_bytes = self._block_frames = 0
        self._block = b""
        self._block_received(stream_id, self._decode(fragment), events)

    def _check_new_block(self, stream_id: int) -> None:
        if stream_id in self._streams:
            return
        if self._is_client:
            if stream_id == 0 or self._is_idle(stream_id):
                raise PeerBrokeProtocol("HEADERS on an idle stream", ErrorCode.PROTOCOL_ERROR)
        elif stream_id % 2 == 0 or (stream_id <= self._highest and stream_id not in self._recent):
            raise PeerBrokeProtocol("a stream id that does not increase", ErrorCode.PROTOCOL_ERROR)

    def _decode(self, block: bytes) -> list[Field]:
        try:
            return self._h2.decoder.decode_fields(block)
        except hpack.OversizedHeaderListError as error:
            raise PeerBrokeProtocol(str(error), ErrorCode.ENHANCE_YOUR_CALM) from error
        except hpack.HPACKError as error:  # RFC 9113 4.3
            raise PeerBrokeProtocol(str(error), ErrorCode.COMPRESSION_ERROR) from error

    def _block_received(self, stream_id: int, fields: list[Field], events: list[Event]) -> None:
        """What a header block is: a request, an answer, trailers, or nothing any more."""
        stream = self._streams.get(stream_id)
        ends = self._block_ends_stream
        if stream is None:
            if self._is_client:
                return  # late: compression is all that mattered
            if stream_id > self._highest:
                self._request_received(stream_id, fields, ends, events)
            elif not self._recent[stream_id]:  # it had ended the stream itself (RFC 9113 5.1)
                raise PeerBrokeProtocol("HEADERS after END_STREAM", ErrorCode.STREAM_CLOSED)
            else:
                self._count_error()
                self._put(_RST, 0, stream_id, _WORD.pack(ErrorCode.STREAM_CLOSED))
        elif stream.remote_ended:
            self._fail(stream_id, ErrorCode.STREAM_CLOSED, events)
        elif self._is_client and not stream.answered:
            self._answer_received(stream_id, fields, ends, events)
        else:
            self._trailers_received(stream_id, fields, ends, events)

    def _request_received(
        self, stream_id: int, fields: list[Field], ended: bool, events: list[Event]
    ) -> None:
        self._highest = stream_id
        stream = self._streams[stream_id] = _Stream(self._peer_window, self._settings.stream_window)
        stream.remote_ended = ended
        if stream_id > self._goaway_last or len(self._streams) > self._settings.max_streams:
            self._close(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if list_size(fields) > self._settings.header_list_size:
            self._count_error()
            self._send_headers(stream_id, [(b":status", b"431")], end=True)
            self._close(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        try:
            request = read_request(fields)
        except PeerBrokeProtocol:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.expected = request.content_length
        if ended and stream.expected > 0:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        self._unserved.add(stream_id)
        events.append(TunnelRequested(stream_id, request.method, request.authority, request.headers))
        if ended:
            events.append(StreamEnded(stream_id))

    def _answer_received(self, stream_id: int, fields: list[Field], ended: bool, events: list[Event]) -> None:
        stream = self._streams[stream_id]
        try:
            answer = read_answer(fields)
        except PeerBrokeProtocol:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        if answer.status < 200:  # informational; it cannot end a stream (RFC 9113 8.1)
            if ended:
                self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream.answered = True
        if "content-length" in answer.headers and not ended:
            length = answer.headers["content-length"][0]
            stream.expected = int(length) if length.isdigit() else 0
        events.append(TunnelAnswered(stream_id, answer.status, answer.headers))
        if ended:
            stream.expected = -1
            self._ended_by_headers(stream_id, events)

    def _trailers_received(
        self, stream_id: int, fields: list[Field], ended: bool, events: list[Event]
    ) -> None:
        try:
            check_trailers(fields)
        except PeerBrokeProtocol:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        if ended:
            self._ended_by_headers(stream_id, events)
        else:
            self._fail(stream_id, ErrorCode.PROTOCOL_ERROR, events)

    def _ended_by_headers(self, stream_id: int, events: list[Event]) -> None:
        stream = self._streams[stream_id]
        stream.remote_ended = True
        events.append(StreamEnded(stream_id))
        if stream.local_ended:
            self._forget(stream_id, lingers=True)

    # -- h2 and the books

    def _feed(self, frame: bytes) -> list[h2.events.Event]:
        """Let h2 see one whole frame; its errors become ours, and its answers go out."""
        try:
            heard = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            code = int(error.error_code)
            if isinstance(error.__cause__, hpack.HPACKError) and code == ErrorCode.PROTOCOL_ERROR:
                code = ErrorCode.COMPRESSION_ERROR  # RFC 9113 4.3
            raise PeerBrokeProtocol(str(error), code) from error
        self._out += self._h2.data_to_send()
        return heard

    def _send_headers(self, stream_id: int, fields: Sequence[Field], *, end: bool = False) -> None:
        block = self._h2.encoder.encode_fields(fields)
        flags = _END_STREAM if end else 0
        kind, most = _HEADERS, self.peer_frame_size
        while len(block) > most:
            self._put(kind, flags, stream_id, block[:most])
            kind, flags, block = _CONTINUATION, 0, block[most:]
        self._put(kind, flags | _END_HEADERS, stream_id, block)

    def _fail(self, stream_id: int, code: ErrorCode, events: list[Event]) -> None:
        """A stream error of the peer's (RFC 9113 5.4.2)."""
        self._close(stream_id, code)
        self._count_error()
        events.append(StreamFailed(stream_id, code))

    def _count_error(self) -> None:
        self._stream_errors += 1
        if self._stream_errors > self._settings.max_stream_errors:
            raise PeerBrokeProtocol("one stream error after the other", ErrorCode.ENHANCE_YOUR_CALM)

    def _close(self, stream_id: int, code: int | None) -> None:
        """Forget a stream, with RST_STREAM unless it ended both ways (code None)."""
        if code is not None:
            self._put(_RST, 0, stream_id, _WORD.pack(code))
        self._forget(stream_id, we_reset=code is not None)

    def _forget(self, stream_id: int, *, we_reset: bool = False, lingers: bool = False) -> None:
        stream = self._streams.pop(stream_id)
        if stream.held and lingers:
            self._lingering[stream_id] = stream.held
        elif stream.held:
            self._credit_connection(stream.held)
        self._recent[stream_id] = we_reset
        if stream_id in self._unserved and stream_id not in self._streams and we_reset:
            self._unserved.discard(stream_id)
        if len(self._recent) > _RECENT:
            oldest = next(iter(self._recent))
            del self._recent[oldest]

    def _put(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._out += _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)
        self._out += payload

    def _write_preface(self) -> None:
        """Preface, SETTINGS in the order of their ids, and the connection's window."""
        ours = self._settings
        if ours.is_client:
            self._out += PREFACE
            first = (2, 0)  # ENABLE_PUSH
        else:
            first = (3, ours.max_streams)
        pairs = (first, (4, ours.stream_window), (5, ours.frame_size), (6, ours.header_list_size))
        self._put(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))
        more = ours.connection_window - DEFAULT_WINDOW
        if more > 0:
            self._put(_WINDOW, 0, 0, _WORD.pack(more))


def _fragment(flags: int, stream_id: int, frame: bytes) -> bytes:
    """The piece of a header block in a HEADERS frame, without padding and priority (RFC 9113 6.2)."""
    start, end = HEADER_BYTES, len(frame)
    if flags & (_PADDED | _PRIORITY):
        needed = (1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0)
        if end - start < needed:
            raise PeerBrokeProtocol("HEADERS too short for their flags", ErrorCode.FRAME_SIZE_ERROR)
        if flags & _PADDED:
            end -= frame[start]
            start += 1
        if flags & _PRIORITY:
            if _WORD.unpack_from(frame, start)[0] & LARGEST_STREAM_ID == stream_id:
                raise PeerBrokeProtocol("a stream that depends on itself", ErrorCode.PROTOCOL_ERROR)
            start += 5
        if end < start:
            raise PeerBrokeProtocol("padding longer than the frame", ErrorCode.PROTOCOL_ERROR)
    return frame[start:end]
