"""How a discovery stream ends, and how long to wait before the next one (ztunnel src/xds/client.rs)."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.facts.grpc import GrpcCode


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


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do about an end: how long to wait, what to count and what to say (as a warning or not)."""

    seconds: float
    reason: EndReason
    text: str
    is_warning: bool = True


class Retries:
    """The wait between streams: 20, 40, 80 … ms up to 15 s while attempts fail (ztunnel src/xds/client.rs).

    A connection alone does not shorten it again; an ordinary end does.
    """

    FIRST_SECONDS: Final = 0.010
    LIMIT_SECONDS: Final = 15.0

    __slots__ = ("_address", "_backoff")

    def __init__(self, address: str) -> None:
        self._address = address
        self._backoff = self.FIRST_SECONDS

    def after(self, end: StreamEnd) -> Retry:
        """Judge one end."""
        match end:
            case CompleteEnd():
                self._backoff = self.FIRST_SECONDS
                return Retry(0.0, EndReason.COMPLETE, "XDS client complete")
            case OtherEnd(error):
                seconds = self._longer()
                return Retry(
                    seconds,
                    EndReason.ERROR,
                    f"XDS client error: {error}, retrying in {duration_text(seconds)}",
                )
            case StatusEnd(answered=False):
                seconds = self._longer()
                text = connection_error_text(self._address, end)
                return Retry(
                    seconds,
                    EndReason.CONNECTION_ERROR,
                    f"XDS client connection error: {text}, retrying in {duration_text(seconds)}",
                )
            case StatusEnd() if _is_benign(end):
                self._backoff = self.FIRST_SECONDS
                return Retry(
                    self._backoff,
                    EndReason.RECONNECT,
                    f"XDS client terminated: {stream_error_text(end)}",
                    is_warning=False,
                )
            case StatusEnd():
                seconds = self._longer()
                text = stream_error_text(end)
                return Retry(
                    seconds,
                    EndReason.ERROR,
                    f"XDS client error: {text}, retrying in {duration_text(seconds)}",
                )

    def _longer(self) -> float:
        self._backoff = min(self.LIMIT_SECONDS, 2 * self._backoff)
        return self._backoff


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
