"""Properties of the address parsers."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import (
    HostPort,
    NamespacedHostname,
    NetworkAddress,
    SocketAddress,
    canonical,
    decode_ip,
    parse_hbone_target,
    parse_port,
)

ips = st.ip_addresses()
ports = st.integers(0, 65535)
sockets = st.builds(SocketAddress, ips, ports)
# Text near the grammar finds more than text at large.
near_addresses = st.text(st.sampled_from("0123456789abcdef:.[]%/*-_ \x00é"), max_size=40)
texts = st.text(max_size=60) | near_addresses


# "Addresses are 4 or 16 bytes in network order" (workload.proto, Workload.addresses)
@given(st.binary(max_size=20))
def test_packed_bytes_are_an_address_or_the_peers_fault(packed: bytes) -> None:
    try:
        assert decode_ip(packed).packed == packed
    except PeerBrokeProtocol:
        assert len(packed) not in (4, 16)


@given(texts)
def test_text_is_a_target_or_the_peers_fault(text: str) -> None:
    for parse in (parse_hbone_target, SocketAddress.parse, NetworkAddress.parse, NamespacedHostname.parse):
        try:
            value = parse(text)
        except PeerBrokeProtocol:
            continue
        assert parse(str(value)) == value
    with suppress(PeerBrokeProtocol):
        assert 0 <= parse_port(text) <= 65535


# RFC 9110 4.2.1, "authority = host ":" port", IPv6 in brackets
@given(sockets)
def test_a_socket_address_is_read_as_printed(address: SocketAddress) -> None:
    assert SocketAddress.parse(str(address)) == address
    assert parse_hbone_target(str(address)) == address


@given(st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,20}){0,4}", fullmatch=True), ports)
def test_a_host_and_port_are_read_as_printed(host: str, port: int) -> None:
    assert parse_hbone_target(f"{host}:{port}") == HostPort(host, port)


@given(st.text(st.characters(exclude_characters="/"), max_size=20), ips)
def test_a_network_address_is_read_as_printed(network: str, ip: object) -> None:
    assert str(NetworkAddress.parse(f"{network}/{ip}")) == f"{network}/{ip}"


@given(ips)
def test_canonical_addresses_are_fixed_points(ip: object) -> None:
    address = decode_ip(ip.packed)  # type: ignore[attr-defined]

    assert canonical(canonical(address)) == canonical(address)
