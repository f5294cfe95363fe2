"""Pumps: copy between a connection's two ends, both ways, until both directions have ended.

A connection's one Trio task runs its `Pair`, which registers the ends and waits; leaving it for whatever
reason unregisters and closes them. The pumps themselves are synchronous and run by the engine.

*Half-close.* The end of one direction is passed on (FIN or END_STREAM) and the other direction runs on.
*Resets are passed on* (RFC 9113 8.5): a TCP connection that fails resets its stream with CONNECT_ERROR or
the TCP connection on the other side; a stream reset with an error becomes a TCP reset. A stream that ended
with NO_ERROR or with its tunnel looks like an end of data.
*What the log says* follows the reference (ztunnel src/copy.rs): resets and broken pipes of TCP are no
errors, a stream that cannot take the last bytes or the last word is one.
"""

import select
import socket
from typing import Final, Protocol

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.net.engine import CHUNK_BYTES, CHUNKS_A_TURN, HANGING_UP, READABLE, WRITABLE, Engine
from ztunnel_trio.net.failures import (
    SWALLOWED,
    in_direction,
    os_error_text,
    pending_error,
    reset_socket,
    shutdown_writing,
    unsent_bytes,
)
from ztunnel_trio.net.pair import Pair, Traffic
from ztunnel_trio.net.socket_pair import SocketPair

CONNECT_ERROR: Final = 10  # RFC 9113 7


class StreamReader(Protocol):
    """What a tunnel's stream tells whoever relays it."""

    def take(self, data: memoryview) -> int:
        """Bytes from the peer; returns how many the other side took. The rest is kept and offered again."""

    def ended(self) -> None:
        """No more bytes will come, and all have been taken."""

    def was_reset(self, code: int) -> None:
        """The peer reset the stream with an error, or broke its rules; nothing more in either direction."""

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

    def end(self) -> str | None:
        """Send the end of data. Returns why the peer could not be told, in the words of the log."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be sent any more: reset, or the tunnel lost."""

    def failure(self) -> str | None:
        """The reset that ended this stream, in the words of the log."""

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


async def relay(engine: Engine, client: Endpoint, upstream: Endpoint, traffic: Traffic) -> str | None:
    """Copy both ways until both have ended; returns None or what the log calls the failure.

    Owns both ends from the call on and closes them on every way out. At least one is a socket.
    """
    return await pair_of(engine, client, upstream, traffic).run()


def pair_of(engine: Engine, client: Endpoint, upstream: Endpoint, traffic: Traffic) -> Pair:
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
        "_is_outbound",
        "_may_read",
        "_may_write",
        "_read_error",
        "_reads",
        "_sock",
        "_stream",
        "_write_error",
        "_writes",
    )

    def __init__(
        self, engine: Engine, sock: socket.socket, stream: StreamEnd, traffic: Traffic, *, is_outbound: bool
    ) -> None:
        super().__init__(engine, traffic)
        self._sock = sock
        self._fd = sock.fileno()
        self._stream = stream
        self._is_outbound = is_outbound  # the socket is the client's
        self._may_read = False
        self._may_write = True  # attempt first
        self._hanging_up = False  # the kernel has seen the peer's FIN or a failure: read to the end of it
        self._reads = True  # socket -> stream runs
        self._writes = True  # stream -> socket runs
        self._read_error: str | None = None  # of socket -> stream
        self._write_error: str | None = None  # of stream -> socket

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
        if self._fd >= 0:
            self._engine.forget(self._fd)
            self._fd = -1
        self._sock.close()

    def _failure(self) -> str | None:
        first, second = self._read_error, self._write_error  # socket -> stream, stream -> socket
        if first is None and second is None:
            return None
        names = ("send", "receive")
        if not self._is_outbound:
            first, second = second, first
        for name, text in zip(names, (first, second), strict=True):
            if text is not None:
                return in_direction(name, text)
        return None

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
            elif (
                flags & select.EPOLLERR and self._fd >= 0 and (error := pending_error(self._sock)) is not None
            ):
                self._socket_failed(error)  # after its FIN, so no read will tell

    def go_on(self) -> None:
        self._pump()

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
            if self._is_outbound:
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
            side = "destination" if self._is_outbound else "client"
            self._read_error = f"{side} disconnected before all data was written"
        self._read_ended()

    def _read_ended(self) -> None:
        self._reads = False
        text = self._stream.end()
        if text is not None:
            self._read_error = f"while closing connection: {text}"
        self._check_done()

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
        if self._is_outbound:
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
        if not self._reads:
            self._close_socket()  # its FIN has come, ours goes with the closing
            self.done.set()
            return
        self._write_error = shutdown_writing(self._sock)
        if self._may_read and self._stream.is_gone:
            self._engine.again(self)

    def resume(self) -> None:
        self._pump()

    # -- failures

    def was_reset(self, code: int) -> None:
        """The stream was reset with an error: so is the socket, once it has sent what came before."""
        if self._fd < 0:
            return
        text = self._stream.failure()
        if self._reads:
            ending = self._stream.end()
            if ending is not None:
                self._read_error = f"while closing connection: {ending}"
        if self._writes and text is not None:
            self._write_error = f"io error: {text}"
        self._reads = self._writes = False
        self._engine.unregister(self._fd)
        self._fd = -1
        self.owes_reset = self._sock
        if not unsent_bytes(self._sock):
            reset_socket(self._sock)
        self.done.set()

    def _socket_failed(self, error: OSError) -> None:
        """The socket is dead: so is the stream. A reset is no error in the log."""
        text = None if error.errno in SWALLOWED else f"io error: {os_error_text(error)}"
        if self._reads:
            self._read_error = text
        elif self._writes:
            self._write_error = text
        self._reads = self._writes = False
        self._stream.reset(CONNECT_ERROR)
        self.done.set()

    def _check_done(self) -> None:
        if not self._reads and not self._writes:
            self.done.set()
