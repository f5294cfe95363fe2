"""What a TLS client offers before anything is agreed: protocols and key exchange groups of a ClientHello.

OpenSSL's binding for Python goes on without a protocol when none of the client's is ours, where RFC 7301
3.2 asks for an alert. Who accepts looks at the hello itself.
"""

from dataclasses import dataclass
from typing import Final

HANDSHAKE_RECORD: Final = 22  # RFC 8446 5.1
CLIENT_HELLO: Final = 1  # RFC 8446 4
GROUPS_EXTENSION: Final = 10  # RFC 8446 4.2.7
ALPN_EXTENSION: Final = 16  # RFC 7301 3.1
RECORD_HEADER_BYTES: Final = 5
HELLO_HEADER_BYTES: Final = 4
VERSION_AND_RANDOM_BYTES: Final = 2 + 32

# An alert record: fatal, no_application_protocol (RFC 8446 6, RFC 7301 3.2).
NO_APPLICATION_PROTOCOL: Final = b"\x15\x03\x03\x00\x02\x02\x78"


# OpenSSL takes no hello beyond 16 KiB (SSL3_RT_MAX_PLAIN_LENGTH); cut into tiny records it is longer.
MOST_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The hello goes on: look again when there are `wanted` bytes, counted from its first."""

    wanted: int


def offered_protocols(data: bytes) -> tuple[bytes, ...] | Incomplete:
    """The protocols offered by the ClientHello that begins `data`, over however many records.

    Empty when none is offered, and when it is anything else: who does the handshake says what is wrong.
    """
    found = _extension_of(data, ALPN_EXTENSION)
    if isinstance(found, Incomplete):
        return found
    try:
        return _names(found[2:])
    except IndexError:  # lengths that contradict each other
        return ()


def offered_groups(data: bytes) -> tuple[int, ...]:
    """The key exchange groups that a whole ClientHello offers, in its order (IANA's numbers)."""
    found = _extension_of(data, GROUPS_EXTENSION)
    if isinstance(found, Incomplete):
        return ()
    return tuple(_length_at(found, position) for position in range(2, len(found) - 1, 2))


def _extension_of(data: bytes, wanted: int) -> bytes | Incomplete:
    """An extension's content in the ClientHello that begins `data`; empty where there is none."""
    message, position = b"", 0
    while True:
        header = data[position : position + RECORD_HEADER_BYTES]
        if header and header[0] != HANDSHAKE_RECORD:
            return b""
        if len(header) < RECORD_HEADER_BYTES:
            return Incomplete(position + RECORD_HEADER_BYTES)
        end = position + RECORD_HEADER_BYTES + int.from_bytes(header[3:5], "big")
        if end == position + RECORD_HEADER_BYTES:  # RFC 8446 5.1 forbids it
            return b""
        message += data[position + RECORD_HEADER_BYTES : end]
        if message and message[0] != CLIENT_HELLO:
            return b""
        length = HELLO_HEADER_BYTES + int.from_bytes(message[1:HELLO_HEADER_BYTES], "big")
        if len(message) >= HELLO_HEADER_BYTES and length <= len(message):
            break
        if len(data) < end:
            return Incomplete(end)
        position = end
    try:
        return _find(message[HELLO_HEADER_BYTES:length], wanted)
    except IndexError:  # lengths that contradict each other
        return b""


def _find(body: bytes, wanted: int) -> bytes:
    """An extension of a ClientHello's body (RFC 8446 4.1.2).

    Raises:
        IndexError: it ends too early.
    """
    position = VERSION_AND_RANDOM_BYTES
    position += 1 + body[position]  # legacy_session_id
    position += 2 + _length_at(body, position)  # cipher_suites
    position += 1 + body[position]  # legacy_compression_methods
    end = position + 2 + _length_at(body, position)
    position += 2
    while position < end:
        kind, length = _length_at(body, position), _length_at(body, position + 2)
        position += 4
        if kind == wanted:
            return body[position : position + length]
        position += length
    return b""


def _names(data: bytes) -> tuple[bytes, ...]:
    found: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + 1
        position = start + data[position]
        found.append(data[start:position])
    return tuple(found)


def _length_at(data: bytes, position: int) -> int:
    return data[position] << 8 | data[position + 1]
