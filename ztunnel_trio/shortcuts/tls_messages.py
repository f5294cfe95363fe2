"""Seeing the messages of a TLS handshake before OpenSSL acts on them.

*Saves* nothing; there is no public way (CPython's issue 31453 and the code's own comment call it private, for
debugging). Where it has gone nobody sees anything, and who asked is told.

*Rests on* the setter `SSLContext._msg_callback`, in CPython since 3.8: a function of (connection, "read" or
"write", version, content type, message type, bytes), called while OpenSSL works, in the same thread. It stays
on every connection of the context and costs two calls a record.
"""

import ssl
from collections.abc import Callable
from functools import cache
from typing import Final

CLIENT_HELLO: Final = 1  # RFC 8446 4, HandshakeType
Connection = ssl.SSLSocket | ssl.SSLObject
Seen = Callable[[Connection, str, int, int, int, bytes], None]


def watch(context: ssl.SSLContext, seen: Seen) -> bool:
    """Call `seen` with every message of every connection made with `context` from now on.

    False: it cannot be done here.

    What `seen` raises is printed by CPython and changes nothing.
    """
    if not is_short():
        return False
    short(context, seen)
    return True


def short(context: ssl.SSLContext, seen: Seen) -> None:
    """By the private setter."""
    context._msg_callback = seen  # type: ignore[attr-defined]


@cache
def is_short() -> bool:
    """Whether messages can be seen, asked once."""
    return works()


def works() -> bool:
    """Whether the short way is seen to work: a ClientHello goes by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    kinds: list[int] = []
    try:
        short(context, lambda connection, direction, version, content, kind, message: kinds.append(kind))
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()
    except ssl.SSLWantReadError:
        return CLIENT_HELLO in kinds
    except (AttributeError, TypeError, ValueError, ssl.SSLError):
        pass
    return False
