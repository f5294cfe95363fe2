"""PROXY protocol version 2 headers (haproxy doc/proxy-protocol.txt, 2.2), with the peer's identity as a TLV.

An application tunnel of protocol PROXY gets one before the first byte of a connection: who called, and what
for. `encode_header` writes what a ztunnel writes; `parse_header` reads any version 2 header, for the lab and
tests.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIXED_BYTES: Final = 16
IDENTITY_TLV: Final = 0xD0  # workload.proto, ApplicationTunnel: the peer's SPIFFE id
MAX_IDENTITY_BYTES: Final = 0xFFFF - 36 - 3  # what two IPv6 ends and the TLV's own head leave

_VERSION_LOCAL: Final = 0x20
_VERSION_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_MIXED_STREAM: Final = 0x01  # AF_UNSPEC, STREAM
_V4_STREAM: Final = 0x11
_V6_STREAM: Final = 0x21
_V4_BYTES: Final = 12
_V6_BYTES: Final = 36


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who connected to what. The addresses are None when the header carries none."""

    source: SocketAddress | None
    destination: SocketAddress | None
    identity: str | None = None


def encode_header(source: SocketAddress, destination: SocketAddress, identity: SpiffeId | None) -> bytes:
    """The header for one connection. Addresses of different families cannot be told and are left out.

    So is an identity too long for the header: the reader then sees a caller without one, and trusts it less.
    """
    family, addresses = _MIXED_STREAM, b""
    if source.ip.version == destination.ip.version:
        family = _V4_STREAM if source.ip.version == 4 else _V6_STREAM
        ports = struct.pack("!HH", source.port, destination.port)
        addresses = source.ip.packed + destination.ip.packed + ports
    name = b"" if identity is None else str(identity).encode()
    tlv = struct.pack("!BH", IDENTITY_TLV, len(name)) + name if 0 < len(name) <= MAX_IDENTITY_BYTES else b""
    rest = addresses + tlv
    return SIGNATURE + struct.pack("!BBH", _VERSION_PROXY, family, len(rest)) + rest


def header_bytes(beginning: bytes) -> int | None:
    """How long the header at the start of a stream is; None while less than its fixed part is there.

    Raises:
        PeerBrokeProtocol: no header of version 2 begins here.
    """
    if not SIGNATURE.startswith(beginning[: len(SIGNATURE)]):
        raise PeerBrokeProtocol("no PROXY protocol signature")
    if len(beginning) > 12 and beginning[12] not in (_VERSION_LOCAL, _VERSION_PROXY):
        raise PeerBrokeProtocol(f"PROXY protocol version and command {beginning[12]:#04x}")
    if len(beginning) < FIXED_BYTES:
        return None
    return FIXED_BYTES + int.from_bytes(beginning[14:16], "big")


def parse_header(header: bytes) -> ProxyHeader:
    """Read one whole header, as long as `header_bytes` says.

    Raises:
        PeerBrokeProtocol: anything that is not exactly one header of version 2 over a stream.
    """
    if header_bytes(header) != len(header):
        raise PeerBrokeProtocol("PROXY protocol header of another length than it says")
    command, family, rest = header[12], header[13], header[FIXED_BYTES:]
    if command == _VERSION_LOCAL:
        return ProxyHeader(None, None)
    if family in (_UNSPECIFIED, _MIXED_STREAM):
        return ProxyHeader(None, None, _identity(rest))
    if family not in (_V4_STREAM, _V6_STREAM):
        raise PeerBrokeProtocol(f"PROXY protocol family {family:#04x}")
    length = _V4_BYTES if family == _V4_STREAM else _V6_BYTES
    source, destination = _addresses(rest, length)
    return ProxyHeader(source, destination, _identity(rest[length:]))


def _addresses(rest: bytes, length: int) -> tuple[SocketAddress, SocketAddress]:
    if len(rest) < length:
        raise PeerBrokeProtocol("PROXY protocol addresses cut short")
    width = (length - 4) // 2
    make = IPv4Address if width == 4 else IPv6Address
    source_port, destination_port = struct.unpack("!HH", rest[2 * width : length])
    source, destination = make(rest[:width]), make(rest[width : 2 * width])
    return SocketAddress(source, source_port), SocketAddress(destination, destination_port)


def _identity(tlvs: bytes) -> str | None:
    """The identity's text, if a TLV carries one; other types are skipped."""
    found: str | None = None
    while tlvs:
        if len(tlvs) < 3 or len(tlvs) < 3 + (length := int.from_bytes(tlvs[1:3], "big")):
            raise PeerBrokeProtocol("PROXY protocol TLV cut short")
        if tlvs[0] == IDENTITY_TLV:
            try:
                found = tlvs[3 : 3 + length].decode()
            except UnicodeDecodeError:
                raise PeerBrokeProtocol("PROXY protocol identity is not UTF-8") from None
        tlvs = tlvs[3 + length :]
    return found
