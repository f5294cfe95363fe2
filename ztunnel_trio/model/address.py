"""Addresses: IPs, sockets, addresses on a named network, namespaced hostnames and HBONE authorities."""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Self

from ztunnel_trio.errors import PeerBrokeProtocol

IPAddress = IPv4Address | IPv6Address


def canonical(ip: IPAddress) -> IPAddress:
    """IPv4-mapped IPv6 (`::ffff:a.b.c.d`) as the IPv4 address it stands for; all else unchanged."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def decode_ip(packed: bytes) -> IPAddress:
    """Read an address as istiod packs it: 4 or 16 bytes, network order. v4-mapped stays IPv6.

    Raises:
        PeerBrokeProtocol: any other length (workload.proto, Workload.addresses).
    """
    if len(packed) == 4:
        return IPv4Address(packed)
    if len(packed) == 16:
        return IPv6Address(packed)
    raise PeerBrokeProtocol(f"failed to parse address, had {len(packed)} bytes")


def parse_port(text: str) -> int:
    """A decimal port, 0 to 65535, digits only.

    Raises:
        PeerBrokeProtocol: anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or int(text) > 65535:
        raise PeerBrokeProtocol(f"invalid port: {text}")
    return int(text)


@dataclass(frozen=True, slots=True, order=True)
class SocketAddress:
    """An IP and a port; prints as `1.2.3.4:80` and `[::1]:80`."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        # !s: ipaddress's own __format__ is several times slower
        return f"{self.ip!s}:{self.port}" if self.ip.version == 4 else f"[{self.ip!s}]:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `ip:port`, IPv6 in brackets.

        Raises:
            PeerBrokeProtocol: anything else.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            ip = ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            raise PeerBrokeProtocol(f"invalid socket address: {text}") from None
        if not colon or bracketed != (ip.version == 6) or "%" in host:
            raise PeerBrokeProtocol(f"invalid socket address: {text}")
        return cls(ip, parse_port(port))


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A hostname and a port, as an HBONE authority may name a service."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


HboneTarget = SocketAddress | HostPort


_LONGEST_AUTHORITY: Final = 253 + 6  # a host name (RFC 1035 2.3.4) and a port


def parse_hbone_target(text: str) -> HboneTarget:
    """Read a CONNECT authority: `ip:port` first, else `host:port`.

    Raises:
        PeerBrokeProtocol: no port, an empty host or one of more than 253 characters, or characters no host
            has.
    """
    if len(text) > _LONGEST_AUTHORITY:  # peers write these, and the last few thousand are remembered
        raise PeerBrokeProtocol(f"no valid authority: {text[:_LONGEST_AUTHORITY]}…")
    return _parse_hbone_target(text)


@lru_cache(maxsize=4096)
def _parse_hbone_target(text: str) -> HboneTarget:
    try:
        return SocketAddress.parse(text)
    except PeerBrokeProtocol:
        host, colon, port = text.rpartition(":")
        if not colon or not host or not all(c.isascii() and (c.isalnum() or c in "-._*") for c in host):
            raise PeerBrokeProtocol(f"no valid authority: {text}") from None
        return HostPort(host, parse_port(port))


@dataclass(frozen=True, slots=True, order=True)
class NetworkAddress:
    """An IP on a named network; the default network is the empty string. Prints as `network/ip`."""

    network: str
    ip: IPAddress

    def __str__(self) -> str:
        return f"{self.network}/{self.ip}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `network/ip`, split at the first `/`.

        Raises:
            PeerBrokeProtocol: no `/`, or no IP behind it.
        """
        network, slash, ip = text.partition("/")
        try:
            if not slash or "%" in ip:
                raise ValueError
            return cls(network, ip_address(ip))
        except ValueError:
            raise PeerBrokeProtocol(f"failed to parse network address: {text}") from None


@dataclass(frozen=True, slots=True, order=True)
class NamespacedHostname:
    """A hostname in a namespace: the key of a service. Prints as `namespace/hostname`."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `namespace/hostname`, split at the first `/`.

        Raises:
            PeerBrokeProtocol: no `/`.
        """
        namespace, slash, hostname = text.partition("/")
        if not slash:
            raise PeerBrokeProtocol(f"failed to parse namespaced hostname: {text}")
        return cls(namespace, hostname)
