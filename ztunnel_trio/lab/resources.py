"""What istiod tells proxies, made by hand: workloads, services and policies as protobuf messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_address, ip_network

from google.protobuf.empty_pb2 import Empty

from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE, DEFAULT_CLUSTER, HBONE_PORT
from ztunnel_trio.pb.authorization_pb2 import Action, Authorization, Clause, Match, Rule, StringMatch
from ztunnel_trio.pb.authorization_pb2 import Address as Prefix
from ztunnel_trio.pb.workload_pb2 import (
    Address,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Port,
    PortList,
    Service,
    TunnelProtocol,
    Workload,
    WorkloadType,
)

Resource = Workload | Service | Authorization


@dataclass(frozen=True, slots=True)
class Stored:
    """A resource as istiod keeps it: its type URL, name, version and bytes."""

    type_url: str
    name: str
    version: str
    value: bytes


def stored(resource: Resource) -> Stored:
    """Name, version and bytes as istiod gives them: 16 hex digits of a hash, and none for a policy."""
    match resource:
        case Workload():
            value = Address(workload=resource).SerializeToString(deterministic=True)
            return Stored(ADDRESS_TYPE, resource.uid, version_of(value), value)
        case Service():
            value = Address(service=resource).SerializeToString(deterministic=True)
            return Stored(ADDRESS_TYPE, f"{resource.namespace}/{resource.hostname}", version_of(value), value)
        case _:
            value = resource.SerializeToString(deterministic=True)
            return Stored(AUTHORIZATION_TYPE, f"{resource.namespace}/{resource.name}", "", value)


def version_of(value: bytes) -> str:
    """16 hex digits that depend on the bytes alone (istiod: xxHash64; any hash does)."""
    return blake2b(value, digest_size=8).hexdigest()


def pod_uid(namespace: str, name: str, cluster: str = DEFAULT_CLUSTER) -> str:
    """The uid istiod gives a pod's workload."""
    return f"{cluster}//Pod/{namespace}/{name}"


def workload(
    name: str,
    *,
    namespace: str = "default",
    service_account: str | None = None,
    addresses: Sequence[str] = (),
    node: str = "",
    hbone: bool = True,
    services: Mapping[str, Mapping[int, int]] | None = None,
    policies: Sequence[str] = (),
    waypoint: str | None = None,
    uid: str | None = None,
) -> Workload:
    """A pod's workload. `services` maps `namespace/hostname` to {service port: target port}; whatever else is
    wanted is set on the message returned.
    """
    made = Workload(
        uid=uid or pod_uid(namespace, name),
        name=name,
        namespace=namespace,
        service_account=name if service_account is None else service_account,
        addresses=[ip_address(address).packed for address in addresses],
        node=node,
        tunnel_protocol=TunnelProtocol.HBONE if hbone else TunnelProtocol.NONE,
        canonical_name=name,
        canonical_revision="latest",
        workload_type=WorkloadType.POD,
        workload_name=name,
        cluster_id=DEFAULT_CLUSTER,
        authorization_policies=policies,
    )
    for key, ports in (services or {}).items():
        made.services[key].CopyFrom(PortList(ports=_ports(ports)))
    if waypoint is not None:
        made.waypoint.CopyFrom(gateway(waypoint))
    return made


def service(
    hostname: str,
    *,
    namespace: str = "default",
    addresses: Sequence[str] = (),
    ports: Mapping[int, int] | None = None,
    waypoint: str | None = None,
    names: Sequence[str] = (),
) -> Service:
    """A Kubernetes service. Addresses are `ip` or `network/ip`; `names` its subject alternative names."""
    made = Service(
        name=hostname.partition(".")[0],
        namespace=namespace,
        hostname=hostname,
        addresses=[_network_address(address) for address in addresses],
        ports=_ports(ports or {}),
        subject_alt_names=names,
        canonical=True,
    )
    if waypoint is not None:
        made.waypoint.CopyFrom(gateway(waypoint))
    return made


def gateway(destination: str, port: int = HBONE_PORT) -> GatewayAddress:
    """`ip`, `network/ip` or `namespace/hostname`."""
    try:
        return GatewayAddress(address=_network_address(destination), hbone_mtls_port=port)
    except ValueError:
        namespace, _, hostname = destination.partition("/")
        return GatewayAddress(
            hostname=NamespacedHostname(namespace=namespace, hostname=hostname), hbone_mtls_port=port
        )


def policy(
    name: str,
    *matches: Match,
    namespace: str = "default",
    deny: bool = False,
    scope: str = "NAMESPACE",
    dry_run: bool = False,
) -> Authorization:
    """A policy of one rule in which every match has to hold; without any, one without rules."""
    clauses = [Clause(matches=[match]) for match in matches]
    return Authorization(
        name=name,
        namespace=namespace,
        scope=scope,
        action=Action.DENY if deny else Action.ALLOW,
        rules=[Rule(clauses=clauses)] if clauses else [],
        dry_run=dry_run,
    )


def text_match(text: str) -> StringMatch:
    """`*` anything present, `x*` a prefix, `*x` a suffix, else exactly that; as istiod reads policies."""
    if text == "*":
        return StringMatch(presence=Empty())
    if text.endswith("*"):
        return StringMatch(prefix=text[:-1])
    return StringMatch(suffix=text[1:]) if text.startswith("*") else StringMatch(exact=text)


def prefix(text: str) -> Prefix:
    """An address or CIDR block of a policy."""
    network = ip_network(text, strict=False)
    return Prefix(address=network.network_address.packed, length=network.prefixlen)


def aliases(value: bytes) -> list[str]:
    """The `network/ip` names under which an Address may be asked for."""
    address = Address.FromString(value)
    if address.HasField("workload"):
        return [f"{address.workload.network}/{ip_address(ip)}" for ip in address.workload.addresses]
    return [f"{one.network}/{ip_address(one.address)}" for one in address.service.addresses]


def node_of(value: bytes) -> str:
    """The node of an Address that is a workload, else nothing."""
    return Address.FromString(value).workload.node


def services_of(value: bytes) -> list[str]:
    """The services an Address that is a workload belongs to."""
    return list(Address.FromString(value).workload.services)


def _ports(ports: Mapping[int, int]) -> list[Port]:
    return [Port(service_port=outer, target_port=inner) for outer, inner in ports.items()]


def _network_address(text: str) -> NetworkAddress:
    network, _, ip = text.rpartition("/")
    return NetworkAddress(network=network, address=ip_address(ip).packed)
