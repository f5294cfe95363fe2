"""TLS inside a tunnel's stream, where there is no descriptor: the inner connection of double HBONE.

An `ssl.SSLObject` between two memory buffers. What the outer stream delivers goes into the first, what the
inner connection writes comes out of the second and leaves as DATA of the outer stream. To the outer tunnel
this is the reader of a stream, to the inner tunnel its transport.

*Backpressure.* Both ways by refusal: while too much ciphertext waits to be read, nothing more is taken and
the outer stream's window fills; while the outer stream has no room, writing raises SSLWantWriteError.
*No nesting.* What the outer tunnel tells is acted on in a later round of the engine, because its read pump
is still walking the buffer that the inner tunnel would read into.
"""

import errno
import ssl
from contextlib import suppress
from typing import Final

from ztunnel_trio.model.ending import Failure
from ztunnel_trio.net.engine import (
    CHUNK_BYTES,
    HANGING_UP,
    HEADER_ROOM,
    READABLE,
    WRITABLE,
    End,
    Engine,
    Once,
)
from ztunnel_trio.net.relay import StreamEnd
from ztunnel_trio.net.transport import Bytes

_MOST_UNREAD: Final = 262_144


class StreamLost(ConnectionResetError):
    """The stream under TLS failed; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(errno.ECONNRESET, "stream lost")
        self.failure = failure


class MemoryTls:
    """TLS over a tunnel's stream, which it owns: `handshake` first, then it is a tunnel's transport."""

    def __init__(
        self,
        engine: Engine,
        stream: StreamEnd,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._end: End | None = None
        self._waiting: Once | None = None  # the handshake, for anything to happen
        self._news = 0  # flags to be told on the next round
        self._asked_again = False
        self._failure: Failure | None = None  # of the stream
        self._has_ended = False
        self._ends_when_shipped = False
        self._is_stopped = False
        self.read = self._read
        self.write = self._write
        stream.attach(self)

    async def handshake(self) -> None:
        """Shake hands; the deadline is the caller's, and so is `stop` when it fails.

        Raises:
            ssl.SSLError: as from `ssl.SSLObject.do_handshake`.
            StreamLost: the stream failed.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._ship()
            except ssl.SSLError:
                self._ship()  # the alert
                raise
            else:
                self._ship()
                return
            if self._failure is not None:
                raise StreamLost(self._failure)
            self._waiting = Once(self._engine)
            await self._waiting.wait()

    # -- net.transport.Transport

    def start(self, engine: Engine, end: End) -> None:
        """See `net.transport.Transport`."""
        self._end = end
        self._tell(READABLE | WRITABLE)

    def _read(self, limit: int, buffer: memoryview) -> int:
        try:
            count = self.tls.read(limit, buffer)
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLWantReadError:
            if self._failure is not None:
                raise StreamLost(self._failure) from None
            self._ship()  # a key update may want an answer
            raise
        if self._incoming.pending < _MOST_UNREAD:
            self._ask_again()
        return int(count)

    def _write(self, data: Bytes) -> int:
        if self._outgoing.pending:
            self._ship()
            if self._outgoing.pending:
                raise ssl.SSLWantWriteError
        count = self.tls.write(memoryview(data)[:CHUNK_BYTES])
        self._ship()
        return count

    def is_drained(self) -> bool:
        """See `net.transport.Transport`."""
        return False

    def finish(self) -> None:
        """See `net.transport.Transport`."""
        with suppress(OSError, ValueError):
            self.tls.unwrap()
        self._ends_when_shipped = True
        self._ship()

    def refuse(self, farewell: bytes) -> None:
        """Tell a peer, after the handshake, why it is refused; `stop` comes next."""
        with suppress(OSError, ValueError):
            self.tls.write(farewell)
        self.finish()

    def stop(self) -> None:
        """See `net.transport.Transport`: the stream is reset unless it has ended both ways."""
        if not self._is_stopped:
            self._is_stopped = True
            self._end = None
            self._stream.close()

    def _ship(self) -> None:
        """Send ciphertext while the stream has room."""
        while self._outgoing.pending and not self._is_stopped:
            room = self._stream.room()
            if room <= 0:
                if self._stream.is_gone:
                    self._outgoing.read()
                return
            part = self._outgoing.read(min(room, CHUNK_BYTES))
            self._stream.send(memoryview(bytearray(HEADER_ROOM) + part), len(part))
        if self._ends_when_shipped and not self._is_stopped:
            self._ends_when_shipped = False
            self._stream.end()

    # -- net.relay.StreamReader

    def take(self, data: memoryview) -> int:
        """See `net.relay.StreamReader`."""
        if self._is_stopped:
            return len(data)
        room = _MOST_UNREAD - self._incoming.pending
        if room <= 0:
            return 0
        taken = self._incoming.write(data[:room])
        self._tell(READABLE)
        return taken

    def ended(self) -> None:
        """See `net.relay.StreamReader`."""
        if not self._has_ended:
            self._has_ended = True
            self._incoming.write_eof()
            self._tell(READABLE | HANGING_UP)

    def failed(self, failure: Failure) -> None:
        """See `net.relay.StreamReader`."""
        self._failure = failure
        self._tell(READABLE | WRITABLE | HANGING_UP)

    def resume(self) -> None:
        """See `net.relay.StreamReader`."""
        self._ship()
        if not self._outgoing.pending:
            self._tell(WRITABLE)

    # -- net.engine.End

    def _tell(self, flags: int) -> None:
        self._news |= flags
        if self._waiting is not None:
            self._waiting.set()
        self._ask_again()

    def _ask_again(self) -> None:
        if self._end is not None and not self._asked_again:
            self._asked_again = True
            self._engine.again(self)

    def ready(self, flags: int) -> None:
        """See `net.engine.End`; there is no descriptor, so this is not called."""

    def go_on(self) -> None:
        """See `net.engine.End`: pass on the news, and take what was refused."""
        self._asked_again = False
        if self._end is None:
            return
        self._stream.flush()
        news, self._news = self._news, 0
        if news:
            self._end.ready(news)

    def broke(self, error: Exception) -> None:
        """See `net.engine.End`."""
        if self._end is not None:
            self._end.broke(error)
