"""The mesh of ztunnel's own DNS tests (src/dns/server.rs), and what it takes to make others."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from ztunnel_trio.mesh.entries import ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NetworkAddress
from ztunnel_trio.model.service import IPFamilies, Service, Visibility
from ztunnel_trio.model.workload import Workload

NETWORK = "nw1"
CLIENT = Workload(
    uid="client",
    name="client",
    namespace="ns1",
    network=NETWORK,
    canonical_name="client-app",
    canonical_revision="v1",
)


def mesh_of(services: Iterable[Service], *workloads: Workload) -> Mesh:
    """These services, the client, and other workloads."""
    mesh = Mesh()
    mesh.apply(
        Batch(
            addresses=[
                *[ServiceEntry(service) for service in services],
                *[workload_entry(workload) for workload in (CLIENT, *workloads)],
            ]
        )
    )
    return mesh


def external(
    hostname: str,
    namespace: str,
    *vips: str,
    canonical: bool = False,
    visibility: Visibility = Visibility.PUBLIC,
    ip_families: IPFamilies | None = None,
) -> Service:
    """A service of that hostname; a VIP may name its network: `nw2/20.20.20.20`."""
    return Service(
        name=hostname.partition(".")[0],
        namespace=namespace,
        hostname=hostname,
        vips=tuple(address(vip) for vip in vips),
        ports={80: 80},
        canonical=canonical,
        visibility=visibility,
        ip_families=ip_families,
    )


def kubernetes(
    name: str,
    namespace: str,
    *vips: str,
    visibility: Visibility = Visibility.PUBLIC,
    ip_families: IPFamilies | None = None,
) -> Service:
    hostname = f"{name}.{namespace}.svc.cluster.local"
    return external(hostname, namespace, *vips, visibility=visibility, ip_families=ip_families)


def address(text: str) -> NetworkAddress:
    network, _, ip = text.rpartition("/")
    return NetworkAddress(network or NETWORK, ip_address(ip))


def pod(name: str, *addresses: str, backs: Service | None = None) -> Workload:
    """A workload of the client's namespace, an endpoint of `backs`."""
    ips = tuple(ip_address(ip) for ip in addresses)
    workload = Workload(uid=name, name=name, namespace="ns1", network=NETWORK, addresses=ips)
    return workload if backs is None else replace(workload, services={backs.key: {80: 80}})


def reference_mesh() -> Mesh:
    """The services and endpoints of ztunnel's lookup test."""
    v6 = "2001:db8::ff00:42:8329"
    headless = kubernetes("headless", "ns1")
    headless_external = external("headless.example.com", "ns1")
    headless_v6 = kubernetes("headless-ipv6", "ns1", ip_families=IPFamilies.IPV6)
    return mesh_of(
        [
            external("www.google.com", "ns1", "1.1.1.1"),
            kubernetes("productpage", "ns1", "9.9.9.9"),
            kubernetes("example", "ns2", "10.10.10.10"),
            kubernetes("nslocal", "ns2", "10.10.10.240", visibility=Visibility.NAMESPACE),
            kubernetes("nslocalsame", "ns1", "10.10.10.241", visibility=Visibility.NAMESPACE),
            external("everywhere.io", "ns2", "10.10.10.110"),
            external("preferred.io", "ns2", "10.10.10.210"),
            external("everywhere.io", "preferred-ns", "10.10.10.111"),
            external("preferred.io", "preferred-ns", "10.10.10.211"),
            external("everywhere.io", "ns1", "10.10.10.112"),
            external("canonical.svc", "ns2", "10.10.10.140"),
            external("canonical.svc", "ns3", "10.10.10.141", canonical=True),
            external("canonical.with.local", "ns1", "10.10.10.150"),
            external("canonical.with.local", "ns2", "10.10.10.151", canonical=True),
            external(
                "details.ns2.svc.cluster.remote",
                "ns2",
                "11.11.11.11",
                "12.12.12.12",
                "13.13.13.13",
                "14.14.14.14",
            ),
            external("ipv4.localhost", "ns1", "2.2.2.2"),
            external("ipv6.localhost", "ns1", v6),
            external("dual.localhost", "ns1", "2.2.2.2", v6),
            external("*.wildcard", "ns1", "10.10.10.10"),
            external("*.b.wildcard", "ns1", "11.11.11.11"),
            external("*.svc.mesh.company.net", "ns1", "10.1.2.3"),
            kubernetes("nw2-only", "ns1", "nw2/20.20.20.20"),
            kubernetes("both-networks", "ns1", "21.21.21.21", "nw2/22.22.22.22"),
            headless,
            headless_external,
            external("headless-no-endpoints.example.com", "ns1"),
            headless_v6,
        ],
        pod("headless0", "30.30.30.30", "2001:db8::30", backs=headless),
        pod("headless1", "31.31.31.31", "2001:db8::31", backs=headless),
        pod("headless-external", "32.32.32.32", "2001:db8::32", backs=headless_external),
        pod("headless2", "33.33.33.33", "2001:db8::33", backs=headless_v6),
    )
