"""What a peer is told that is refused after its TLS handshake, where `ssl` lets nobody send an alert.

An HTTP/2 connection that ends as it begins: its preface with an empty SETTINGS (RFC 9113 3.4), which promises
nothing, then GOAWAY INADEQUATE_SECURITY (7, 9.2) with the reason as debug data, in the words of our own
access line.
"""

from typing import Final

from ztunnel_trio.model.ending import Ending
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.frames import GOAWAY, GOAWAY_BODY, PREFACE, SETTINGS, Outgoing

MOST_REASON_BYTES: Final = 1024  # identities of a peer's making are in it


def to_client(ending: Ending) -> bytes:
    """What a server says to a client it refuses."""
    frames = Outgoing()
    frames.put(SETTINGS, 0, 0, b"")
    reason = ending_text(ending).encode()[:MOST_REASON_BYTES]
    frames.put(GOAWAY, 0, 0, GOAWAY_BODY.pack(0, ErrorCode.INADEQUATE_SECURITY) + reason)
    return frames.take()


def to_server(ending: Ending) -> bytes:
    """What a client says to a server it refuses."""
    return PREFACE + to_client(ending)
