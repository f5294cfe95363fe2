"""Fields that several kinds of resources have, each checked and converted once per distinct value.

Theory of operation: many resources repeat the same strings, port lists and gateways. Converted values are
kept in caches of bounded size, keyed by the encoded bytes, so that equal ones are one object.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType
from typing import Final, TypeVar

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress, decode_ip
from ztunnel_trio.model.service import NO_PORTS
from ztunnel_trio.model.workload import GatewayAddress
from ztunnel_trio.pb import workload_pb2
from ztunnel_trio.wire.rejection import RejectedResource

PIECES_KEPT: Final = 16384

Ports = Mapping[int, int]
"""Service port to target port."""

T = TypeVar("T")


class FieldRefused(PeerBrokeProtocol):
    """A field holds what the mesh does not take. Raised and caught in this room only."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason

    def of(self, resource: str) -> RejectedResource:
        """The refusal of the resource with that field."""
        return RejectedResource(resource, self.field, self.reason)


def undecodable(resource: str, error: Exception) -> RejectedResource:
    """The refusal of a resource whose bytes are no such message."""
    return RejectedResource(resource, "", f"decode: {error}", is_undecodable=True)


def known(field: str, table: Mapping[int, T], number: int) -> T:
    """The value of an enum number.

    Raises:
        FieldRefused: nobody knows that number.
    """
    try:
        return table[number]
    except KeyError:
        raise FieldRefused(field, f"decode error: unknown enumeration value {number}") from None


def ip_of(field: str, packed: bytes) -> IPAddress:
    """An address as istiod packs it.

    Raises:
        FieldRefused: not 4 or 16 bytes.
    """
    try:
        return decode_ip(packed)
    except PeerBrokeProtocol as error:
        raise FieldRefused(field, str(error)) from error


@lru_cache(PIECES_KEPT)
def one(text: str) -> str:
    """One copy of a string that many resources repeat."""
    return text


@lru_cache(PIECES_KEPT)
def hostname_of(field: str, key: str) -> NamespacedHostname:
    """A `namespace/hostname`.

    Raises:
        FieldRefused: it has no slash.
    """
    try:
        return NamespacedHostname.parse(key)
    except PeerBrokeProtocol as error:
        raise FieldRefused(field, str(error)) from error


@lru_cache(PIECES_KEPT)
def ports_of(pairs: tuple[tuple[int, int], ...]) -> Ports:
    """One copy of a port map; numbers are cut to 16 bits, of a repeated service port the last one counts."""
    return (
        MappingProxyType({service & 0xFFFF: target & 0xFFFF for service, target in pairs})
        if pairs
        else NO_PORTS
    )


@lru_cache(PIECES_KEPT)
def gateway(field: str, encoded: bytes) -> GatewayAddress:
    """A waypoint or network gateway, from its encoded message.

    Raises:
        FieldRefused: it says neither a hostname nor an address.
    """
    return gateway_of(field, workload_pb2.GatewayAddress.FromString(encoded))


def gateway_of(field: str, message: workload_pb2.GatewayAddress) -> GatewayAddress:
    """As `gateway`, of a message that is decoded already."""
    port = message.hbone_mtls_port & 0xFFFF
    match message.WhichOneof("destination"):
        case "hostname":
            name = message.hostname
            return GatewayAddress(NamespacedHostname(name.namespace, name.hostname), port)
        case "address":
            address = message.address
            ip = ip_of(f"{field}.address", address.address)
            return GatewayAddress(NetworkAddress(address.network, ip), port)
        case _:
            raise FieldRefused(field, "nonempty gateway address is missing address")


def cidr_of(address: bytes, length: int) -> IPv4Network | IPv6Network | None:
    """A range with its host bits masked; None if there is none of that form."""
    if len(address) not in (4, 16) or length > len(address) * 8:
        return None
    return ip_network((address, length), strict=False)
