"""PROXY v2 headers, byte for byte."""

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.wire.proxy_protocol import SIGNATURE, ProxyHeader, encode_header, header_bytes, parse_header

SIGNED = bytes.fromhex("0D0A0D0A000D0A515549540A")
V4 = SocketAddress.parse("10.0.0.1:1234"), SocketAddress.parse("10.0.0.2:80")
V6 = SocketAddress.parse("[2001:db8::1]:1234"), SocketAddress.parse("[2001:db8::2]:80")
IDENTITY = SpiffeId("td", "ns", "sa")
IDENTITY_TLV = b"\xd0\x00\x15spiffe://td/ns/ns/sa/sa".replace(b"\x15", bytes([len(str(IDENTITY))]))


def test_ipv4_addresses_take_12_bytes() -> None:
    rest = bytes.fromhex("0a000001 0a000002 04d2 0050")

    assert encode_header(*V4, None) == SIGNED + b"\x21\x11\x00\x0c" + rest


def test_the_identity_follows_the_addresses() -> None:
    rest = bytes.fromhex("0a000001 0a000002 04d2 0050") + IDENTITY_TLV

    assert encode_header(*V4, IDENTITY) == SIGNED + b"\x21\x11" + len(rest).to_bytes(2, "big") + rest


def test_ipv6_addresses_take_36_bytes() -> None:
    header = encode_header(*V6, None)

    assert header[:16] == SIGNED + b"\x21\x21\x00\x24"
    assert header[16:48] == V6[0].ip.packed + V6[1].ip.packed
    assert header[48:] == bytes.fromhex("04d2 0050")


def test_addresses_of_two_families_are_left_out() -> None:
    assert encode_header(V4[0], V6[1], None) == SIGNED + b"\x21\x01\x00\x00"
    assert parse_header(encode_header(V4[0], V6[1], IDENTITY)) == ProxyHeader(None, None, str(IDENTITY))


def test_an_identity_longer_than_a_header_is_left_out() -> None:
    giant = SpiffeId("td", "n" * 0xFFFF, "sa")

    assert encode_header(*V4, giant) == encode_header(*V4, None)


def test_what_is_written_is_read() -> None:
    assert parse_header(encode_header(*V4, IDENTITY)) == ProxyHeader(*V4, str(IDENTITY))
    assert parse_header(encode_header(*V6, None)) == ProxyHeader(*V6)


def test_a_local_header_says_nothing() -> None:
    assert parse_header(SIGNATURE + b"\x20\x00\x00\x01x") == ProxyHeader(None, None)


def test_other_tlvs_are_skipped() -> None:
    header = SIGNATURE + b"\x21\x00\x00\x08" + b"\x01\x00\x01a" + b"\xd0\x00\x01b"

    assert parse_header(header) == ProxyHeader(None, None, "b")


def test_the_length_is_known_from_the_fixed_part() -> None:
    header = encode_header(*V4, IDENTITY)

    assert header_bytes(header[:15]) is None
    assert header_bytes(b"") is None
    assert header_bytes(header[:16]) == len(header)
    assert header_bytes(header + b"more") == len(header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        SIGNATURE,
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\n",
        SIGNATURE + b"\x11\x11\x00\x00",  # version 1
        SIGNATURE + b"\x22\x11\x00\x00",  # no such command
        SIGNATURE + b"\x21\x12\x00\x00",  # UDP
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x11\x00\x0c" + bytes(11),
        SIGNATURE + b"\x21\x11\x00\x0c" + bytes(13),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x00\x00\x02" + b"\xd0\x00",
        SIGNATURE + b"\x21\x00\x00\x03" + b"\xd0\x00\x01",
        SIGNATURE + b"\x21\x00\x00\x04" + b"\xd0\x00\x01\xff",
    ],
)
def test_a_broken_header_is_the_peers_fault(header: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol):
        parse_header(header)
