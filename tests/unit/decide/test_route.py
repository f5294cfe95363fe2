"""Where outbound connections go: the Rust ztunnel's outbound vectors, and what they leave open."""

import random
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from tests.unit.decide.world import mesh_of
from ztunnel_trio.decide.balance import choose
from ztunnel_trio.decide.route import (
    ILLEGAL_PORTS,
    Decision,
    Known,
    NeedAddress,
    NeedHost,
    OutboundRequest,
    Route,
    calls_itself,
    route,
)
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import HostPort, NamespacedHostname, NetworkAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import (
    HealthPolicy,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_trio.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Health,
    InboundProtocol,
    Locality,
    NetworkMode,
    OutboundProtocol,
    Workload,
)

TCP, HBONE, DOUBLE = OutboundProtocol.TCP, OutboundProtocol.HBONE, OutboundProtocol.DOUBLE_HBONE
NOBODY: frozenset[str] = frozenset()


def at(text: str) -> SocketAddress:
    return SocketAddress.parse(text)


def vip(ip: str, network: str = "") -> NetworkAddress:
    return NetworkAddress(network, ip_address(ip))


def gateway(ip: str, port: int = 15008, network: str = "") -> GatewayAddress:
    return GatewayAddress(vip(ip, network), port)


def named_gateway(hostname: str, port: int = 15008, namespace: str = "") -> GatewayAddress:
    return GatewayAddress(NamespacedHostname(namespace, hostname), port)


def workload(
    uid: str,
    *ips: str,
    protocol: InboundProtocol = InboundProtocol.TCP,
    namespace: str = "ns",
    account: str = "default",
    network: str = "",
    network_gateway: GatewayAddress | None = None,
    waypoint: GatewayAddress | None = None,
    hostname: str = "",
    services: Mapping[NamespacedHostname, Mapping[int, int]] | None = None,
    health: Health = Health.HEALTHY,
    network_mode: NetworkMode = NetworkMode.STANDARD,
    application_tunnel: ApplicationTunnel | None = None,
) -> Workload:
    return Workload(
        uid=uid,
        name=uid,
        namespace=namespace,
        service_account=account,
        addresses=tuple(ip_address(ip) for ip in ips),
        protocol=protocol,
        network=network,
        network_gateway=network_gateway,
        waypoint=waypoint,
        hostname=hostname,
        services=services or {},
        health=health,
        network_mode=network_mode,
        application_tunnel=application_tunnel,
    )


EXAMPLE = NamespacedHostname("", "example.com")
SOURCE = workload("source-workload", "127.0.0.1", "::1")
WAYPOINT = workload("waypoint-workload", "127.0.0.10", account="waypoint-sa")
DUAL_WAYPOINT = workload("waypoint-workload-dual", "127.0.0.11", "ff06::c5", account="waypoint-sa")
SERVICE = Service(name="example", hostname="example.com", vips=(vip("127.0.0.3"),), ports={80: 8080})
REMOTE_GATEWAY = gateway("10.22.1.1", 15009, "remote")
GATEWAY_WORKLOAD = workload("remote-gateway", "10.22.1.1", network="remote", account="gateway")


def endpoint(uid: str, *ips: str, ports: Mapping[int, int] | None = None, **more: object) -> Workload:
    """A workload that backs example.com."""
    return replace(workload(uid, *ips), services={EXAMPLE: ports or {}}, **more)  # type: ignore[arg-type]


REMOTE_ENDPOINT = endpoint("remote", network="remote", network_gateway=REMOTE_GATEWAY)


def world(*entries: Workload | Service) -> Mesh:
    return mesh_of(SOURCE, WAYPOINT, DUAL_WAYPOINT, *entries)


def decide(
    mesh: Mesh,
    target: str,
    known: Known | None = None,
    *,
    client: str = "127.0.0.1",
    source: Workload = SOURCE,
    network: str = "",
    seed: int = 0,
    on_demand: bool = False,
    exclude: frozenset[str] = NOBODY,
) -> Decision:
    request = OutboundRequest(source, ip_address(client), at(target), network)
    return route(request, mesh, known or Known(), random.Random(seed), on_demand=on_demand, exclude=exclude)


def balancer(mode: LoadBalancingMode, *scopes: Scope) -> LoadBalancer:
    return LoadBalancer(scopes, mode, HealthPolicy.ONLY_HEALTHY)


PASSTHROUGH = replace(
    SERVICE,
    vips=(vip("1.2.3.4"), vip("1.5.6.7")),
    load_balancer=balancer(LoadBalancingMode.PASSTHROUGH),
)
FAILOVER = replace(SERVICE, load_balancer=balancer(LoadBalancingMode.FAILOVER, Scope.NETWORK))
HBONE_ENDPOINT = endpoint("local", "127.0.0.2", protocol=InboundProtocol.HBONE)
EAST_WEST = Service(hostname="ew-gtw", vips=(vip("127.0.0.4"),), ports={15009: 15009})
EAST_WEST_POD = workload("ew-gtw", "127.0.0.5", services={EAST_WEST.key: {15009: 15008}}, account="gateway")
WAYPOINT_SERVICE = Service(hostname="waypoint.com", vips=(vip("127.0.0.9"),), ports={15008: 15008})
DUAL_SERVICE = replace(SERVICE, vips=(vip("127.0.0.3"), vip("::3")), ports={80: 80})
DUAL_POD = endpoint("dual", "127.0.0.2", "ff06::c3", protocol=InboundProtocol.HBONE)


@pytest.mark.parametrize(
    ("entries", "target", "expected"),
    [
        pytest.param(
            [workload("other", "127.0.0.2")],
            "1.2.3.4:80",
            (TCP, None, "1.2.3.4:80"),
            id="an unknown destination",
        ),
        pytest.param(
            [SERVICE, REMOTE_ENDPOINT, GATEWAY_WORKLOAD],
            "127.0.0.3:80",
            (DOUBLE, "example.com:80", "10.22.1.1:15009"),
            id="a remote endpoint behind a gateway known by address",
        ),
        pytest.param(
            [
                SERVICE,
                endpoint("remote", network="remote", network_gateway=named_gateway("ew-gtw", 15009)),
                EAST_WEST,
                EAST_WEST_POD,
            ],
            "127.0.0.3:80",
            (DOUBLE, "example.com:80", "127.0.0.5:15008"),
            id="a remote endpoint behind a gateway known by name",
        ),
        pytest.param(
            [
                replace(SERVICE, waypoint=named_gateway("waypoint.com")),
                WAYPOINT_SERVICE,
                workload(
                    "remote-waypoint",
                    network="remote",
                    network_gateway=REMOTE_GATEWAY,
                    services={WAYPOINT_SERVICE.key: {15008: 15008}},
                ),
                GATEWAY_WORKLOAD,
            ],
            "127.0.0.3:80",
            (DOUBLE, "example.com:80", "10.22.1.1:15009"),
            id="a remote waypoint",
        ),
        pytest.param(
            [FAILOVER, REMOTE_ENDPOINT, GATEWAY_WORKLOAD, HBONE_ENDPOINT],
            "127.0.0.3:80",
            (HBONE, "127.0.0.2:8080", "127.0.0.2:15008"),
            id="failover stays local while it can",
        ),
        pytest.param(
            [FAILOVER, REMOTE_ENDPOINT, GATEWAY_WORKLOAD, replace(HBONE_ENDPOINT, health=Health.UNHEALTHY)],
            "127.0.0.3:80",
            (DOUBLE, "example.com:80", "10.22.1.1:15009"),
            id="failover leaves for a remote endpoint",
        ),
        pytest.param(
            [workload("pod", "127.0.0.2")],
            "127.0.0.2:80",
            (TCP, None, "127.0.0.2:80"),
            id="a plain pod",
        ),
        pytest.param(
            [workload("pod", "127.0.0.2", protocol=InboundProtocol.HBONE)],
            "127.0.0.2:80",
            (HBONE, "127.0.0.2:80", "127.0.0.2:15008"),
            id="an HBONE pod",
        ),
        pytest.param(
            [workload("pod", "127.0.0.2", waypoint=gateway("127.0.0.10"))],
            "127.0.0.2:80",
            (HBONE, "127.0.0.2:80", "127.0.0.10:15008"),
            id="a pod with a waypoint",
        ),
        pytest.param(
            [workload("pod", "127.0.0.2", "ff06::c3", waypoint=gateway("127.0.0.11"))],
            "[ff06::c3]:80",
            (HBONE, "[ff06::c3]:80", "127.0.0.11:15008"),
            id="a waypoint known by address keeps that address's family",
        ),
        pytest.param(
            [replace(SERVICE, waypoint=gateway("127.0.0.10"))],
            "127.0.0.3:80",
            (HBONE, "127.0.0.3:80", "127.0.0.10:15008"),
            id="a service with a waypoint",
        ),
        pytest.param(
            [
                replace(SERVICE, ports={80: 0, 8080: 0}),
                endpoint("one", "127.0.0.2", ports={80: 1234}),
                endpoint("two", "127.0.0.4", ports={8080: 9999}),
            ],
            "127.0.0.3:80",
            (TCP, None, "127.0.0.2:1234"),
            id="a named target port",
        ),
        pytest.param(
            [workload("dual", "127.0.0.2", "ff06::c3")],
            "[ff06::c3]:80",
            (TCP, None, "[ff06::c3]:80"),
            id="a dual-stack pod by IPv6",
        ),
        pytest.param(
            [workload("dual", "127.0.0.2", "ff06::c3")],
            "127.0.0.2:80",
            (TCP, None, "127.0.0.2:80"),
            id="a dual-stack pod by IPv4",
        ),
        pytest.param(
            [replace(DUAL_SERVICE, ip_families=IPFamilies.IPV6), DUAL_POD],
            "127.0.0.3:80",
            (HBONE, "[ff06::c3]:80", "[ff06::c3]:15008"),
            id="an IPv6-only service",
        ),
        pytest.param(
            [replace(DUAL_SERVICE, ip_families=IPFamilies.IPV4), DUAL_POD],
            "127.0.0.3:80",
            (HBONE, "127.0.0.2:80", "127.0.0.2:15008"),
            id="an IPv4-only service",
        ),
        pytest.param(
            [replace(DUAL_SERVICE, ip_families=IPFamilies.DUAL), DUAL_POD],
            "127.0.0.3:80",
            (HBONE, "127.0.0.2:80", "127.0.0.2:15008"),
            id="a dual-stack service by IPv4",
        ),
        pytest.param(
            [replace(DUAL_SERVICE, ip_families=IPFamilies.DUAL), DUAL_POD],
            "[::3]:80",
            (HBONE, "[ff06::c3]:80", "[ff06::c3]:15008"),
            id="a dual-stack service by IPv6",
        ),
        pytest.param([PASSTHROUGH], "1.2.3.4:80", (TCP, None, "1.2.3.4:80"), id="a passthrough service"),
        pytest.param(
            [replace(PASSTHROUGH, waypoint=gateway("127.0.0.10"))],
            "1.2.3.4:80",
            (HBONE, "1.2.3.4:80", "127.0.0.10:15008"),
            id="a passthrough service with a waypoint",
        ),
        pytest.param(
            [
                replace(SERVICE, waypoint=named_gateway("waypoint.com")),
                replace(WAYPOINT_SERVICE, ports={15008: 0}),
                workload("wp", "127.0.0.12", services={WAYPOINT_SERVICE.key: {15008: 15018}}),
            ],
            "127.0.0.3:80",
            (HBONE, "127.0.0.3:80", "127.0.0.12:15018"),
            id="a waypoint service's port is mapped",
        ),
        pytest.param(
            [
                replace(SERVICE, waypoint=named_gateway("waypoint.com", 15008)),
                replace(WAYPOINT_SERVICE, ports={}),
                workload(
                    "wp",
                    "127.0.0.12",
                    services={WAYPOINT_SERVICE.key: {}},
                    application_tunnel=ApplicationTunnel(AppTunnelProtocol.PROXY, 15088),
                ),
            ],
            "127.0.0.3:80",
            (HBONE, "127.0.0.3:80", "127.0.0.12:15008"),
            id="a sandwiched waypoint needs no service port",
        ),
        pytest.param(
            [
                workload("pod", "127.0.0.2", "ff06::c3", waypoint=named_gateway("waypoint.com")),
                WAYPOINT_SERVICE,
                replace(DUAL_WAYPOINT, uid="wp", services={WAYPOINT_SERVICE.key: {15008: 15008}}),
            ],
            "[ff06::c3]:80",
            (HBONE, "[ff06::c3]:80", "[ff06::c5]:15008"),
            id="a waypoint known by name takes the family dialled",
        ),
        pytest.param(
            [
                workload("pod", "127.0.0.2", waypoint=named_gateway("waypoint.host", 15010, "ns")),
                workload("wp", "127.0.0.12", hostname="waypoint.host"),
            ],
            "127.0.0.2:80",
            (HBONE, "127.0.0.2:80", "127.0.0.12:15010"),
            id="a waypoint known by a workload's hostname",
        ),
        pytest.param(
            [SERVICE, endpoint("waypointed", "127.0.0.2", waypoint=gateway("127.0.0.10"))],
            "127.0.0.3:80",
            (TCP, None, "127.0.0.2:8080"),
            id="a workload's waypoint is not for traffic to a service",
        ),
    ],
)
def test_connections_go(
    entries: list[Workload | Service], target: str, expected: tuple[OutboundProtocol, str | None, str]
) -> None:
    for seed in range(8):  # chance must not matter here
        found = decide(world(*entries), target, seed=seed)

        assert isinstance(found, Route), found
        authority = None if found.authority is None else str(found.authority)
        assert (found.protocol, authority, str(found.destination)) == expected


@pytest.mark.parametrize(
    ("entries", "target", "refusal"),
    [
        pytest.param(
            [SERVICE, endpoint("far", "10.0.0.2", network="remote")],
            "127.0.0.3:80",
            Refusal(Reason.NO_VALID_DESTINATION, "Workload{far with uid far (TCP)}"),
            id="a remote endpoint without gateway",
        ),
        pytest.param(
            [SERVICE],
            "127.0.0.3:80",
            Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:80"),
            id="a service without endpoints",
        ),
        pytest.param(
            [SERVICE, endpoint("pod", "127.0.0.2")],
            "127.0.0.3:81",
            Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:81"),
            id="a port the service has not",
        ),
        pytest.param(
            [replace(SERVICE, waypoint=gateway("127.0.0.99"))],
            "127.0.0.3:80",
            Refusal(
                Reason.UNKNOWN_WAYPOINT,
                'GatewayAddress { destination: Address(NetworkAddress { network: "", address: 127.0.0.99 }), '
                "hbone_mtls_port: 15008 }",
            ),
            id="a waypoint nobody has heard of, by address",
        ),
        pytest.param(
            [replace(SERVICE, waypoint=named_gateway("waypoint.com")), endpoint("pod", "127.0.0.2")],
            "127.0.0.3:80",
            Refusal(Reason.UNKNOWN_WAYPOINT, "waypoint.com"),
            id="a waypoint nobody has heard of, by name",
        ),
        pytest.param(
            [replace(SERVICE, waypoint=named_gateway("waypoint.com")), WAYPOINT_SERVICE],
            "127.0.0.3:80",
            Refusal(
                Reason.UNKNOWN_WAYPOINT,
                'GatewayAddress { destination: Hostname(NamespacedHostname { namespace: "", '
                'hostname: "waypoint.com" }), hbone_mtls_port: 15008 }',
            ),
            id="a waypoint service without endpoints",
        ),
        pytest.param(
            [SERVICE, REMOTE_ENDPOINT],
            "127.0.0.3:80",
            Refusal(
                Reason.UNKNOWN_NETWORK_GATEWAY,
                "GatewayAddress { destination: Address(NetworkAddress "
                '{ network: "remote", address: 10.22.1.1 }), hbone_mtls_port: 15009 }',
            ),
            id="a gateway nobody has heard of, by address",
        ),
        pytest.param(
            [SERVICE, endpoint("remote", network="remote", network_gateway=named_gateway("ew-gtw", 15009))],
            "127.0.0.3:80",
            Refusal(Reason.UNKNOWN_NETWORK_GATEWAY, "ew-gtw"),
            id="a gateway nobody has heard of, by name",
        ),
        pytest.param(
            [workload("pod", "127.0.0.2", waypoint=gateway("127.0.0.99"))],
            "127.0.0.2:80",
            Refusal(
                Reason.UNKNOWN_WAYPOINT,
                'GatewayAddress { destination: Address(NetworkAddress { network: "", address: 127.0.0.99 }), '
                "hbone_mtls_port: 15008 }",
            ),
            id="a workload's waypoint nobody has heard of",
        ),
        pytest.param(
            [replace(SERVICE, ip_families=IPFamilies.IPV6), endpoint("pod", "127.0.0.2")],
            "127.0.0.3:80",
            Refusal(Reason.NO_VALID_DESTINATION, "Workload{pod with uid pod (TCP)}"),
            id="no address of the service's family",
        ),
    ],
)
def test_connections_are_refused(entries: list[Workload | Service], target: str, refusal: Refusal) -> None:
    assert decide(world(*entries), target) == refusal


def test_where_a_gateway_was_tried_in_vain_what_stands_behind_it_is_not_tried_again() -> None:
    behind = [replace(REMOTE_ENDPOINT, uid=f"remote-{n}") for n in range(20)]
    elsewhere = endpoint("elsewhere", network="west", network_gateway=gateway("10.33.1.1", 15009, "west"))
    other = workload("west-gateway", "10.33.1.1", network="west")
    mesh = world(SERVICE, *behind, GATEWAY_WORKLOAD, elsewhere, other)

    for seed in range(10):
        found = decide(mesh, "127.0.0.3:80", seed=seed, exclude=frozenset({"remote-gateway"}))

        assert isinstance(found, Route)
        assert (found.workload, found.protocol) == (other, DOUBLE)
    tried = frozenset({"remote-gateway", "west-gateway"})
    assert decide(mesh, "127.0.0.3:80", exclude=tried) == Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:80")


def test_after_a_few_gateways_that_cannot_be_used_a_retry_gives_up() -> None:
    far = [
        endpoint(
            f"far-{n}", network="west", network_gateway=gateway(f"10.33.{n // 250}.{n % 250}", 15009, "west")
        )
        for n in range(1200)
    ]

    found = decide(world(SERVICE, *far), "127.0.0.3:80", exclude=frozenset({"tried"}))

    assert found == Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:80")


def test_a_target_in_another_network_that_is_no_service_cannot_be_reached() -> None:
    far = replace(SOURCE, network="east")

    found = decide(mesh_of(far, workload("pod", "10.0.0.2", network="west")), "10.0.0.2:80", source=far)
    # looked up in the source's own network the pod is unknown, so it is dialled as it is
    assert found == Route(TCP, at("10.0.0.2:80"), None, (), (), None, None)

    mixed = decide(
        mesh_of(
            SOURCE, workload("same", "10.0.0.2"), SERVICE, REMOTE_ENDPOINT, workload("hider", "127.0.0.3")
        ),
        "127.0.0.3:80",
    )
    # a workload on the VIP hides the service at first, not when the endpoint is chosen
    assert mixed == Refusal(Reason.NO_SERVICE_FOR_TARGET, "127.0.0.3:80")


def test_the_sources_own_waypoint_is_for_others() -> None:
    mesh = mesh_of(
        workload("source-workload", "127.0.0.1"),
        WAYPOINT,
        workload("pod", "127.0.0.2", waypoint=gateway("127.0.0.10")),
    )

    found = decide(mesh, "127.0.0.1:80", client="127.0.0.2")

    assert isinstance(found, Route)
    assert (found.protocol, found.destination) == (TCP, at("127.0.0.1:80"))


def test_host_network_pods_are_told_apart_by_the_service_only() -> None:
    host = NetworkMode.HOST_NETWORK
    service = replace(SERVICE, ports={80: 80})
    mesh = world(
        service,
        replace(endpoint("pod1", "127.0.0.2"), network_mode=host),
        workload("pod2", "127.0.0.2", network_mode=host),
    )

    by_service, by_address = decide(mesh, "127.0.0.3:80"), decide(mesh, "127.0.0.2:80")

    assert isinstance(by_service, Route)
    assert isinstance(by_address, Route)
    assert by_service.destination == by_address.destination == at("127.0.0.2:80")
    assert by_service.workload is not None
    assert by_service.workload.uid == "pod1"
    assert by_address.workload is None


def test_a_waypoint_does_not_send_to_itself() -> None:
    pod = workload("pod", "127.0.0.2", waypoint=gateway("127.0.0.10"), protocol=InboundProtocol.HBONE)
    mesh = world(pod)

    from_waypoint = decide(mesh, "127.0.0.2:80", source=WAYPOINT, client="127.0.0.10")
    same_identity_elsewhere = decide(mesh, "127.0.0.2:80", source=WAYPOINT, client="127.0.0.20")
    other_identity_there = decide(
        mesh, "127.0.0.2:80", source=replace(WAYPOINT, service_account="x"), client="127.0.0.10"
    )

    assert [found.destination for found in (from_waypoint,) if isinstance(found, Route)] == [
        at("127.0.0.2:15008")
    ]
    for found in (same_identity_elsewhere, other_identity_there):
        assert isinstance(found, Route)
        assert found.destination == at("127.0.0.10:15008")


def test_a_waypoint_known_as_a_service_is_recognised_by_its_endpoints() -> None:
    wp = replace(WAYPOINT, services={WAYPOINT_SERVICE.key: {15008: 15008}})
    for reference in (named_gateway("waypoint.com"), gateway("127.0.0.9")):
        mesh = mesh_of(SOURCE, WAYPOINT_SERVICE, wp, workload("pod", "127.0.0.2", waypoint=reference))

        own, other = (
            decide(mesh, "127.0.0.2:80", source=wp, client="127.0.0.10"),
            decide(mesh, "127.0.0.2:80"),
        )

        assert isinstance(own, Route)
        assert own.destination == at("127.0.0.2:80")
        assert isinstance(other, Route)
        assert other.destination == at("127.0.0.10:15008")


def test_a_route_names_its_workload_and_service() -> None:
    service = replace(SERVICE, waypoint=gateway("127.0.0.10"))

    to_waypoint = decide(world(service), "127.0.0.3:80")
    to_endpoint = decide(world(SERVICE, HBONE_ENDPOINT), "127.0.0.3:80")
    across = decide(world(SERVICE, REMOTE_ENDPOINT, GATEWAY_WORKLOAD), "127.0.0.3:80")
    around = decide(world(PASSTHROUGH), "1.2.3.4:80")

    for found, uid, named in (
        (to_waypoint, "waypoint-workload", True),
        (to_endpoint, "local", True),
        (across, "remote-gateway", True),
        (around, None, False),
    ):
        assert isinstance(found, Route)
        assert (found.workload.uid if found.workload else None) == uid
        assert (found.service.hostname if found.service else None) == ("example.com" if named else None)


ECHO = SpiffeId("cluster.local", "ns", "echo")
GATEWAY_NAME = SpiffeId("cluster.local", "istio-system", "gw")


def test_the_peers_expected_are_the_services_names_and_the_workload() -> None:
    names = (str(ECHO), "echo.example.com")

    found = decide(world(replace(SERVICE, subject_alt_names=names), HBONE_ENDPOINT), "127.0.0.3:80")

    assert isinstance(found, Route)
    assert found.expected == (ECHO, HBONE_ENDPOINT.identity)
    assert found.inner_expected == ()
    assert found.notes == (
        "ignoring invalid SAN echo.example.com: invalid spiffe identity: echo.example.com",
    )


def test_of_a_waypoint_its_own_services_names_are_expected() -> None:
    mesh = world(
        replace(SERVICE, waypoint=named_gateway("waypoint.com"), subject_alt_names=(str(ECHO),)),
        replace(WAYPOINT_SERVICE, subject_alt_names=(str(GATEWAY_NAME),)),
        workload("wp", "127.0.0.12", services={WAYPOINT_SERVICE.key: {15008: 15008}}, account="waypoint"),
    )

    found = decide(mesh, "127.0.0.3:80")

    assert isinstance(found, Route)
    assert found.expected == (GATEWAY_NAME, SpiffeId("cluster.local", "ns", "waypoint"))


def test_across_networks_the_inner_peer_proves_a_name_of_the_service_only() -> None:
    mesh = world(
        replace(SERVICE, subject_alt_names=(str(ECHO),)),
        endpoint("remote", network="remote", network_gateway=named_gateway("ew-gtw", 15009)),
        replace(EAST_WEST, subject_alt_names=(str(GATEWAY_NAME), "bad")),
        EAST_WEST_POD,
    )

    found = decide(mesh, "127.0.0.3:80")

    assert isinstance(found, Route)
    assert found.expected == (GATEWAY_NAME, EAST_WEST_POD.identity)
    assert found.inner_expected == (ECHO,)
    assert found.authority == HostPort("example.com", 80)
    assert found.notes == ("ignoring invalid SAN bad: invalid spiffe identity: bad",)


@pytest.mark.parametrize(
    ("weights", "share_of_first"),
    [([100, 0], (1.0, 1.0)), ([0, 100], (0.0, 0.0)), ([75, 25], (0.70, 0.80))],
)
def test_waypoints_are_drawn_by_weight(weights: list[int], share_of_first: tuple[float, float]) -> None:
    options = (gateway("127.0.0.10"), gateway("127.0.0.11"))
    service = replace(
        SERVICE,
        waypoint=gateway("127.0.0.99"),
        weighted_waypoints=tuple(
            WeightedWaypoint(option, weight) for option, weight in zip(options, weights, strict=True)
        ),
    )
    mesh = world(service)

    drawn = [decide(mesh, "127.0.0.3:80", seed=seed) for seed in range(1000)]

    first = sum(isinstance(found, Route) and found.workload == WAYPOINT for found in drawn) / len(drawn)
    assert share_of_first[0] <= first <= share_of_first[1]


def test_waypoints_of_no_weight_leave_the_single_one() -> None:
    weighted = (WeightedWaypoint(gateway("127.0.0.11"), 0), WeightedWaypoint(gateway("127.0.0.12"), 0))

    found = decide(
        world(replace(SERVICE, waypoint=gateway("127.0.0.10"), weighted_waypoints=weighted)), "127.0.0.3:80"
    )

    assert isinstance(found, Route)
    assert found.destination == at("127.0.0.10:15008")


@pytest.mark.parametrize("port", sorted(ILLEGAL_PORTS))
def test_the_proxys_own_ports_are_not_reached_over_loopback(port: int) -> None:
    assert decide(world(), f"127.0.0.7:{port}") == Refusal(Reason.RECURSIVE_CALL)
    assert decide(world(), f"[::1]:{port}") == Refusal(Reason.RECURSIVE_CALL)
    assert isinstance(decide(world(), f"10.0.0.7:{port}"), Route)


@pytest.mark.parametrize("port", sorted(ILLEGAL_PORTS))
def test_the_proxys_own_ports_are_not_reached_over_any_address_of_the_pod(port: int) -> None:
    request = OutboundRequest(SOURCE, SOURCE.addresses[0], at(f"172.30.0.1:{port}"), "", is_target_here=True)

    assert route(request, world(), Known(), random.Random(1), on_demand=False) == Refusal(
        Reason.RECURSIVE_CALL
    )


def test_other_ports_over_loopback_are_fine() -> None:
    assert not calls_itself(at("172.30.0.1:80"), ILLEGAL_PORTS, is_here=True)
    assert not calls_itself(at("127.0.0.1:80"), ILLEGAL_PORTS)
    assert not calls_itself(at("127.0.0.1:15080"), ILLEGAL_PORTS)
    assert calls_itself(at("127.0.0.1:15080"), ILLEGAL_PORTS | {15080})


def test_a_service_of_another_namespace_only_is_not_there() -> None:
    hidden = replace(SERVICE, namespace="other", visibility=Visibility.NAMESPACE)

    assert decide(world(hidden), "127.0.0.3:80") == Route(TCP, at("127.0.0.3:80"), None, (), (), None, None)


# ---- hosts: workloads known by their hostname only


BY_NAME = endpoint("by-name", hostname="outside.example.com")


def test_a_workload_known_by_its_hostname_is_resolved() -> None:
    mesh = world(SERVICE, BY_NAME)

    assert decide(mesh, "127.0.0.3:80") == NeedHost(BY_NAME)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (None, Refusal(Reason.NO_RESOLVED_ADDRESSES, "by-name")),
        ((), Refusal(Reason.NO_USABLE_RECORDS, "by-name")),
    ],
)
def test_a_hostname_without_answer_is_a_refusal(answer: tuple[()] | None, refusal: Refusal) -> None:
    assert decide(world(SERVICE, BY_NAME), "127.0.0.3:80", Known().with_host("by-name", answer)) == refusal


def test_of_resolved_addresses_any_of_the_family_dialled_will_do() -> None:
    v4, v6 = (IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")), (IPv6Address("2001:db8::9"),)
    mesh = world(replace(SERVICE, vips=(vip("127.0.0.3"), vip("::3"))), BY_NAME)

    def seen(target: str, known: Known) -> set[str]:
        routes = [decide(mesh, target, known, seed=seed) for seed in range(20)]
        return {str(found.destination) for found in routes if isinstance(found, Route)}

    both = Known().with_host("by-name", v4 + v6)
    assert seen("127.0.0.3:80", both) == {"10.9.0.1:8080", "10.9.0.2:8080"}
    assert seen("[::3]:80", both) == {"[2001:db8::9]:8080"}
    assert seen("[::3]:80", Known().with_host("by-name", v4)) == {"10.9.0.1:8080", "10.9.0.2:8080"}


def test_a_waypoint_known_by_its_hostname_is_resolved() -> None:
    by_name = workload("wp", hostname="waypoint.host", namespace="ns")
    reference = named_gateway("waypoint.host", 15008, "ns")
    mesh = world(workload("pod", "127.0.0.2", waypoint=reference), by_name)

    assert decide(mesh, "127.0.0.2:80") == NeedHost(by_name)

    found = decide(mesh, "127.0.0.2:80", Known().with_host("wp", (IPv4Address("10.9.0.1"),)))
    assert isinstance(found, Route)
    assert (found.destination, found.authority) == (at("10.9.0.1:15008"), at("127.0.0.2:80"))


def test_a_gateway_known_by_its_hostname_is_resolved_and_a_remote_endpoint_is_not() -> None:
    by_name = replace(GATEWAY_WORKLOAD, addresses=(), hostname="gateway.example.com", namespace="ns")
    far = endpoint(
        "far",
        hostname="far.example.com",
        network="remote",
        network_gateway=named_gateway("gateway.example.com", 15008, "ns"),
    )
    mesh = world(SERVICE, far, by_name)

    assert decide(mesh, "127.0.0.3:80") == NeedHost(by_name)

    known = Known().with_host(by_name.uid, (IPv4Address("10.22.1.9"),))
    found = decide(mesh, "127.0.0.3:80", known)
    assert isinstance(found, Route)
    assert found.destination == at("10.22.1.9:15008")


# ---- on demand: the mesh holds only what was asked for


def test_an_unknown_destination_is_asked_for_once() -> None:
    mesh = world()

    need = decide(mesh, "1.2.3.4:80", on_demand=True, network="net")
    assert need == NeedAddress("net/1.2.3.4")

    # and once more in the source's own network, where endpoints are looked for
    known = Known().with_asked("net/1.2.3.4")
    assert decide(mesh, "1.2.3.4:80", known, on_demand=True, network="net") == NeedAddress("/1.2.3.4")

    known = known.with_asked("/1.2.3.4")
    found = decide(mesh, "1.2.3.4:80", known, on_demand=True, network="net")
    assert isinstance(found, Route)
    assert found.protocol is TCP


def test_what_is_known_is_not_asked_for() -> None:
    mesh = world(SERVICE, HBONE_ENDPOINT)

    assert isinstance(decide(mesh, "127.0.0.3:80", on_demand=True), Route)
    assert isinstance(decide(mesh, "127.0.0.2:80", on_demand=True), Route)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        (gateway("127.0.0.99"), "/127.0.0.99"),
        (named_gateway("waypoint.com", namespace="ns"), "ns/waypoint.com"),
    ],
)
def test_an_unknown_waypoint_is_asked_for_once(reference: GatewayAddress, name: str) -> None:
    by_service = world(replace(SERVICE, waypoint=reference))
    by_workload = world(workload("pod", "127.0.0.2", waypoint=reference))

    for mesh, target in ((by_service, "127.0.0.3:80"), (by_workload, "127.0.0.2:80")):
        assert decide(mesh, target, on_demand=True) == NeedAddress(name)
        refusal = decide(mesh, target, Known().with_asked(name), on_demand=True)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.UNKNOWN_WAYPOINT


def test_an_unknown_gateway_is_asked_for() -> None:
    assert decide(world(SERVICE, REMOTE_ENDPOINT), "127.0.0.3:80", on_demand=True) == NeedAddress(
        "remote/10.22.1.1"
    )


# ---- another endpoint after a failure


def test_what_was_tried_is_not_tried_again() -> None:
    mesh = world(SERVICE, endpoint("one", "10.0.0.1"), endpoint("two", "10.0.0.2"))

    for seed in range(10):
        found = decide(mesh, "127.0.0.3:80", seed=seed, exclude=frozenset({"one"}))
        assert isinstance(found, Route)
        assert found.destination == at("10.0.0.2:8080")
    assert decide(mesh, "127.0.0.3:80", exclude=frozenset({"one", "two"})) == Refusal(
        Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:80"
    )


def test_another_endpoint_of_a_waypoint_or_gateway_is_tried() -> None:
    pods = [replace(EAST_WEST_POD, uid=f"gw{n}", addresses=(IPv4Address(f"127.0.0.{n}"),)) for n in (50, 51)]
    mesh = world(
        SERVICE,
        endpoint("remote", network="remote", network_gateway=named_gateway("ew-gtw", 15009)),
        EAST_WEST,
        *pods,
    )

    found = decide(mesh, "127.0.0.3:80", exclude=frozenset({"gw50"}))

    assert isinstance(found, Route)
    assert found.destination == at("127.0.0.51:15008")


def test_trying_again_never_ends_in_plain_passthrough() -> None:
    pod = workload("pod", "127.0.0.2", protocol=InboundProtocol.HBONE)
    hidden = workload("hider", "127.0.0.3")

    assert isinstance(decide(world(pod), "127.0.0.2:80", exclude=frozenset({"pod"})), Refusal)
    assert isinstance(
        decide(
            world(hidden, SERVICE, endpoint("one", "10.0.0.1")),
            "127.0.0.3:80",
            exclude=frozenset({"one"}),
        ),
        Refusal,
    )
    assert isinstance(
        decide(
            world(workload("pod", "127.0.0.2", waypoint=gateway("127.0.0.10"))),
            "127.0.0.2:80",
            exclude=frozenset({"waypoint-workload"}),
        ),
        Refusal,
    )


def test_a_waypoint_that_is_one_workload_is_not_tried_twice() -> None:
    mesh = world(
        workload("pod", "127.0.0.2", waypoint=named_gateway("waypoint.host", 15008, "ns")),
        workload("wp", "127.0.0.12", hostname="waypoint.host"),
    )

    assert decide(mesh, "127.0.0.2:80", exclude=frozenset({"wp"})) == Refusal(
        Reason.NO_HEALTHY_UPSTREAM, "127.0.0.2:80"
    )


def test_the_port_workloads_take_hbone_on_can_be_another() -> None:
    request = OutboundRequest(SOURCE, IPv4Address("127.0.0.1"), at("127.0.0.2:80"), "", hbone_port=25008)

    found = route(
        request,
        world(workload("pod", "127.0.0.2", protocol=InboundProtocol.HBONE)),
        Known(),
        random.Random(0),
        on_demand=False,
    )

    assert isinstance(found, Route)
    assert found.destination == at("127.0.0.2:25008")
    assert found.authority == at("127.0.0.2:80")


# ---- which endpoint: the Rust ztunnel's load-balancing vectors, seen from the whole decision


def placed(uid: str, *ips: str, network: str, region: str = "", zone: str = "") -> Workload:
    backing = {EXAMPLE: {80: 80}}
    found = workload(uid, *ips, network=network, services=backing, network_gateway=None)
    return replace(found, locality=Locality(region, zone))


ENDPOINTS = (
    placed("wl_match", "192.168.0.2", network="network", region="reg", zone="zone"),
    placed("wl_almost", "192.168.0.3", network="network", region="reg", zone="not-zone"),
    placed("wl_no_locality", "192.168.0.1", network="network"),
    replace(
        placed("wl_other", "192.168.0.5", network="other", region="reg", zone="zone"),
        network_gateway=gateway("10.22.1.1", 15009, "other"),
    ),
    placed("wl_empty_ip", network="network", region="reg", zone="zone"),
)
STRICT, SPREAD = LoadBalancingMode.STRICT, LoadBalancingMode.FAILOVER


@pytest.mark.parametrize(
    ("mode", "network", "region", "zone", "reachable"),
    [
        (STRICT, "", "", "", set()),
        (STRICT, "network", "reg", "zone", {"wl_match"}),
        (SPREAD, "no-match", "no-match", "no-match", {"wl_match", "wl_almost", "wl_no_locality", "wl_other"}),
        (SPREAD, "network", "reg", "zone", {"wl_match"}),
        (SPREAD, "network", "reg", "", {"wl_match", "wl_almost"}),
        (SPREAD, "network", "no-match", "no-match", {"wl_match", "wl_almost", "wl_no_locality"}),
        (SPREAD, "no-match", "reg", "zone", {"wl_match", "wl_other"}),
    ],
)
def test_preferences_choose_the_endpoints(
    mode: LoadBalancingMode, network: str, region: str, zone: str, reachable: set[str]
) -> None:
    source = replace(SOURCE, addresses=(), network=network, locality=Locality(region, zone))
    vips = (vip("127.0.0.3", network),)
    service = replace(
        SERVICE,
        vips=vips,
        ports={80: 80},
        load_balancer=balancer(mode, Scope.NETWORK, Scope.REGION, Scope.ZONE),
    )
    mesh = mesh_of(source, service, *ENDPOINTS)

    seen: set[str] = set()
    for seed in range(60):
        # the gateways of other networks are unknown, so a remote endpoint shows in its refusal
        chosen = choose(service, 80, source, mesh, random.Random(seed), waypoint=False)
        seen |= {chosen.workload.uid} if chosen is not None else set()
        found = decide(mesh, "127.0.0.3:80", source=source, network=network, seed=seed)
        assert isinstance(found, Refusal) == (chosen is None or chosen.workload.network != network)

    assert seen == reachable


@pytest.mark.parametrize(("target_port", "endpoint_ports", "port"), [(0, {80: 9090}, 9090), (8080, {}, 8080)])
def test_the_endpoints_own_port_comes_first(
    target_port: int, endpoint_ports: dict[int, int], port: int
) -> None:
    mesh = world(
        replace(SERVICE, ports={80: target_port}), endpoint("pod", "127.0.0.2", ports=endpoint_ports)
    )

    found = decide(mesh, "127.0.0.3:80")

    assert isinstance(found, Route)
    assert found.destination == at(f"127.0.0.2:{port}")


SHARED_VIP = replace(SERVICE, vips=(vip("127.0.0.2"),))
ON_SHARED_VIP = endpoint("pod", "127.0.0.2", protocol=InboundProtocol.HBONE)


def test_the_own_ports_of_a_pod_whose_address_is_a_vip_too_get_hbone() -> None:
    mesh = world(SHARED_VIP, ON_SHARED_VIP)

    service_port, own_port = decide(mesh, "127.0.0.2:80"), decide(mesh, "127.0.0.2:22")

    assert isinstance(service_port, Route)
    assert isinstance(own_port, Route)
    assert (service_port.authority, service_port.service) == (at("127.0.0.2:8080"), SHARED_VIP)
    assert (own_port.protocol, own_port.authority, own_port.service) == (HBONE, at("127.0.0.2:22"), None)
    assert own_port.expected == (ON_SHARED_VIP.identity,)
    assert own_port.notes == (
        "127.0.0.2:22 is also an address of service /example.com: HBONE to workload pod",
    )


@pytest.mark.parametrize("mode", [LoadBalancingMode.PASSTHROUGH, LoadBalancingMode.STANDARD])
def test_no_service_takes_the_identity_of_an_hbone_workload_away(mode: LoadBalancingMode) -> None:
    service = replace(SHARED_VIP, ports={}, load_balancer=balancer(mode))
    mesh = world(service, replace(ON_SHARED_VIP, services={}))

    found = decide(mesh, "127.0.0.2:80")

    assert isinstance(found, Route)
    assert (found.protocol, found.authority) == (HBONE, at("127.0.0.2:80"))


def test_a_service_port_without_endpoints_on_a_pods_address_is_refused() -> None:
    mesh = world(SHARED_VIP, replace(ON_SHARED_VIP, health=Health.UNHEALTHY))

    assert decide(mesh, "127.0.0.2:80") == Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.2:80")


def test_a_hidden_pod_with_a_waypoint_is_reached_through_it() -> None:
    pod = replace(ON_SHARED_VIP, services={}, waypoint=gateway("127.0.0.10"))

    found = decide(world(SHARED_VIP, pod), "127.0.0.2:22")

    assert isinstance(found, Route)
    assert (found.protocol, found.destination.ip, found.workload) == (HBONE, WAYPOINT.addresses[0], WAYPOINT)


def test_an_endpoint_that_is_plain_by_a_services_word_gets_hbone_where_a_pod_speaks_it() -> None:
    pod = workload("x//Pod/pod", "127.0.0.2", protocol=InboundProtocol.HBONE, account="pod")
    mesh = world(SERVICE, endpoint("entry", "127.0.0.2"), pod)

    found = decide(mesh, "127.0.0.3:80")

    assert isinstance(found, Route)
    assert (found.protocol, found.workload, found.service) == (HBONE, pod, SERVICE)
    assert found.destination == at("127.0.0.2:15008")
    assert found.expected == (pod.identity,)
    assert found.notes == ("127.0.0.2 of endpoint entry is an address of x//Pod/pod: HBONE to that workload",)
    tried = decide(mesh, "127.0.0.3:80", exclude=frozenset({"x//Pod/pod"}))
    assert tried == Refusal(Reason.NO_HEALTHY_UPSTREAM, "127.0.0.3:80")


def test_a_plain_workload_on_a_vip_stays_plain() -> None:
    external = replace(ON_SHARED_VIP, protocol=InboundProtocol.TCP)

    found = decide(world(SHARED_VIP, external), "127.0.0.2:22")

    assert found == Route(TCP, at("127.0.0.2:22"), None, (), (), None, None)
