"""What an HBONE connection tells: its events, and the error codes of RFC 9113."""

from dataclasses import dataclass
from enum import IntEnum

from ztunnel_trio.wire.connect_fields import Fields


class ErrorCode(IntEnum):
    """RFC 9113 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


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
class StreamReset:
    """The peer ended the stream with RST_STREAM; it is forgotten."""

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
    """The peer takes no stream above `last_stream_id`."""

    last_stream_id: int
    code: int


Event = (
    DataReceived
    | StreamEnded
    | TunnelRequested
    | TunnelAnswered
    | StreamReset
    | StreamFailed
    | WindowOpened
    | SettingsReceived
    | PingAcked
    | GoAwayReceived
)
