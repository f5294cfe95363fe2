"""Resources as istiod sends them, and a mesh that was told some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ztunnel_trio.mesh.entries import (
    AddressEntry,
    PolicyEntry,
    ServiceEntry,
    WorkloadEntry,
    build_workload,
)
from ztunnel_trio.mesh.mesh import Batch, Changes, Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import (
    HealthPolicy,
    LoadBalancer,
    LoadBalancingMode,
    NetworkCidr,
    Service,
    Visibility,
)
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.pb import workload_pb2
from ztunnel_trio.pb.xds_pb2 import DeltaDiscoveryResponse
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.xds.address import read_address
from ztunnel_trio.xds.policy import read_policy

DATA = Path(__file__).parents[2] / "data"
SVC1 = "ns/svc1.ns.svc.cluster.local"
ALLOW_ALL = LoadBalancer((), LoadBalancingMode.STANDARD, HealthPolicy.ALLOW_ALL)


def key(text: str) -> NamespacedHostname:
    return NamespacedHostname.parse(text)


def at(ip: str, network: str = "") -> NetworkAddress:
    return NetworkAddress(network, ip_address(ip))


def port_list(ports: Mapping[int, int]) -> workload_pb2.PortList:
    return workload_pb2.PortList(
        ports=[workload_pb2.Port(service_port=port, target_port=target) for port, target in ports.items()]
    )


def workload_message(
    uid: str,
    *ips: str,
    services: Sequence[str] = (),
    ports: Mapping[int, int] | None = None,
    healthy: bool = True,
    hbone: bool = False,
    name: str = "my-pod",
    namespace: str = "default",
    account: str = "",
    node: str = "",
    network: str = "",
    hostname: str = "",
    host_network: bool = False,
    policies: Sequence[str] = (),
) -> workload_pb2.Workload:
    return workload_pb2.Workload(
        uid=uid,
        name=name,
        namespace=namespace,
        service_account=account,
        addresses=[ip_address(ip).packed for ip in ips],
        services={service: port_list({80: 8080} if ports is None else ports) for service in services},
        status=workload_pb2.HEALTHY if healthy else workload_pb2.UNHEALTHY,
        tunnel_protocol=workload_pb2.HBONE if hbone else workload_pb2.NONE,
        node=node,
        network=network,
        hostname=hostname,
        network_mode=workload_pb2.HOST_NETWORK if host_network else workload_pb2.STANDARD,
        authorization_policies=policies,
    )


def payload_of(message: workload_pb2.Workload | workload_pb2.Service) -> bytes:
    if isinstance(message, workload_pb2.Workload):
        return workload_pb2.Address(workload=message).SerializeToString()
    return workload_pb2.Address(service=message).SerializeToString()


def address_entry(name: str, payload: bytes) -> AddressEntry:
    """The entry of a good `Address`."""
    entry = read_address(name, payload)
    assert not isinstance(entry, RejectedResource), entry
    return entry


def policy_entry(name: str, payload: bytes) -> PolicyEntry:
    """The entry of a good `Authorization`."""
    entry = read_policy(name, payload)
    assert not isinstance(entry, RejectedResource), entry
    return entry


def pod(
    uid: str,
    *ips: str,
    services: Sequence[str] = (),
    ports: Mapping[int, int] | None = None,
    healthy: bool = True,
    hbone: bool = False,
    name: str = "my-pod",
    namespace: str = "default",
    account: str = "",
    node: str = "",
    network: str = "",
    hostname: str = "",
    host_network: bool = False,
    policies: Sequence[str] = (),
) -> WorkloadEntry:
    message = workload_message(
        uid,
        *ips,
        services=services,
        ports=ports,
        healthy=healthy,
        hbone=hbone,
        name=name,
        namespace=namespace,
        account=account,
        node=node,
        network=network,
        hostname=hostname,
        host_network=host_network,
        policies=policies,
    )
    entry = address_entry(uid, payload_of(message))
    assert isinstance(entry, WorkloadEntry)
    return entry


def service(
    name: str = SVC1,
    *vips: str,
    cidrs: Sequence[str] = (),
    network: str = "",
    ports: Mapping[int, int] | None = None,
    visibility: Visibility = Visibility.PUBLIC,
    canonical: bool = False,
    load_balancer: LoadBalancer | None = None,
) -> ServiceEntry:
    """A service of that `namespace/hostname`, over the wire form, so that decoding is in the test."""
    namespace, _, hostname = name.partition("/")
    balancer = None
    if load_balancer is not None:
        assert not load_balancer.routing_preferences
        balancer = workload_pb2.LoadBalancing(
            mode=workload_pb2.LoadBalancing.UNSPECIFIED_MODE,
            health_policy=workload_pb2.LoadBalancing.ALLOW_ALL
            if load_balancer.health_policy is HealthPolicy.ALLOW_ALL
            else workload_pb2.LoadBalancing.ONLY_HEALTHY,
        )
    addresses = [workload_pb2.NetworkAddress(network=network, address=ip_address(vip).packed) for vip in vips]
    for cidr in cidrs:
        ip, _, length = cidr.partition("/")
        addresses.append(
            workload_pb2.NetworkAddress(network=network, address=ip_address(ip).packed, length=int(length))
        )
    message = workload_pb2.Service(
        name=hostname.partition(".")[0],
        namespace=namespace,
        hostname=hostname,
        addresses=addresses,
        ports=port_list({80: 80} if ports is None else ports).ports,
        canonical=canonical,
        load_balancing=balancer,
        visibility=workload_pb2.Service.NAMESPACE
        if visibility is Visibility.NAMESPACE
        else workload_pb2.Service.PUBLIC,
    )
    entry = address_entry(name, payload_of(message))
    assert isinstance(entry, ServiceEntry)
    return entry


def workload_of(entry: WorkloadEntry) -> Workload:
    """The whole value an entry stands for."""
    return build_workload(entry.kind.prototype, entry.uid, entry.name, entry.addresses, entry.node_locality)


def tell(mesh: Mesh, *entries: AddressEntry, remove: Sequence[str] = ()) -> Changes:
    return mesh.apply(Batch(addresses=entries, removed_addresses=remove))


def mesh_of(*entries: AddressEntry, local_node: str | None = None) -> Mesh:
    mesh = Mesh(local_node=local_node)
    tell(mesh, *entries)
    return mesh


def uids(mesh: Mesh, service_key: str = SVC1) -> set[str]:
    return set(mesh.endpoints(key(service_key)))


def name_of(found: Service | Workload | None) -> str | None:
    return None if found is None else found.name


@dataclass(frozen=True)
class Counts:
    """How many of everything are indexed."""

    addresses: int = 0
    uids: int = 0
    vips: int = 0
    services: int = 0
    staged: int = 0


def address_count(mesh: Mesh) -> int:
    """How many addresses of workloads are indexed."""
    return sum(len(addresses) for addresses in mesh._workloads._by_address.values())


def cidr_count(mesh: Mesh) -> int:
    """How many services are indexed under a range, each once a range."""
    networks = mesh._services._by_cidr.values()
    ranges = [found for lengths in networks for by_number in lengths.values() for found in by_number.values()]
    return sum(len(services) for services in ranges)


def counts(mesh: Mesh) -> Counts:
    """As the Rust ztunnel's tests count; staged counts services, not endpoints."""
    return Counts(
        addresses=address_count(mesh),
        uids=len(mesh.uids()),
        vips=sum(len(vips) for vips in mesh._services._by_vip.values()),
        services=len(list(mesh.services())),
        staged=len(list(mesh.without_service())),
    )


def recorded_mesh() -> Mesh:
    """What a real istiod told (see tests/data)."""

    def resources(name: str) -> DeltaDiscoveryResponse:
        return DeltaDiscoveryResponse.FromString((DATA / name).read_bytes())

    mesh = Mesh(local_node="node1")
    mesh.apply(
        Batch(
            addresses=[
                address_entry(each.name, each.resource.value)
                for each in resources("istiod_address.bin").resources
            ],
            policies=[
                policy_entry(each.name, each.resource.value)
                for each in resources("istiod_authorization.bin").resources
            ],
        )
    )
    return mesh


__all__ = ["NetworkCidr", "at", "counts", "key", "mesh_of", "pod", "service", "tell", "uids"]
