"""A local file: a sample, there and back, and what is refused with which words."""

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from tests.unit.mesh.test_workloads import EVERYTHING
from tests.unit.mesh.world import key
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.mesh.document import (
    Json,
    MeshDocument,
    local_workload_document,
    policy_document,
    read_local,
    service_document,
)
from ztunnel_trio.mesh.entries import ServiceEntry
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
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
from ztunnel_trio.model.workload import GatewayAddress, Health, Workload

SAMPLE = """
workloads:
  - uid: lab//v1/Pod/shop/cart-0
    name: cart-0
    namespace: shop
    trustDomain: cluster.local
    serviceAccount: cart
    workloadIps: ["10.20.0.5"]
    protocol: HBONE
    networkMode: Standard
    network: ""
    node: node-a
    workloadName: cart
    workloadType: deployment
    canonicalName: cart
    canonicalRevision: v2
    clusterId: Kubernetes
    locality: {region: eu, zone: eu-1, subzone: "", planet: earth}
    capacity: 3
    status: Healthy
    nativeTunnel: false
    authorizationPolicies: ["shop/cart-only-web"]
    services:
      "shop/cart.shop.svc.cluster.local":
        80: 8080
  - uid: lab//v1/Pod/shop/way-0
    name: way-0
    namespace: shop
    workloadIps: ["10.20.0.9"]
    protocol: HBONE
    applicationTunnel: {protocol: PROXY, port: 15088}
    services: {}
  - uid: lab//Ext/legacy
    name: legacy
    namespace: shop
    workloadIps: []
    hostname: legacy.example.org
    networkGateway: {destination: "remote/172.18.0.20", hboneMtlsPort: 15008}
    services: {}
policies:
  - name: cart-only-web
    namespace: shop
    scope: WorkloadSelector
    action: Allow
    dryRun: false
    rules:
      - - - principals: [!Exact "cluster.local/ns/shop/sa/web"]
            notNamespaces: [!Prefix "test-", !Suffix "-old"]
            somethingNew: 1
          - serviceAccounts: [{namespace: ops, serviceAccount: probe}]
        - - destinationPorts: [8080]
            sourceIps: ["10.20.0.0/16"]
  - name: authenticated-only
    namespace: shop
    scope: Namespace
    action: Deny
    dryRun: true
    rules:
      - - - notPrincipals: [!Presence []]
services:
  - name: cart
    namespace: shop
    hostname: cart.shop.svc.cluster.local
    vips: ["/10.96.7.7"]
    cidrVips: [{network: "", cidr: "240.240.0.0/16"}]
    ports: {80: 8080, "81": 0}
    subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/cart"]
    waypoint: {destination: "shop/way.shop.svc.cluster.local", hboneMtlsPort: 15008}
    loadBalancer: {routingPreferences: [Network, Region], mode: Failover, healthPolicy: OnlyHealthy}
    ipFamilies: IPv4
    canonical: true
    visibility: Public
"""


def test_the_annotated_sample() -> None:
    document = read_local(SAMPLE)

    cart, way, legacy = document.workloads
    assert cart.services == {key("shop/cart.shop.svc.cluster.local"): {80: 8080}}
    assert (cart.capacity, cart.locality.region, cart.cluster) == (3, "eu", "Kubernetes")
    assert (way.trust_domain, way.service_account, way.cluster, way.workload_type) == ("", "", "", "")
    assert str(way.identity) == "spiffe:///ns/shop/sa/"
    assert legacy.network_gateway == GatewayAddress(
        NetworkAddress("remote", ip_address("172.18.0.20")), 15008
    )
    only_web, authenticated = document.policies
    assert only_web.rules == (
        (
            (
                Match(
                    principals=(Exact("cluster.local/ns/shop/sa/web"),),
                    not_namespaces=(Prefix("test-"), Suffix("-old")),
                ),
                Match(service_accounts=(ServiceAccountMatch("ops", "probe"),)),
            ),
            (Match(destination_ports=(8080,), source_ips=(ip_network("10.20.0.0/16"),)),),
        ),
    )
    assert (authenticated.scope, authenticated.dry_run) == (PolicyScope.NAMESPACE, True)
    assert authenticated.rules == (((Match(not_principals=(Presence(),)),),),)
    (service,) = document.services
    assert service.service.ports == {80: 8080, 81: 0}
    assert service.service.ip_families is IPFamilies.IPV4


@pytest.mark.parametrize("text", ["{}", "workloads: []", '{"services": []}', "---\n{}\n"])
def test_empty_documents(text: str) -> None:
    assert read_local(text) == MeshDocument()


@pytest.mark.parametrize(
    "match",
    [
        '!Exact "x"',
        "!Exact x",
        "{Exact: x}",
        '{"Exact": "x"}',
    ],
)
def test_string_matches_in_both_forms(match: str) -> None:
    text = "policies: [{name: p, namespace: n, scope: Global, action: Deny, dryRun: false, "
    text += f"rules: [[[{{namespaces: [{match}]}}]]]}}]"

    assert read_local(text).policies[0].rules == (((Match(namespaces=(Exact("x"),)),),),)


WORKLOAD = "workloads: [{{workloadIps: [], namespace: n, services: {{}}, {}}}]"
SERVICE = "services: [{{name: a, namespace: n, hostname: h, vips: [], ports: {{}}, {}}}]"
POLICY = "policies: [{{name: a, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{}]]]}}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "Expected `object`, got `array`"),
        ("other: 1", "Object contains unknown field `other`"),
        ("workloads: 5", "workloads: Expected `array`, got `int`, got 5"),
        ("a: [1", "line 1, column 6"),
        (WORKLOAD.format("color: red"), "workloads[0]: Object contains unknown field `color`"),
        (WORKLOAD.format("protocol: UDP"), "workloads[0].protocol: Invalid enum value 'UDP', got 'UDP'"),
        (WORKLOAD.format("uid: 5"), "workloads[0].uid: Expected `str`, got `int`, got 5"),
        (
            WORKLOAD.format("nativeTunnel: yes"),
            "workloads[0].nativeTunnel: Expected `bool`, got `str`, got 'yes'",
        ),
        (WORKLOAD.format("capacity: -1"), "workloads[0].capacity: Expected `int` >= 0, got -1"),
        (WORKLOAD.format("capacity: 1.5"), "workloads[0].capacity: Expected `int`, got `float`, got 1.5"),
        (
            WORKLOAD.format("locality: {region: r}"),
            "workloads[0].locality: Object missing required field `zone`",
        ),
        (
            WORKLOAD.format("waypoint: {destination: x, hboneMtlsPort: 1}"),
            "workloads[0].waypoint.destination: expected namespace/hostname, got 'x'",
        ),
        (
            WORKLOAD.format("waypoint: {destination: a/b, hboneMtlsPort: 70000}"),
            "workloads[0].waypoint.hboneMtlsPort: Expected `int` <= 65535, got 70000",
        ),
        (
            "workloads: [{workloadIps: [10.0.0.1, 10.0.0.300], namespace: n, services: {}}]",
            "workloads[0].workloadIps[1]: expected an IP address, got '10.0.0.300'",
        ),
        ("workloads: [{workloadIps: [fe80::1%eth0], namespace: n, services: {}}]", "got 'fe80::1%eth0'"),
        ("workloads: [{namespace: n, services: {}}]", "missing required field `workloadIps`"),
        ("workloads: [{workloadIps: [], services: {}}]", "missing required field `namespace`"),
        (
            "workloads: [{workloadIps: [], namespace: n}]",
            "workloads[0].services: a map of namespace/hostname",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: [a/b]}]",
            "workloads[0].services: a map of namespace/hostname",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: {x: {}}}]",
            "workloads[0].services: expected namespace/hostname, got 'x'",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: {a/b: {x: 1}}}]",
            "workloads[0].services[a/b]: expected a port, got 'x'",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: {a/b: {70000: 1}}}]",
            "workloads[0].services[a/b]: expected a port, got 70000",
        ),
        (SERVICE.format("vipss: []"), "services[0]: Object contains unknown field `vipss`"),
        (SERVICE.format("vips: [10.0.0.1]"), "key 'vips' twice"),
        (
            "services: [{name: a, namespace: n, hostname: h, vips: [10.0.0.1], ports: {}}]",
            "services[0].vips[0]: expected network/IP, got '10.0.0.1'",
        ),
        (
            SERVICE.format("cidrVips: [{network: n, cidr: 10.0.0.0/33}]"),
            "services[0].cidrVips[0].cidr: expected IP/length, got '10.0.0.0/33'",
        ),
        (
            SERVICE.format(
                "loadBalancer: {routingPreferences: [Planet], mode: Strict, healthPolicy: AllowAll}"
            ),
            "services[0].loadBalancer.routingPreferences[0]: Invalid enum value 'Planet', got 'Planet'",
        ),
        (
            SERVICE.format("endpoints: {a: {workloadUid: a, port: {}}}"),
            "missing required field `status`",
        ),
        (POLICY.format("{sourceIps: [10.0.0.1]}"), "expected IP/length, got '10.0.0.1'"),
        (
            POLICY.format("{namespaces: [{}]}"),
            "policies[0].rules[0][0][0].namespaces[0]: expected one of Exact",
        ),
        (POLICY.format("{namespaces: [{Exact: a, Prefix: b}]}"), "expected one of Exact"),
        (POLICY.format("{namespaces: [{Contains: a}]}"), "unknown field `Contains`"),
        (POLICY.format("{destinationPorts: [70000]}"), "Expected `int` <= 65535, got 70000"),
        ("policies: [{name: a, namespace: n, scope: Global, action: Deny, rules: []}]", "`dryRun`"),
    ],
)
def test_errors_name_the_place_and_the_value(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_local(text)

    assert words in str(caught.value)


SERVICE_VALUE = Service(
    name="svc",
    namespace="ns",
    hostname="host",
    vips=(NetworkAddress("net", ip_address("10.0.0.1")), NetworkAddress("", ip_address("fd00::1"))),
    cidr_vips=(NetworkCidr("net", ip_network("10.0.0.0/8")),),
    ports={443: 8443, 80: 0},
    subject_alt_names=("spiffe://x",),
    waypoint=GatewayAddress(NamespacedHostname("ns", "way"), 15008),
    weighted_waypoints=(
        WeightedWaypoint(GatewayAddress(NetworkAddress("", ip_address("10.0.0.9")), 15008), 7),
    ),
    load_balancer=LoadBalancer(tuple(Scope), LoadBalancingMode.FAILOVER, HealthPolicy.ALLOW_ALL),
    ip_families=IPFamilies.DUAL,
    canonical=True,
    visibility=Visibility.NAMESPACE,
)
ENDPOINTS = {"odd uid": Endpoint("odd uid", {80: 8080}, Health.UNHEALTHY)}
POLICY_VALUE = Authorization(
    name="p",
    namespace="ns",
    scope=PolicyScope.NAMESPACE,
    action=Action.DENY,
    dry_run=True,
    rules=(
        (
            (
                Match(
                    namespaces=(Exact("a"), Prefix("b"), Suffix("c"), Presence()),
                    not_namespaces=(Presence(),),
                    principals=(Exact("d"),),
                    not_principals=(Exact("e"),),
                    service_accounts=(ServiceAccountMatch("f", "g"),),
                    not_service_accounts=(ServiceAccountMatch("h", "i"),),
                    source_ips=(ip_network("10.0.0.0/8"),),
                    not_source_ips=(ip_network("::/0"),),
                    destination_ips=(ip_network("10.0.0.1/32"),),
                    not_destination_ips=(ip_network("10.0.0.2/32"),),
                    destination_ports=(80,),
                    not_destination_ports=(81,),
                ),
                Match(),
            ),
            (),
        ),
        (),
    ),
)


def encode(document: dict[str, Json]) -> str:
    return msgspec.json.encode(document).decode()


@pytest.mark.parametrize("workload", [EVERYTHING, Workload(), Workload(service_account="", uid="x")])
def test_a_workload_there_and_back(workload: Workload) -> None:
    text = encode({"workloads": [local_workload_document(workload)]})

    assert read_local(text).workloads == (workload,)


@pytest.mark.parametrize(
    ("service", "endpoints"), [(SERVICE_VALUE, ENDPOINTS), (Service(), {}), (Service(ports={80: 80}), {})]
)
def test_a_service_there_and_back(service: Service, endpoints: dict[str, Endpoint]) -> None:
    text = encode({"services": [service_document(service, endpoints)]})

    assert read_local(text).services == (ServiceEntry(service, endpoints),)


def test_a_policy_there_and_back() -> None:
    assert read_local(encode({"policies": [policy_document(POLICY_VALUE)]})).policies == (POLICY_VALUE,)
