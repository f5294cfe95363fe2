"""The streams of one tunnel: what HTTP/2 tells goes to them, what they say goes into the link.

*Turns.* What one read brought is worked off in steps of `wire.http2`; when a turn is over, the rest waits in
the link. Streams that wait for room are resumed once a turn, those only that have room, a few at a time.
A tunnel's end is told to its streams a few at a time, too: each wakes a task.

*Nesting.* A reader that is handed payload may write, end or reset at once, and a writer that is resumed may
do so, too; so nobody is resumed before the events at hand have been dealt with.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ztunnel_trio.model.ending import By, Failure, Loss, NotProcessed, StreamReset, TunnelLost
from ztunnel_trio.net.engine import HEADER_ROOM, Engine
from ztunnel_trio.proxy.tunnel.link import Link
from ztunnel_trio.proxy.tunnel.stream import TunnelStream
from ztunnel_trio.proxy.tunnel.turn import REQUEST_EVENTS, TASK_EVENTS, Turn
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection

_COSTS: Final[dict[type[http2.Event], int]] = {
    http2.StreamEnded: TASK_EVENTS,
    http2.ResetReceived: TASK_EVENTS,
    http2.StreamFailed: TASK_EVENTS,
    http2.TunnelAnswered: TASK_EVENTS,
    http2.TunnelRequested: REQUEST_EVENTS,
}


class TunnelStreams:
    """See the module's text.

    `on_event` is told what is of no stream there is; `on_change` that a stream is over. `heard` counts reads
    that brought something.
    """

    __slots__ = (
        "_asked_again",
        "_by_id",
        "_core",
        "_engine",
        "_link",
        "_losing",
        "_loss",
        "_on_change",
        "_on_event",
        "_resumes_all",
        "_resuming",
        "_waiting",
        "delivered",
        "heard",
    )

    def __init__(
        self,
        engine: Engine,
        core: Http2Connection,
        link: Link,
        on_event: Callable[[http2.Event], None],
        on_change: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._core = core
        self._link = link
        self._on_event = on_event
        self._on_change = on_change
        self._by_id: dict[int, TunnelStream] = {}
        self._waiting: dict[int, TunnelStream] = {}  # those that found no room, in order
        self._resumes_all = False  # what they wait for may be there
        self._resuming: list[int] = []  # these streams' own windows have opened
        self._loss: Loss | None = None
        self._losing: deque[TunnelStream] = deque()  # those that have not been told of it
        self._asked_again = False
        self.delivered = core.credit  # see `stream.Siblings`: while reading, and written with the rest
        self.heard = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, stream_id: int) -> TunnelStream:
        """A stream that was opened, by either side."""
        stream = self._by_id[stream_id] = TunnelStream(self, stream_id)
        return stream

    def flush(self) -> None:
        """Write what HTTP/2 has to say."""
        if said := self._core.outgoing():
            self._link.write(said)

    # -- see `stream.Siblings`

    def room(self, stream: TunnelStream) -> int:
        if self._loss is not None:
            return 0
        if not self._link.is_blocked:
            room = self._core.room(stream.stream_id)
            if room > 0:
                return room
        if not stream.is_gone:
            self._waiting[stream.stream_id] = stream
        return 0

    def send(self, stream_id: int, chunk: memoryview, length: int) -> None:
        core, link = self._core, self._link
        if core.has_outgoing:  # which must come before later DATA
            link.write(core.outgoing())
        core.put_data_header(chunk, stream_id, length)
        link.write(chunk[: HEADER_ROOM + length])

    def taken(self, stream_id: int, taken: int) -> None:
        self._core.credit(stream_id, taken)
        if self._core.has_outgoing:
            self.flush()

    def end(self, stream: TunnelStream) -> None:
        self._core.end(stream.stream_id)
        self.flush()
        self.drop_if_over(stream)

    def reset(self, stream: TunnelStream, code: int) -> None:
        self._core.reset(stream.stream_id, code)
        self.flush()
        self.drop_if_over(stream)

    def drop_if_over(self, stream: TunnelStream) -> None:
        """Forget a stream that HTTP/2 has forgotten."""
        stream_id = stream.stream_id
        if stream_id in self._by_id and not self._core.is_open(stream_id):
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> TunnelStream | None:
        stream = self._by_id.pop(stream_id, None)
        if stream is not None:
            self._waiting.pop(stream_id, None)
            self._on_change()
        return stream

    # -- reading

    def received(self, view: memoryview) -> int:
        """Work off a turn's worth of what has come. Returns how much that was.

        Raises:
            PeerBrokeProtocol: the connection is over.
        """
        self.heard += 1
        core, now = self._core, time.monotonic()
        events = core.receive(view, now)
        used, size = core.taken, len(view)
        cost = self._tell(events)
        if used < size:  # more than a step: rare
            turn = Turn()
            turn.spend(cost)
            while used < size and self._loss is None and not turn.is_over:
                events = core.receive(view[used:], now)
                used += core.taken
                turn.spend(self._tell(events))
        if core.has_outgoing:
            self._link.write(core.outgoing())
        if self._resumes_all or self._resuming:
            self.resume()
        return used

    def _tell(self, events: list[http2.Event]) -> int:
        """Pass events on; returns what they count in a turn."""
        by_id, cost = self._by_id, len(events)
        for event in events:
            if type(event) is http2.DataReceived:
                stream = by_id.get(event.stream_id)
                if stream is not None:
                    stream.deliver(event.data)
                else:
                    self._core.credit(event.stream_id, len(event.data))
            else:
                cost += _COSTS.get(type(event), 0)
                self._handle(event)
        return cost

    def _handle(self, event: http2.Event) -> None:
        match event:
            case http2.WindowOpened(stream_id):
                if stream_id == 0:
                    self._resumes_all = True
                elif stream_id in self._waiting:
                    self._resuming.append(stream_id)
            case http2.StreamEnded(stream_id):
                if (stream := self._by_id.get(stream_id)) is not None:
                    stream.peer_ended()
                    # Not by the book of HTTP/2: that may have seen a reset that came with the end and is
                    # still to be told.
                    if stream.has_ended:
                        self.drop_if_over(stream)
            case http2.ResetReceived(stream_id, code):
                refused = code == ErrorCode.REFUSED_STREAM
                self._fail(stream_id, NotProcessed(code) if refused else StreamReset(code))
            case http2.StreamFailed(stream_id, code):
                self._fail(stream_id, StreamReset(code, By.US))
            case http2.TunnelAnswered(stream_id, status, headers):
                if (stream := self._by_id.get(stream_id)) is not None:
                    stream.answered(status, headers)
            case http2.GoAwayReceived(unprocessed=unprocessed, code=code):
                self._on_event(event)
                for stream_id in unprocessed:
                    self._fail(stream_id, NotProcessed(code))
            case _:
                self._on_event(event)

    def _fail(self, stream_id: int, failure: Failure) -> None:
        stream = self._forget(stream_id)
        if stream is not None:
            stream.fail(failure)

    # -- writing again

    def resume_all(self) -> None:
        """The link takes bytes again."""
        self._resumes_all = True
        self.resume()

    def resume(self) -> None:
        """Let those write that wait and have room, as long as a turn lasts."""
        if self._resumes_all:
            self._resumes_all = False
            resuming = list(self._waiting)
        else:
            resuming = self._resuming
        self._resuming = []
        turn = Turn()
        for number, stream_id in enumerate(resuming):
            if self._link.is_blocked:
                return  # all of them wait for that
            if turn.is_over:
                self._resuming = resuming[number:]
                self._ask_again()
                return
            if self._core.room(stream_id) > 0 and (stream := self._waiting.pop(stream_id, None)) is not None:
                stream.resume()
                turn.spend(TASK_EVENTS)

    # -- the end

    def lose(self, loss: Loss) -> None:
        """The tunnel is over, and with it every stream that is not: tell them, in turns."""
        if self._loss is None:
            self._loss = loss
            self._losing = deque(self._by_id.values())
            self._by_id.clear()
            self._waiting.clear()
            self._resuming.clear()
            self._resumes_all = False
            self._go_on_losing()

    def lose_rest(self) -> None:
        """Tell all of them now: nobody will wait for the turns."""
        while self._losing:
            self._go_on_losing()

    def _go_on_losing(self) -> None:
        turn = Turn()
        while self._losing and self._loss is not None:
            if turn.is_over:
                self._ask_again()
                return
            self._losing.popleft().fail(TunnelLost(self._loss))
            turn.spend(TASK_EVENTS)

    # -- an end of the engine's, for rounds alone

    def _ask_again(self) -> None:
        if not self._asked_again:
            self._asked_again = True
            self._engine.again(self)

    def go_on(self) -> None:
        """See `net.engine.End`."""
        self._asked_again = False
        if self._losing:
            self._go_on_losing()
        elif self._resuming:
            self.resume()

    def ready(self, flags: int) -> None:
        """See `net.engine.End`; there is no descriptor, so this is not called."""

    def broke(self, error: Exception) -> None:
        """See `net.engine.End`: a bug of ours costs this tunnel."""
        self._link.broke(error)
