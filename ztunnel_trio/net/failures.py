"""How a socket's end is found and told: what an exception says about it, and the reset of its peer.

*Armed sockets.* While a connection is relayed, both its sockets have SO_LINGER(1, 0): however this process
leaves them - closed on cancellation, killed, out of memory - the kernel sends RST and not FIN, which the
applications would take for a complete transfer. Only the clean end of both directions disarms them.
"""

import errno
import fcntl
import os
import socket
import ssl
import struct
import sys
import termios
from contextlib import suppress
from typing import Final

import trio

from ztunnel_trio.model.ending import DeadlinePassed, OtherFailure, SystemFailure, TlsRefused
from ztunnel_trio.net.tls.failures import tls_ending

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger of socket(7)
_FIN_ON_CLOSE: Final = struct.pack("ii", 0, 0)
# ztunnel src/copy.rs: ignore_io_errors
RESETS: Final = frozenset((errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE))


def ending_of(error: BaseException) -> SystemFailure | OtherFailure | DeadlinePassed | TlsRefused:
    """What an I/O failure says about the end of a connection.

    A deadline of ours is an exception without a number of the system's. Trio's errors are told by what
    caused them, a group by its first member.
    """
    seen = error
    while isinstance(seen, BaseExceptionGroup) or (
        isinstance(seen, (trio.BrokenResourceError, trio.ClosedResourceError)) and seen.__cause__
    ):
        cause = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else seen.__cause__
        assert cause is not None
        seen = cause
    match seen:
        case ssl.SSLError():
            return tls_ending(seen)
        case OSError() if seen.errno is not None and seen.errno > 0:
            return SystemFailure(seen.errno)
        case trio.TooSlowError() | TimeoutError():
            return DeadlinePassed()
        case trio.BrokenResourceError():
            return OtherFailure(str(seen) or "broken pipe")
        case _:
            return OtherFailure(str(seen) or type(seen).__name__)


def arm(sock: socket.socket) -> None:
    """From now on closing this socket resets its peer, whoever closes it."""
    with suppress(OSError):  # it is dead already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def disarm(sock: socket.socket) -> None:
    """From now on closing this socket sends what is left of its data, and FIN."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)


def reset_socket(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    arm(sock)
    sock.close()


def writes(sock: socket.socket) -> bool:
    """Whether the peer writes what nobody reads any more, or has failed; not that it has said its end."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    except OSError:
        return True


def unsent_bytes(sock: socket.socket) -> int:
    """What the peer has not acknowledged, and a reset would take back; the end of data counts as one byte."""
    queued = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.TIOCOUTQ, queued)
    except OSError:
        return 0  # no connection any more
    return int.from_bytes(queued, sys.byteorder)


def pending_error(sock: socket.socket) -> OSError | None:
    """The failure the kernel keeps for a socket nobody reads from or writes to."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


def shutdown_writing(sock: socket.socket) -> SystemFailure | None:
    """Send FIN; returns what went wrong, which nobody who is gone can have."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno is not None and error.errno != errno.ENOTCONN:
            return SystemFailure(error.errno)
    return None
