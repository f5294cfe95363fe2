from tests.fakes.machine import FakeMachine, loaded
from ztunnel_trio.config import load
from ztunnel_trio.config.listeners import LOOPBACK_IPV6_FILE
from ztunnel_trio.grammar import Localhost
from ztunnel_trio.model.address import SocketAddress


def test_without_ipv6_only_ipv4_is_bound() -> None:
    config = loaded({"IPV6_ENABLED": "false", "UNSTABLE_ENABLE_SOCKS5": "true"})

    assert str(config.listeners.inbound_addr) == "0.0.0.0:15008"
    assert config.listeners.admin_addr == Localhost(ipv6=False, port=15000)
    assert config.listeners.socks5_addr == SocketAddress.parse("127.0.0.1:15080")
    assert 15080 in config.illegal_ports


def test_ipv6_may_be_off_on_loopback_alone() -> None:
    config = loaded(files={LOOPBACK_IPV6_FILE: "1\n"})

    assert config.listeners.admin_addr == Localhost(ipv6=False, port=15000)
    assert str(config.listeners.inbound_addr) == "[::]:15008"


def test_an_unreadable_switch_counts_as_ipv6_on() -> None:
    config = load({}, FakeMachine(failing=frozenset({LOOPBACK_IPV6_FILE})))

    assert config.ipv6_loopback
    assert "Permission denied; taking IPv6 as enabled" in config.notes[0]


def test_where_the_dns_proxy_listens() -> None:
    assert loaded().listeners.dns_proxy_addr == Localhost(ipv6=True, port=15053)
    assert loaded(
        {"ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:53"}
    ).listeners.dns_proxy_addr == SocketAddress.parse("127.0.0.1:53")
