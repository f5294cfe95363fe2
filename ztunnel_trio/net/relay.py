"""Pumps: copy between a connection's two ends, both ways, until both directions have ended.

A connection's one Trio task runs its `Pair`, which registers the ends and waits; leaving it for whatever
reason unregisters and closes them. The pumps themselves are synchronous and run by the engine.

*Half-close.* The end of one direction is passed on (FIN or END_STREAM) and the other direction runs on.
*Only that is clean.* A TCP connection that fails resets its stream with CONNECT_ERROR (RFC 9113 8.5) or the
TCP connection on the other side; a stream that ends in any other way - reset, lost with its tunnel -
becomes a TCP reset, also for an application that only writes and would never read an end.
*What came before it goes first*, while the application takes it: it has the truth about what was complete.
*What the log says* follows the reference (ztunnel src/copy.rs): resets and broken pipes of an application's
TCP connection are passed on and no errors of ours; everything else that is not clean is one.
"""

import select
import socket
from typing import Final, Protocol

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.ending import (
    CLEAN,
    By,
    BytesLeftOver,
    DirectionFailed,
    Ending,
    Failure,
    Flow,
    StreamReset,
    SystemFailure,
)
from ztunnel_trio.net.engine import CHUNK_BYTES, CHUNKS_A_TURN, HANGING_UP, READABLE, WRITABLE, Engine
from ztunnel_trio.net.failures import (
    RESETS,
    arm,
    disarm,
    pending_error,
    shutdown_writing,
    unsent_bytes,
)
from ztunnel_trio.net.pair import ByteCounts, Pair
from ztunnel_trio.net.socket_pair import SocketPair

STREAM_CLOSED: Final = 5  # RFC 9113 7
CANCEL: Final = 8
CONNECT_ERROR: Final = 10


_OUTBOUND_FLOWS: Final = (Flow.TO_DESTINATION, Flow.TO_SOURCE)  # the socket is the client's
_INBOUND_FLOWS: Final = (Flow.TO_SOURCE, Flow.TO_DESTINATION)
_PASSED_ON_RESET: Final = StreamReset(CONNECT_ERROR, By.PEER)  # as little an error here as it is there


class StreamReader(Protocol):
    """What a tunnel's stream tells whoever relays it."""

    def take(self, data: memoryview) -> int:
        """Bytes from the peer; returns how many the other side took. The rest is kept and offered again."""

    def ended(self) -> None:
        """END_STREAM has come, and all bytes before it have been taken."""

    def failed(self, failure: Failure) -> None:
        """The stream is over without END_STREAM from both sides: reset by whomever, or its tunnel is lost.

        Told at once and once, whatever the application does. What the stream still keeps is offered on
        every `StreamEnd.flush`.
        """

    def resume(self) -> None:
        """There may be room again."""


class StreamEnd(Protocol):
    """What a relay needs of a stream in a tunnel."""

    def attach(self, reader: StreamReader) -> None:
        """From now on tell `reader`; what has come already is offered at once, on the engine's next round."""

    def flush(self) -> None:
        """Offer what was kept: the other side takes bytes again."""

    def room(self) -> int:
        """Payload bytes that may be sent now. After 0 comes `StreamReader.resume`."""

    def send(self, chunk: memoryview, length: int) -> None:
        """Send the `length` bytes of payload that follow nine free ones in `chunk`."""

    def end(self) -> Failure | None:
        """Send the end of data. Returns why the peer could not be told, where that is a failure."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be sent any more: reset, or the tunnel lost."""

    @property
    def kept(self) -> int:
        """Bytes from the peer that the reader has not taken yet."""

    def reset(self, code: int) -> None:
        """Give the stream up; harmless when it is over."""

    def close(self) -> None:
        """Leave it: reset with CANCEL unless it is over."""


class SocketEnd:
    """A connected, non-blocking stream socket as one end of a relay, which owns and closes it."""

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


Endpoint = SocketEnd | StreamEnd


async def relay(engine: Engine, client: Endpoint, upstream: Endpoint, traffic: ByteCounts) -> Ending:
    """Copy both ways until both have ended; returns how they did.

    Owns both ends from the call on and closes them on every way out. At least one is a socket.
    """
    return await pair_of(engine, client, upstream, traffic).run()


def pair_of(engine: Engine, client: Endpoint, upstream: Endpoint, traffic: ByteCounts) -> Pair:
    """What `relay` runs, for whoever wants to cancel it; owns both ends from the call on."""
    if isinstance(client, SocketEnd):
        if isinstance(upstream, SocketEnd):
            return SocketPair(engine, client.sock, upstream.sock, traffic)
        return _StreamPair(engine, client.sock, upstream, traffic, is_outbound=True)
    if isinstance(upstream, SocketEnd):
        return _StreamPair(engine, upstream.sock, client, traffic, is_outbound=False)
    raise WeBrokeProtocol("a relay between two streams")


class _StreamPair(Pair):
    """A socket and a stream. One object a connection: end of the engine, reader of the stream."""

    __slots__ = (
        "_fd",
        "_hanging_up",
        "_inward",
        "_may_read",
        "_may_write",
        "_outward",
        "_reads",
        "_sock",
        "_stream",
        "_writes",
    )

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        stream: StreamEnd,
        traffic: ByteCounts,
        *,
        is_outbound: bool,
    ) -> None:
        super().__init__(engine, traffic)
        self._sock = sock
        self._fd = sock.fileno()
        self._stream = stream
        # where bytes go from the socket into the stream, and from the stream to the socket
        self._inward, self._outward = _OUTBOUND_FLOWS if is_outbound else _INBOUND_FLOWS
        self._may_read = False
        self._may_write = True  # attempt first
        self._hanging_up = False  # the kernel has seen the peer's FIN or a failure: read to the end of it
        self._reads = True  # socket -> stream runs
        self._writes = True  # stream -> socket runs

    def _arm(self) -> None:
        arm(self._sock)

    def _start(self) -> None:
        self._engine.register(self._fd, self)
        self._stream.attach(self)

    def _stop_pumps(self) -> None:
        self._reads = self._writes = False

    def _close(self) -> None:
        self._stop_pumps()
        self._close_socket()
        self._stream.close()

    def _close_socket(self) -> None:
        """Close it: with FIN after a clean end, else, armed as it is, with RST."""
        if self._fd >= 0:
            self._engine.forget(self._fd)
            self._fd = -1
        self._sock.close()

    def _left_for(self, sock: socket.socket) -> int:
        return self._stream.kept + super()._left_for(sock) if self._writes else super()._left_for(sock)

    # -- called by the engine

    def ready(self, flags: int) -> None:
        if flags & HANGING_UP:
            self._hanging_up = True
        if flags & WRITABLE and not self._may_write:
            self._may_write = True
            if self._writes:
                self._stream.flush()
        if flags & READABLE:
            self._may_read = True
            if self._reads:
                self._pump()
            if flags & select.EPOLLERR and not self.done.is_set:
                self._look_for_error()

    def go_on(self) -> None:
        self._pump()

    def _look_for_error(self) -> None:
        """Find a reset that no read will: after the peer's FIN, or while the stream has no room."""
        if self._reads and self._stream.room() > 0:
            return  # reads come to it, behind the bytes before it
        error = pending_error(self._sock)
        if error is not None:
            self._socket_failed(error)

    # -- socket -> stream

    def _pump(self) -> None:
        """Move bytes from the socket into the stream: at most a turn's share."""
        if not self._may_read or not self._reads:
            return
        engine, stream = self._engine, self._stream
        for _ in range(CHUNKS_A_TURN):
            room = stream.room()
            if room <= 0:
                if stream.is_gone:
                    self._drain_to_nowhere()
                return
            asked = engine.payload if room >= CHUNK_BYTES else engine.payload[:room]
            try:
                count = self._sock.recv_into(asked)
            except BlockingIOError:
                self._may_read = False
                return
            except OSError as error:
                self._socket_failed(error)
                return
            if count == 0:
                self._read_ended()
                return
            stream.send(engine.outgoing, count)
            if self._inward is Flow.TO_DESTINATION:
                self._traffic.to_destination += count
            else:
                self._traffic.to_source += count
            if count < len(asked) and not self._hanging_up:
                self._may_read = False  # a short read emptied the queue (epoll(7))
                return
        engine.again(self)

    def _drain_to_nowhere(self) -> None:
        """The stream takes nothing any more: bytes that would go there are an error, an end is none."""
        try:
            count = self._sock.recv_into(self._engine.payload)
        except BlockingIOError:
            self._may_read = False
            return
        except OSError as error:
            self._socket_failed(error)
            return
        if count:
            self._failed(DirectionFailed(self._inward, BytesLeftOver()))
        self._read_ended()

    def _read_ended(self) -> None:
        self._reads = False
        failure = self._stream.end()
        if failure is not None:
            self._failed(DirectionFailed(self._inward, failure, while_closing=True))
        if not self._writes:
            self._finish()

    # -- stream -> socket

    def take(self, data: memoryview) -> int:
        if not self._may_write:
            return 0
        if not self._writes:
            return len(data)
        try:
            count = self._sock.send(data)
        except BlockingIOError:
            self._may_write = False
            return 0
        except OSError as error:
            self._socket_failed(error)
            return len(data)
        if self._inward is Flow.TO_DESTINATION:
            self._traffic.to_source += count
        else:
            self._traffic.to_destination += count
        if count < len(data):
            self._may_write = False
        return count

    def ended(self) -> None:
        if not self._writes:
            return
        self._writes = False
        if not self._reads and self.owes_reset is None:
            self._finish()  # its FIN has come, ours goes with the closing
            return
        failure = shutdown_writing(self._sock)
        if failure is not None:
            self._failed(DirectionFailed(self._outward, failure, while_closing=True))
        if self._may_read and self._stream.is_gone:
            self._engine.again(self)

    def resume(self) -> None:
        self._pump()

    # -- ends

    def _finish(self) -> None:
        """Both directions have ended."""
        if self.ending is CLEAN:
            disarm(self._sock)
        self._close_socket()
        self.done.set()

    def failed(self, failure: Failure) -> None:
        if self._fd < 0 or self.done.is_set:
            return
        if failure == _PASSED_ON_RESET:
            self._was_reset()
        else:
            if self._writes and (not self._reads or _is_worth_two_words(failure)):
                self._failed(DirectionFailed(self._outward, failure))
            if self._reads:
                self._failed(DirectionFailed(self._inward, failure, while_closing=True))
        self._reads = False
        self.owes_reset = self._sock
        # A proxy that joins a stream to a TCP connection may reset it behind all of its bytes.
        self.is_whole = isinstance(failure, StreamReset) and failure.by is By.PEER
        if not self._stream.kept:
            self._writes = False
            if not unsent_bytes(self._sock):
                self._close_socket()
        self.done.set()

    def _socket_failed(self, error: OSError) -> None:
        """The socket is dead: so is the stream. A reset is no error in the log."""
        if error.errno in RESETS:
            self._was_reset()
        elif self._reads or self._writes:
            cause = SystemFailure(error.errno or 0)
            self._failed(DirectionFailed(self._inward if self._reads else self._outward, cause))
        self._reads = self._writes = False
        self._stream.reset(CONNECT_ERROR)
        self.done.set()


def _is_worth_two_words(failure: Failure) -> bool:
    """Whether it is a failure of what was to be read as well, and not only a pipe without a reader."""
    return isinstance(failure, StreamReset) and failure.code not in (STREAM_CLOSED, CANCEL)
