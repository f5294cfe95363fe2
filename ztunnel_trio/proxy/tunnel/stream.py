"""One CONNECT in a tunnel, an end for `net.relay`: what it keeps, and how it ends."""

from typing import Final, Protocol

from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.model.ending import By, Ending, Failure, StreamReset
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.relay import StreamReader
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.fields import Fields

NO_FIELDS: Final[Fields] = {}
_NOT_WANTED: Final = StreamReset(ErrorCode.NO_ERROR)
_NO_FAILURES: Final = (_NOT_WANTED, StreamReset(ErrorCode.CONNECT_ERROR))  # of who still has to say its end


class H2Failed(ZtunnelError):
    """A request got no answer; `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class Siblings(Protocol):
    """What a stream needs of the streams it is one of."""

    def room(self, stream: "TunnelStream") -> int:
        """Payload bytes that may be sent now. After 0 the stream is resumed when there is room."""

    def send(self, stream_id: int, chunk: memoryview, length: int) -> None:
        """Send the `length` bytes of payload that follow nine free ones in `chunk`."""

    def delivered(self, stream_id: int, taken: int, /) -> None:
        """Bytes just handed to the stream were taken."""

    def taken(self, stream_id: int, taken: int) -> None:
        """Bytes the stream had kept were taken."""

    def end(self, stream: "TunnelStream") -> None:
        """Send the end of data."""

    def reset(self, stream: "TunnelStream", code: int) -> None:
        """Give the stream up."""


class TunnelStream:
    """One stream of a tunnel: an end for `net.relay`.

    `status` and `headers` are those of the answer, at the client and until it is relayed; at the server the
    status is what was answered.
    """

    __slots__ = (
        "_ended",
        "_kept",
        "_local_ended",
        "_over",
        "_reader",
        "_streams",
        "answer",
        "headers",
        "status",
        "stream_id",
    )

    def __init__(self, streams: Siblings, stream_id: int) -> None:
        self._streams = streams
        self.stream_id = stream_id
        self.status = 0
        self.headers: Fields = NO_FIELDS
        self._reader: StreamReader | None = None
        self._kept: bytearray | None = None  # what the reader did not take; at most the stream's window
        self._ended = False  # the peer sends no more
        self._local_ended = False
        self._over: Failure | None = None  # how it ended before its time
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
        if self._over is not None:
            self._tell(self._over)

    def flush(self) -> None:
        """See `net.relay.StreamEnd`."""
        reader = self._reader
        if reader is None:
            return
        if self._kept is not None:
            with memoryview(self._kept) as view:
                taken = reader.take(view)
            if taken:
                self._streams.taken(self.stream_id, taken)
            if self._kept is None:  # a failure while taking
                return
            if taken < len(self._kept):
                del self._kept[:taken]
                return
            self._kept = None
        if self._ended:
            reader.ended()

    def room(self) -> int:
        """See `net.relay.StreamEnd`."""
        return self._streams.room(self)

    def send(self, chunk: memoryview, length: int) -> None:
        """See `net.relay.StreamEnd`."""
        self._streams.send(self.stream_id, chunk, length)

    def end(self) -> Failure | None:
        """See `net.relay.StreamEnd`."""
        if self._over is None:
            self._local_ended = True
            self._streams.end(self)
            return None
        return None if self._over in _NO_FAILURES else self._over

    @property
    def is_gone(self) -> bool:
        """See `net.relay.StreamEnd`."""
        return self._over is not None

    @property
    def kept(self) -> int:
        """See `net.relay.StreamEnd`."""
        return 0 if self._kept is None else len(self._kept)

    def reset(self, code: int) -> None:
        """Give the stream up with RST_STREAM; harmless when it is over."""
        if self._over is None and not self.has_ended:
            self._over = StreamReset(code, By.US)
            self._kept = None
            self._streams.reset(self, code)

    def close(self) -> None:
        """Leave the stream: RST_STREAM CANCEL unless it is over."""
        self.reset(ErrorCode.CANCEL)
        self._reader = None
        if self._kept is not None:
            self._streams.taken(self.stream_id, len(self._kept))
            self._kept = None

    # -- the tunnel's side

    def deliver(self, data: memoryview) -> None:
        """Payload from the peer."""
        reader = self._reader
        if self._kept is None:
            taken = reader.take(data) if reader is not None else 0
            if taken:
                self._streams.delivered(self.stream_id, taken)
            if taken == len(data) or self._over is not None:
                return
            self._kept = bytearray(data[taken:])
        else:
            self._kept += data

    def peer_ended(self) -> None:
        """END_STREAM."""
        self._ended = True
        if self._kept is None and self._reader is not None:
            self._reader.ended()

    def fail(self, failure: Failure) -> None:
        """It is over before its time: reset by the peer or for what it did, or lost with its tunnel."""
        if self._over is None:
            self._over = failure
            self._tell(failure)
            self.wake_opener()

    def _tell(self, failure: Failure) -> None:
        if self._reader is None:
            return
        if failure == _NOT_WANTED and self._ended:
            # The answer was complete without what is left of the request (RFC 9113 8.1).
            self._reader.resume()
        else:
            self._reader.failed(failure)

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

    def no_answer(self) -> Failure:
        """Why a stream that is gone never got a status."""
        assert self._over is not None
        return self._over
