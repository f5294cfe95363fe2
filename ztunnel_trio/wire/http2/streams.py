"""The states of a stream (RFC 9113 5.1), as a table, and the streams of one connection.

```
            request             END_STREAM, theirs                END_STREAM, ours
    IDLE ------------> OPEN ----------------------> REMOTE_ENDED ------------------> ENDED
                        |       END_STREAM, ours                 END_STREAM, theirs   ^
                        +-------------------------> LOCAL_ENDED ----------------------+
                                                                                      | all bytes taken
    RST_STREAM from any of the three: RESET_BY_PEER, RESET_BY_US          LINGERING --+
```

RFC 9113 has one "closed"; here it is five states, since what a late frame means depends on how the stream
was closed. LINGERING is a stream both ends have ended whose last bytes the application has not taken: their
credit belongs to the connection still. The last few closed streams are remembered; of the others we only
know that they were (FORGOTTEN) or were passed over by a higher id (SKIPPED).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Budgets, Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.frames import LARGEST_STREAM_ID, Outgoing

_REMEMBERED: Final = 16  # closed streams whose late frames are still told apart, and gaps in the ids


class State(IntEnum):
    """Where a stream is; the first three are alive."""

    OPEN = 0
    LOCAL_ENDED = 1
    REMOTE_ENDED = 2
    LINGERING = 3
    ENDED = 4
    RESET_BY_US = 5
    RESET_BY_PEER = 6
    IDLE = 7
    FORGOTTEN = 8
    SKIPPED = 9


class Input(IntEnum):
    """What the peer does to a stream."""

    HEADERS = 0
    DATA = 1
    WINDOW_UPDATE = 2
    RESET = 3


class ErrorScope(Enum):
    """How far an error reaches."""

    NOBODY = "the frame is dropped"
    ANSWERED = "the frame is dropped and answered with RST_STREAM"
    STREAM = "the stream is reset"
    CONNECTION = "the connection ends"


@dataclass(frozen=True, slots=True)
class Fault:
    """What an input means that a state does not allow."""

    scope: ErrorScope
    code: ErrorCode = ErrorCode.NO_ERROR


_DROPPED: Final = Fault(ErrorScope.NOBODY)
_LATE: Final = Fault(ErrorScope.ANSWERED, ErrorCode.STREAM_CLOSED)
_CLOSED: Final = Fault(ErrorScope.CONNECTION, ErrorCode.STREAM_CLOSED)
_NEVER: Final = Fault(ErrorScope.CONNECTION, ErrorCode.PROTOCOL_ERROR)

# What is not in the table is allowed.
FAULTS: Final[dict[State, dict[Input, Fault]]] = {
    State.OPEN: {},
    State.LOCAL_ENDED: {},
    State.REMOTE_ENDED: {
        # "If an endpoint receives additional frames, other than WINDOW_UPDATE, PRIORITY, or RST_STREAM, for a
        # stream that is in this state, it MUST respond with a stream error of type STREAM_CLOSED." DATA that
        # follows its own END_STREAM is no race but a broken peer: we end the connection, as 5.4.1 allows.
        Input.HEADERS: Fault(ErrorScope.STREAM, ErrorCode.STREAM_CLOSED),
        Input.DATA: _CLOSED,
    },
    State.LINGERING: {
        Input.HEADERS: _CLOSED,
        Input.DATA: _LATE,
        # "Endpoints MUST ignore WINDOW_UPDATE or RST_STREAM frames received in this state" for a while:
        # they may have been on their way when our END_STREAM was.
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
    State.ENDED: {
        Input.HEADERS: _CLOSED,
        Input.DATA: _LATE,
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
    State.RESET_BY_US: {
        # "An endpoint that sends a RST_STREAM frame on a stream that is in the open or half-closed state
        # could receive any type of frame. The peer might have sent or enqueued for sending these frames
        # before processing the RST_STREAM frame."
        Input.HEADERS: _LATE,
        Input.DATA: _DROPPED,
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
    State.RESET_BY_PEER: {
        Input.HEADERS: _CLOSED,
        Input.DATA: _LATE,
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
    State.IDLE: {
        # "Receiving any frame other than HEADERS or PRIORITY on a stream in this state MUST be treated as a
        # connection error of type PROTOCOL_ERROR."
        Input.DATA: _NEVER,
        Input.WINDOW_UPDATE: _NEVER,
        Input.RESET: _NEVER,
    },
    State.FORGOTTEN: {
        # Which of the closed states it was in nobody knows any more, so only the stream pays.
        Input.HEADERS: _LATE,
        Input.DATA: _LATE,
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
    State.SKIPPED: {
        # "The identifier of a newly established stream MUST be numerically greater than all streams that the
        # initiating endpoint has opened or reserved" (5.1.1).
        Input.HEADERS: _NEVER,
        Input.DATA: _LATE,
        Input.WINDOW_UPDATE: _DROPPED,
        Input.RESET: _DROPPED,
    },
}

_AFTER_THEIR_END: Final = {State.OPEN: State.REMOTE_ENDED, State.LOCAL_ENDED: State.ENDED}
_AFTER_OUR_END: Final = {State.OPEN: State.LOCAL_ENDED, State.REMOTE_ENDED: State.ENDED}


class Stream:
    """One stream that is not closed, or lingers."""

    __slots__ = (
        "answered",
        "expected",
        "held",
        "is_plain",
        "may_receive",
        "may_send",
        "owed",
        "receive_window",
        "send_window",
        "state",
        "stream_id",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.stream_id = stream_id
        self.state = State.OPEN
        self.send_window = send_window
        self.receive_window = receive_window
        self.held = 0  # handed up, not credited yet
        self.owed = 0  # credited, not announced yet
        self.expected = -1  # what is left of a content-length
        self.answered = False  # the final HEADERS of the answer have passed
        self.may_send = True
        self.may_receive = True
        self.is_plain = False  # DATA of it needs no look at anything but the windows

    def is_now(self, state: State) -> None:
        """Move on."""
        self.state = state
        self.may_send = state is State.OPEN or state is State.REMOTE_ENDED
        self.may_receive = state is State.OPEN or state is State.LOCAL_ENDED
        self.is_plain = self.is_plain and self.may_receive


class Streams:
    """The streams of one connection. `highest` is the largest id a client has used, whichever end that is."""

    __slots__ = ("_budgets", "_out", "_recent", "_skipped", "alive", "by_id", "highest")

    def __init__(self, out: Outgoing, budgets: Budgets) -> None:
        self._out = out
        self._budgets = budgets
        self.by_id: dict[int, Stream] = {}
        self.alive = 0  # of them, those that are not only lingering
        self.highest = 0
        self._recent: dict[int, State] = {}  # the last few that were closed
        self._skipped: deque[range] = deque(maxlen=_REMEMBERED)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self.by_id.values())

    @property
    def next_id(self) -> int:
        """The id of the next request; over LARGEST_STREAM_ID when all have been used."""
        return self.highest + 2 if self.highest else 1

    def get_alive(self, stream_id: int) -> Stream | None:
        """A stream that is not closed."""
        stream = self.by_id.get(stream_id)
        return None if stream is None or stream.state is State.LINGERING else stream

    def begin(self, stream_id: int, send_window: int, receive_window: int) -> Stream:
        """A request has been sent or has come; its id is above all others."""
        if stream_id > self.highest + 2:
            self._skipped.append(range(self.highest + 1, stream_id))
        self.highest = stream_id
        self.alive += 1
        stream = self.by_id[stream_id] = Stream(stream_id, send_window, receive_window)
        return stream

    def state_of(self, stream_id: int) -> State:
        """Where a stream is, whatever its id."""
        stream = self.by_id.get(stream_id)
        if stream is not None:
            return stream.state
        if stream_id % 2 == 0 or stream_id > self.highest:
            return State.IDLE  # no server of HBONE opens streams
        recent = self._recent.get(stream_id)
        if recent is not None:
            return recent
        return State.SKIPPED if any(stream_id in gap for gap in self._skipped) else State.FORGOTTEN

    def hear(self, stream_id: int, what: Input) -> Stream | Fault | None:
        """What an input of the peer's means: for a stream that takes it, or a fault of that stream alone.

        None: it means nothing any more, and has been answered where it has to be.

        Raises:
            PeerBrokeProtocol: it ends the connection.
        """
        state = self.state_of(stream_id)
        fault = FAULTS[state].get(what)
        if fault is None:
            return self.by_id[stream_id]
        if fault.scope is ErrorScope.CONNECTION:
            text = f"{what.name} for a stream that is {state.name.lower()}"
            raise PeerBrokeProtocol(text, fault.code)
        if fault.scope is ErrorScope.ANSWERED:
            self._out.reset(stream_id, fault.code)
            if what is not Input.DATA:  # payload that was on its way is honest
                self._budgets.spend(Excess.STREAM_ERRORS)
        return fault if fault.scope is ErrorScope.STREAM else None

    def they_ended(self, stream: Stream) -> None:
        """END_STREAM of the peer's."""
        self._ended(stream, _AFTER_THEIR_END[stream.state])

    def we_ended(self, stream: Stream) -> None:
        """END_STREAM of ours."""
        self._ended(stream, _AFTER_OUR_END[stream.state])

    def _ended(self, stream: Stream, state: State) -> None:
        if state is not State.ENDED:
            stream.is_now(state)
        elif stream.held:
            stream.is_now(State.LINGERING)
            self.alive -= 1
        else:
            self._close(stream, state)

    def release(self, stream: Stream, taken: int) -> int:
        """Bytes of a lingering stream were taken. Returns how many the connection is owed for that."""
        taken = min(taken, stream.held)
        stream.held -= taken
        if not stream.held:
            self._close(stream, State.ENDED)
        return taken

    def reset(self, stream: Stream, code: int) -> int:
        """Send RST_STREAM and forget the stream. Returns what it held, for the connection's window."""
        self._out.reset(stream.stream_id, code)
        return self._close(stream, State.RESET_BY_US)

    def was_reset(self, stream: Stream) -> int:
        """The peer reset it, or did nothing with it. Returns what it held, for the connection's window."""
        return self._close(stream, State.RESET_BY_PEER)

    def _close(self, stream: Stream, state: State) -> int:
        del self.by_id[stream.stream_id]
        if stream.state is not State.LINGERING:
            self.alive -= 1
        stream.is_now(state)
        recent = self._recent
        recent[stream.stream_id] = state
        if len(recent) > _REMEMBERED:
            del recent[next(iter(recent))]
        return stream.held

    @property
    def has_ids(self) -> bool:
        """Whether there is an id left for a request."""
        return self.highest < LARGEST_STREAM_ID - 1
