"""What a peer is told that is refused after its TLS handshake, where `ssl` lets nobody send an alert.

An HTTP/2 connection that begins and ends at once: preface and SETTINGS, then GOAWAY INADEQUATE_SECURITY
(RFC 9113 7, 9.2) with the reason as debug data, in the words of our own access line.
"""

from typing import Final

from ztunnel_trio.model.ending import Ending
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection, Http2Settings

MOST_REASON_BYTES: Final = 1024  # identities of a peer's making are in it


def to_client(ending: Ending) -> bytes:
    """What a server says to a client it refuses."""
    return _farewell(ending, is_client=False)


def to_server(ending: Ending) -> bytes:
    """What a client says to a server it refuses."""
    return _farewell(ending, is_client=True)


def _farewell(ending: Ending, *, is_client: bool) -> bytes:
    connection = Http2Connection(Http2Settings(is_client=is_client))
    connection.go_away(ErrorCode.INADEQUATE_SECURITY, ending_text(ending).encode()[:MOST_REASON_BYTES])
    return bytes(connection.outgoing())
