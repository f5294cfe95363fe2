"""The bytes of one tunnel: transport, read pump, gathering writer. Knows no streams.

*Reading.* What has come is handed up in one piece from the engine's buffer. Whoever gets it may leave a rest
for a later turn: that is kept here, and nothing is read before it is used up.

*Writing.* What is small is gathered until the end of the engine's turn: one record and one write for many.
What TLS would not take waits in one queue, and while there is something in it, `is_blocked` holds everybody
who would write more.
"""

import ssl
from typing import Final, Protocol

from ztunnel_trio.model.ending import Bug, DeadlinePassed, Loss, OtherFailure, TransportEnded, TunnelLost
from ztunnel_trio.net.engine import HANGING_UP, READ_BYTES, READABLE, WRITABLE, Engine
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.tls.memory import StreamLost
from ztunnel_trio.net.transport import Bytes, TlsSocket, Transport

_READ_SHARE: Final = 131_072  # what one turn of a tunnel's read pump takes
_MOST_PENDING: Final = 524_288  # a chunk and control frames; beyond is a peer that asks and reads nothing
_FULL_RECORD: Final = 16_384  # RFC 8446 5.1


class Above(Protocol):
    """Whom a link tells."""

    def received(self, view: memoryview) -> int:
        """Bytes of the peer. Returns how many were used; the rest is offered again, on a later turn."""

    def unblocked(self) -> None:
        """What TLS would not take is written: more may be."""

    def not_heard(self) -> None:
        """The peer asks and asks and takes no answers."""

    def lost(self, cause: Loss) -> None:
        """The transport is over; all that came before has been handed up."""


class Link:
    """One established TLS connection, owned from here on. An end of the engine, or of a transport's."""

    __slots__ = (
        "_above",
        "_asked_again",
        "_engine",
        "_failure",
        "_hanging_up",
        "_is_finishing",
        "_is_over",
        "_is_stopped",
        "_may_read",
        "_pending",
        "_read_wants_write",
        "_rest",
        "_transport",
        "is_blocked",
    )

    def __init__(self, engine: Engine, tls: "ssl.SSLSocket | Transport", above: Above) -> None:
        self._engine = engine
        self._above = above
        self._transport: Transport
        self._transport = TlsSocket(tls) if isinstance(tls, ssl.SSLSocket) else tls
        self._pending = bytearray()  # what this turn has to say, or what TLS did not take …
        self.is_blocked = False  # … which it is when this is set
        self._rest: memoryview | None = None  # what came and waits for its turn
        self._may_read = False
        self._read_wants_write = False
        self._hanging_up = False
        self._asked_again = False
        self._failure: Loss | None = None  # the first that showed, while reading or writing
        self._is_over = False  # nothing more can be read
        self._is_finishing = False  # no more is written, and what comes is thrown away
        self._is_stopped = False

    def start(self) -> None:
        """Move bytes from now on."""
        if not self._is_stopped:
            self._transport.start(self._engine, self)

    def finish(self) -> None:
        """Write what is left, say that no more will be, and read on until the peer closes."""
        if self._is_finishing or self._is_stopped:
            return
        self.write_out()
        self._is_finishing = True
        self._rest = None
        if not self.is_blocked:
            self._transport.finish()

    def stop(self) -> None:
        """Close, with what can be written at once. Harmless when closed."""
        if not self._is_stopped:
            self.write_out()
            self._is_stopped = True
            self._transport.stop()
            self._pending.clear()
            self._rest = None

    # -- writing

    def write(self, data: Bytes) -> None:
        """Write this behind everything before it, soon. Once it is finishing, it goes nowhere."""
        if self._is_finishing or self._is_stopped:
            return
        pending = self._pending
        if self.is_blocked:
            pending += data
            return
        if len(pending) + len(data) <= _FULL_RECORD:
            if not pending:
                self._engine.write_later(self)
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
            self._note(error)
            self._may_read = self._hanging_up = True
            self.ask_again()
            return total
        return total

    def _write_pending(self) -> None:
        sent = self._try_write(self._pending)
        if sent < len(self._pending):
            del self._pending[:sent]
            return
        self._pending.clear()
        self.is_blocked = False
        if self._is_finishing:
            self._transport.finish()
        else:
            self._above.unblocked()

    # -- called by the engine

    def ready(self, flags: int) -> None:
        """See `net.engine.End`."""
        if self._is_stopped:
            return
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
        self._above.lost(Bug(repr(error)))

    def ask_again(self) -> None:
        """Have a turn on a later round."""
        if not self._asked_again and not self._is_stopped:
            self._asked_again = True
            self._engine.again(self)

    # -- reading

    def _pump(self) -> None:
        """Use what came before, then read until there is nothing or a turn's share is there."""
        if self._is_stopped:
            return
        if len(self._pending) > _MOST_PENDING:
            self._above.not_heard()
            return
        rest = self._rest
        if rest is not None:
            self._rest = None
            self._hand_up(rest, is_ours=True)
        elif self._may_read:
            buffer = self._engine.incoming
            total = self._read(buffer)
            if total and not self._is_finishing:
                self._hand_up(buffer[:total], is_ours=False)
        if self._rest is not None:
            self.ask_again()
        elif self._is_over:
            self._above.lost(self._failure or TransportEnded())
        elif self._may_read:
            self.ask_again()

    def _hand_up(self, view: memoryview, *, is_ours: bool) -> None:
        used = self._above.received(view)
        if used < len(view) and not self._is_finishing and not self._is_stopped:
            rest = view[used:]
            self._rest = rest if is_ours else memoryview(bytes(rest))  # the engine's buffer is everybody's

    def _read(self, buffer: memoryview) -> int:
        """Read a turn's share into the buffer; returns how much."""
        read = self._transport.read
        total = 0
        try:
            while total < _READ_SHARE:
                count = read(READ_BYTES - total, buffer[total:] if total else buffer)
                total += count
                if count == 0:
                    self._is_over = True
                    break
                if count < _FULL_RECORD and not self._hanging_up and self._transport.is_drained():
                    self._may_read = False
                    break
        except ssl.SSLWantReadError:
            self._may_read = False
        except ssl.SSLWantWriteError:  # a key update (RFC 8446 4.6.3) has to be answered first
            self._may_read, self._read_wants_write = False, True
        except OSError as error:
            self._note(error)
            self._is_over = True
        return total

    def _note(self, error: OSError) -> None:
        if self._failure is None:
            self._failure = loss_of(error)


def loss_of(error: OSError) -> Loss:
    """Why a tunnel ended, of what its transport raised."""
    match error:
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return TransportEnded()
        case StreamLost(failure=TunnelLost(cause)):  # the outer tunnel's end is ours
            return cause
        case _:
            found = ending_of(error)
            return OtherFailure(str(error)) if isinstance(found, DeadlinePassed) else found
