"""Properties of PROXY v2 headers."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.wire.proxy_protocol import SIGNATURE, ProxyHeader, encode_header, header_bytes, parse_header

sockets = st.builds(SocketAddress, st.ip_addresses(), st.integers(0, 65535))
parts = st.text("abc.-", max_size=10)
identities = st.builds(SpiffeId, parts, parts, parts) | st.none()
near_headers = st.builds(
    lambda command, family, rest: SIGNATURE + bytes((command, family)) + len(rest).to_bytes(2, "big") + rest,
    st.sampled_from([0x20, 0x21, 0x22]),
    st.sampled_from([0x00, 0x01, 0x11, 0x12, 0x21]),
    st.binary(max_size=60) | st.binary(max_size=20).map(lambda tlv: bytes(12) + b"\xd0\x00" + tlv),
)


# haproxy doc/proxy-protocol.txt 2.2, "the number of following bytes part of the header"
@given(sockets, sockets, identities, st.binary(max_size=5))
def test_a_header_is_read_as_written(
    source: SocketAddress, destination: SocketAddress, identity: SpiffeId | None, following: bytes
) -> None:
    header = encode_header(source, destination, identity)
    name = None if identity is None else str(identity)

    assert header_bytes(header + following) == len(header)
    if source.ip.version == destination.ip.version:
        assert parse_header(header) == ProxyHeader(source, destination, name)
    else:
        assert parse_header(header) == ProxyHeader(None, None, name)


@given(st.binary(max_size=80) | near_headers)
def test_any_bytes_are_a_header_or_the_peers_fault(data: bytes) -> None:
    with suppress(PeerBrokeProtocol):
        parse_header(data)


@given(st.binary(max_size=40) | near_headers)
def test_the_length_of_a_header_is_known_unknown_or_the_peers_fault(data: bytes) -> None:
    try:
        length = header_bytes(data)
    except PeerBrokeProtocol:
        return
    assert (length is None) == (len(data) < 16)
