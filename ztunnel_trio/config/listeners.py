"""Where the servers listen."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.machine import Machine
from ztunnel_trio.config.mesh_file import ProxyConfig
from ztunnel_trio.config.values import first
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import env
from ztunnel_trio.facts.network import (
    ADMIN_PORT,
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    READINESS_PORT,
    SOCKS5_PORT,
    STATS_PORT,
)
from ztunnel_trio.grammar import (
    ListenAddress,
    Localhost,
    parse_listen_address,
)
from ztunnel_trio.model.address import SocketAddress

LOOPBACK_IPV6_FILE: Final = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """Where the servers listen."""

    dns_proxy_addr: ListenAddress
    socks5_addr: SocketAddress | None
    admin_addr: Localhost
    stats_addr: SocketAddress
    readiness_addr: SocketAddress
    inbound_addr: SocketAddress
    inbound_plaintext_addr: SocketAddress
    outbound_addr: SocketAddress


def load_listeners(
    values: Environment, proxy_config: ProxyConfig, *, ipv6: bool, ipv6_loopback: bool
) -> ListenerConfig:
    wildcard = IPv6Address("::") if ipv6 else IPv4Address("0.0.0.0")
    socks5 = values.boolean(env.UNSTABLE_ENABLE_SOCKS5, default=False)
    return ListenerConfig(
        dns_proxy_addr=load_dns_address(
            proxy_config.proxy_metadata.get("DNS_PROXY_ADDR"), ipv6=ipv6_loopback
        ),
        socks5_addr=SocketAddress(IPv4Address("127.0.0.1"), SOCKS5_PORT) if socks5 else None,
        admin_addr=Localhost(ipv6_loopback, first(proxy_config.proxy_admin_port, ADMIN_PORT)),
        stats_addr=SocketAddress(wildcard, first(proxy_config.stats_port, STATS_PORT)),
        readiness_addr=SocketAddress(wildcard, READINESS_PORT),
        inbound_addr=SocketAddress(wildcard, HBONE_PORT),
        inbound_plaintext_addr=SocketAddress(wildcard, INBOUND_PLAINTEXT_PORT),
        outbound_addr=SocketAddress(wildcard, OUTBOUND_PORT),
    )


def is_ipv6_on_loopback(machine: Machine, notes: list[str]) -> bool:
    """Whether the loopback interface has IPv6; an unreadable switch counts as yes."""
    try:
        return machine.read_text(LOOPBACK_IPV6_FILE).strip() != "1"
    except OSError as error:
        notes.append(f"failed to read {LOOPBACK_IPV6_FILE}: {error.strerror}; taking IPv6 as enabled")
        return True


def load_dns_address(text: str | None, *, ipv6: bool) -> ListenAddress:
    """Where the DNS proxy listens.

    Raises:
        ConfigError: no address and port.
    """
    if text is None:
        return Localhost(ipv6, DNS_PORT)
    try:
        return parse_listen_address(text, ipv6=ipv6)
    except ConfigError as error:
        raise ConfigError(
            f"invalid configuration: failed to parse DNS_PROXY_ADDR: {text} ({error})"
        ) from None
