"""The service store: the Rust ztunnel's vectors for addresses, ranges and hostnames."""

import pytest

from tests.unit.mesh.world import ALLOW_ALL, at, cidr_count, counts, key, mesh_of, name_of, pod, service, tell
from ztunnel_trio.mesh.endpoints import ServiceEndpoints
from ztunnel_trio.mesh.entries import ServiceEntry
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.mesh.services import Services, best
from ztunnel_trio.model.service import Service, Visibility
from ztunnel_trio.model.workload import Health


def svc(
    name: str,
    namespace: str,
    *vips: str,
    cidrs: tuple[str, ...] = (),
    network: str = "",
    visibility: Visibility = Visibility.PUBLIC,
    canonical: bool = False,
) -> ServiceEntry:
    return service(
        f"{namespace}/{name}.{namespace}.svc.cluster.local",
        *vips,
        cidrs=cidrs,
        network=network,
        visibility=visibility,
        canonical=canonical,
    )


def found(mesh: Mesh, ip: str, namespace: str | None = None, network: str = "") -> str | None:
    """`namespace/name` of the best service of an address."""
    service = mesh.service_at(at(ip, network), namespace)
    return None if service is None else f"{service.namespace}/{service.name}"


def test_shared_vip_different_namespaces() -> None:
    a = svc("svc", "ns-a", "10.0.0.1", "10.0.0.2")
    b = svc("svc", "ns-b", "10.0.0.1", "10.0.0.3")
    mesh = mesh_of(a, b)
    assert (counts(mesh).vips, counts(mesh).services) == (3, 2)
    assert found(mesh, "10.0.0.1", "ns-a") == "ns-a/svc"
    assert found(mesh, "10.0.0.1", "ns-b") == "ns-b/svc"
    assert found(mesh, "10.0.0.2", "ns-b") == "ns-a/svc"
    assert found(mesh, "10.0.0.3", "ns-a") == "ns-b/svc"
    assert found(mesh, "10.0.0.1") is not None

    tell(mesh, remove=[str(a.service.key)])
    assert (counts(mesh).vips, counts(mesh).services) == (2, 1)
    assert found(mesh, "10.0.0.1", "ns-a") == "ns-b/svc"
    tell(mesh, remove=[str(b.service.key)])
    assert (counts(mesh).vips, counts(mesh).services) == (0, 0)


def test_namespace_visibility_vip() -> None:
    hidden = Visibility.NAMESPACE
    mesh = mesh_of(
        svc("exact", "ns-a", "10.0.0.1", visibility=hidden),
        svc("range", "ns-a", cidrs=("10.1.0.0/16",), visibility=hidden),
    )

    for ip, name in (("10.0.0.1", "exact"), ("10.1.0.5", "range")):
        assert found(mesh, ip, "ns-a") == f"ns-a/{name}"
        assert found(mesh, ip, "ns-b") is None
        assert found(mesh, ip) == f"ns-a/{name}"


def test_visibility_filtered_exact_vip_falls_through_to_cidr() -> None:
    mesh = mesh_of(
        svc("exact", "ns-a", "10.2.0.5", visibility=Visibility.NAMESPACE),
        svc("range", "ns-b", cidrs=("10.2.0.0/16",)),
    )

    assert found(mesh, "10.2.0.5", "ns-a") == "ns-a/exact"
    assert found(mesh, "10.2.0.5", "ns-b") == "ns-b/range"


def test_namespace_visibility_host() -> None:
    mesh = mesh_of(
        service("ns-a/hidden.example.com", visibility=Visibility.NAMESPACE),
        service("ns-a/public.example.com"),
        service("ns-a/shared.example.com", visibility=Visibility.NAMESPACE),
        service("ns-b/shared.example.com"),
    )

    assert mesh.service_named("hidden.example.com", "ns-a") is not None
    assert mesh.service_named("hidden.example.com", "ns-b") is None
    assert mesh.service_named("hidden.example.com", None) is not None
    assert mesh.service_named("public.example.com", "ns-b") is not None
    for client, owner in (("ns-c", "ns-b"), ("ns-a", "ns-a")):
        shared = mesh.service_named("shared.example.com", client)
        assert shared is not None
        assert shared.namespace == owner
    assert len(mesh.services_named("shared.example.com")) == 2


@pytest.mark.parametrize(
    ("cidrs", "ip", "expected"),
    [
        (("10.0.0.0/24",), "10.0.0.5", True),
        (("10.0.0.0/24",), "10.0.0.255", True),
        (("10.0.0.0/24",), "10.0.1.5", False),
        (("10.0.0.77/24",), "10.0.0.5", True),  # host bits are masked
        (("fd00::/112",), "fd00::5", True),
        (("fd00::/112",), "fd00::ffff", True),
        (("fd00::/112",), "fd00::1:0", False),
        (("fd00::/112",), "fd01::5", False),
        (("10.0.0.0/24", "fd00::/112"), "10.0.0.9", True),
        (("10.0.0.0/24", "fd00::/112"), "fd00::9", True),
        (("10.0.0.0/24", "fd00::/112"), "10.0.1.5", False),
        (("10.0.0.0/24", "fd00::/112"), "fd00::1:0", False),
        (("10.0.0.0/24", "fd00::/112"), "253.0.0.0", False),
        (("10.0.0.0/24", "fd00::/112"), "a00::5", False),
        (("0.0.0.0/0",), "1.2.3.4", True),
        (("0.0.0.0/0",), "::1", False),
    ],
)
def test_ranges(cidrs: tuple[str, ...], ip: str, expected: bool) -> None:
    assert (found(mesh_of(svc("svc", "ns", cidrs=cidrs)), ip) is not None) is expected


@pytest.mark.parametrize(
    ("wide", "narrow", "inside", "outside"),
    [
        ("10.0.0.0/16", "10.0.0.0/24", "10.0.0.5", "10.0.1.5"),
        ("fd00::/48", "fd00::/112", "fd00::5", "fd00::1:0"),
    ],
)
def test_the_longest_prefix_matches(wide: str, narrow: str, inside: str, outside: str) -> None:
    for entries in (
        (svc("wide", "ns", cidrs=(wide,)), svc("narrow", "ns", cidrs=(narrow,))),
        (svc("narrow", "ns", cidrs=(narrow,)), svc("wide", "ns", cidrs=(wide,))),
    ):
        mesh = mesh_of(*entries)
        assert found(mesh, inside) == "ns/narrow"
        assert found(mesh, outside) == "ns/wide"


def test_exact_v4_with_cidr_v6() -> None:
    mesh = mesh_of(svc("svc", "ns", "10.0.0.1", cidrs=("fd00::/112",)))

    assert found(mesh, "10.0.0.1") == found(mesh, "fd00::5") == "ns/svc"
    assert found(mesh, "10.0.0.2") is None


@pytest.mark.parametrize(
    ("cidr", "exact", "other"),
    [("10.0.0.0/24", "10.0.0.5", "10.0.0.6"), ("fd00::/112", "fd00::5", "fd00::6")],
)
def test_an_exact_vip_goes_before_a_range(cidr: str, exact: str, other: str) -> None:
    mesh = mesh_of(svc("cidr", "ns", cidrs=(cidr,)), svc("exact", "ns", exact))

    assert found(mesh, exact) == "ns/exact"
    assert found(mesh, other) == "ns/cidr"


def test_cidr_network_scoping() -> None:
    mesh = mesh_of(svc("svc", "ns", cidrs=("10.0.0.0/24",), network="net-a"))

    assert found(mesh, "10.0.0.5", network="net-a") == "ns/svc"
    assert found(mesh, "10.0.0.5", network="net-b") is None


def test_cidr_remove_cleanup() -> None:
    entry = svc("svc", "ns", cidrs=("10.0.0.0/24", "10.0.0.0/24"))
    mesh = mesh_of(entry)
    assert cidr_count(mesh) == 1

    tell(mesh, remove=[str(entry.service.key)])

    assert found(mesh, "10.0.0.5") is None
    assert cidr_count(mesh) == 0


def test_overlapping_cidr_different_namespaces() -> None:
    a, b = svc("a", "ns-a", cidrs=("10.0.0.0/24",)), svc("b", "ns-b", cidrs=("10.0.0.0/24",))
    mesh = mesh_of(a, b)
    assert cidr_count(mesh) == 2
    assert found(mesh, "10.0.0.5", "ns-a") == "ns-a/a"
    assert found(mesh, "10.0.0.5", "ns-b") == "ns-b/b"
    assert found(mesh, "10.0.0.5", "ns-c") == "ns-a/a"

    tell(mesh, remove=[str(a.service.key)])
    assert cidr_count(mesh) == 1
    assert found(mesh, "10.0.0.5") == "ns-b/b"
    tell(mesh, remove=[str(b.service.key)])
    assert cidr_count(mesh) == 0


def test_cidr_namespace_preferred_over_cidr_specificity() -> None:
    mesh = mesh_of(
        svc("local", "ns-local", cidrs=("10.0.0.0/16",)),
        svc("global", "istio-system", cidrs=("10.0.0.0/24",)),
    )

    assert found(mesh, "10.0.0.5", "ns-local") == "ns-local/local"
    assert found(mesh, "10.0.0.5", "ns-other") == "istio-system/global"
    assert found(mesh, "10.0.0.5") == "istio-system/global"
    assert found(mesh, "10.0.1.5", "ns-other") == "ns-local/local"


def test_of_equal_ranges_the_canonical_one_wins() -> None:
    mesh = mesh_of(
        svc("a", "ns-a", cidrs=("10.0.0.0/24",)), svc("b", "ns-b", cidrs=("10.0.0.0/24",), canonical=True)
    )

    assert found(mesh, "10.0.0.5") == "ns-b/b"


def one(namespace: str, name: str = "x", *, canonical: bool = False, hidden: bool = False) -> Service:
    visibility = Visibility.NAMESPACE if hidden else Visibility.PUBLIC
    return Service(name=name, namespace=namespace, canonical=canonical, visibility=visibility)


@pytest.mark.parametrize(
    ("candidates", "client", "preferred", "expected"),
    [
        ([], "a", None, None),
        ([one("a"), one("b")], "b", None, "b"),
        ([one("a"), one("b")], "c", None, "a"),
        ([one("a"), one("b")], None, None, "a"),
        ([one("a"), one("b", canonical=True), one("c", canonical=True), one("d")], "e", None, "b"),
        ([one("a"), one("b", canonical=True)], "a", None, "a"),
        ([one("a"), one("b"), one("c")], "e", "b", "b"),
        ([one("a"), one("b"), one("c", canonical=True)], "e", "b", "c"),
        ([one("a", hidden=True), one("b")], "e", None, "b"),
        ([one("a", hidden=True)], "e", None, None),
        ([one("a", hidden=True)], None, None, "a"),
    ],
)
def test_the_best_of_several(
    candidates: list[Service], client: str | None, preferred: str | None, expected: str | None
) -> None:
    chosen = best(candidates, client, preferred)

    assert (None if chosen is None else chosen.namespace) == expected


def test_of_one_namespace_the_smallest_name_has_a_shared_vip() -> None:
    a, b = service("ns/a.example", "10.0.0.1"), service("ns/b.example", "10.0.0.1")
    for mesh in (mesh_of(a, b), mesh_of(b, a)):
        for client in ("ns", None):
            assert name_of(mesh.service_at(at("10.0.0.1"), client)) == "a"
        tell(mesh, b)
        assert name_of(mesh.service_at(at("10.0.0.1"), "ns")) == "a"
        tell(mesh, remove=["ns/a.example"])
        assert name_of(mesh.service_at(at("10.0.0.1"), "ns")) == "b"


def test_services_of_a_hostname_come_in_the_order_of_their_names() -> None:
    a, b = service("ns-a/x.example"), service("ns-b/x.example")
    for mesh in (mesh_of(a, b), mesh_of(b, a)):
        assert [each.namespace for each in mesh.services_named("x.example")] == ["ns-a", "ns-b"]
        tell(mesh, a)
        assert [each.namespace for each in mesh.services_named("x.example")] == ["ns-a", "ns-b"]
        assert mesh.services_named("other") == ()


def test_names_are_compared_as_they_are_written() -> None:
    mesh = mesh_of(service("a-b/x.example", "10.0.0.1"), service("a/x.example", "10.0.0.1"))

    found = mesh.service_at(at("10.0.0.1"), None)

    assert found is not None
    assert found.namespace == "a-b"  # "-" before "/"


def test_wildcards_are_counted_by_their_labels() -> None:
    mesh = mesh_of(
        service("ns/*.a.example"), service("other/*.a.example"), service("ns/*.b"), service("ns/b")
    )
    assert list(mesh.wildcard_labels()) == [2, 1]

    tell(mesh, remove=["ns/*.a.example"])
    assert list(mesh.wildcard_labels()) == [2, 1]
    tell(mesh, remove=["other/*.a.example", "ns/*.b"])
    assert list(mesh.wildcard_labels()) == []


def version(mesh: Mesh) -> int:
    """The version of the endpoints of `ns/a`."""
    body = mesh.service(key("ns/a"))
    assert body is not None
    found = mesh.endpoints_version(body)
    assert found is not None
    return found


def test_the_version_of_endpoints_goes_with_every_change() -> None:
    mesh = mesh_of(service("ns/a"))
    body = mesh.service(key("ns/a"))
    assert body is not None
    seen = [version(mesh)]
    for entry in (pod("w", services=["ns/a"]), pod("w", services=["ns/a"], healthy=False), pod("w")):
        tell(mesh, entry)
        seen.append(version(mesh))

    tell(mesh, service("ns/a", load_balancer=ALLOW_ALL))
    seen.append(version(mesh))
    assert mesh.endpoints_version(body) is None  # not the service of that name any more
    tell(mesh, remove=["ns/a"])
    tell(mesh, service("ns/a"))
    seen.append(version(mesh))
    assert len(set(seen)) == len(seen) == 6


def test_a_service_nobody_mentions_is_forgotten() -> None:
    store = Services()
    one = store.mentioned(key("ns/a"))
    one.kinds = 1
    store.forget_unmentioned(one)
    assert store.mentioned(key("ns/a")) is one
    one.kinds = 0
    store.forget_unmentioned(one)
    assert store.mentioned(key("ns/a")) is not one


def test_endpoints_are_a_view() -> None:
    mesh = mesh_of(service("ns/a"))
    view = mesh.endpoints(key("ns/a"))
    assert len(view) == 0
    assert isinstance(mesh._services.known(key("ns/a")), ServiceEndpoints)
    tell(mesh, pod("w", services=["ns/a"]))

    assert list(view) == ["w"]
    assert "w" in view
    assert "v" not in view
    assert view["w"].health is Health.HEALTHY
    assert len(mesh.endpoints(key("ns/none"))) == 0
