"""How a discovery stream ends, and how long to wait before the next one (ztunnel src/xds/client.rs)."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.model.backoff import Backoff


class EndReason(Enum):
    """How a stream ended, as the metric names it."""

    CONNECTION_ERROR = "ConnectionError"
    RECONNECT = "Reconnect"
    ERROR = "Error"
    COMPLETE = "Complete"


@dataclass(frozen=True, slots=True)
class StatusEnd:
    """The call failed with a status. `answered`: the server's response headers had come."""

    code: GrpcCode
    message: str
    answered: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class CompleteEnd:
    """The server ended the stream without an error."""


@dataclass(frozen=True, slots=True)
class OtherEnd:
    """Something of our own was in the way: an unreadable root certificate or token."""

    error: str


StreamEnd = StatusEnd | CompleteEnd | OtherEnd

AT_ONCE_SECONDS: Final = 0.010
FAILING: Final = Backoff(first_seconds=0.020, limit_seconds=15.0)
"""The waits while attempts fail: 20, 40, 80 … ms up to 15 s (ztunnel src/xds/client.rs).

A connection alone does not shorten them again; an ordinary end does.
"""


@dataclass(frozen=True, slots=True)
class Judged:
    """What an end means: what to count and to say, and after what wait the next stream begins."""

    reason: EndReason
    text: str
    pause_seconds: float | None = None
    """After an ordinary end; None: it failed, and each failure in a row waits longer."""

    def told(self, seconds: float) -> str:
        """The line to write, given the wait."""
        if self.pause_seconds is not None:
            return self.text
        return f"{self.text}, retrying in {duration_text(seconds)}"


def judge(end: StreamEnd, address: str) -> Judged:
    """Judge one end of a stream from the server at `address`."""
    match end:
        case CompleteEnd():
            return Judged(EndReason.COMPLETE, "XDS client complete", 0.0)
        case OtherEnd(error):
            return Judged(EndReason.ERROR, f"XDS client error: {error}")
        case StatusEnd(answered=False):
            text = f"XDS client connection error: {connection_error_text(address, end)}"
            return Judged(EndReason.CONNECTION_ERROR, text)
        case StatusEnd() if _is_benign(end):
            text = f"XDS client terminated: {stream_error_text(end)}"
            return Judged(EndReason.RECONNECT, text, AT_ONCE_SECONDS)
        case StatusEnd():
            return Judged(EndReason.ERROR, f"XDS client error: {stream_error_text(end)}")


def _is_benign(end: StatusEnd) -> bool:
    """Whether a status is what a server's maximum connection age looks like."""
    match end.code:
        case GrpcCode.UNKNOWN | GrpcCode.CANCELLED | GrpcCode.DEADLINE_EXCEEDED:
            return True
        case GrpcCode.UNAVAILABLE:
            return "transport is closing" in end.message or "received prior goaway" in end.message
        case _:
            return False


def status_text(end: StatusEnd) -> str:
    """A status as the Rust ztunnel writes it, with hints for what operators meet most."""
    text = f'status: {end.code.title}, message: "{end.message}"'
    if "authentication failure" in end.message:
        text += " (hint: check the control plane logs for more information)"
    if end.source:
        text += f", source: {end.source}"
        if "Temporary failure in name resolution" in end.source:
            text += " (hint: is the DNS server reachable?)"
    return text


def connection_error_text(address: str, end: StatusEnd) -> str:
    """The text for an attempt that never got an answer."""
    return f"gRPC connection error connecting to {address}: {status_text(end)}"


def stream_error_text(end: StatusEnd) -> str:
    """The text for a stream that failed after it was established."""
    return f"gRPC error {status_text(end)}"


def duration_text(seconds: float) -> str:
    """A duration as Rust's `Duration` prints, e.g. `20ms`, `1.28s`, `15s`."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
