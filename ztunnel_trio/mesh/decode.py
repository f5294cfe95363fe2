"""Protobuf bytes to checked entries; a bad resource rejects itself only.

Theory of operation: workloads come by the hundred thousand, and those of one deployment differ in uid,
name, addresses, node and locality only. An `Address` (workload.proto) is therefore read *shallowly*
(`shallow`): what is a workload's own is taken out; what is left is serialised again and is the key of a
`Shared`, which is checked and converted once for the whole deployment. The same goes for localities,
gateways, port lists and host names, each converted once per distinct bytes. The memory of these conversions
is bounded.

`read_workloads` is the short way for workloads as they come from istiod, envelopes and all. It never rejects:
what it cannot read takes the long way, by `prepare_address`, which says what is wrong.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.facts.network import DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN
from ztunnel_trio.mesh.shallow import (
    OwnWorkload,
    ShallowService,
    parse_address,
    parse_response,
    parse_services_entry,
    parse_workload,
)
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress, decode_ip
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Clause,
    Exact,
    IPNetwork,
    Match,
    PolicyScope,
    Prefix,
    Presence,
    Rule,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)
from ztunnel_trio.model.service import (
    NO_PORTS,
    Endpoint,
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
from ztunnel_trio.model.workload import (
    NO_SERVICES,
    NOWHERE,
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Health,
    InboundProtocol,
    Locality,
    NetworkMode,
    Workload,
)
from ztunnel_trio.pb import authorization_pb2, workload_pb2

Ports = Mapping[int, int]

SHARED_KEPT: Final = 16384  # distinct workloads but for what is their own; about one a deployment
PIECES_KEPT: Final = 16384
NO_ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What the workloads of a deployment have in common. Two of the same `key` are the same.

    `prototype` is a workload without what is its own: uid, name, addresses, node, locality.
    """

    key: bytes | Workload
    prototype: Workload


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a workload runs. Two of the same `key` are the same: it is hashed without a Python call."""

    node: str
    locality: Locality
    key: tuple[str, str, str, str]


class WorkloadEntry(NamedTuple):
    """A checked workload, in the parts it is kept in."""

    uid: str
    name: str
    addresses: tuple[bytes, ...]  # packed, in wire order
    place: Place
    shared: Shared


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A checked service. `endpoints` come from a local file only; istiod names services at the workload."""

    service: Service
    endpoints: Mapping[str, Endpoint] = field(default_factory=lambda: NO_ENDPOINTS, hash=False)


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A checked policy under its resource name."""

    key: str
    policy: Authorization


AddressEntry = WorkloadEntry | ServiceEntry


class ArrivedWorkload(NamedTuple):
    """A workload as it came: its resource's name and version, the size of its payload, and what it holds."""

    name: str
    version: str
    payload_bytes: int
    entry: WorkloadEntry

    @property
    def aliases(self) -> tuple[str, ...]:
        """Not read: they matter to those who ask for single resources."""
        return ()


def read_workloads(group: bytes) -> list[ArrivedWorkload]:
    """Read some `resources` of a DeltaDiscoveryResponse (xds.proto) that are all workloads.

    Nothing, if one of them is something else, or bad.
    """
    arrived: list[ArrivedWorkload] = []
    try:
        for resource in parse_response(group).resources:
            address = resource.resource.value
            workload = address.workload
            if not workload.uid:
                return []
            name, payload_bytes = resource.name, address.ByteSize()
            entry = _workload_entry(name, workload)
            arrived.append(tuple.__new__(ArrivedWorkload, (name, resource.version, payload_bytes, entry)))
    except (DecodeError, PeerBrokeProtocol):
        return []
    return arrived


def prepare_address(name: str, payload: bytes) -> AddressEntry:
    """Check one `Address` resource. The object names itself; the resource name is the same to istiod.

    Raises:
        PeerBrokeProtocol: with the reason to reject it for.
    """
    try:
        address = parse_address(payload)
        kind = address.WhichOneof("type")
        if kind == "workload":
            return _workload_entry(name, address.workload)
        if kind == "service":
            return _service_entry(address.service)
    except DecodeError as error:
        raise PeerBrokeProtocol(f"decode: {error}") from error
    raise PeerBrokeProtocol("unknown address type")


def prepare_policy(name: str, payload: bytes) -> PolicyEntry:
    """Check one `Authorization` resource; it is kept under the resource name.

    Raises:
        PeerBrokeProtocol: with the reason to reject it for.
    """
    try:
        message = authorization_pb2.Authorization.FromString(payload)
    except DecodeError as error:
        raise PeerBrokeProtocol(f"decode: {error}") from error
    return PolicyEntry(name, _authorization(message))


def workload_entry(workload: Workload) -> WorkloadEntry:
    """The entry of a workload that is known as a value, e.g. from a local file."""
    return WorkloadEntry(
        workload.uid,
        workload.name,
        tuple([ip.packed for ip in workload.addresses]),
        place_of(workload.node, workload.locality),
        _shared_of_value(workload),
    )


def place_of(node: str, locality: Locality) -> Place:
    """The place of a node and a locality."""
    return Place(node, locality, (node, locality.region, locality.zone, locality.subzone))


NO_PLACE: Final = place_of("", NOWHERE)


def build_workload(
    prototype: Workload, uid: str, name: str, addresses: tuple[bytes, ...], place: Place
) -> Workload:
    """A prototype with what is a workload's own."""
    return Workload(
        uid=uid,
        name=name,
        addresses=tuple([decode_ip(packed) for packed in addresses]),
        node=place.node,
        locality=place.locality,
        namespace=prototype.namespace,
        service_account=prototype.service_account,
        trust_domain=prototype.trust_domain,
        hostname=prototype.hostname,
        network=prototype.network,
        network_mode=prototype.network_mode,
        network_gateway=prototype.network_gateway,
        protocol=prototype.protocol,
        native_tunnel=prototype.native_tunnel,
        application_tunnel=prototype.application_tunnel,
        waypoint=prototype.waypoint,
        cluster=prototype.cluster,
        health=prototype.health,
        capacity=prototype.capacity,
        workload_name=prototype.workload_name,
        workload_type=prototype.workload_type,
        canonical_name=prototype.canonical_name,
        canonical_revision=prototype.canonical_revision,
        authorization_policies=prototype.authorization_policies,
        services=prototype.services,
    )


# Workloads ------------------------------------------------------------------------------------------------

_INBOUND: Final = {0: InboundProtocol.TCP, 1: InboundProtocol.HBONE}
_LEGACY_MTLS: Final = 2
_HEALTH: Final = {0: Health.HEALTHY, 1: Health.UNHEALTHY}
_NETWORK_MODES: Final = {0: NetworkMode.STANDARD, 1: NetworkMode.HOST_NETWORK}
_APP_TUNNELS: Final = {0: AppTunnelProtocol.NONE, 1: AppTunnelProtocol.PROXY}
_WORKLOAD_TYPES: Final = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}

T = TypeVar("T")


def _known(table: Mapping[int, T], number: int) -> T:
    """The value of an enum number.

    Raises:
        PeerBrokeProtocol: nobody knows that number.
    """
    try:
        return table[number]
    except KeyError:
        raise PeerBrokeProtocol(f"decode error: unknown enumeration value {number}") from None


def _workload_entry(resource_name: str, message: OwnWorkload) -> WorkloadEntry:
    """Take a workload apart; the message is used up."""
    uid = message.uid
    if uid == resource_name:
        uid = resource_name  # one copy of a string that is kept by name and by uid
    name = message.name
    addresses = tuple(message.addresses[:])  # a slice is copied faster than it is iterated
    for packed in addresses:
        if len(packed) != 4 and len(packed) != 16:
            decode_ip(packed)  # raises
    place = _place(message.node, message.locality)
    clear = message.ClearField
    clear("uid")  # every field of OWN_FIELDS
    clear("name")
    clear("addresses")
    clear("node")
    clear("locality")
    clear("extensions")
    shared = _shared(message.SerializeToString())
    return tuple.__new__(WorkloadEntry, (uid, name, addresses, place, shared))  # a third of its __new__


@lru_cache(PIECES_KEPT)
def _place(node: str, locality: bytes) -> Place:
    """One copy of a node's name and its locality."""
    message = workload_pb2.Locality.FromString(locality)
    return place_of(node, _one_locality(Locality(message.region, message.zone, message.subzone)))


@lru_cache(PIECES_KEPT)
def _one_locality(locality: Locality) -> Locality:
    return locality


@lru_cache(SHARED_KEPT)
def _shared(key: bytes) -> Shared:
    """Check and convert what is left of a workload without what is its own."""
    message = parse_workload(key)
    if message.tunnel_protocol == _LEGACY_MTLS:
        raise PeerBrokeProtocol("unknown enum: unsupported tunnel protocol: legacy istio mtls")
    return Shared(
        key,
        Workload(
            namespace=_one(message.namespace),
            service_account=_one(message.service_account or DEFAULT_SERVICE_ACCOUNT),
            trust_domain=_one(message.trust_domain or DEFAULT_TRUST_DOMAIN),
            hostname=message.hostname,
            network=_one(message.network),
            network_mode=_known(_NETWORK_MODES, message.network_mode),
            network_gateway=_gateway(message.network_gateway)
            if message.HasField("network_gateway")
            else None,
            protocol=_known(_INBOUND, message.tunnel_protocol),
            native_tunnel=message.native_tunnel,
            application_tunnel=(
                _application_tunnel(message.application_tunnel)
                if message.HasField("application_tunnel")
                else None
            ),
            waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
            cluster=_one(message.cluster_id or DEFAULT_CLUSTER),
            health=_known(_HEALTH, message.status),
            capacity=_capacity(message.capacity) if message.HasField("capacity") else 1,
            workload_name=_one(message.workload_name),
            workload_type=_WORKLOAD_TYPES.get(message.workload_type, _WORKLOAD_TYPES[0]),
            canonical_name=_one(message.canonical_name),
            canonical_revision=_one(message.canonical_revision),
            authorization_policies=tuple([_one(policy) for policy in message.authorization_policies]),
            services=MappingProxyType(dict([_service_of_workload(entry) for entry in message.services]))
            if message.services
            else NO_SERVICES,
        ),
    )


def _shared_of_value(workload: Workload) -> Shared:
    prototype = build_workload(workload, "", "", (), NO_PLACE)
    return Shared(prototype, prototype)


@lru_cache(PIECES_KEPT)
def _one(text: str) -> str:
    """One copy of a string that many resources repeat."""
    return text


@lru_cache(PIECES_KEPT)
def _hostname(key: str) -> NamespacedHostname:
    return NamespacedHostname.parse(key)


@lru_cache(PIECES_KEPT)
def _service_of_workload(entry: bytes) -> tuple[NamespacedHostname, Ports]:
    message = parse_services_entry(entry)
    return _hostname(message.key), _port_list(message.value)


@lru_cache(PIECES_KEPT)
def _port_list(message: bytes) -> Ports:
    return _ports(
        tuple([(p.service_port, p.target_port) for p in workload_pb2.PortList.FromString(message).ports])
    )


@lru_cache(PIECES_KEPT)
def _ports(pairs: tuple[tuple[int, int], ...]) -> Ports:
    """One copy of a port map; numbers are cut to 16 bits, of a repeated service port the last one counts."""
    return (
        MappingProxyType({service & 0xFFFF: target & 0xFFFF for service, target in pairs})
        if pairs
        else NO_PORTS
    )


@lru_cache(PIECES_KEPT)
def _gateway(data: bytes) -> GatewayAddress:
    return _gateway_of(workload_pb2.GatewayAddress.FromString(data))


def _gateway_of(message: workload_pb2.GatewayAddress) -> GatewayAddress:
    port = message.hbone_mtls_port & 0xFFFF
    match message.WhichOneof("destination"):
        case "hostname":
            name = message.hostname
            return GatewayAddress(NamespacedHostname(name.namespace, name.hostname), port)
        case "address":
            address = message.address
            return GatewayAddress(NetworkAddress(address.network, decode_ip(address.address)), port)
        case _:
            raise PeerBrokeProtocol("nonempty gateway address is missing address")


@lru_cache(256)
def _application_tunnel(data: bytes) -> ApplicationTunnel:
    message = workload_pb2.ApplicationTunnel.FromString(data)
    return ApplicationTunnel(_known(_APP_TUNNELS, message.protocol), message.port & 0xFFFF or None)


def _capacity(data: bytes) -> int:
    return wrappers_pb2.UInt32Value.FromString(data).value


# Services -------------------------------------------------------------------------------------------------

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


def _service_entry(message: ShallowService) -> ServiceEntry:
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
            namespace=_one(message.namespace),
            hostname=message.hostname,
            vips=tuple(vips),
            cidr_vips=tuple(cidr_vips),
            ports=_ports(tuple([_port(data) for data in message.ports])),
            subject_alt_names=tuple(message.subject_alt_names),
            waypoint=_gateway(message.waypoint) if message.HasField("waypoint") else None,
            weighted_waypoints=tuple([_weighted_waypoint(data) for data in message.weighted_waypoints]),
            load_balancer=_load_balancer(message.load_balancing)
            if message.HasField("load_balancing")
            else None,
            ip_families=_known(_FAMILIES, message.ip_families),
            canonical=message.canonical,
            visibility=Visibility.NAMESPACE if message.visibility == _NAMESPACE_ONLY else Visibility.PUBLIC,
        )
    )


def _vip(message: workload_pb2.NetworkAddress) -> NetworkAddress | NetworkCidr:
    ip = decode_ip(message.address)
    network = _one(message.network)
    if not message.HasField("length") or message.length == ip.max_prefixlen:
        return NetworkAddress(network, ip)
    cidr = _cidr(message.address, message.length & 0xFF)
    if cidr is None:
        raise PeerBrokeProtocol("invalid cidr: invalid IP prefix length")
    # truncated to 8 bits a length may turn out to be that of a host: ztunnel keeps it a range of one
    return NetworkCidr(network, cidr)


def _cidr(address: bytes, length: int) -> IPv4Network | IPv6Network | None:
    """A range with its host bits masked; None if there is none of that form."""
    if len(address) not in (4, 16) or length > len(address) * 8:
        return None
    return ip_network((address, length), strict=False)


@lru_cache(PIECES_KEPT)
def _port(data: bytes) -> tuple[int, int]:
    message = workload_pb2.Port.FromString(data)
    return message.service_port, message.target_port


@lru_cache(1024)
def _load_balancer(data: bytes) -> LoadBalancer:
    message = workload_pb2.LoadBalancing.FromString(data)
    if _NO_SCOPE in message.routing_preference:
        raise PeerBrokeProtocol("unknown enum: invalid target")
    return LoadBalancer(
        tuple([_known(_SCOPES, scope) for scope in message.routing_preference]),
        _known(_MODES, message.mode),
        _known(_HEALTH_POLICIES, message.health_policy),
    )


def _weighted_waypoint(data: bytes) -> WeightedWaypoint:
    message = workload_pb2.WeightedWaypoint.FromString(data)
    return WeightedWaypoint(_gateway_of(message.destination), message.weight)


# Policies -------------------------------------------------------------------------------------------------

_POLICY_SCOPES: Final = {0: PolicyScope.GLOBAL, 1: PolicyScope.NAMESPACE, 2: PolicyScope.WORKLOAD_SELECTOR}
_ACTIONS: Final = {0: Action.ALLOW, 1: Action.DENY}


def _authorization(message: authorization_pb2.Authorization) -> Authorization:
    return Authorization(
        name=message.name,
        namespace=message.namespace,
        scope=_known(_POLICY_SCOPES, message.scope),
        action=_known(_ACTIONS, message.action),
        rules=tuple([_rule(rule) for rule in message.rules]),
        dry_run=message.dry_run,
    )


def _rule(message: authorization_pb2.Rule) -> Rule:
    return tuple([_clause(clause) for clause in message.clauses])


def _clause(message: authorization_pb2.Clause) -> Clause:
    return tuple([_match(match) for match in message.matches])


def _match(message: authorization_pb2.Match) -> Match:
    namespaces = _strings(message.namespaces)
    principals = _strings(message.principals)
    source_ips = _networks(message.source_ips)
    destination_ips = _networks(message.destination_ips)
    return Match(
        namespaces=namespaces,
        not_namespaces=_strings(message.not_namespaces),
        principals=principals,
        not_principals=_strings(message.not_principals),
        service_accounts=_accounts(message.service_accounts),
        not_service_accounts=_accounts(message.not_service_accounts),
        source_ips=source_ips,
        not_source_ips=_networks(message.not_source_ips),
        destination_ips=destination_ips,
        not_destination_ips=_networks(message.not_destination_ips),
        destination_ports=tuple([port & 0xFFFF for port in message.destination_ports]),
        not_destination_ports=tuple([port & 0xFFFF for port in message.not_destination_ports]),
        impossible=(not namespaces and len(message.namespaces) > 0)
        or (not principals and len(message.principals) > 0)
        or (not source_ips and len(message.source_ips) > 0)
        or (not destination_ips and len(message.destination_ips) > 0),
    )


def _strings(messages: Iterable[authorization_pb2.StringMatch]) -> tuple[StringMatch, ...]:
    """The usable entries: those that say what they match."""
    return tuple([match for message in messages if (match := _string(message)) is not None])


def _string(message: authorization_pb2.StringMatch) -> StringMatch | None:
    match message.WhichOneof("match_type"):
        case "exact":
            return Exact(message.exact)
        case "prefix":
            return Prefix(message.prefix)
        case "suffix":
            return Suffix(message.suffix)
        case "presence":
            return Presence()
        case _:
            return None


def _accounts(messages: Iterable[authorization_pb2.ServiceAccountMatch]) -> tuple[ServiceAccountMatch, ...]:
    return tuple([ServiceAccountMatch(message.namespace, message.serviceAccount) for message in messages])


def _networks(messages: Iterable[authorization_pb2.Address]) -> tuple[IPNetwork, ...]:
    """The usable entries: an address of 4 or 16 bytes with a length that fits it."""
    ranges = [_cidr(message.address, message.length & 0xFF) for message in messages]
    return tuple([cidr for cidr in ranges if cidr is not None])
