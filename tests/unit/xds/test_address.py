"""Protobuf to entries: what is rejected with which text, what is converted to what."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from google.protobuf.wrappers_pb2 import UInt32Value

from tests.unit.mesh.world import address_entry, payload_of, policy_entry, workload_message, workload_of
from ztunnel_trio.mesh.entries import ServiceEntry, WorkloadEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress, decode_ip
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Exact,
    Match,
    PolicyScope,
    Prefix,
    Presence,
    ServiceAccountMatch,
    Suffix,
)
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
from ztunnel_trio.model.workload import (
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
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.xds.address import read_address
from ztunnel_trio.xds.policy import read_policy

PB = workload_pb2
GATEWAY = PB.GatewayAddress(
    hostname=PB.NamespacedHostname(namespace="ns", hostname="way"), hbone_mtls_port=0x10000 + 15008
)


def workload(message: PB.Workload) -> Workload:
    entry = address_entry("any name", payload_of(message))
    assert isinstance(entry, WorkloadEntry)
    return workload_of(entry)


def refusal(payload: bytes) -> RejectedResource:
    """Why the resource `x` of that payload is not taken."""
    rejected = read_address("x", payload)
    assert isinstance(rejected, RejectedResource)
    return rejected


def service(message: PB.Service) -> Service:
    entry = address_entry("any name", payload_of(message))
    assert isinstance(entry, ServiceEntry)
    return entry.service


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (bytes(4), "0.0.0.0"),
        (bytes((127, 0, 0, 1)), "127.0.0.1"),
        (bytes((1, 1, 1, 1)), "1.1.1.1"),
        (bytes.fromhex("20010db885a3000000008a2e03707334"), "2001:db8:85a3::8a2e:370:7334"),
        (bytes(15) + b"\1", "::1"),
        (bytes.fromhex("00000000000000000000ffff0a000001"), "::ffff:10.0.0.1"),
    ],
)
def test_addresses(packed: bytes, text: str) -> None:
    found = workload(PB.Workload(addresses=[packed])).addresses

    assert found == (ip_address(text),) == (decode_ip(packed),)


def weighted_without_destination() -> PB.Service:
    return PB.Service(weighted_waypoints=[PB.WeightedWaypoint(weight=1)])


def balancing(**fields: int | list[int]) -> Callable[[], PB.Service]:
    def make() -> PB.Service:
        message = PB.LoadBalancing()
        for name, value in fields.items():
            if isinstance(value, list):
                message.routing_preference.extend(value)  # type: ignore[arg-type]
            else:
                setattr(message, name, value)
        return PB.Service(load_balancing=message)

    return make


def number(message: PB.Workload | PB.Service, field: str, value: int = 99) -> PB.Workload | PB.Service:
    setattr(message, field, value)
    return message


UNKNOWN = "decode error: unknown enumeration value 99"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (PB.Workload(addresses=[b"not_an_ip"]), "failed to parse address, had 9 bytes"),
        (PB.Workload(addresses=[b""]), "failed to parse address, had 0 bytes"),
        (PB.Workload(addresses=[bytes(4), bytes(5)]), "failed to parse address, had 5 bytes"),
        (PB.Workload(services={"noslash": PB.PortList()}), "failed to parse namespaced hostname: noslash"),
        (PB.Workload(waypoint=PB.GatewayAddress()), "nonempty gateway address is missing address"),
        (
            PB.Workload(network_gateway=PB.GatewayAddress(hbone_mtls_port=1)),
            "nonempty gateway address is missing address",
        ),
        (
            PB.Workload(waypoint=PB.GatewayAddress(address=PB.NetworkAddress(address=b"xyz"))),
            "failed to parse address, had 3 bytes",
        ),
        (
            PB.Workload(tunnel_protocol=PB.LEGACY_ISTIO_MTLS),
            "unknown enum: unsupported tunnel protocol: legacy istio mtls",
        ),
        (number(PB.Workload(), "tunnel_protocol"), UNKNOWN),
        (number(PB.Workload(), "tunnel_protocol", -1), "decode error: unknown enumeration value -1"),
        (number(PB.Workload(), "status"), UNKNOWN),
        (number(PB.Workload(), "network_mode"), UNKNOWN),
        (number(PB.Service(), "ip_families"), UNKNOWN),
        (balancing(mode=99)(), UNKNOWN),
        (balancing(health_policy=99)(), UNKNOWN),
        (balancing(routing_preference=[1, 99])(), UNKNOWN),
        (balancing(routing_preference=[1, 0])(), "unknown enum: invalid target"),
        (weighted_without_destination(), "nonempty gateway address is missing address"),
        (PB.Service(addresses=[PB.NetworkAddress()]), "failed to parse address, had 0 bytes"),
        (
            PB.Service(addresses=[PB.NetworkAddress(address=bytes(4), length=33)]),
            "invalid cidr: invalid IP prefix length",
        ),
        (
            PB.Service(addresses=[PB.NetworkAddress(address=bytes(16), length=129)]),
            "invalid cidr: invalid IP prefix length",
        ),
    ],
)
def test_rejections(message: PB.Workload | PB.Service, text: str) -> None:
    rejected = refusal(payload_of(message))

    assert (rejected.resource, rejected.reason, rejected.is_undecodable) == ("x", text, False)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (PB.Workload(addresses=[b"not_an_ip"]), "addresses"),
        (PB.Workload(services={"noslash": PB.PortList()}), "services"),
        (PB.Workload(waypoint=PB.GatewayAddress()), "waypoint"),
        (PB.Workload(network_gateway=PB.GatewayAddress()), "network_gateway"),
        (
            PB.Workload(waypoint=PB.GatewayAddress(address=PB.NetworkAddress(address=b"xyz"))),
            "waypoint.address",
        ),
        (PB.Workload(tunnel_protocol=PB.LEGACY_ISTIO_MTLS), "tunnel_protocol"),
        (number(PB.Service(), "ip_families"), "ip_families"),
        (balancing(mode=99)(), "load_balancing.mode"),
        (balancing(routing_preference=[1, 0])(), "load_balancing.routing_preference"),
        (weighted_without_destination(), "weighted_waypoints.destination"),
        (PB.Service(addresses=[PB.NetworkAddress()]), "addresses"),
        (PB.Service(addresses=[PB.NetworkAddress(address=bytes(4), length=33)]), "addresses.length"),
    ],
)
def test_a_rejection_names_the_field(message: PB.Workload | PB.Service, field: str) -> None:
    assert refusal(payload_of(message)).field == field


def test_an_unknown_application_tunnel_is_rejected() -> None:
    tunnel = PB.ApplicationTunnel(port=1)
    setattr(tunnel, "protocol", 99)  # noqa: B010 - no member of the enum has that number

    assert refusal(payload_of(PB.Workload(application_tunnel=tunnel))) == RejectedResource(
        "x", "application_tunnel.protocol", UNKNOWN
    )


@pytest.mark.parametrize("payload", [b"", b"\x1a\x00"])
def test_neither_workload_nor_service(payload: bytes) -> None:
    assert refusal(payload) == RejectedResource("x", "", "unknown address type")


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x0a\x05abc",
        b"\x0a\x04\x0a\x02\xff\xfe",  # a name that is no UTF-8
        b"\x0a\x03\xc2\x01\xff",  # a locality that is no message
        b"\x0a\x04\xb2\x01\x01\xff",  # a service entry that is no message
        b"\x12\x03\x22\x01\xff",  # a VIP that is no message
    ],
)
def test_bytes_that_do_not_decode(payload: bytes) -> None:
    policy = read_policy("x", b"\xff")
    assert isinstance(policy, RejectedResource)
    for rejected in (refusal(payload), policy):
        assert rejected.is_undecodable
        assert rejected.reason.startswith("decode: ")


def test_a_bad_resource_rejects_itself_only() -> None:
    rejected, entries = [], []
    for payload in (
        payload_of(PB.Service(namespace="ns", hostname="svc")),
        payload_of(workload_message("a", services=["ns/svc"])),
        b"",
        payload_of(workload_message("b", services=["ns/svc"])),
    ):
        entry = read_address("x", payload)
        if isinstance(entry, RejectedResource):
            rejected.append(entry.reason)
        else:
            entries.append(entry)
    mesh = Mesh()
    mesh.apply(Batch(addresses=entries))

    assert rejected == ["unknown address type"]
    assert set(mesh.endpoints(NamespacedHostname("ns", "svc"))) == {"a", "b"}


def test_an_empty_workload_has_the_defaults() -> None:
    assert workload(PB.Workload()) == Workload(
        service_account="default",
        trust_domain="cluster.local",
        cluster="Kubernetes",
        workload_type="deployment",
        capacity=1,
        locality=NOWHERE,
    )


def test_a_full_workload() -> None:
    message = PB.Workload(
        uid="uid",
        name="name",
        namespace="ns",
        addresses=[bytes((10, 0, 0, 1)), bytes(15) + b"\1"],
        network="net",
        tunnel_protocol=PB.HBONE,
        trust_domain="td",
        service_account="sa",
        waypoint=GATEWAY,
        node="node",
        canonical_name="cn",
        canonical_revision="cr",
        workload_type=PB.CRONJOB,
        workload_name="wn",
        native_tunnel=True,
        authorization_policies=["ns/a", "ns/b"],
        status=PB.UNHEALTHY,
        cluster_id="c",
        network_gateway=PB.GatewayAddress(
            address=PB.NetworkAddress(network="n2", address=bytes((1, 2, 3, 4)), length=7),
            hbone_mtls_port=15009,
        ),
        hostname="h",
        services={
            "ns/b/c": PB.PortList(
                ports=[
                    PB.Port(service_port=80, target_port=1),
                    PB.Port(service_port=80 + 0x10000, target_port=2 + 0x10000),
                ]
            )
        },
        application_tunnel=PB.ApplicationTunnel(protocol=PB.ApplicationTunnel.PROXY, port=0),
        locality=PB.Locality(region="r", zone="z", subzone="s"),
        network_mode=PB.HOST_NETWORK,
        extensions=[PB.Extension(name="x")],
        capacity=UInt32Value(value=0),
    )

    assert workload(message) == Workload(
        uid="uid",
        name="name",
        namespace="ns",
        addresses=(ip_address("10.0.0.1"), ip_address("::1")),
        network="net",
        protocol=InboundProtocol.HBONE,
        trust_domain="td",
        service_account="sa",
        waypoint=GatewayAddress(NamespacedHostname("ns", "way"), 15008),
        node="node",
        canonical_name="cn",
        canonical_revision="cr",
        workload_type="cronjob",
        workload_name="wn",
        native_tunnel=True,
        authorization_policies=("ns/a", "ns/b"),
        health=Health.UNHEALTHY,
        cluster="c",
        network_gateway=GatewayAddress(NetworkAddress("n2", ip_address("1.2.3.4")), 15009),
        hostname="h",
        services={NamespacedHostname("ns", "b/c"): {80: 2}},
        application_tunnel=ApplicationTunnel(AppTunnelProtocol.PROXY, None),
        locality=Locality("r", "z", "s"),
        network_mode=NetworkMode.HOST_NETWORK,
        capacity=0,
    )


def test_an_unknown_workload_type_is_a_deployment() -> None:
    message = number(PB.Workload(), "workload_type")
    assert isinstance(message, PB.Workload)

    assert workload(message).workload_type == "deployment"


def test_what_is_shared_is_the_same_for_a_deployment() -> None:
    first = address_entry("a", payload_of(workload_message("a", "10.0.0.1", name="x", node="n")))
    second = address_entry("b", payload_of(workload_message("b", "10.0.0.2", name="y", node="m")))

    assert isinstance(first, WorkloadEntry)
    assert isinstance(second, WorkloadEntry)
    assert first.kind is second.kind


def test_a_workload_as_value_is_the_same_entry_again() -> None:
    value = workload(workload_message("a", "10.0.0.1", services=["ns/svc"]))

    assert workload_of(workload_entry(value)) == value


def test_a_full_service() -> None:
    message = PB.Service(
        name="name",
        namespace="ns",
        hostname="host",
        addresses=[
            PB.NetworkAddress(network="n", address=bytes((10, 0, 0, 1))),
            PB.NetworkAddress(address=bytes((10, 0, 0, 2)), length=32),
            PB.NetworkAddress(address=bytes(15) + b"\1", length=128),
            PB.NetworkAddress(network="n", address=bytes((10, 0, 0, 3)), length=8),
            PB.NetworkAddress(address=bytes((10, 0, 0, 3)), length=0),
        ],
        ports=[PB.Port(service_port=80, target_port=0), PB.Port(service_port=443, target_port=8443)],
        subject_alt_names=["spiffe://a", "junk"],
        waypoint=GATEWAY,
        load_balancing=PB.LoadBalancing(
            routing_preference=[
                PB.LoadBalancing.NETWORK,
                PB.LoadBalancing.REGION,
                PB.LoadBalancing.ZONE,
                PB.LoadBalancing.SUBZONE,
                PB.LoadBalancing.NODE,
                PB.LoadBalancing.CLUSTER,
            ],
            mode=PB.LoadBalancing.FAILOVER,
            health_policy=PB.LoadBalancing.ALLOW_ALL,
        ),
        ip_families=PB.DUAL,
        canonical=True,
        weighted_waypoints=[PB.WeightedWaypoint(destination=GATEWAY, weight=7)],
        visibility=PB.Service.NAMESPACE,
    )
    waypoint = GatewayAddress(NamespacedHostname("ns", "way"), 15008)

    assert service(message) == Service(
        name="name",
        namespace="ns",
        hostname="host",
        vips=(
            NetworkAddress("n", ip_address("10.0.0.1")),
            NetworkAddress("", ip_address("10.0.0.2")),
            NetworkAddress("", ip_address("::1")),
        ),
        cidr_vips=(
            NetworkCidr("n", ip_network("10.0.0.0/8")),
            NetworkCidr("", ip_network("0.0.0.0/0")),
        ),
        ports={80: 0, 443: 8443},
        subject_alt_names=("spiffe://a", "junk"),
        waypoint=waypoint,
        load_balancer=LoadBalancer(
            (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE, Scope.CLUSTER),
            LoadBalancingMode.FAILOVER,
            HealthPolicy.ALLOW_ALL,
        ),
        ip_families=IPFamilies.DUAL,
        canonical=True,
        weighted_waypoints=(WeightedWaypoint(waypoint, 7),),
        visibility=Visibility.NAMESPACE,
    )


def test_an_empty_service() -> None:
    assert service(PB.Service()) == Service()


def test_an_empty_load_balancer_is_there() -> None:
    standard = LoadBalancer((), LoadBalancingMode.STANDARD, HealthPolicy.ONLY_HEALTHY)

    assert service(PB.Service(load_balancing=PB.LoadBalancing())).load_balancer == standard


def test_an_unknown_visibility_is_public() -> None:
    message = number(PB.Service(), "visibility")
    assert isinstance(message, PB.Service)

    assert service(message).visibility is Visibility.PUBLIC


AUTH = authorization_pb2


def policy(*matches: AUTH.Match) -> Authorization:
    message = AUTH.Authorization(
        name="n",
        namespace="ns",
        scope=AUTH.WORKLOAD_SELECTOR,
        action=AUTH.DENY,
        rules=[AUTH.Rule(clauses=[AUTH.Clause(matches=matches)])],
        dry_run=True,
    )
    return policy_entry("key", message.SerializeToString()).policy


def only_match(message: AUTH.Match) -> Match:
    return policy(message).rules[0][0][0]


def string(**fields: str) -> AUTH.StringMatch:
    return AUTH.StringMatch(
        exact=fields.get("exact"), prefix=fields.get("prefix"), suffix=fields.get("suffix")
    )


def presence() -> AUTH.StringMatch:
    message = AUTH.StringMatch()
    message.presence.SetInParent()
    return message


def test_a_policy_is_kept_under_its_resource_name() -> None:
    entry = policy_entry("root/name", AUTH.Authorization(name="x", namespace="y").SerializeToString())

    assert (entry.key, entry.policy) == (
        "root/name",
        Authorization(name="x", namespace="y", scope=PolicyScope.GLOBAL, action=Action.ALLOW),
    )


@pytest.mark.parametrize("field", ["scope", "action"])
def test_an_unknown_scope_or_action_rejects_the_policy(field: str) -> None:
    message = AUTH.Authorization()
    setattr(message, field, 99)

    assert read_policy("x", message.SerializeToString()) == RejectedResource("x", field, UNKNOWN)


def test_a_full_match() -> None:
    address = AUTH.Address(address=bytes((10, 0, 0, 9)), length=24)
    found = policy(
        AUTH.Match(
            namespaces=[string(exact="a"), string(prefix="b"), string(suffix="c"), presence()],
            not_namespaces=[string(exact="")],
            principals=[presence()],
            not_principals=[presence()],
            source_ips=[address],
            not_source_ips=[address],
            destination_ips=[AUTH.Address(address=bytes(16), length=0)],
            not_destination_ips=[address],
            destination_ports=[80, 0x10050],
            not_destination_ports=[81],
            service_accounts=[AUTH.ServiceAccountMatch(namespace="ns", serviceAccount="sa")],
            not_service_accounts=[AUTH.ServiceAccountMatch()],
        )
    )

    network = (ip_network("10.0.0.0/24"),)
    assert (found.scope, found.action, found.dry_run) == (PolicyScope.WORKLOAD_SELECTOR, Action.DENY, True)
    assert found.rules == (
        (
            (
                Match(
                    namespaces=(Exact("a"), Prefix("b"), Suffix("c"), Presence()),
                    not_namespaces=(Exact(""),),
                    principals=(Presence(),),
                    not_principals=(Presence(),),
                    source_ips=network,
                    not_source_ips=network,
                    destination_ips=(ip_network("::/0"),),
                    not_destination_ips=network,
                    destination_ports=(80, 80),
                    not_destination_ports=(81,),
                    service_accounts=(ServiceAccountMatch("ns", "sa"),),
                    not_service_accounts=(ServiceAccountMatch("", ""),),
                ),
            ),
        ),
    )


BAD = [AUTH.Address(address=b"xyz", length=1), AUTH.Address(address=bytes(4), length=33)]
GOOD = AUTH.Address(address=bytes(4), length=0x100 + 8)


@pytest.mark.parametrize(
    ("message", "impossible"),
    [
        (AUTH.Match(source_ips=BAD), True),
        (AUTH.Match(destination_ips=BAD), True),
        (AUTH.Match(source_ips=[*BAD, GOOD]), False),
        (AUTH.Match(not_source_ips=BAD, not_destination_ips=BAD), False),
        (AUTH.Match(namespaces=[AUTH.StringMatch()]), True),
        (AUTH.Match(principals=[AUTH.StringMatch()]), True),
        (AUTH.Match(not_principals=[AUTH.StringMatch()]), False),
        (AUTH.Match(), False),
    ],
)
def test_a_list_of_unusable_entries_matches_nothing(message: AUTH.Match, impossible: bool) -> None:
    assert only_match(message).impossible is impossible


def test_unusable_entries_are_dropped() -> None:
    assert only_match(AUTH.Match(source_ips=[*BAD, GOOD])).source_ips == (ip_network("0.0.0.0/8"),)
    assert only_match(AUTH.Match(not_source_ips=BAD)).not_source_ips == ()
