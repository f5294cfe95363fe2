"""Which endpoint takes a connection: the Rust ztunnel's vectors, and what follows from them."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.decide.world import mesh_of
from ztunnel_trio.decide import balance
from ztunnel_trio.decide.balance import Chosen, Draws, choose, find_upstream, pick_address, target_port
from ztunnel_trio.mesh.entries import ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import (
    Endpoint,
    HealthPolicy,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    Scope,
    Service,
    Visibility,
)
from ztunnel_trio.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Locality,
    Workload,
)

STANDARD, STRICT = LoadBalancingMode.STANDARD, LoadBalancingMode.STRICT
FAILOVER, PASSTHROUGH = LoadBalancingMode.FAILOVER, LoadBalancingMode.PASSTHROUGH
KEY = NamespacedHostname("ns", "example.com")
VIP = NetworkAddress("", ip_address("10.0.0.1"))
GATEWAY = GatewayAddress(NetworkAddress("other", ip_address("10.9.9.9")), 15009)
TUNNEL = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)
NEAR = (Scope.NETWORK, Scope.REGION, Scope.ZONE)


def backend(
    uid: str,
    *ips: str,
    network: str = "network",
    where: tuple[str, str] = ("", ""),
    ports: Mapping[int, int] | None = None,
    capacity: int = 1,
    gateway: GatewayAddress | None = None,
    hostname: str = "",
    tunnel: ApplicationTunnel | None = None,
    node: str = "",
    cluster: str = "",
) -> Workload:
    """An endpoint of the service."""
    return Workload(
        uid=uid,
        network=network,
        addresses=tuple(ip_address(ip) for ip in ips),
        locality=Locality(*where),
        services={KEY: {80: 80} if ports is None else ports},
        capacity=capacity,
        network_gateway=gateway,
        hostname=hostname,
        application_tunnel=tunnel,
        node=node,
        cluster=cluster,
    )


def service(
    mode: LoadBalancingMode | None = None, *scopes: Scope, ports: Mapping[int, int] | None = None
) -> Service:
    balancer = None if mode is None else LoadBalancer(scopes, mode, HealthPolicy.ONLY_HEALTHY)
    return Service(
        name="example",
        namespace=KEY.namespace,
        hostname=KEY.hostname,
        vips=(VIP,),
        ports={80: 80} if ports is None else ports,
        load_balancer=balancer,
    )


def source(network: str = "network", region: str = "", zone: str = "") -> Workload:
    return Workload(uid="source", namespace="ns", network=network, locality=Locality(region, zone))


def draw(
    mesh: Mesh,
    client: Workload | None = None,
    port: int = 80,
    *,
    waypoint: bool = False,
    seed: int = 0,
    exclude: frozenset[str] = frozenset(),
    draws: Draws | None = None,
) -> Chosen | None:
    found = mesh.service(KEY)
    assert found is not None
    return choose(
        found,
        port,
        client or source(),
        mesh,
        random.Random(seed),
        waypoint=waypoint,
        exclude=exclude,
        draws=draws,
    )


def reached(
    mesh: Mesh,
    client: Workload | None = None,
    port: int = 80,
    *,
    waypoint: bool = False,
    draws: Draws | None = None,
) -> set[str]:
    chosen = [draw(mesh, client, port, waypoint=waypoint, seed=seed, draws=draws) for seed in range(100)]
    return {each.workload.uid for each in chosen if each is not None}


BACKENDS = (
    backend("wl_match", "192.168.0.2", where=("reg", "zone")),
    backend("wl_almost", "192.168.0.3", where=("reg", "not-zone")),
    backend("wl_no_locality", "192.168.0.1"),
    backend("wl_other", "192.168.0.5", network="other", where=("reg", "zone")),
    backend("wl_empty_ip", where=("reg", "zone")),
)


def balanced(mode: LoadBalancingMode) -> Mesh:
    """The service, its workloads, and an endpoint nobody knows."""
    mesh = mesh_of(*BACKENDS)
    given = {"ep_almost": Endpoint("ep_almost", {80: 80})}
    mesh.apply(Batch(addresses=[ServiceEntry(service(mode, *NEAR), given)]))
    return mesh


@pytest.mark.parametrize(
    ("mode", "where", "expected"),
    [
        (STRICT, ("", "", ""), set()),
        (STRICT, ("network", "reg", "zone"), {"wl_match"}),
        (
            FAILOVER,
            ("no-match", "no-match", "no-match"),
            {"wl_match", "wl_almost", "wl_no_locality", "wl_other"},
        ),
        (FAILOVER, ("network", "reg", "zone"), {"wl_match"}),
        (FAILOVER, ("network", "reg", ""), {"wl_match", "wl_almost"}),
        (FAILOVER, ("network", "no-match", "no-match"), {"wl_match", "wl_almost", "wl_no_locality"}),
        (FAILOVER, ("no-match", "reg", "zone"), {"wl_match", "wl_other"}),
        (FAILOVER, ("", "", ""), {"wl_no_locality"}),
        (STANDARD, ("network", "reg", "zone"), {"wl_match", "wl_almost", "wl_no_locality", "wl_other"}),
        (PASSTHROUGH, ("network", "reg", "zone"), {"wl_match"}),
    ],
)
def test_load_balance(mode: LoadBalancingMode, where: tuple[str, str, str], expected: set[str]) -> None:
    assert reached(balanced(mode), source(*where)) == expected


@pytest.mark.parametrize(
    ("where", "endpoint", "better"),
    [
        # for [NETWORK, REGION, ZONE]: all; network and region; network; then region and zone elsewhere
        (("network", "reg", "zone"), ("network", "reg", "zone"), ("network", "reg", "")),
        (("network", "reg", "zone"), ("network", "reg", ""), ("network", "", "zone")),
        (("network", "reg", "zone"), ("network", "", ""), ("other", "reg", "zone")),
        (("network", "reg", "zone"), ("other", "reg", "zone"), ("other", "reg", "")),
        (("network", "reg", "zone"), ("other", "reg", ""), ("other", "", "zone")),
    ],
)
def test_nearer_wins(
    where: tuple[str, str, str], endpoint: tuple[str, str, str], better: tuple[str, str, str]
) -> None:
    mesh = mesh_of(
        backend("near", "1.1.1.1", network=endpoint[0], where=endpoint[1:]),
        backend("far", "1.1.1.2", network=better[0], where=better[1:]),
        service(FAILOVER, *NEAR),
    )

    assert reached(mesh, source(*where)) == {"near"}


@pytest.mark.parametrize(
    ("scope", "same", "other"),
    [
        (Scope.NODE, {"node": "n"}, {"node": "m"}),
        (Scope.CLUSTER, {"cluster": "c"}, {"cluster": "d"}),
        (Scope.REGION, {"where": ("r", "")}, {"where": ("x", "")}),
        (Scope.ZONE, {"where": ("", "z")}, {"where": ("", "x")}),
        (Scope.NETWORK, {"network": "network"}, {"network": "other"}),
    ],
)
def test_each_scope_compares_its_attribute(scope: Scope, same: dict[str, str], other: dict[str, str]) -> None:
    client = replace(source("network", "r", "z"), node="n", cluster="c")
    mesh = mesh_of(
        backend("same", "1.1.1.1", **same),  # type: ignore[arg-type]
        backend("other", "1.1.1.2", **other),  # type: ignore[arg-type]
        service(STRICT, scope),
    )

    assert reached(mesh, client) == {"same"}


def test_subzones_are_compared() -> None:
    mesh = mesh_of(
        replace(backend("same", "1.1.1.1"), locality=Locality("", "", "s")),
        backend("other", "1.1.1.2"),
        service(STRICT, Scope.SUBZONE),
    )

    assert reached(mesh, replace(source(), locality=Locality("", "", "s"))) == {"same"}


def test_a_network_named_later_is_not_skipped() -> None:
    mesh = mesh_of(
        backend("remote", "1.1.1.1", network="other", where=("reg", "zone")),
        backend("local", "1.1.1.2", where=("reg", "")),
        service(FAILOVER, Scope.REGION, Scope.NETWORK, Scope.ZONE),
    )

    assert reached(mesh, source("network", "reg", "zone")) == {"local"}


def test_strict_without_scopes_takes_all() -> None:
    assert reached(mesh_of(backend("a", "1.1.1.1"), service(STRICT))) == {"a"}


@pytest.mark.parametrize(
    ("service_ports", "endpoint_ports", "tunnel", "waypoint", "expected"),
    [
        ({80: 0}, {80: 9090}, None, False, 9090),
        ({80: 8080}, {}, None, False, 8080),
        ({80: 0}, {}, TUNNEL, True, 80),
        ({80: 8080}, {80: 9090}, None, False, 9090),
        ({80: 0}, {}, None, False, None),
        ({80: 0}, {}, None, True, None),
        ({80: 0}, {}, TUNNEL, False, None),
        ({81: 81}, {80: 9090}, None, False, None),
        ({81: 81}, {80: 9090}, None, True, None),
        ({81: 81}, {80: 9090}, TUNNEL, True, 9090),
        ({81: 81}, {}, TUNNEL, True, 80),
        ({81: 81}, {}, ApplicationTunnel(AppTunnelProtocol.PROXY, None), True, None),
    ],
)
def test_find_upstream_port_mappings(
    service_ports: dict[int, int],
    endpoint_ports: dict[int, int],
    tunnel: ApplicationTunnel | None,
    waypoint: bool,
    expected: int | None,
) -> None:
    mesh = mesh_of(
        backend("a", "1.1.1.1", network="", ports=endpoint_ports, tunnel=tunnel), service(ports=service_ports)
    )

    chosen = find_upstream(VIP, 80, source(""), mesh, random.Random(0), waypoint=waypoint)

    assert (None if chosen is None else chosen.port) == expected


@pytest.mark.parametrize(
    ("hostname", "gateway", "network", "kept"),
    [
        ("", None, "network", False),
        ("", None, "other", False),
        ("", GATEWAY, "network", False),
        ("", GATEWAY, "other", True),
        ("h.example", None, "network", True),
    ],
)
def test_workloads_without_address(
    hostname: str, gateway: GatewayAddress | None, network: str, kept: bool
) -> None:
    mesh = mesh_of(backend("a", network=network, gateway=gateway, hostname=hostname), service())

    assert (draw(mesh) is not None) is kept


def test_capacity_is_the_weight() -> None:
    mesh = mesh_of(
        backend("one", "1.1.1.1", capacity=1),
        backend("three", "1.1.1.2", capacity=3),
        backend("never", "1.1.1.3", capacity=0),
        service(),
    )
    rng = random.Random(7)
    found = mesh.service(KEY)
    assert found is not None
    drawn = Counter(
        chosen.workload.uid
        for _ in range(4000)
        if (chosen := choose(found, 80, source(), mesh, rng, waypoint=False)) is not None
    )

    assert set(drawn) == {"one", "three"}
    assert 0.71 < drawn["three"] / 4000 < 0.79


def test_all_weights_nought_is_nobody() -> None:
    assert draw(mesh_of(backend("a", "1.1.1.1", capacity=0), service())) is None
    assert draw(mesh_of(service())) is None


def test_who_was_tried_is_not_drawn_and_the_next_best_is() -> None:
    mesh = mesh_of(
        backend("near", "1.1.1.1", where=("reg", "zone")),
        backend("far", "1.1.1.2"),
        service(FAILOVER, *NEAR),
    )
    client = source("network", "reg", "zone")

    assert reached(mesh, client) == {"near"}
    chosen = draw(mesh, client, exclude=frozenset({"near"}))
    assert chosen is not None
    assert chosen.workload.uid == "far"
    assert draw(mesh, client, exclude=frozenset({"near", "far"})) is None


def test_draws_follow_every_change() -> None:
    mesh, draws = mesh_of(backend("a", "1.1.1.1"), service()), Draws()
    assert reached(mesh, draws=draws) == {"a"}
    mesh.apply(Batch(addresses=[workload_entry(backend("b", "1.1.1.2"))]))
    assert reached(mesh, draws=draws) == {"a", "b"}
    mesh.apply(Batch(addresses=[workload_entry(backend("b", "1.1.1.2", capacity=0))]))
    assert reached(mesh, draws=draws) == {"a"}
    mesh.apply(Batch(removed_addresses=["a"]))
    assert reached(mesh, draws=draws) == set()
    mesh.apply(Batch(addresses=[workload_entry(backend("b", "1.1.1.2", ports={}))]))
    assert reached(mesh, draws=draws) == {"b"}
    mesh.apply(Batch(addresses=[ServiceEntry(service(ports={80: 0}))]))
    assert reached(mesh, draws=draws) == set()


def test_draws_kept_are_bounded() -> None:
    mesh, draws = mesh_of(backend("a", "1.1.1.1"), service()), Draws()
    found = mesh.service(KEY)
    assert found is not None
    for n in range(200):
        assert draw(mesh, replace(source(), node=f"n{n}"), draws=draws) is not None
    kept = draws.of(found, mesh)
    assert kept is not None
    assert 0 < len(kept) <= 64


def test_draws_are_kept_for_so_many_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SERVICES_KEPT", 2)
    bodies = [replace(service(), hostname=f"svc-{n}") for n in range(3)]
    mesh, draws = mesh_of(*bodies), Draws()

    for body in bodies:
        kept = draws.of(body, mesh)
        assert kept == {}
    assert len(draws._kept) == 2


def test_draws_are_not_kept_for_a_service_that_is_not_in_the_mesh() -> None:
    assert Draws().of(service(), Mesh()) is None


def test_a_passthrough_service_has_no_upstream() -> None:
    mesh = mesh_of(backend("a", "1.1.1.1"), service(PASSTHROUGH))

    assert find_upstream(VIP, 80, source(), mesh, random.Random(0), waypoint=False) is None


def test_a_service_goes_before_a_workload_of_its_address() -> None:
    same = replace(backend("w", "10.0.0.1", network=""), services={})
    mesh = mesh_of(same, service())
    rng = random.Random(0)

    assert find_upstream(VIP, 80, source(), mesh, rng, waypoint=False) is None  # it has no endpoints
    mesh.apply(Batch(removed_addresses=[str(KEY)]))
    assert find_upstream(VIP, 80, source(), mesh, rng, waypoint=False) == Chosen(same, 80, None)
    tried = frozenset({"w"})
    assert find_upstream(VIP, 80, source(), mesh, rng, waypoint=False, exclude=tried) is None


def test_a_hidden_service_leaves_the_workload() -> None:
    same = replace(backend("w", "10.0.0.1", network=""), services={})
    mesh = mesh_of(same, replace(service(), visibility=Visibility.NAMESPACE))
    stranger = replace(source(), namespace="elsewhere")

    chosen = find_upstream(VIP, 80, stranger, mesh, random.Random(0), waypoint=False)

    assert chosen == Chosen(same, 80, None)


def test_target_port_of_nobody() -> None:
    assert target_port(service(ports={}), {}, 80, backend("a")) is None


DUAL = ("10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2")


@pytest.mark.parametrize(
    ("ips", "families", "dialled", "expected"),
    [
        (DUAL, None, "10.0.0.2", "10.0.0.2"),
        (DUAL, IPFamilies.IPV6, "10.0.0.2", "10.0.0.2"),  # its own address, whatever the family
        (DUAL, None, "10.9.9.9", "10.0.0.1"),
        (DUAL, IPFamilies.DUAL, "fd99::", "fd00::1"),
        (DUAL, IPFamilies.IPV6, "10.9.9.9", "fd00::1"),
        (DUAL, IPFamilies.IPV4, "fd99::", "10.0.0.1"),
        (("fd00::1",), None, "10.9.9.9", "fd00::1"),
        (("fd00::1",), IPFamilies.IPV4, "10.9.9.9", None),
        ((), None, "10.9.9.9", None),
    ],
)
def test_pick_address(
    ips: tuple[str, ...], families: IPFamilies | None, dialled: str, expected: str | None
) -> None:
    found = pick_address(backend("a", *ips), replace(service(), ip_families=families), ip_address(dialled))

    assert (None if found is None else str(found)) == expected


def test_without_a_service_every_family_is_allowed() -> None:
    assert pick_address(backend("a", "fd00::1"), None, ip_address("10.0.0.1")) == ip_address("fd00::1")
