"""What may enter a pod and where it goes: the Rust ztunnel's inbound vectors, and the steps around them."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.decide.world import mesh_of
from ztunnel_trio.decide.admit import (
    Admission,
    InboundRequest,
    NeedAddress,
    PlainAdmission,
    admit,
    admit_plain,
    guess_service,
)
from ztunnel_trio.decide.route import ILLEGAL_PORTS
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import HostPort, NamespacedHostname, NetworkAddress, SocketAddress
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service, Visibility, WeightedWaypoint
from ztunnel_trio.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Workload,
    WorkloadInfo,
)

HOST = "server.default.svc.cluster.local"
CLIENT_POD, SERVER_POD, WAYPOINT_POD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
SERVER_VIP, WAYPOINT_VIP = "10.10.0.1", "10.10.0.2"
PROXY_TUNNEL = ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)
SERVER_KEY = NamespacedHostname("default", HOST)
WAYPOINT_KEY = NamespacedHostname("default", "waypoint.default.svc.cluster.local")


def at(text: str) -> SocketAddress:
    return SocketAddress.parse(text)


def by(ip: str) -> GatewayAddress:
    return GatewayAddress(NetworkAddress("", ip_address(ip)), 15008)


def pod(
    name: str, *ips: str, services: Mapping[NamespacedHostname, Mapping[int, int]] | None = None
) -> Workload:
    return Workload(
        uid=f"cluster1//v1/Pod/default/{name}",
        name=name,
        namespace="default",
        addresses=tuple(ip_address(ip) for ip in ips),
        services=services or {},
    )


CLIENT = pod("client", CLIENT_POD)
SERVER = pod("server", SERVER_POD, services={SERVER_KEY: {80: 8080}})
WAYPOINT = pod("waypoint", WAYPOINT_POD, services={WAYPOINT_KEY: {15008: 15008}})
SERVER_SERVICE = Service(
    name="server",
    namespace="default",
    hostname=HOST,
    vips=(NetworkAddress("", ip_address(SERVER_VIP)),),
    ports={80: 8080},
)
WAYPOINT_SERVICE = Service(
    name="waypoint",
    namespace="default",
    hostname=WAYPOINT_KEY.hostname,
    vips=(NetworkAddress("", ip_address(WAYPOINT_VIP)),),
    ports={15008: 15008},
)


def world(
    *more: Workload | Service,
    server: Workload = SERVER,
    service: Service = SERVER_SERVICE,
    waypoint: Workload = WAYPOINT,
) -> Mesh:
    return mesh_of(CLIENT, server, waypoint, service, WAYPOINT_SERVICE, *more)


def request(
    workload: Workload | None, authority: str | None, connection_ip: str, method: str = "CONNECT"
) -> InboundRequest:
    return InboundRequest(
        method=method,
        authority=authority,
        connection_ip=ip_address(connection_ip),
        info=WorkloadInfo("pod", "default", "default"),
        workload=workload,
    )


def decide(
    mesh: Mesh,
    asked_for: InboundRequest,
    *,
    network: str = "",
    localhost_app_tunnel: bool = True,
    on_demand: bool = False,
    asked: frozenset[str] = frozenset(),
) -> Admission | Refusal | NeedAddress:
    return admit(
        asked_for,
        mesh,
        network=network,
        illegal_ports=ILLEGAL_PORTS,
        on_demand=on_demand,
        localhost_app_tunnel=localhost_app_tunnel,
        asked=asked,
    )


@pytest.mark.parametrize("by_vip", [False, True])
@pytest.mark.parametrize("on_service", [False, True])
@pytest.mark.parametrize("tunnel", [None, PROXY_TUNNEL])
def test_a_waypoint_takes_what_it_stands_before(
    by_vip: bool, on_service: bool, tunnel: ApplicationTunnel | None
) -> None:
    reference = by(WAYPOINT_VIP if by_vip else WAYPOINT_POD)
    waypoint = replace(WAYPOINT, application_tunnel=tunnel)
    mesh = world(
        waypoint=waypoint,
        server=SERVER if on_service else replace(SERVER, waypoint=reference),
        service=replace(SERVER_SERVICE, waypoint=reference) if on_service else SERVER_SERVICE,
    )
    authority = f"{SERVER_VIP if on_service else SERVER_POD}:8080"

    found = decide(mesh, request(waypoint, authority, WAYPOINT_POD))

    assert isinstance(found, Admission)
    assert found.authority == at(authority)
    if tunnel is None:
        assert (found.destination, found.tunnel_target) == (at(f"{WAYPOINT_POD}:8080"), None)
        assert (found.upstream, found.is_loopback) == (found.destination, False)
    else:
        assert (found.destination, found.tunnel_target) == (at(f"{WAYPOINT_POD}:15088"), at(authority))
        assert (found.upstream, found.is_loopback) == (at("127.0.0.1:15088"), True)


@pytest.mark.parametrize(
    ("authority", "upstream"),
    [(f"{SERVER_POD}:8080", f"{SERVER_POD}:8080"), (f"{HOST}:80", f"{SERVER_POD}:8080")],
)
def test_a_pod_takes_what_is_for_itself(authority: str, upstream: str) -> None:
    found = decide(world(), request(SERVER, authority, SERVER_POD))

    assert isinstance(found, Admission)
    assert found.destination == found.upstream == at(upstream)
    assert found.tunnel_target is None
    assert not found.is_loopback
    assert found.services == (SERVER_SERVICE,)


@pytest.mark.parametrize(
    ("attached", "workload", "connection_ip", "authority_ip"),
    [
        pytest.param(None, SERVER, SERVER_POD, CLIENT_POD, id="another pod"),
        pytest.param(None, WAYPOINT, WAYPOINT_POD, CLIENT_POD, id="a pod it does not stand before"),
        pytest.param("service", WAYPOINT, WAYPOINT_POD, SERVER_POD, id="a pod behind its service only"),
        pytest.param("workload", WAYPOINT, WAYPOINT_POD, SERVER_VIP, id="a service in front of its pod"),
        pytest.param("weighted", WAYPOINT, WAYPOINT_POD, SERVER_VIP, id="a service by weight only"),
        pytest.param("elsewhere", WAYPOINT, WAYPOINT_POD, SERVER_VIP, id="another waypoint's service"),
        pytest.param("nowhere", WAYPOINT, WAYPOINT_POD, SERVER_VIP, id="a waypoint nobody knows"),
        pytest.param(None, WAYPOINT, WAYPOINT_POD, "10.99.0.1", id="an unknown address"),
    ],
)
def test_what_is_for_somebody_else_is_refused(
    attached: str | None, workload: Workload, connection_ip: str, authority_ip: str
) -> None:
    service, server = SERVER_SERVICE, SERVER
    match attached:
        case "service":
            service = replace(service, waypoint=by(WAYPOINT_POD))
        case "workload":
            server = replace(server, waypoint=by(WAYPOINT_POD))
        case "weighted":
            service = replace(service, weighted_waypoints=(WeightedWaypoint(by(WAYPOINT_POD), 1),))
        case "elsewhere":
            service = replace(service, waypoint=by(CLIENT_POD))
        case "nowhere":
            service = replace(service, waypoint=by("10.99.0.2"))

    found = decide(
        world(service=service, server=server), request(workload, f"{authority_ip}:8080", connection_ip)
    )

    assert found == Refusal(Reason.IP_MISMATCH, f"{connection_ip} != {authority_ip}")


def test_a_sandwiched_pod_takes_any_address() -> None:
    for protocol in AppTunnelProtocol:
        waypoint = replace(WAYPOINT, application_tunnel=ApplicationTunnel(protocol, None))

        found = decide(world(waypoint=waypoint), request(waypoint, "10.99.0.1:99", WAYPOINT_POD))

        assert isinstance(found, Admission)
        assert found.destination == at(f"{WAYPOINT_POD}:99")
        is_proxy = protocol is AppTunnelProtocol.PROXY
        assert found.tunnel_target == (at("10.99.0.1:99") if is_proxy else None)
        assert found.is_loopback is is_proxy


def test_an_application_tunnel_may_be_dialled_on_the_pods_own_address() -> None:
    waypoint = replace(WAYPOINT, application_tunnel=PROXY_TUNNEL)

    found = decide(
        world(waypoint=waypoint),
        request(waypoint, "10.99.0.1:99", WAYPOINT_POD),
        localhost_app_tunnel=False,
    )

    assert isinstance(found, Admission)
    assert found.upstream == at(f"{WAYPOINT_POD}:15088")
    assert not found.is_loopback


def test_loopback_is_of_the_pods_own_family() -> None:
    waypoint = replace(WAYPOINT, application_tunnel=PROXY_TUNNEL, addresses=(ip_address("2001:db8::3"),))

    found = decide(world(waypoint=waypoint), request(waypoint, "10.99.0.1:99", "2001:db8::3"))

    assert isinstance(found, Admission)
    assert found.upstream == at("[::1]:15088")


# ---- before anything is looked up


@pytest.mark.parametrize(
    ("asked_for", "refusal"),
    [
        (request(SERVER, f"{SERVER_POD}:80", SERVER_POD, "GET"), Refusal(Reason.WRONG_METHOD, "GET")),
        (request(SERVER, None, SERVER_POD), Refusal(Reason.BAD_AUTHORITY, "")),
        (request(SERVER, SERVER_POD, SERVER_POD), Refusal(Reason.BAD_AUTHORITY, SERVER_POD)),
        (request(SERVER, "host", SERVER_POD), Refusal(Reason.BAD_AUTHORITY, "host")),
        (
            request(None, f"{SERVER_POD}:80", SERVER_POD),
            Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, "default.default (pod)"),
        ),
        (request(None, "host", SERVER_POD), Refusal(Reason.BAD_AUTHORITY, "host")),
        (request(SERVER, f"{SERVER_POD}:15008", SERVER_POD), Refusal(Reason.RECURSIVE_CALL)),
        (request(SERVER, f"{SERVER_POD}:15001", SERVER_POD), Refusal(Reason.RECURSIVE_CALL)),
    ],
)
def test_requests_are_refused_in_order(asked_for: InboundRequest, refusal: Refusal) -> None:
    assert decide(world(), asked_for) == refusal


# ---- hostnames


def test_a_named_target_port_is_the_workloads_own() -> None:
    named = replace(SERVER_SERVICE, ports={80: 0, 81: 0})
    mesh = world(service=named)

    found = decide(mesh, request(SERVER, f"{HOST}:80", SERVER_POD))

    assert isinstance(found, Admission)
    assert found.destination == at(f"{SERVER_POD}:8080")
    assert decide(mesh, request(SERVER, f"{HOST}:81", SERVER_POD)) == Refusal(
        Reason.UNRESOLVED_SERVICE_PORT, f"{HOST}:81"
    )
    assert decide(mesh, request(SERVER, f"{HOST}:82", SERVER_POD)) == Refusal(
        Reason.UNRESOLVED_SERVICE_PORT, f"{HOST}:82"
    )


def test_a_service_port_may_lead_to_no_port_of_the_proxy() -> None:
    mesh = world(service=replace(SERVER_SERVICE, ports={82: 15006}))

    assert decide(mesh, request(SERVER, f"{HOST}:82", SERVER_POD)) == Refusal(Reason.RECURSIVE_CALL)


def test_an_application_tunnel_may_listen_on_any_port() -> None:
    tunnel = ApplicationTunnel(AppTunnelProtocol.NONE, 15008)
    waypoint = replace(WAYPOINT, application_tunnel=tunnel)

    found = decide(world(waypoint=waypoint), request(waypoint, "10.99.0.1:99", WAYPOINT_POD))

    assert isinstance(found, Admission)
    assert found.destination == at(f"{WAYPOINT_POD}:15008")


def test_a_hostname_nobody_has_is_refused() -> None:
    assert decide(world(), request(SERVER, "else.example:80", SERVER_POD)) == Refusal(
        Reason.UNKNOWN_HOSTNAME, "else.example"
    )


def test_a_service_for_another_namespace_only_is_not_known_by_name() -> None:
    hidden = Service(namespace="other", hostname="hidden", ports={80: 80}, visibility=Visibility.NAMESPACE)

    assert decide(world(hidden), request(SERVER, "hidden:80", SERVER_POD)) == Refusal(
        Reason.UNKNOWN_HOSTNAME, "hidden"
    )


@pytest.mark.parametrize(
    ("vips", "target"),
    [
        (["/10.10.0.1", "/2001:db8::1"], "10.10.0.1:80"),
        (["/2001:db8::1", "/10.10.0.1"], "10.10.0.1:80"),
        (["other/10.10.0.9", "/2001:db8::1"], "[2001:db8::1]:80"),
        (["other/2001:db8::9", "other/10.10.0.9"], "10.10.0.9:80"),
    ],
)
def test_a_proxy_header_names_a_vip_of_the_service_asked_for(vips: list[str], target: str) -> None:
    server = replace(SERVER, application_tunnel=PROXY_TUNNEL)
    service = replace(SERVER_SERVICE, vips=tuple(NetworkAddress.parse(vip) for vip in vips))

    found = decide(world(server=server, service=service), request(server, f"{HOST}:80", SERVER_POD))

    assert isinstance(found, Admission)
    assert found.tunnel_target == at(target)
    assert found.authority == HostPort(HOST, 80)
    assert found.destination == at(f"{SERVER_POD}:15088")


def test_a_service_without_vip_cannot_be_named_to_an_application_tunnel() -> None:
    server = replace(SERVER, application_tunnel=PROXY_TUNNEL)

    found = decide(
        world(server=server, service=replace(SERVER_SERVICE, vips=())),
        request(server, f"{HOST}:80", SERVER_POD),
    )

    assert found == Refusal(Reason.SERVICE_WITHOUT_ADDRESS, HOST)


# ---- on demand


def test_an_unknown_address_is_asked_for_once() -> None:
    asked_for = request(WAYPOINT, "10.99.0.1:80", WAYPOINT_POD)

    assert decide(world(), asked_for, on_demand=True, network="net") == NeedAddress("net/10.99.0.1")
    assert decide(
        world(), asked_for, on_demand=True, network="net", asked=frozenset({"net/10.99.0.1"})
    ) == Refusal(Reason.IP_MISMATCH, f"{WAYPOINT_POD} != 10.99.0.1")


def test_an_unknown_waypoint_is_asked_for_once() -> None:
    mesh = world(service=replace(SERVER_SERVICE, waypoint=by("10.99.0.2")))
    asked_for = request(WAYPOINT, f"{SERVER_VIP}:80", WAYPOINT_POD)

    assert decide(mesh, asked_for, on_demand=True) == NeedAddress("/10.99.0.2")
    assert isinstance(decide(mesh, asked_for, on_demand=True, asked=frozenset({"/10.99.0.2"})), Refusal)


def test_of_hostnames_only_those_the_workload_backs_are_asked_for() -> None:
    mesh = mesh_of(SERVER)

    assert decide(mesh, request(SERVER, f"{HOST}:80", SERVER_POD), on_demand=True) == NeedAddress(
        str(SERVER_KEY)
    )
    for host, asked in ((HOST, frozenset({str(SERVER_KEY)})), ("any.thing", frozenset[str]())):
        assert decide(
            mesh, request(SERVER, f"{host}:80", SERVER_POD), on_demand=True, asked=asked
        ) == Refusal(Reason.UNKNOWN_HOSTNAME, host)


# ---- plain text, and the service a connection was for


INFO = WorkloadInfo("server", "default", "default")


def test_plain_text_is_taken_for_any_address() -> None:
    found = admit_plain(at("10.99.0.1:8080"), INFO, SERVER, world(), illegal_ports=ILLEGAL_PORTS)

    assert found == PlainAdmission(SERVER, SERVER_SERVICE)


@pytest.mark.parametrize(
    ("destination", "workload", "refusal"),
    [
        ("10.0.0.2:15006", SERVER, Refusal(Reason.RECURSIVE_CALL)),
        ("10.99.0.1:15008", None, Refusal(Reason.RECURSIVE_CALL)),
        ("10.0.0.2:80", None, Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, "default.default (server)")),
    ],
)
def test_plain_text_is_refused(destination: str, workload: Workload | None, refusal: Refusal) -> None:
    assert admit_plain(at(destination), INFO, workload, world(), illegal_ports=ILLEGAL_PORTS) == refusal


ONE = replace(SERVER_SERVICE, hostname="one", ports={80: 8080})
TWO = replace(SERVER_SERVICE, hostname="two", ports={80: 8080})
NAMED = replace(SERVER_SERVICE, hostname="named", ports={80: 0})


@pytest.mark.parametrize(
    ("services", "host", "port", "guess"),
    [
        ([ONE, TWO], "two", 1, TWO),
        ([ONE, TWO], None, 8080, ONE),
        ([ONE, TWO], "three", 8080, ONE),
        ([ONE, TWO], None, 80, None),
        ([ONE, NAMED], None, 9090, NAMED),
        ([ONE, NAMED], "three", 1, None),
        ([], "one", 8080, None),
    ],
)
def test_the_service_of_a_connection_is_guessed(
    services: list[Service], host: str | None, port: int, guess: Service | None
) -> None:
    workload = pod("w", services={NAMED.key: {80: 9090}})

    assert guess_service(services, host, workload, port) == guess
