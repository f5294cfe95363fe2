"""One CONNECT in a tunnel, an end for `net.relay`: what it keeps, how it ends, what the log says of it."""

import enum
from typing import Final, Protocol

from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.relay import StreamReader
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.fields import Fields
from ztunnel_trio.wire.http2.frames import HEADER_BYTES

NO_FIELDS: Final[Fields] = {}

_REASONS = {  # h2 (Rust) src/frame/reason.rs: Reason::description
    ErrorCode.NO_ERROR: "not a result of an error",
    ErrorCode.PROTOCOL_ERROR: "unspecific protocol error detected",
    ErrorCode.INTERNAL_ERROR: "unexpected internal error encountered",
    ErrorCode.FLOW_CONTROL_ERROR: "flow-control protocol violated",
    ErrorCode.SETTINGS_TIMEOUT: "settings ACK not received in timely manner",
    ErrorCode.STREAM_CLOSED: "received frame when stream half-closed",
    ErrorCode.FRAME_SIZE_ERROR: "frame with invalid size",
    ErrorCode.REFUSED_STREAM: "refused stream before processing any application logic",
    ErrorCode.CANCEL: "stream no longer needed",
    ErrorCode.COMPRESSION_ERROR: "unable to maintain the header compression context",
    ErrorCode.CONNECT_ERROR: (
        "connection established in response to a CONNECT request was reset or abnormally closed"
    ),
    ErrorCode.ENHANCE_YOUR_CALM: "detected excessive load generating behavior",
    ErrorCode.INADEQUATE_SECURITY: "security properties do not meet minimum requirements",
    ErrorCode.HTTP_1_1_REQUIRED: "endpoint requires HTTP/1.1",
}


def reason_text(code: int) -> str:
    """An error code of RFC 9113 7 in the words operators know from the reference."""
    return _REASONS.get(ErrorCode(code), "unknown reason") if code in _REASONS else "unknown reason"


class H2Failed(ZtunnelError):
    """A request got no answer; the text is what the log puts behind `h2 failed: `."""


class _Over(enum.Enum):
    """How a stream ended before its time."""

    RESET = "reset by the peer"
    FAILED = "reset by us for the peer's fault"
    DROPPED = "reset by us"
    LOST = "the tunnel was lost"


class Book(Protocol):
    """What a stream needs of the book that is kept of its tunnel."""

    def room(self, stream_id: int) -> int:
        """How many bytes of payload may be sent in one frame now."""

    def put_data_header(self, buffer: memoryview, stream_id: int, length: int) -> None:
        """Write a DATA frame's header into `buffer` and charge the windows."""

    def credit(self, stream_id: int, taken: int) -> None:
        """Return so many bytes of window to the peer, with what is written next."""


class Carrier(Protocol):
    """What a stream needs of the tunnel it is in."""

    @property
    def core(self) -> Book: ...

    @property
    def is_blocked(self) -> bool:
        """Whether nothing can be written now."""

    @property
    def waiting(self) -> "dict[int, TunnelStream]":
        """Those to be resumed when there is room."""

    @property
    def lost_text(self) -> str | None:
        """What the last word of a stream fails with once the tunnel is lost; None: nothing worth a line."""

    @property
    def failure_text(self) -> str:
        """Why there is no answer any more, once the tunnel has ended."""

    def write(self, data: memoryview) -> None:
        """Write one DATA frame."""

    def credit(self, stream_id: int, taken: int) -> None:
        """A reader took kept bytes."""

    def end(self, stream_id: int) -> None:
        """Send the end of data."""

    def reset(self, stream_id: int, code: int) -> None:
        """Give the stream up."""


class TunnelStream:
    """One stream of a tunnel: an end for `net.relay`.

    `status` and `headers` are those of the answer, at the client and until it is relayed; at the server the
    status is 200.
    """

    __slots__ = (
        "_code",
        "_ended",
        "_kept",
        "_local_ended",
        "_over",
        "_reader",
        "answer",
        "headers",
        "status",
        "stream_id",
        "tunnel",
    )

    def __init__(self, tunnel: Carrier, stream_id: int) -> None:
        self.tunnel = tunnel
        self.stream_id = stream_id
        self.status = 0
        self.headers: Fields = NO_FIELDS
        self._reader: StreamReader | None = None
        self._kept: bytearray | None = None  # what the reader did not take; at most the stream's window
        self._ended = False  # the peer sends no more
        self._local_ended = False
        self._over: _Over | None = None
        self._code = 0
        self.answer: Once | None = None  # while it is expected

    @property
    def has_ended(self) -> bool:
        """Whether both directions have had their end of data."""
        return self._ended and self._local_ended

    # -- net.relay.StreamEnd

    def attach(self, reader: StreamReader) -> None:
        """See `net.relay.StreamEnd`."""
        self._reader = reader
        self.headers = NO_FIELDS  # they have been read, and an idle stream lives long
        self.flush()

    def flush(self) -> None:
        """See `net.relay.StreamEnd`."""
        reader = self._reader
        if reader is None:
            return
        if self._kept is not None:
            with memoryview(self._kept) as view:
                taken = reader.take(view)
            if taken:
                self.tunnel.credit(self.stream_id, taken)
            if self._kept is None:  # a failure while taking
                return
            if taken < len(self._kept):
                del self._kept[:taken]
                return
            self._kept = None
        if self._ended:
            reader.ended()
        if self._is_broken:
            reader.was_reset(self._code)

    def room(self) -> int:
        """See `net.relay.StreamEnd`."""
        tunnel = self.tunnel
        if not tunnel.is_blocked:
            room = tunnel.core.room(self.stream_id)
            if room > 0:
                return room
        if self._over is None:
            tunnel.waiting[self.stream_id] = self
        return 0

    def send(self, chunk: memoryview, length: int) -> None:
        """See `net.relay.StreamEnd`."""
        tunnel = self.tunnel
        tunnel.core.put_data_header(chunk, self.stream_id, length)
        tunnel.write(chunk[: HEADER_BYTES + length])

    def end(self) -> str | None:
        """See `net.relay.StreamEnd`."""
        if self._over is None:
            self._local_ended = True
            self.tunnel.end(self.stream_id)
            return None
        if self._over is _Over.LOST:
            lost = self.tunnel.lost_text
            return None if lost is None else f"io error: {lost}"
        if self._over is _Over.DROPPED or self._code == ErrorCode.NO_ERROR or self._is_passed_on_reset:
            return None
        if self._over is _Over.RESET and self._code in (ErrorCode.CANCEL, ErrorCode.STREAM_CLOSED):
            return "io error: broken pipe"
        return f"io error: protocol error: {reason_text(self._code)}"

    @property
    def is_gone(self) -> bool:
        """See `net.relay.StreamEnd`."""
        return self._over is not None

    def failure(self) -> str | None:
        """See `net.relay.StreamEnd`."""
        if not self._is_broken or self._is_passed_on_reset:
            return None
        if self._code in (ErrorCode.CANCEL, ErrorCode.STREAM_CLOSED):
            return None
        return f"protocol error: {reason_text(self._code)}"

    def reset(self, code: int) -> None:
        """Give the stream up with RST_STREAM; harmless when it is over."""
        if self._over is None and not (self._ended and self._local_ended):
            self._over, self._code = _Over.DROPPED, code
            self._kept = None
            self.tunnel.reset(self.stream_id, code)

    def close(self) -> None:
        """Leave the stream: RST_STREAM CANCEL unless it is over."""
        self.reset(ErrorCode.CANCEL)
        self._reader = None
        if self._kept is not None:
            self.tunnel.credit(self.stream_id, len(self._kept))
            self._kept = None

    # -- the tunnel's side

    @property
    def _is_broken(self) -> bool:
        return self._over is _Over.FAILED or (self._over is _Over.RESET and self._code != ErrorCode.NO_ERROR)

    @property
    def _is_passed_on_reset(self) -> bool:
        """The peer's TCP connection was reset (RFC 9113 8.5): as little an error here as it is there."""
        return self._over is _Over.RESET and self._code == ErrorCode.CONNECT_ERROR

    def deliver(self, data: memoryview) -> None:
        """Payload from the peer."""
        reader = self._reader
        if self._kept is None:
            taken = reader.take(data) if reader is not None else 0
            if taken:
                self.tunnel.core.credit(self.stream_id, taken)
            if taken == len(data) or self._over is not None:
                return
            self._kept = bytearray(data[taken:])
        else:
            self._kept += data

    def peer_ended(self) -> None:
        """END_STREAM, or what looks like it."""
        self._ended = True
        if self._kept is None and self._reader is not None:
            self._reader.ended()

    def peer_reset(self, code: int, *, by_us: bool = False) -> None:
        """RST_STREAM from the peer, or from us because of what it did."""
        self._over, self._code = (_Over.FAILED if by_us else _Over.RESET), code
        if not self._is_broken:
            self._end_early()
        elif self._reader is not None:
            if self._kept is None:
                self._reader.was_reset(code)
            else:  # behind what came before it
                self._reader.resume()

    def tunnel_lost(self) -> None:
        """The tunnel is gone, and this stream with it."""
        if self._over is None:
            self._over = _Over.LOST
            self._end_early()

    def _end_early(self) -> None:
        """No more of it, without an error: an end of data for the reader, and no room ever again."""
        if not self._ended:
            self.peer_ended()
        if self._reader is not None:
            self._reader.resume()

    def resume(self) -> None:
        """There may be room."""
        if self._reader is not None:
            self._reader.resume()

    # -- the answer, at the client

    def expect_answer(self, engine: Engine) -> Once:
        """What the opening task waits for, anew."""
        answer = self.answer = Once(engine)
        return answer

    def answered(self, status: int, headers: Fields) -> None:
        """The answer's headers have come."""
        self.status, self.headers = status, headers
        self.wake_opener()

    def wake_opener(self) -> None:
        """There is an answer, or there will be none."""
        if self.answer is not None:
            answer, self.answer = self.answer, None
            answer.set()

    def no_answer_text(self) -> str:
        """Why a stream that has no status never got one."""
        if self._over is _Over.RESET:
            return f"stream error received: {reason_text(self._code)}"
        if self._over is _Over.FAILED:
            return f"stream error detected: {reason_text(self._code)}"
        return self.tunnel.failure_text
