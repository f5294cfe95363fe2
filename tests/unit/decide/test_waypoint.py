"""References to waypoints and gateways; whole routes through them are in test_route.py."""

import random
from collections import Counter
from ipaddress import IPv4Address

import pytest

from tests.unit.decide.world import mesh_of
from ztunnel_trio.decide.known import Known, NeedAddress
from ztunnel_trio.decide.waypoint import find_destination, service_waypoint
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import Service, Visibility, WeightedWaypoint
from ztunnel_trio.model.workload import GatewayAddress, Workload

A, B, SINGLE = (GatewayAddress(NetworkAddress("", IPv4Address(f"10.0.0.{n}")), 15008) for n in (1, 2, 3))


def drawn(waypoint: GatewayAddress | None, *weights: int) -> Counter[GatewayAddress | None]:
    options = tuple(WeightedWaypoint(to, weight) for to, weight in zip((A, B), weights, strict=False))
    service = Service(waypoint=waypoint, weighted_waypoints=options)
    rng = random.Random(7)
    return Counter(service_waypoint(service, rng) for _ in range(10_000))


def test_a_service_without_waypoints_has_none() -> None:
    assert drawn(None) == {None: 10_000}


def test_the_single_waypoint_stands_where_no_weights_do() -> None:
    assert drawn(SINGLE) == {SINGLE: 10_000}
    assert drawn(SINGLE, 0, 0) == {SINGLE: 10_000}
    assert drawn(None, 0, 0) == {None: 10_000}


def test_a_waypoint_of_weight_zero_is_never_drawn() -> None:
    assert drawn(SINGLE, 100, 0) == {A: 10_000}
    assert drawn(SINGLE, 0, 100) == {B: 10_000}


def test_waypoints_are_drawn_in_proportion_to_their_weights() -> None:
    assert 7_000 <= drawn(SINGLE, 75, 25)[A] <= 8_000


DEFAULT_WORKLOAD = Workload(uid="w", name="w", addresses=(IPv4Address("127.0.0.1"),))
DEFAULT_SERVICE = Service(name="defaultname", namespace="default", hostname="defaulthost")


def world() -> Mesh:
    return mesh_of(DEFAULT_WORKLOAD, DEFAULT_SERVICE)


@pytest.mark.parametrize(
    ("destination", "found"),
    [
        (NetworkAddress("", IPv4Address("127.0.0.1")), DEFAULT_WORKLOAD),
        (NamespacedHostname("default", "defaulthost"), DEFAULT_SERVICE),
        (NetworkAddress("", IPv4Address("127.0.0.2")), None),
        (NetworkAddress("other", IPv4Address("127.0.0.1")), None),
        (NamespacedHostname("default", "nothost"), None),
        (NamespacedHostname("other", "defaulthost"), None),
    ],
)
def test_destinations_are_found_by_address_and_by_name(
    destination: NetworkAddress | NamespacedHostname, found: Workload | Service | None
) -> None:
    assert find_destination(destination, None, world(), Known(), on_demand=False) == found


def test_a_workload_hides_a_service_at_an_address_and_a_service_a_workload_under_a_name() -> None:
    address = NetworkAddress("", IPv4Address("127.0.0.1"))
    name = NamespacedHostname("ns", "host")
    workload = Workload(uid="w", namespace="ns", hostname="host", addresses=(address.ip,))
    service = Service(namespace="ns", hostname="host", vips=(address,))

    both, alone = mesh_of(workload, service), mesh_of(workload)

    assert find_destination(address, None, both, Known(), on_demand=False) == workload
    assert find_destination(name, None, both, Known(), on_demand=False) == service
    assert find_destination(name, None, alone, Known(), on_demand=False) == workload


def test_a_service_not_for_the_client_is_not_found_by_address() -> None:
    address = NetworkAddress("", IPv4Address("10.0.0.9"))
    mesh = mesh_of(Service(namespace="ns", hostname="host", vips=(address,), visibility=Visibility.NAMESPACE))

    assert find_destination(address, "other", mesh, Known(), on_demand=False) is None
    assert isinstance(find_destination(address, "ns", mesh, Known(), on_demand=False), Service)
    assert isinstance(find_destination(address, None, mesh, Known(), on_demand=False), Service)


def test_what_is_missing_is_asked_for_once_and_only_on_demand() -> None:
    name = NamespacedHostname("default", "nothost")

    assert find_destination(name, None, world(), Known(), on_demand=True) == NeedAddress("default/nothost")
    asked = Known().with_asked("default/nothost")
    assert find_destination(name, None, world(), asked, on_demand=True) is None
