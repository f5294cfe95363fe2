"""Whether a descriptor has something to read, without reading.

*Saves* a read that would block after each that did not: 1 µs instead of 6, as OpenSSL's error becomes an
exception.

*Rests on* the ioctl FIONREAD (tcp(7), SIOCINQ), which is public, and on OpenSSL keeping nothing back after
a read that had room for a whole record: it never reads ahead unless told to (SSL_CTX_set_read_ahead(3)).
"""

from collections.abc import Callable
from fcntl import ioctl
from functools import cache
from os import close, pipe, write
from termios import FIONREAD
from typing import Final

_LENGTH: Final = bytearray(
    4
)  # an int, as the ioctl writes it; it can change, or the call takes twice as long
_NOTHING: Final = bytes(4)


def look() -> Callable[[int], bool]:
    """What tells whether a read of a descriptor now would find nothing; False when that is not known."""
    return short if is_short() else plain


def plain(_fd: int) -> bool:
    """Not known: who wants to know reads until it would block."""
    return False


def short(fd: int) -> bool:
    """Ask the kernel.

    Raises:
        OSError: the descriptor has no such thing.
    """
    ioctl(fd, FIONREAD, _LENGTH)
    return _LENGTH == _NOTHING


@cache
def is_short() -> bool:
    """Whether the short way is taken, asked once."""
    return works()


def works() -> bool:
    """Whether the short way is seen to work, empty and not."""
    reading, writing = pipe()
    try:
        was_empty = short(reading)
        write(writing, b"x")
        return was_empty and not short(reading)
    except OSError:
        return False
    finally:
        close(reading)
        close(writing)
