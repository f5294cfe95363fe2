"""How the end of a relayed connection is told: to the other side by a reset, to the log in known words."""

import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Final

import trio

_LINGER_ZERO = struct.pack("ii", 1, 0)
DEADLINE_TEXT: Final = "deadline has elapsed"
# ztunnel src/copy.rs: ignore_io_errors
SWALLOWED: Final = frozenset((errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE))


def os_error_text(error: OSError) -> str:
    """An OSError as the reference prints it: `Connection reset by peer (os error 104)`."""
    if not error.errno:
        return str(error)
    return f"{os.strerror(error.errno)} (os error {error.errno})"


def io_text(error: BaseException) -> str:
    """An I/O failure as the operating system words it: `Connection refused (os error 111)`.

    A deadline of ours is `deadline has elapsed`. Trio's errors are told by what caused them.
    """
    seen = error
    for _ in range(8):
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        elif isinstance(seen, OSError) and seen.errno is not None and seen.errno > 0 and not _is_tls(seen):
            return os_error_text(seen)
        elif isinstance(seen, (trio.BrokenResourceError, trio.ClosedResourceError)) and seen.__cause__:
            seen = seen.__cause__
        else:
            break
    if isinstance(seen, (trio.TooSlowError, TimeoutError)):
        return DEADLINE_TEXT
    if isinstance(seen, trio.BrokenResourceError):
        return str(seen) or "broken pipe"
    return str(seen) or type(seen).__name__


def _is_tls(error: OSError) -> bool:
    """Whether it is one of `ssl`'s errors: they are `OSError`s whose number is not the system's."""
    return type(error).__module__ == "ssl"


def reset_socket(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()


def in_direction(direction: str, text: str) -> str:
    """Put the direction where the reference puts it: `while closing connection: send: …`, `receive: …`."""
    closing = "while closing connection: "
    if text.startswith(closing):
        return f"{closing}{direction}: {text.removeprefix(closing)}"
    return f"{direction}: {text}"


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


def shutdown_writing(sock: socket.socket) -> str | None:
    """Send FIN; returns what the log calls a failure, where it is one."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            return f"while closing connection: io error: {os_error_text(error)}"
    return None
