"""Reading and writing TLS by OpenSSL's own object.

*Saves* 0.5 µs a read or write: `ssl.SSLSocket`'s methods only check around it, four times an exchange.

*Rests on* `SSLSocket._sslobj`, a `_ssl._SSLSocket` with `read(most, buffer)` and `write(bytes)`, there from
the wrapping of a connected socket on. Not documented; in CPython since 3.2. What the methods around it add
is not needed: a closed socket is told from `OSError` by the caller, and `suppress_ragged_eofs` is off.

The chain that OpenSSL verified is that object's as well before CPython 3.13, which has a public method.
"""

import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Protocol, cast

_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER: X509_FILETYPE_ASN1 of openssl/x509.h, SSL_FILETYPE_ASN1
Bytes = bytes | bytearray | memoryview
Read = Callable[[int, memoryview], int]
Write = Callable[[Bytes], int]


class Reading(Protocol):
    """What `SSLSocket` and the object inside it have in common; typeshed knows `read` without a buffer."""

    def read(self, most: int, into: memoryview, /) -> int:
        """Read at most so many bytes into a buffer; how many there were."""

    def write(self, data: Bytes, /) -> int:
        """Write some of it; how many bytes."""


def bytes_of(sock: ssl.SSLSocket) -> Reading:
    """What to read from and write to; raises as `ssl.SSLSocket` does."""
    return short(sock) if is_short() else plain(sock)


def plain(sock: ssl.SSLSocket) -> Reading:
    """The socket itself."""
    return cast("Reading", sock)


def short(sock: ssl.SSLSocket) -> Reading:
    """The object inside it."""
    return cast("Reading", sock._sslobj)  # type: ignore[attr-defined]


class _Certificate(Protocol):
    def public_bytes(self, encoding: int, /) -> bytes: ...


class _HasChain(Protocol):
    def get_verified_chain(self) -> Sequence[_Certificate]: ...


def verified_chain(tls: ssl.SSLSocket | ssl.SSLObject) -> tuple[bytes, ...]:
    """The path OpenSSL verified, as DER, the peer's own certificate first."""
    if sys.version_info >= (3, 13):
        return tuple(tls.get_verified_chain())
    inside = cast("_HasChain", tls._sslobj)  # type: ignore[union-attr]
    return tuple(each.public_bytes(_ENCODING_DER) for each in inside.get_verified_chain())


@cache
def is_short() -> bool:
    """Whether the short way is taken, asked once."""
    return works()


def works() -> bool:
    """Whether the short way is seen to work: a handshake that begins with a read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    near, far = socket.socketpair()
    with far, near:
        near.setblocking(False)
        with context.wrap_socket(near, do_handshake_on_connect=False) as sock:
            far.setblocking(False)
            try:
                short(sock).read(1, memoryview(bytearray(1)))
            except ssl.SSLWantReadError:
                return callable(getattr(short(sock), "write", None)) and far.recv(1) == b"\x16"  # a handshake
            except (AttributeError, TypeError, ValueError, OSError):
                pass
    return False
