from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.fakes.dns_mesh import CLIENT, external, kubernetes, mesh_of, pod, reference_mesh
from ztunnel_trio.decide.answer import (
    Addresses,
    Alias,
    Empty,
    Forward,
    NameSettings,
    NoAddress,
    Verdict,
    aliases,
    answer,
    kubernetes_names,
    search_domains,
    with_wildcards,
    without_domain,
)
from ztunnel_trio.mesh.entries import ServiceEntry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.service import (
    Endpoint,
    HealthPolicy,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    NetworkCidr,
    Service,
    Visibility,
)
from ztunnel_trio.model.workload import Health

SETTINGS = NameSettings(preferred_namespace="preferred-ns")


def name(text: str) -> str:
    return text.removesuffix(".")


def look_up(mesh: Mesh, asked: str, kind: str = "A", settings: NameSettings = SETTINGS) -> Verdict:
    version = {"A": 4, "AAAA": 6}[kind]
    return answer(name(asked), version=version, client=CLIENT, mesh=mesh, settings=settings)


def texts(verdict: Verdict) -> list[str]:
    assert isinstance(verdict, Addresses)
    return [str(ip) for ip in verdict.addresses]


@pytest.mark.parametrize(
    ("asked", "rest"),
    [
        ("name.ns.svc.cluster.local", "name.ns"),
        ("name.ns.a.different.domain", None),
        ("cluster.com", None),
        ("svc.cluster.local", None),
    ],
)
def test_only_a_name_below_a_domain_has_something_left_without_it(asked: str, rest: str | None) -> None:
    assert without_domain(name(asked), name("svc.cluster.local")) == (None if rest is None else name(rest))


def test_nothing_lies_below_a_wildcard_or_below_nothing() -> None:
    assert without_domain(name("a.b.c"), name("*.c")) is None
    assert without_domain(name("a.b.c"), "") is None


@pytest.mark.parametrize(
    ("host", "expansions"),
    [
        ("name", ["name.ns1.svc.cluster.local"]),
        ("name.", ["name.ns1.svc.cluster.local"]),
        ("name.ns2", ["name.ns2.svc.cluster.local", "name.ns2.ns1.svc.cluster.local"]),
        ("name.ns2.svc.", ["name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local"]),
        ("name.ns2.not-svc.", ["name.ns2.not-svc.svc.cluster.local"]),
        ("pod.sub-domain.ns.svc", ["pod.sub-domain.ns.svc.cluster.local"]),
        ("pod.sub-domain.ns.not-svc", []),
        ("name.ns2.svc.cluster.", []),
        ("name.ns2.svc.cluster.local", []),
        ("www.google.com.", ["www.google.com.svc.cluster.local"]),
    ],
)
def test_short_names_are_completed_as_kubernetes_would(host: str, expansions: list[str]) -> None:
    assert kubernetes_names(name(host), "ns1", name("cluster.local")) == [name(one) for one in expansions]


def test_the_root_is_completed_to_nothing() -> None:
    assert kubernetes_names("", "ns1", name("cluster.local")) == []
    assert isinstance(answer("", version=4, client=CLIENT, mesh=reference_mesh(), settings=SETTINGS), Forward)


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        ("svc1.", ["svc1"]),
        (
            "svc1.ns1.svc.cluster.local.",
            [
                "svc1.ns1.svc.cluster.local",
                "*.ns1.svc.cluster.local",
                "*.svc.cluster.local",
                "*.cluster.local",
                "*.local",
            ],
        ),
    ],
)
def test_wildcards_are_tried_from_the_narrowest(asked: str, tried: list[str]) -> None:
    assert list(with_wildcards(name(asked), [9, 4, 3, 2, 1])) == [name(one) for one in tried]
    assert list(with_wildcards(name(asked), ())) == [name(asked)]


def test_a_pod_has_the_search_domains_of_its_namespace() -> None:
    domains = search_domains("default-ns", SETTINGS)

    assert domains == ("default-ns.svc.cluster.local", "svc.cluster.local", "cluster.local")


def test_a_dedicated_proxy_has_the_search_domains_of_its_resolv_conf() -> None:
    assert search_domains("ns1", NameSettings(search=("example.com.",))) == ("example.com",)


def test_each_alias_is_tried_once_and_remembers_the_name_without_its_domain() -> None:
    search = [name("ns1.svc.cluster.local"), name("svc.cluster.local"), name("cluster.local")]

    found = list(aliases(name("a.ns1.svc.cluster.local"), "ns1", name("cluster.local"), search))

    assert found == [
        Alias(name("a.ns1.svc.cluster.local")),
        Alias("a", "a"),
        Alias("a.ns1", "a.ns1"),
        Alias("a.ns1.ns1.svc.cluster.local", "a.ns1"),
        Alias(name("a.ns1.svc"), name("a.ns1.svc")),
        Alias(name("a.ns1.svc.svc.cluster.local"), name("a.ns1.svc")),
    ]


@pytest.mark.parametrize(
    ("asked", "kind", "addresses", "alias_of"),
    [
        ("www.google.com", "A", ["1.1.1.1"], None),
        ("www.google.com.ns1.svc.cluster.local.", "A", ["1.1.1.1"], "www.google.com"),
        ("productpage.ns1.svc.cluster.local.", "A", ["9.9.9.9"], None),
        ("productpage.ns1.", "A", ["9.9.9.9"], None),
        ("productpage.", "A", ["9.9.9.9"], None),
        ("productpage.ns1.ns1.svc.cluster.local.", "A", ["9.9.9.9"], "productpage.ns1"),
        ("example.ns2.", "A", ["10.10.10.10"], None),
        ("example.ns2.svc.cluster.local.", "A", ["10.10.10.10"], None),
        ("nslocalsame.ns1.svc.cluster.local.", "A", ["10.10.10.241"], None),
        ("example.ns2.svc.", "A", ["10.10.10.10"], None),
        (
            "details.ns2.svc.cluster.remote.",
            "A",
            ["11.11.11.11", "12.12.12.12", "13.13.13.13", "14.14.14.14"],
            None,
        ),
        ("dual.localhost.", "A", ["2.2.2.2"], None),
        ("dual.localhost.", "AAAA", ["2001:db8::ff00:42:8329"], None),
        ("foo.wildcard.", "A", ["10.10.10.10"], None),
        ("a.b.wildcard.", "A", ["11.11.11.11"], None),
        ("foo.svc.mesh.company.net.", "A", ["10.1.2.3"], None),
        ("foo.foons.svc.mesh.company.net.", "A", ["10.1.2.3"], None),
        ("foo.svc.mesh.company.net.ns1.svc.cluster.local.", "A", ["10.1.2.3"], None),
        ("both-networks.ns1.svc.cluster.local.", "A", ["21.21.21.21"], None),
        ("headless.ns1.svc.cluster.local.", "A", ["30.30.30.30", "31.31.31.31"], None),
        ("headless.ns1.svc.cluster.local.", "AAAA", ["2001:db8::30", "2001:db8::31"], None),
        ("headless-ipv6.ns1.svc.cluster.local.", "AAAA", ["2001:db8::33"], None),
        ("preferred.io.", "A", ["10.10.10.211"], None),
        ("everywhere.io.", "A", ["10.10.10.112"], None),
        ("canonical.svc", "A", ["10.10.10.141"], None),
        ("canonical.with.local", "A", ["10.10.10.150"], None),
    ],
)
def test_the_mesh_answers_its_own_names(
    asked: str, kind: str, addresses: list[str], alias_of: str | None
) -> None:
    found = look_up(reference_mesh(), asked, kind)

    assert isinstance(found, Addresses)
    assert texts(found) == addresses
    assert found.alias_of == (None if alias_of is None else name(alias_of))


@pytest.mark.parametrize(
    ("asked", "kind", "why"),
    [
        ("productpage.ns1.ns1.svc.cluster.local.", "AAAA", NoAddress.NONE),
        ("ipv6.localhost.", "A", NoAddress.NONE),
        ("ipv4.localhost.", "AAAA", NoAddress.NONE),
        ("nw2-only.ns1.svc.cluster.local.", "A", NoAddress.NONE),
        ("headless-ipv6.ns1.svc.cluster.local.", "A", NoAddress.OTHER_FAMILY),
    ],
)
def test_an_owned_name_without_such_an_address_is_answered_empty(
    asked: str, kind: str, why: NoAddress
) -> None:
    assert look_up(reference_mesh(), asked, kind) == Empty(why)


@pytest.mark.parametrize(
    "asked",
    [
        "www.bing.com",
        "nslocal.ns2.svc.cluster.local.",
        "example.",
        "details.ns2.",
        "headless.pod0.ns1.svc.cluster.local.",
        "headless.pod0.ns1.",
        "headless-no-endpoints.example.com",
        "headless.example.com",
        "wildcard.",
    ],
)
def test_other_names_are_for_the_resolver_upstream(asked: str) -> None:
    assert look_up(reference_mesh(), asked) == Forward()


def test_a_service_hidden_from_the_client_is_noted() -> None:
    found = look_up(reference_mesh(), "nslocal.ns2")

    assert found.notes == ("service ns2/nslocal.ns2.svc.cluster.local is not visible to namespace ns1",)


def test_a_hidden_service_does_not_hide_a_visible_one_of_the_same_name() -> None:
    hidden = external("x.io", "ns2", "10.0.0.1", canonical=True, visibility=Visibility.NAMESPACE)
    mesh = mesh_of([hidden, external("x.io", "ns3", "10.0.0.2")])

    assert texts(look_up(mesh, "x.io")) == ["10.0.0.2"]


def test_of_equal_services_the_one_of_the_smallest_name_answers() -> None:
    services = [external("x.io", "ns2", "10.0.0.1"), external("x.io", "ns3", "10.0.0.2")]

    for order in (services, services[::-1]):
        assert texts(look_up(mesh_of(order), "x.io")) == ["10.0.0.1"]


def test_of_several_canonical_services_the_one_of_the_smallest_name_answers() -> None:
    services = [external("x.io", f"ns{n}", f"10.0.0.{n}", canonical=True) for n in (2, 3)]

    for order in (services, services[::-1]):
        assert texts(look_up(mesh_of(order), "x.io")) == ["10.0.0.2"]


def test_a_wildcard_of_one_alias_goes_before_the_next_alias() -> None:
    mesh = mesh_of([kubernetes("a", "b", "10.0.0.1"), external("*.b", "ns1", "10.0.0.2")])

    assert texts(look_up(mesh, "a.b")) == ["10.0.0.2"]


def test_without_ipv6_no_service_has_an_ipv6_address() -> None:
    settings = replace(SETTINGS, ipv6=False)

    assert look_up(reference_mesh(), "dual.localhost", "AAAA", settings) == Empty(NoAddress.OTHER_FAMILY)
    assert look_up(reference_mesh(), "dual.localhost", "A", settings) == Addresses((ip_address("2.2.2.2"),))


def test_an_ipv4_only_service_has_no_ipv6_records_whatever_its_vips() -> None:
    mesh = mesh_of([external("x.io", "ns1", "fd00::1", ip_families=IPFamilies.IPV4)])

    assert look_up(mesh, "x.io", "AAAA") == Empty(NoAddress.OTHER_FAMILY)


def test_a_range_is_no_vip() -> None:
    service = replace(external("x.io", "ns1"), cidr_vips=(NetworkCidr("nw1", ip_network("10.0.0.0/8")),))

    assert look_up(mesh_of([service]), "x.io") == Forward()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(HealthPolicy.ONLY_HEALTHY, ["10.0.0.1"]), (HealthPolicy.ALLOW_ALL, ["10.0.0.1", "10.0.0.2"])],
)
def test_a_headless_service_lists_unhealthy_endpoints_only_if_it_may(
    policy: HealthPolicy, expected: list[str]
) -> None:
    service = replace(
        kubernetes("h", "ns1"), load_balancer=LoadBalancer((), LoadBalancingMode.STANDARD, policy)
    )
    sick = replace(pod("b", "10.0.0.2", backs=service), health=Health.UNHEALTHY)
    mesh = mesh_of([service], pod("a", "10.0.0.1", backs=service), sick)

    assert texts(look_up(mesh, "h")) == expected


def test_a_headless_service_gives_one_address_a_workload_and_skips_those_without() -> None:
    service = kubernetes("h", "ns1")
    endpoints = {uid: Endpoint(uid, {80: 80}) for uid in ("a", "gone", "b")}
    mesh = mesh_of([], pod("a", "10.0.0.1", "10.0.0.9"), pod("b", "fd00::1"))
    mesh.apply(Batch(addresses=[ServiceEntry(service, endpoints)]))

    assert texts(look_up(mesh, "h")) == ["10.0.0.1"]
    assert texts(look_up(mesh, "h", "AAAA")) == ["fd00::1"]


def test_an_unhealthy_endpoint_of_a_local_file_is_not_listed() -> None:
    service = kubernetes("h", "ns1")
    mesh = mesh_of([], pod("a", "10.0.0.1"))
    mesh.apply(Batch(addresses=[ServiceEntry(service, {"a": Endpoint("a", {}, Health.UNHEALTHY)})]))

    assert look_up(mesh, "h") == Empty(NoAddress.NONE)


class Counting:
    """A mesh that counts what it is asked."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.looked_up: list[str] = []
        self.endpoints, self.workload = mesh.endpoints, mesh.workload
        self.wildcard_labels = mesh.wildcard_labels

    def services_named(self, hostname: str) -> Sequence[Service]:
        self.looked_up.append(hostname)
        return self.mesh.services_named(hostname)


def test_only_what_can_exist_is_looked_up_whatever_the_name() -> None:
    mesh = mesh_of([external("*.x.io", "ns1", "10.0.0.1"), external("*.io", "ns1", "10.0.0.2")])
    counting = Counting(mesh)
    long = ".".join("a" * 110) + ".ns1.svc.cluster.local"

    found = answer(long, version=4, client=CLIENT, mesh=counting, settings=SETTINGS)

    assert isinstance(found, Forward)
    assert len(counting.looked_up) <= 12
    assert texts(look_up(mesh, ".".join("a" * 110) + ".x.io")) == ["10.0.0.1"]
    assert texts(look_up(mesh, ".".join("a" * 110) + ".y.io")) == ["10.0.0.2"]


@pytest.mark.parametrize("asked", ["localhost", "x.localhost", "a.b.localhost"])
def test_localhost_and_what_is_below_it_are_answered_here(asked: str) -> None:
    mesh = mesh_of([])

    assert texts(look_up(mesh, asked)) == ["127.0.0.1"]
    assert texts(look_up(mesh, asked, "AAAA")) == ["::1"]
    assert look_up(mesh, asked, "AAAA", replace(SETTINGS, ipv6=False)) == Empty(NoAddress.OTHER_FAMILY)


@pytest.mark.parametrize("asked", ["localhost.example", "notlocalhost", "localhost.localdomain"])
def test_what_only_looks_like_localhost_is_passed_on(asked: str) -> None:
    assert isinstance(look_up(mesh_of([]), asked), Forward)
