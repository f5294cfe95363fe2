"""Services of the discovery stream as entries of the mesh."""

from functools import lru_cache
from typing import Final

from ztunnel_trio.mesh.entries import ServiceEntry
from ztunnel_trio.model.address import NetworkAddress
from ztunnel_trio.model.service import (
    HealthPolicy,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    NetworkCidr,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_trio.pb import workload_pb2
from ztunnel_trio.wire.shallow import ShallowService
from ztunnel_trio.xds.fields import (
    PIECES_KEPT,
    FieldRefused,
    cidr_of,
    gateway,
    gateway_of,
    ip_of,
    known,
    one,
    ports_of,
)

_FAMILIES: Final = {0: None, 1: IPFamilies.IPV4, 2: IPFamilies.IPV6, 3: IPFamilies.DUAL}
_MODES: Final = {
    0: LoadBalancingMode.STANDARD,
    1: LoadBalancingMode.STRICT,
    2: LoadBalancingMode.FAILOVER,
    3: LoadBalancingMode.PASSTHROUGH,
}
_HEALTH_POLICIES: Final = {0: HealthPolicy.ONLY_HEALTHY, 1: HealthPolicy.ALLOW_ALL}
_NO_SCOPE: Final = 0
_SCOPES: Final = {
    1: Scope.REGION,
    2: Scope.ZONE,
    3: Scope.SUBZONE,
    4: Scope.NODE,
    5: Scope.CLUSTER,
    6: Scope.NETWORK,
}
_NAMESPACE_ONLY: Final = 1
_PREFERENCES: Final = "load_balancing.routing_preference"


def service_entry_of(message: ShallowService) -> ServiceEntry:
    """Check a service.

    Raises:
        FieldRefused: one of its fields.
    """
    vips: list[NetworkAddress] = []
    cidr_vips: list[NetworkCidr] = []
    for data in message.addresses:
        vip = _vip(workload_pb2.NetworkAddress.FromString(data))
        if isinstance(vip, NetworkAddress):
            vips.append(vip)
        else:
            cidr_vips.append(vip)
    return ServiceEntry(
        Service(
            name=message.name,
            namespace=one(message.namespace),
            hostname=message.hostname,
            vips=tuple(vips),
            cidr_vips=tuple(cidr_vips),
            ports=ports_of(tuple([_port(data) for data in message.ports])),
            subject_alt_names=tuple(message.subject_alt_names),
            waypoint=gateway("waypoint", message.waypoint) if message.HasField("waypoint") else None,
            weighted_waypoints=tuple([_weighted_waypoint(data) for data in message.weighted_waypoints]),
            load_balancer=_load_balancer(message.load_balancing)
            if message.HasField("load_balancing")
            else None,
            ip_families=known("ip_families", _FAMILIES, message.ip_families),
            canonical=message.canonical,
            visibility=Visibility.NAMESPACE if message.visibility == _NAMESPACE_ONLY else Visibility.PUBLIC,
        )
    )


def _vip(message: workload_pb2.NetworkAddress) -> NetworkAddress | NetworkCidr:
    ip = ip_of("addresses", message.address)
    network = one(message.network)
    if not message.HasField("length") or message.length == ip.max_prefixlen:
        return NetworkAddress(network, ip)
    cidr = cidr_of(message.address, message.length & 0xFF)
    if cidr is None:
        raise FieldRefused("addresses.length", "invalid cidr: invalid IP prefix length")
    # truncated to 8 bits a length may turn out to be that of a host: ztunnel keeps it a range of one
    return NetworkCidr(network, cidr)


@lru_cache(PIECES_KEPT)
def _port(data: bytes) -> tuple[int, int]:
    message = workload_pb2.Port.FromString(data)
    return message.service_port, message.target_port


@lru_cache(1024)
def _load_balancer(data: bytes) -> LoadBalancer:
    message = workload_pb2.LoadBalancing.FromString(data)
    if _NO_SCOPE in message.routing_preference:
        raise FieldRefused(_PREFERENCES, "unknown enum: invalid target")
    return LoadBalancer(
        tuple([known(_PREFERENCES, _SCOPES, scope) for scope in message.routing_preference]),
        known("load_balancing.mode", _MODES, message.mode),
        known("load_balancing.health_policy", _HEALTH_POLICIES, message.health_policy),
    )


def _weighted_waypoint(data: bytes) -> WeightedWaypoint:
    message = workload_pb2.WeightedWaypoint.FromString(data)
    return WeightedWaypoint(gateway_of("weighted_waypoints.destination", message.destination), message.weight)
