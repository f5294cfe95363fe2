"""What an HTTP/2 connection tells."""

from dataclasses import dataclass

from ztunnel_trio.wire.http2.fields import Fields


@dataclass(slots=True)
class DataReceived:
    """Payload of a stream; the view is valid until the next `receive`. To be paid back with `credit`."""

    stream_id: int
    data: memoryview


@dataclass(slots=True)
class StreamEnded:
    """The peer sends no more on this stream: END_STREAM or trailers."""

    stream_id: int


@dataclass(slots=True)
class TunnelRequested:
    """A well-formed request; anything but a CONNECT with an authority is to be answered 400."""

    stream_id: int
    method: str
    authority: str | None
    headers: Fields


@dataclass(slots=True)
class TunnelAnswered:
    """The final answer to a request of ours."""

    stream_id: int
    status: int
    headers: Fields


@dataclass(slots=True)
class ResetReceived:
    """The peer ended the stream with RST_STREAM; it is forgotten.

    REFUSED_STREAM says that nothing was done with the request (RFC 9113 8.7).
    """

    stream_id: int
    code: int


@dataclass(slots=True)
class StreamFailed:
    """The peer broke the rules of one stream; it has been reset with `code` and is forgotten."""

    stream_id: int
    code: int


@dataclass(slots=True)
class WindowOpened:
    """More may be sent: on one stream, or with stream_id 0 on any."""

    stream_id: int


@dataclass(slots=True)
class SettingsReceived:
    """The peer's limit of concurrent streams, None when it names none."""

    max_streams: int | None


@dataclass(slots=True)
class PingAcked:
    """An answer to `ping`."""

    payload: bytes


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no stream above `last_stream_id`.

    `unprocessed` are those of ours it did nothing with (RFC 9113 6.8): they are forgotten, and may be asked
    for again on another connection. `debug` is the beginning of what the peer says of the reason.
    """

    last_stream_id: int
    code: int
    unprocessed: tuple[int, ...] = ()
    debug: bytes = b""


Event = (
    DataReceived
    | StreamEnded
    | TunnelRequested
    | TunnelAnswered
    | ResetReceived
    | StreamFailed
    | WindowOpened
    | SettingsReceived
    | PingAcked
    | GoAwayReceived
)
