"""The workload store: records, the rule where several share an address, the cache."""

from ipaddress import ip_address

import pytest

from tests.unit.mesh.world import address_count, at, mesh_of, pod, tell
from ztunnel_trio.mesh.entries import workload_entry
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Health,
    InboundProtocol,
    Locality,
    NetworkMode,
    Workload,
    WorkloadInfo,
)

EVERYTHING = Workload(
    uid="odd uid",
    name="a/name",
    namespace="ns",
    service_account="",
    trust_domain="",
    addresses=tuple(ip_address(ip) for ip in ("10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "10.0.0.2")),
    hostname="h.example",
    network="net",
    network_mode=NetworkMode.STANDARD,
    network_gateway=GatewayAddress(NetworkAddress("net", ip_address("10.9.9.9")), 15009),
    protocol=InboundProtocol.HBONE,
    native_tunnel=True,
    application_tunnel=ApplicationTunnel(AppTunnelProtocol.PROXY, None),
    waypoint=GatewayAddress(NamespacedHostname("ns", "way"), 15008),
    node="n",
    cluster="",
    locality=Locality("r", "z", "s"),
    health=Health.UNHEALTHY,
    capacity=0,
    workload_name="wn",
    workload_type="",
    canonical_name="cn",
    canonical_revision="cr",
    authorization_policies=("ns/p",),
    services={NamespacedHostname("ns", "svc"): {80: 8080}},
)


def test_a_workload_comes_back_as_it_was() -> None:
    mesh = mesh_of(workload_entry(EVERYTHING))

    assert mesh.workload("odd uid") == EVERYTHING
    for ip in EVERYTHING.addresses:
        assert mesh.workload_at(NetworkAddress("net", ip)) == EVERYTHING
    assert mesh.local_workload(WorkloadInfo("a/name", "ns", "")) == EVERYTHING


def test_a_workload_without_anything_comes_back() -> None:
    nothing = Workload()

    mesh = mesh_of(workload_entry(nothing))

    assert mesh.workload("") == nothing


@pytest.mark.parametrize(
    ("uid", "name"),
    [("a/b", "b"), ("a/b", ""), ("a/", ""), ("b", "b"), ("", ""), ("a/b", "a/b"), ("x", "=x"), ("a//", "/")],
)
def test_names_survive_whatever_the_uid(uid: str, name: str) -> None:
    mesh = mesh_of(pod(uid, "10.0.0.1", name=name))

    found = mesh.workload(uid)
    assert found is not None
    assert found.name == name
    assert mesh.local_workload(WorkloadInfo(name, "default", "default")) == found


def test_the_same_address_twice_is_indexed_once() -> None:
    mesh = mesh_of(pod("a", "10.0.0.1", "10.0.0.1"), pod("b", "10.0.0.1", "10.0.0.1"))
    assert address_count(mesh) == 1

    tell(mesh, remove=["a"])
    found = mesh.workload_at(at("10.0.0.1"))
    assert found is not None
    assert found.uid == "b"
    tell(mesh, remove=["b"])
    assert address_count(mesh) == 0


def test_three_workloads_of_one_address_leave_one_by_one() -> None:
    mesh = mesh_of(*[pod(uid, "10.0.0.1") for uid in "abc"])

    for uid, left in (("b", "a"), ("a", "c"), ("c", None)):
        tell(mesh, remove=[uid])
        found = mesh.workload_at(at("10.0.0.1"))
        assert (None if found is None else found.uid) == left


def test_workloads_of_one_deployment_share_a_kind() -> None:
    mesh = mesh_of(*[pod(f"x//Pod/{n}", f"10.0.0.{n}", node=f"n{n % 2}", name=f"{n}") for n in range(10)])

    assert len(mesh._workloads._kinds) == 1
    assert len(mesh._workloads._localities) == 2
    tell(mesh, remove=[f"x//Pod/{n}" for n in range(9)])
    assert len(mesh._workloads._kinds) == 1
    assert len(mesh._workloads._localities) == 1


def test_the_cache_of_built_workloads_is_bounded() -> None:
    mesh = mesh_of(*[pod(f"{n}") for n in range(10)])
    mesh._workloads.built_at_most = 4

    assert [each.uid for each in mesh.workloads()] == [str(n) for n in range(10)]
    assert len(mesh._workloads._built) == 0
    for n in range(10):
        assert mesh.workload(str(n)) is not None
    assert len(mesh._workloads._built) == 4
    assert mesh.workload("9") is mesh.workload("9")


def test_balancing_facts_say_what_the_workload_does() -> None:
    mesh = Mesh()
    assert mesh.balancing_facts("a") is None
    tell(mesh, pod("a", node="n"), pod("b", "10.0.0.1"))

    a, b = mesh.balancing_facts("a"), mesh.balancing_facts("b")

    assert a is not None
    assert b is not None
    assert (a.has_addresses, a.node_locality.node, b.has_addresses, b.node_locality.node) == (
        False,
        "n",
        True,
        "",
    )
    assert "a" in mesh._workloads
    assert len(mesh._workloads) == 2
