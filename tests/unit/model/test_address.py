"""Addresses are read and printed as istiod and the Rust ztunnel write them."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import (
    HboneTarget,
    HostPort,
    NamespacedHostname,
    NetworkAddress,
    SocketAddress,
    canonical,
    decode_ip,
    parse_hbone_target,
    parse_port,
)


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (bytes(4), "0.0.0.0"),
        (b"\x7f\x00\x00\x01", "127.0.0.1"),
        (b"\x01\x01\x01\x01", "1.1.1.1"),
        (bytes.fromhex("20010db885a3000000008a2e03707334"), "2001:db8:85a3::8a2e:370:7334"),
        (bytes(15) + b"\x01", "::1"),
        (bytes(10) + b"\xff\xff\x0a\x00\x00\x01", "::ffff:a00:1"),  # v4-mapped stays IPv6
    ],
)
def test_packed_addresses_are_4_or_16_bytes(packed: bytes, text: str) -> None:
    assert decode_ip(packed) == ip_address(text)


@pytest.mark.parametrize("packed", [b"", b"not_an_ip", bytes(5), bytes(17)])
def test_a_packed_address_of_another_length_is_refused_with_its_length(packed: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol, match=f"had {len(packed)} bytes"):
        decode_ip(packed)


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    assert canonical(IPv6Address("::ffff:10.0.0.1")) == IPv4Address("10.0.0.1")
    assert canonical(IPv6Address("::10.0.0.1")) == IPv6Address("::10.0.0.1")
    assert canonical(IPv4Address("10.0.0.1")) == IPv4Address("10.0.0.1")


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("80", 80), ("00080", 80), ("65535", 65535)])
def test_ports_are_decimal(text: str, port: int) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["", "-1", "+1", "65536", "1e3", " 80", "٨٠", "000080", "9" * 5000])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(PeerBrokeProtocol):
        parse_port(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("1.2.3.4:80", SocketAddress(IPv4Address("1.2.3.4"), 80)),
        ("[ff06::c3]:80", SocketAddress(IPv6Address("ff06::c3"), 80)),
        ("svc.ns.svc.cluster.local:80", HostPort("svc.ns.svc.cluster.local", 80)),
        ("*.example.com:443", HostPort("*.example.com", 443)),
        ("_named.example:0", HostPort("_named.example", 0)),
    ],
)
def test_authorities_are_addresses_or_hosts_with_a_port(text: str, target: HboneTarget) -> None:
    assert parse_hbone_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "1.2.3.4",
        "host:",
        "host:http",
        "host:70000",
        "ff06::c3:80",
        "[1.2.3.4]:80",
        "[::1%eth0]:80",
        "user@host:80",
        "a b:80",
        "höst:80",
        "[host]:80",
        "h" * 254 + ":65535",
    ],
)
def test_what_is_no_authority_is_refused(text: str) -> None:
    with pytest.raises(PeerBrokeProtocol):
        parse_hbone_target(text)


@pytest.mark.parametrize("text", ["1.2.3.4", "::1:80", "[::1]", "[1.2.3.4]:80", "host:80", "[::1%1]:80", ""])
def test_a_socket_address_has_both_parts_and_brackets_for_ipv6_only(text: str) -> None:
    with pytest.raises(PeerBrokeProtocol):
        SocketAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("network/1.2.3.4", NetworkAddress("network", IPv4Address("1.2.3.4"))),
        ("/::1", NetworkAddress("", IPv6Address("::1"))),
    ],
)
def test_network_addresses_are_read_and_printed(text: str, address: NetworkAddress) -> None:
    assert NetworkAddress.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["1.2.3.4", "net/", "net/host", "net/more/1.2.3.4", "/fe80::1%eth0"])
def test_what_is_no_network_address_is_refused(text: str) -> None:
    with pytest.raises(PeerBrokeProtocol):
        NetworkAddress.parse(text)


def test_a_namespaced_hostname_is_split_at_its_first_slash() -> None:
    assert NamespacedHostname.parse("ns/host/more") == NamespacedHostname("ns", "host/more")
    assert str(NamespacedHostname("", "example.com")) == "/example.com"
    with pytest.raises(PeerBrokeProtocol):
        NamespacedHostname.parse("host")
