"""What carries a tunnel: TLS on a descriptor. The other carrier is `net.tls_memory`, TLS inside a stream."""

import errno
import os
import socket
import ssl
from contextlib import suppress
from typing import Protocol

from ztunnel_trio.net.engine import End, Engine
from ztunnel_trio.shortcuts import queued, tls
from ztunnel_trio.shortcuts.tls import Bytes as Bytes
from ztunnel_trio.shortcuts.tls import Read, Write


class Transport(Protocol):
    """An established TLS connection that never blocks. Errors are those of `ssl` and OSError."""

    def start(self, engine: Engine, end: End) -> None:
        """Tell `end` from now on when there may be something to read and room to write."""

    @property
    def read(self) -> Read:
        """Read at most so many bytes; 0 is the peer's close_notify. Raises SSLWantReadError, SSLEOFError."""

    @property
    def write(self) -> Write:
        """Write some of it. After SSLWantWriteError the same bytes must come again first, more may follow."""

    def is_drained(self) -> bool:
        """Whether a read now would find nothing, after one that had room for a whole record.

        False when that is not known.
        """

    def finish(self) -> None:
        """Say that no more will be written (close_notify, FIN) and go on reading."""

    def stop(self) -> None:
        """Close at once and tell `end` nothing more. Harmless when closed."""


def _end_of_data(_most: int, _into: memoryview) -> int:
    return 0


def _read_closed(_most: int, _into: memoryview) -> int:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _write_closed(_data: Bytes) -> int:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class TlsSocket:
    """TLS on a non-blocking descriptor, which it owns.

    OpenSSL writes several records for one call and reads one; it asks for the same bytes again after it
    could not write, from wherever they lie (SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, set by the ssl module).
    """

    __slots__ = ("_engine", "_fd", "_is_empty", "_sock", "read", "write")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        # An end without close_notify is told apart in the log. Documented as an argument of wrap_socket.
        setattr(sock, "suppress_ragged_eofs", False)  # noqa: B010  typeshed lacks the attribute
        self._sock = sock
        self._fd = sock.fileno()
        self._engine: Engine | None = None
        self._is_empty = queued.look()
        carried = tls.bytes_of(sock)
        self.read: Read = carried.read
        self.write: Write = carried.write

    def start(self, engine: Engine, end: End) -> None:
        self._engine = engine
        engine.register(self._fd, end)

    def is_drained(self) -> bool:
        # OpenSSL keeps nothing back: reads ask for more than a record, and it never reads ahead.
        return self._engine is not None and self._is_empty(self._fd)

    def finish(self) -> None:
        try:  # unwrap wants the peer's close_notify, too: it comes or it does not
            self._sock.unwrap()
        except (OSError, ValueError):
            pass
        else:
            self.read = _end_of_data  # it had come: the socket lets nobody read any more
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.unregister(self._fd)
            self._engine = None
        self.read, self.write = _read_closed, _write_closed  # the number may be another socket's soon
        self._sock.close()
