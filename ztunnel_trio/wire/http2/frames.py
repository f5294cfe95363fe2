"""The layout of HTTP/2 frames (RFC 9113 4.1, 6): cutting them out of a buffer, gathering, writing.

Knows nothing of streams. A DATA frame's payload is used as it comes and never gathered; any other frame is
gathered whole.
"""

import struct
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
LARGEST_WINDOW: Final = 2**31 - 1
LARGEST_STREAM_ID: Final = 2**31 - 1
DEFAULT_FRAME: Final = 16_384  # RFC 9113 6.5.2

# Kinds (RFC 9113 6). Plain numbers: each frame compares some of them.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags.
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITISED: Final = 32

HEADER: Final = struct.Struct(">HBBBI")  # length as 16 and 8 bits, kind, flags, stream id
WORD: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")
GOAWAY_BODY: Final = struct.Struct(">II")

_FIXED_LENGTH: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}  # RFC 9113 6.3, 6.4, 6.7, 6.9
_CONTROL_FRAME_LIMIT: Final = 16_384  # nobody needs a longer GOAWAY, or one of a kind we do not know
_SETTINGS_LIMIT: Final = 128 * SETTING.size  # seven are defined; each costs a look


def check_length(kind: int, length: int, limit: int) -> None:
    """Hold a frame that is not DATA to the length its kind can have. `limit` is ours for any frame.

    Raises:
        PeerBrokeProtocol: FRAME_SIZE_ERROR, or ENHANCE_YOUR_CALM for what is allowed and absurd.
    """
    if length > limit:
        raise PeerBrokeProtocol("a frame over the limit", ErrorCode.FRAME_SIZE_ERROR)
    fixed = _FIXED_LENGTH.get(kind)
    if fixed is not None and length != fixed:
        raise PeerBrokeProtocol("a frame of a length it cannot have", ErrorCode.FRAME_SIZE_ERROR)
    if kind == SETTINGS:
        if length % SETTING.size:
            raise PeerBrokeProtocol("SETTINGS of a length they cannot have", ErrorCode.FRAME_SIZE_ERROR)
        if length > _SETTINGS_LIMIT:
            raise PeerBrokeProtocol("SETTINGS without end", ErrorCode.ENHANCE_YOUR_CALM)
    elif length > _CONTROL_FRAME_LIMIT and kind not in (HEADERS, CONTINUATION):
        raise PeerBrokeProtocol("a control frame of absurd length", ErrorCode.ENHANCE_YOUR_CALM)


def header_fragment(flags: int, stream_id: int, payload: bytes) -> bytes:
    """The piece of a header block in a HEADERS frame, without padding and priority (RFC 9113 6.2).

    Raises:
        PeerBrokeProtocol: the frame is shorter than its flags say, or the stream depends on itself.
    """
    start, end = 0, len(payload)
    if flags & (PADDED | PRIORITISED):
        needed = (1 if flags & PADDED else 0) + (5 if flags & PRIORITISED else 0)
        if end < needed:
            raise PeerBrokeProtocol("HEADERS too short for their flags", ErrorCode.FRAME_SIZE_ERROR)
        if flags & PADDED:
            end -= payload[0]
            start = 1
        if flags & PRIORITISED:
            check_priority(stream_id, WORD.unpack_from(payload, start)[0])
            start += 5
        if end < start:
            raise PeerBrokeProtocol("padding longer than the frame", ErrorCode.PROTOCOL_ERROR)
    return payload[start:end]


def check_priority(stream_id: int, depends_on: int) -> None:
    """Priority means nothing to us (RFC 9113 5.3.2), but it has to make sense.

    Raises:
        PeerBrokeProtocol: of stream 0, or of a stream that depends on itself.
    """
    if stream_id == 0 or depends_on & LARGEST_STREAM_ID == stream_id:
        raise PeerBrokeProtocol("a stream that depends on itself", ErrorCode.PROTOCOL_ERROR)


class Gathered:
    """A frame that has not come whole: first its header is gathered, then what the header says follows."""

    __slots__ = ("_needed", "held")

    def __init__(self) -> None:
        self.held = bytearray()
        self._needed = HEADER_BYTES

    def add(self, view: memoryview, position: int) -> int:
        """Add what is missing, as far as it has come. Returns the position behind it."""
        end = position + self._needed - len(self.held)
        self.held += view[position:end]
        return min(end, len(view))

    def expect(self, length: int) -> None:
        """The header has been read: so much payload follows."""
        self._needed = HEADER_BYTES + length

    @property
    def is_whole(self) -> bool:
        """Whether what was expected is there."""
        return len(self.held) >= self._needed

    @property
    def has_payload(self) -> bool:
        """Whether more than the header was expected."""
        return self._needed > HEADER_BYTES

    def take(self) -> bytes:
        """The payload, and begin anew."""
        payload = bytes(self.held[HEADER_BYTES:])
        self.held.clear()
        self._needed = HEADER_BYTES
        return payload


class Outgoing:
    """What one end has to say, in order. `frame_size` is the largest frame the peer takes.

    `pending` is one object for ever, for those who only ask whether there is anything.
    """

    __slots__ = ("frame_size", "pending")

    def __init__(self) -> None:
        self.pending = bytearray()
        self.frame_size = DEFAULT_FRAME

    def take(self) -> bytes:
        """All of it."""
        out = bytes(self.pending)
        self.pending.clear()
        return out

    def preface(self) -> None:
        """The client's first bytes (RFC 9113 3.4)."""
        self.pending += PREFACE

    def put(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """One frame."""
        length = len(payload)
        self.pending += HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)
        self.pending += payload

    def put_block(self, stream_id: int, block: bytes, *, ends_stream: bool) -> None:
        """A header block: HEADERS, and CONTINUATION where it is longer than a frame."""
        kind, flags, most = HEADERS, END_STREAM if ends_stream else 0, self.frame_size
        while len(block) > most:
            self.put(kind, flags, stream_id, block[:most])
            kind, flags, block = CONTINUATION, 0, block[most:]
        self.put(kind, flags | END_HEADERS, stream_id, block)

    def reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""
        self.put(RST_STREAM, 0, stream_id, WORD.pack(code))

    def credit(self, stream_id: int, increment: int) -> None:
        """WINDOW_UPDATE; stream 0 is the connection."""
        self.put(WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))
