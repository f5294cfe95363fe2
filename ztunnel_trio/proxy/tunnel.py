"""One HBONE connection: its streams, windows and pumps.

`wire.http2` speaks, the engine moves. Bytes of the peer are read in one pump of the tunnel and go from the
shared buffer straight to the reader of their stream; bytes of the applications are written by the pumps of
their relays. What TLS would not take waits in one queue, and while there is something in it no relay of
this tunnel reads more from its application. A stream whose reader takes nothing keeps at most its own
window. HEADERS and the like wake Trio tasks.

What differs by role is in `proxy.client_tunnel` and `proxy.server_tunnel`, whose classes are `Tunnel`s.
Lifetimes are Trio's: their `run` is the owner's one task a tunnel (and, at the server, one a request);
leaving it closes everything.

| State   | Meaning                                                                        |
|---------|--------------------------------------------------------------------------------|
| OPEN    | streams run; after a GOAWAY of either side only those that are there           |
| CLOSING | last words are written, input is thrown away, until the peer closes too         |
| GONE    | the transport is closed                                                        |
"""

import enum
import ssl
import time
from dataclasses import dataclass
from typing import assert_never

import trio

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.ending import (
    Bug,
    By,
    DeadlinePassed,
    Failure,
    GoAway,
    Loss,
    NotProcessed,
    OtherFailure,
    StreamReset,
    TransportEnded,
    TunnelLost,
)
from ztunnel_trio.net.engine import HANGING_UP, READ_BYTES, READABLE, WRITABLE, Engine, Once
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.tls.memory import StreamLost
from ztunnel_trio.net.transport import Bytes, TlsSocket, Transport
from ztunnel_trio.proxy.tunnel_stream import TunnelStream
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection, Http2Settings

_READ_SHARE = 131_072  # what one turn of a tunnel's read pump takes
_MOST_PENDING = 524_288  # a chunk and the control frames of honest peers; more is a peer that only asks
_FULL_RECORD = 16_384  # RFC 8446 5.1
PING = b"alive?\0\0"

_NO_CAUSES = (TransportEnded(), GoAway(ErrorCode.NO_ERROR))


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Windows and limits of a tunnel; defaults of the reference (ztunnel src/config.rs, src/proxy/h2.rs)."""

    stream_window: int = 4_194_304
    connection_window: int = 16_777_216
    frame_size: int = 1_048_576
    client_header_list_size: int = 16_384
    server_header_list_size: int = 65_536
    max_streams: int = 200
    assumed_peer_streams: int = 100  # POOL_MAX_STREAMS_PER_CONNECTION, until the peer's SETTINGS say
    ping_interval_seconds: float = 10.0
    ping_timeout_seconds: float = 20.0
    doubt_seconds: float = 1.0  # a CONNECT unanswered for so long has the peer asked whether it lives
    proof_seconds: float = 2.0  # and for so long it has to say anything at all
    goodbye_seconds: float = 1.0  # how long a closed tunnel waits for the peer to close, too


class State(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"
    GONE = "gone"


class Tunnel:
    """What both roles share: the transport, its two pumps, the streams, and the end of it all."""

    def __init__(
        self, engine: Engine, tls: "ssl.SSLSocket | Transport", settings: TunnelSettings, *, is_client: bool
    ) -> None:
        self.engine = engine
        self.settings = settings
        self._is_client = is_client
        header_list = settings.client_header_list_size if is_client else settings.server_header_list_size
        self.core = Http2Connection(
            Http2Settings(
                is_client=is_client,
                stream_window=settings.stream_window,
                connection_window=settings.connection_window,
                frame_size=settings.frame_size,
                header_list_size=header_list,
                max_streams=settings.max_streams,
            )
        )
        self._transport: Transport
        if isinstance(tls, ssl.SSLSocket):
            self._transport = TlsSocket(tls)
        else:
            self._transport = tls
        self._streams: dict[int, TunnelStream] = {}
        self.waiting: dict[int, TunnelStream] = {}  # those that found no room, in order
        self._pending = bytearray()  # what this turn has to say, or what TLS did not take …
        self.is_blocked = False  # … which it is when this is set
        self._may_read = False
        self._read_wants_write = False
        self._hanging_up = False
        self._asked_again = False
        self._heard = 0  # reads that brought something
        self._state = State.OPEN
        self._says_last_word = False
        self._peer_last: int | None = None  # what the peer's GOAWAY named
        self.loss: Loss = TransportEnded()  # why it ended, once it has; before, the cause that shows
        self._acked = trio.Event()
        self.ended = trio.Event()  # no stream runs any more
        self._gone = Once(engine)

    # -- the owner's side

    @property
    def active_streams(self) -> int:
        """Streams that are not over."""
        return len(self._streams)

    def _begin(self) -> None:
        if self._state is State.GONE:
            return  # a stream opened before this was refused by the transport: there is nothing to run
        self._transport.start(self.engine, self)
        self.flush()

    async def _keep_alive(self) -> bool:
        """PING while the tunnel lives (ztunnel src/proxy/h2.rs: do_ping_pong); whether it ended by itself."""
        while True:
            with trio.move_on_after(self.settings.ping_interval_seconds):
                await self.ended.wait()
                return True
            self._acked = trio.Event()
            self.core.ping(PING)
            self.flush()
            with trio.move_on_after(self.settings.ping_timeout_seconds) as waiting:
                await self._acked.wait()
            if waiting.cancelled_caught:
                return self.ended.is_set()

    async def _say_goodbye(self) -> None:
        """After the last word: wait until it has been written and the peer has closed, but not for long."""
        with trio.move_on_after(self.settings.goodbye_seconds):
            await self._gone.wait()

    def _close(self) -> None:
        """End all streams, write what is left to say, then wait for the peer to close."""
        if self._state is not State.OPEN:
            return
        self._state = State.CLOSING
        self._end_streams()
        self.flush()
        self.write_out()
        if not self.is_blocked:
            self._finish()

    def _finish(self) -> None:
        if self._state is State.CLOSING and not self._says_last_word:
            self._says_last_word = True
            self._transport.finish()

    def _lose(self) -> None:
        """The transport is over."""
        if self._state is State.GONE:
            return
        self.write_out()
        self._state = State.GONE
        self._transport.stop()
        self._pending.clear()
        self._end_streams()
        self._gone.set()

    def _end_streams(self) -> None:
        self.ended.set()
        self._acked.set()
        self.engine.wake()
        streams, self._streams = list(self._streams.values()), {}
        self.waiting.clear()
        for stream in streams:
            stream.fail(TunnelLost(self.loss))
            stream.wake_opener()
        self._after_streams_changed()

    def _after_streams_changed(self) -> None:
        """For the roles: a stream is over, or limits have changed."""

    def _close_if_idle(self) -> None:
        """After a GOAWAY of either side the tunnel ends with its last stream: there is none now."""
        if self._state is not State.OPEN:
            return
        if (self._peer_last is not None and not self.core.open_streams) or self.core.is_drained:
            self._close()

    # -- the streams' side

    def credit(self, stream_id: int, taken: int) -> None:
        """A reader took kept bytes."""
        self.core.credit(stream_id, taken)
        if self.core.has_outgoing:
            self.flush()

    def end(self, stream_id: int) -> None:
        """The end of data of a stream of ours."""
        self.core.end(stream_id)
        self.flush()
        self._drop_if_over(stream_id)

    def reset(self, stream_id: int, code: int) -> None:
        """Give a stream up."""
        self.core.reset(stream_id, code)
        self.flush()
        self._drop_if_over(stream_id)

    def _drop_if_over(self, stream_id: int) -> None:
        if stream_id in self._streams and not self.core.is_open(stream_id):
            del self._streams[stream_id]
            self.waiting.pop(stream_id, None)
            self._after_streams_changed()
            if not self._streams:
                self._close_if_idle()

    # -- writing

    def flush(self) -> None:
        """Write what the core has to say."""
        if said := self.core.outgoing():
            self._put(said)

    def write(self, data: memoryview) -> None:
        """Write one DATA frame, behind everything that was to be said before it."""
        if self.core.has_outgoing:
            self._put(self.core.outgoing())
        self._put(data)

    def _put(self, data: Bytes) -> None:
        """Gather what is small until the end of the engine's turn: one record and one write for many."""
        if self._state is State.GONE or self._says_last_word:
            return
        pending = self._pending
        if self.is_blocked:
            pending += data
            return
        if len(pending) + len(data) <= _FULL_RECORD:
            if not pending:
                self.engine.write_later(self)
            pending += data
            return
        if pending:
            self.write_out()
            if self.is_blocked:
                pending += data
                return
        sent = self._try_write(data)
        if sent < len(data):
            pending += memoryview(data)[sent:]
            self.is_blocked = True

    def write_out(self) -> None:
        """See `net.engine.Writer`."""
        pending = self._pending
        if pending and not self.is_blocked:
            sent = self._try_write(pending)
            if sent == len(pending):
                pending.clear()
            else:
                del pending[:sent]
                self.is_blocked = True

    def _try_write(self, data: Bytes) -> int:
        """Write what TLS takes; a dead transport takes everything."""
        total, sent = len(data), 0
        try:
            sent = self._transport.write(data)
            while sent < total:
                sent += self._transport.write(memoryview(data)[sent:])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return sent
        except OSError as error:
            # The reads find the same; what has come before the failure is still to be read.
            self._note_failure(error)
            self._may_read = self._hanging_up = True
            self._ask_again()
            return total
        return total

    def _write_pending(self) -> None:
        sent = self._try_write(self._pending)
        if sent < len(self._pending):
            del self._pending[:sent]
            return
        self._pending.clear()
        self.is_blocked = False
        if self._state is State.CLOSING:
            self._finish()
        else:
            self._resume_waiting()

    def _resume_waiting(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for stream in waiting.values():
            stream.resume()

    # -- called by the engine

    def ready(self, flags: int) -> None:
        """See `net.engine.End`."""
        if flags & HANGING_UP:
            self._hanging_up = True
        if flags & WRITABLE:
            if self.is_blocked:
                self._write_pending()
            if self._read_wants_write:
                self._read_wants_write = False
                flags |= READABLE
        if flags & READABLE:
            self._may_read = True
            self._pump()

    def go_on(self) -> None:
        """See `net.engine.End`."""
        self._asked_again = False
        self._pump()

    def broke(self, error: Exception) -> None:
        """See `net.engine.End`: a bug of ours costs this tunnel."""
        self.loss = Bug(repr(error))
        self._bug = error
        self._lose()

    _bug: Exception | None = None

    def _ask_again(self) -> None:
        if not self._asked_again:
            self._asked_again = True
            self.engine.again(self)

    # -- reading

    def _pump(self) -> None:
        """Read until there is nothing or a turn's share is there, and act on it."""
        if not self._may_read or self._state is State.GONE:
            return
        if len(self._pending) > _MOST_PENDING:
            self._fail(ErrorCode.ENHANCE_YOUR_CALM)
            self._lose()
            return
        buffer = self.engine.incoming
        read = self._transport.read
        total = 0
        is_over = False
        try:
            while total < _READ_SHARE:
                count = read(READ_BYTES - total, buffer[total:] if total else buffer)
                total += count
                if count == 0:
                    is_over = True
                    break
                if count < _FULL_RECORD and not self._hanging_up and self._transport.is_drained():
                    self._may_read = False
                    break
        except ssl.SSLWantReadError:
            self._may_read = False
        except ssl.SSLWantWriteError:  # a key update (RFC 8446 4.6.3) has to be answered first
            self._may_read, self._read_wants_write = False, True
        except OSError as error:
            self._note_failure(error)
            is_over = True
        if total and self._state is State.OPEN:
            self._receive(buffer[:total])
        if is_over:
            self._lose()
        elif self._may_read:
            self._ask_again()

    def _note_failure(self, error: OSError) -> None:
        match error:
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                pass
            case StreamLost(failure=TunnelLost(cause)):  # the outer tunnel's end is ours
                self._blame(cause)
            case _:
                found = ending_of(error)
                self._blame(OtherFailure(str(error)) if isinstance(found, DeadlinePassed) else found)

    def _fail(self, code: int) -> None:
        self._blame(GoAway(code, By.US))

    def _blame(self, loss: Loss) -> None:
        """Note why the tunnel ends. The first cause is the one that is told; a graceful GOAWAY is none."""
        if self.loss in _NO_CAUSES:
            self.loss = loss

    def _receive(self, view: memoryview) -> None:
        self._heard += 1
        now = time.monotonic()
        while view and self._state is State.OPEN:
            try:
                events = self.core.receive(view, now)
            except PeerBrokeProtocol as error:
                self._fail(ErrorCode.PROTOCOL_ERROR if error.code is None else error.code)
                self._close()
                return
            view = view[self.core.taken :]
            self._tell(events)

    def _tell(self, events: "list[http2.Event]") -> None:
        resumed: list[int] = []
        for event in events:
            if type(event) is http2.DataReceived:
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.deliver(event.data)
                else:
                    self.core.credit(event.stream_id, len(event.data))
            else:
                self._handle(event, resumed)
        if said := self.core.outgoing():
            self._put(said)
        # Now, not before: what is resumed may change what was walked over.
        for stream_id in resumed:
            if stream_id == 0:
                self._resume_waiting()
            elif (stream := self.waiting.pop(stream_id, None)) is not None:
                stream.resume()

    def _handle(self, event: http2.Event, resumed: list[int]) -> None:
        match event:
            case http2.WindowOpened(stream_id):
                resumed.append(stream_id)
            case http2.StreamEnded(stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.peer_ended()
                    # Not by the core's book: that may have seen a reset that came with the end and is still
                    # to be told.
                    if stream.has_ended:
                        self._drop_if_over(stream_id)
            case http2.StreamReset(stream_id, code):
                self._stream_over(stream_id, self._reset_of(stream_id, code))
            case http2.StreamFailed(stream_id, code):
                self._stream_over(stream_id, StreamReset(code, By.US))
            case http2.TunnelRequested():
                self._requested(event)
            case http2.TunnelAnswered(stream_id, status, headers):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.answered(status, headers)
            case http2.SettingsReceived(max_streams):
                self._settings_received(max_streams)
            case http2.PingAcked():
                self._acked.set()
                self.engine.wake()
            case http2.GoAwayReceived():
                self._go_away_received(event)
            case http2.DataReceived():
                pass  # by `_receive`
            case _:
                assert_never(event)
        if not self._streams:
            self._close_if_idle()

    def _reset_of(self, stream_id: int, code: int) -> Failure:
        """What a RST_STREAM of the peer means."""
        stream = self._streams.get(stream_id)
        is_unanswered = self._is_client and stream is not None and stream.status == 0
        if code == ErrorCode.REFUSED_STREAM and is_unanswered:
            return NotProcessed(code)
        return StreamReset(code)

    def _stream_over(self, stream_id: int, failure: Failure) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self.waiting.pop(stream_id, None)
            stream.fail(failure)
            stream.wake_opener()
            self._after_streams_changed()

    def _go_away_received(self, event: http2.GoAwayReceived) -> None:
        self._peer_last = event.last_stream_id
        self._blame(GoAway(event.code))
        self._after_streams_changed()

    def _settings_received(self, max_streams: int | None) -> None:
        """For the client."""

    def _requested(self, asked: http2.TunnelRequested) -> None:
        """For the server."""
