"""The mesh as a whole: the Rust ztunnel's vectors, and orders of arrival."""

import itertools
import random

import pytest

from tests.unit.mesh.world import (
    ALLOW_ALL,
    SVC1,
    Counts,
    at,
    cidr_count,
    counts,
    key,
    mesh_of,
    name_of,
    pod,
    recorded_mesh,
    service,
    tell,
    uids,
)
from ztunnel_trio.decide.balance import find_upstream
from ztunnel_trio.mesh.entries import AddressEntry, PolicyEntry, ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, LocalWorkload, Mesh
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import Action, Authorization, PolicyScope
from ztunnel_trio.model.service import Endpoint, Service, Visibility
from ztunnel_trio.model.workload import Health, Workload, WorkloadInfo

UID1 = "cluster1//v1/Pod/default/my-pod/127.0.0.1"
UID2 = "cluster1//v1/Pod/default/my-pod/127.0.0.2"


def reached(mesh: Mesh, address: str) -> set[str]:
    """The workloads that take connections to an address, over many draws."""
    rng = random.Random(1)
    found = set()
    for _ in range(200):
        chosen = find_upstream(at(address), 80, Workload(), mesh, rng, waypoint=False)
        if chosen is not None:
            found.add(chosen.workload.uid)
    return found


def test_workload_information() -> None:
    mesh = mesh_of(pod(UID1, "127.0.0.1"))
    assert counts(mesh) == Counts(addresses=1, uids=1)
    found = mesh.workload_at(at("127.0.0.1"))
    assert found is not None
    assert (
        found.trust_domain,
        found.service_account,
        found.workload_type,
        found.cluster,
        found.capacity,
    ) == (
        "cluster.local",
        "default",
        "deployment",
        "Kubernetes",
        1,
    )

    tell(mesh, remove=["/invalid"])
    assert mesh.workload_at(at("127.0.0.1")) is found
    tell(mesh, remove=[UID2])
    assert mesh.workload_at(at("127.0.0.1")) is found
    tell(mesh, remove=[UID1])
    assert mesh.workload_at(at("127.0.0.1")) is None
    assert counts(mesh) == Counts()

    first = pod(UID1, "127.0.0.1", services=[SVC1])
    second = pod(UID2, "127.0.0.2", services=[SVC1])
    tell(mesh, first)
    assert counts(mesh) == Counts(addresses=1, uids=1, staged=1)
    tell(mesh, service(SVC1, "127.0.1.1"))
    assert counts(mesh) == Counts(addresses=1, uids=1, vips=1, services=1)
    tell(mesh, service(SVC1, "127.0.1.1", "127.0.1.2"))
    assert counts(mesh) == Counts(addresses=1, uids=1, vips=2, services=1)
    assert mesh.service_at(at("127.0.1.1"), None) is mesh.service(key(SVC1))
    assert uids(mesh) == {UID1}
    tell(mesh, service(SVC1, "127.0.1.1"))
    assert counts(mesh) == Counts(addresses=1, uids=1, vips=1, services=1)

    tell(mesh, second)
    assert counts(mesh) == Counts(addresses=2, uids=2, vips=1, services=1)
    assert reached(mesh, "127.0.1.1") == {UID1, UID2}
    tell(mesh, remove=[UID2])
    assert reached(mesh, "127.0.1.1") == {UID1}
    tell(mesh, remove=[UID1])
    assert reached(mesh, "127.0.1.1") == set()
    tell(mesh, first, second)
    assert reached(mesh, "127.0.1.1") == {UID1, UID2}
    tell(mesh, pod(UID1, "127.0.0.1"))
    assert reached(mesh, "127.0.1.1") == {UID2}
    tell(mesh, pod(UID2, "127.0.0.2", services=[SVC1], healthy=False))
    assert reached(mesh, "127.0.1.1") == set()
    tell(mesh, remove=[SVC1])
    assert counts(mesh) == Counts(addresses=2, uids=2, staged=1)


def test_workloads_with_one_ip_are_ranked_and_removed_one_by_one() -> None:
    entry_uid = "cluster1/networking.istio.io/WorkloadEntry/default/myns"
    pod_uid = "cluster1//Pod/default/my-pod/a"
    mesh = mesh_of(pod(pod_uid, "127.0.0.1"), pod(entry_uid, "127.0.0.1"))

    tell(mesh, pod(pod_uid, "127.0.0.1"))
    found = mesh.workload_at(at("127.0.0.1"))
    assert counts(mesh) == Counts(addresses=1, uids=2)
    assert found is not None
    assert found.uid == pod_uid

    tell(mesh, remove=[pod_uid])
    found = mesh.workload_at(at("127.0.0.1"))
    assert found is not None
    assert found.uid == entry_uid

    tell(mesh, remove=[entry_uid])
    assert mesh.workload_at(at("127.0.0.1")) is None
    assert counts(mesh) == Counts()


@pytest.mark.parametrize(
    ("entries", "winner"),
    [
        ([("a//Pod/x", True), ("a//Pod/y", False)], "a//Pod/x"),
        ([("a//Pod/x", False), ("b/z", True)], "a//Pod/x"),
        ([("b/y", True), ("b/z", False)], "b/y"),
        ([("b/y", False), ("b/z", False)], "b/y"),
        ([("a//Pod/x", True), ("a//Pod/y", True)], "a//Pod/x"),
    ],
)
def test_of_two_with_one_address_the_rank_decides_then_the_uid(
    entries: list[tuple[str, bool]], winner: str
) -> None:
    for order in (entries, entries[::-1]):
        mesh = mesh_of(*[pod(uid, "10.0.0.1", hbone=hbone) for uid, hbone in order])
        assert uid_at(mesh, "10.0.0.1") == winner
        for uid, hbone in order:
            tell(mesh, pod(uid, "10.0.0.1", hbone=hbone, name="changed"))
            assert uid_at(mesh, "10.0.0.1") == winner


NORMAL, ALL = "ns/svc-normal.ns.svc.cluster.local", "ns/svc-allow-unhealthy.ns.svc.cluster.local"
SICK = pod(UID1, services=[NORMAL, ALL], healthy=False)
WELL = pod(UID2, services=[NORMAL, ALL])


def test_unhealthy_workloads_staged() -> None:
    mesh = mesh_of(SICK, WELL)
    assert counts(mesh).staged == 2

    tell(mesh, service(NORMAL), service(ALL, load_balancer=ALLOW_ALL))

    assert counts(mesh).staged == 0
    assert (uids(mesh, ALL), uids(mesh, NORMAL)) == ({UID1, UID2}, {UID2})
    assert mesh.endpoints(key(ALL))[UID1] == Endpoint(UID1, {80: 8080}, Health.UNHEALTHY)


def test_unhealthy_workloads() -> None:
    mesh = mesh_of(service(NORMAL), service(ALL, load_balancer=ALLOW_ALL), SICK, WELL)
    assert (len(uids(mesh, ALL)), len(uids(mesh, NORMAL))) == (2, 1)
    tell(mesh, service(ALL))
    assert (len(uids(mesh, ALL)), len(uids(mesh, NORMAL))) == (1, 1)
    tell(mesh, service(ALL, load_balancer=ALLOW_ALL))
    assert (len(uids(mesh, ALL)), len(uids(mesh, NORMAL))) == (2, 1)
    tell(mesh, SICK, WELL)  # as istiod does
    assert (len(uids(mesh, ALL)), len(uids(mesh, NORMAL))) == (2, 1)


def test_a_service_takes_the_unhealthy_that_came_before_it_said_so() -> None:
    mesh = mesh_of(service(ALL), SICK)
    assert uids(mesh, ALL) == set()

    tell(mesh, service(ALL, load_balancer=ALLOW_ALL))
    assert uids(mesh, ALL) == {UID1}
    tell(mesh, remove=[UID1])
    assert uids(mesh, ALL) == set()


def test_staged_services_cleanup() -> None:
    mesh = mesh_of(pod(UID1, services=[SVC1]))
    assert counts(mesh).staged == 1
    tell(mesh, pod(UID1))
    assert counts(mesh).staged == 0
    tell(mesh, pod(UID1, services=[SVC1]))
    assert counts(mesh).staged == 1
    tell(mesh, remove=[UID1])
    assert counts(mesh).staged == 0
    assert not mesh._services._by_key


def pods(start: int, count: int, healthy: bool = True) -> list[AddressEntry]:
    return [
        pod(f"cluster1//v1/Pod/ns/pod-{n}", services=[SVC1], healthy=healthy)
        for n in range(start, start + count)
    ]


def test_a_response_of_workloads_service_workloads() -> None:
    mesh = mesh_of(*pods(0, 25), service(SVC1, "127.0.1.1"), *pods(25, 25))

    assert len(uids(mesh)) == 50
    assert counts(mesh).staged == 0


def test_a_response_with_the_service_first() -> None:
    assert len(uids(mesh_of(service(SVC1, "127.0.1.1"), *pods(0, 10)))) == 10


def test_a_response_with_unhealthy_workloads() -> None:
    mesh = mesh_of(service(SVC1, "127.0.1.1"), *pods(0, 1), *pods(1, 1, healthy=False), *pods(2, 1))

    assert uids(mesh) == {"cluster1//v1/Pod/ns/pod-0", "cluster1//v1/Pod/ns/pod-2"}


def test_removal_drops_the_endpoint() -> None:
    mesh = mesh_of(service(SVC1, "127.0.1.1"), *pods(0, 2))

    tell(mesh, remove=["cluster1//v1/Pod/ns/pod-0"])

    assert uids(mesh) == {"cluster1//v1/Pod/ns/pod-1"}


EVERYTHING: list[AddressEntry] = [
    pod("a", "10.0.0.1", services=[SVC1]),
    pod("b", "10.0.0.2", services=[SVC1], healthy=False),
    pod("c", "10.0.0.3", services=[SVC1, NORMAL]),
    service(SVC1, "10.1.0.1"),
    service(NORMAL, "10.1.0.2"),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_the_order_of_arrival_does_not_matter(order: tuple[int, ...]) -> None:
    together = mesh_of(*[EVERYTHING[n] for n in order])
    apart = Mesh()
    for n in order:
        tell(apart, EVERYTHING[n])

    for mesh in (together, apart):
        assert (uids(mesh), uids(mesh, NORMAL)) == ({"a", "c"}, {"c"})
        assert counts(mesh) == Counts(addresses=3, uids=3, vips=2, services=2)


def test_a_workload_that_leaves_a_service_is_no_endpoint_of_it() -> None:
    mesh = mesh_of(service(SVC1), service(NORMAL), pod("a", services=[SVC1, NORMAL]))

    tell(mesh, pod("a", services=[NORMAL]))

    assert (uids(mesh), uids(mesh, NORMAL)) == (set(), {"a"})


def test_a_service_removed_and_added_again_has_its_endpoints_at_once() -> None:
    mesh = mesh_of(service(SVC1), pod("a", services=[SVC1]))

    tell(mesh, remove=[SVC1])
    assert mesh.service(key(SVC1)) is None
    assert uids(mesh) == set()
    tell(mesh, service(SVC1))
    assert uids(mesh) == {"a"}
    tell(mesh, pod("a", services=[SVC1]), remove=[SVC1])
    tell(mesh, service(SVC1))
    assert uids(mesh) == {"a"}


def test_an_endpoint_put_again_has_its_new_ports_only() -> None:
    mesh = mesh_of(service(SVC1), pod("a", services=[SVC1], ports={80: 8080}))

    tell(mesh, pod("a", services=[SVC1], ports={90: 9090}))

    assert dict(mesh.endpoints(key(SVC1))) == {"a": Endpoint("a", {90: 9090})}


def test_an_update_and_a_removal_in_one_response_leave_no_endpoint() -> None:
    mesh = mesh_of(service(SVC1))

    tell(mesh, pod("a", services=[SVC1]), remove=["a"])

    assert uids(mesh) == set()
    assert mesh.workload("a") is None


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("no-such", True),
        ("ns/no-such", True),
        ("cluster1//Pod/ns/gone", False),
        ("", True),
    ],
)
def test_removal_of_what_is_not_there_changes_nothing(name: str, noted: bool) -> None:
    mesh = mesh_of(service(SVC1), pod("a", services=[SVC1]))
    revision = mesh.revision

    changes = tell(mesh, remove=[name])

    assert bool(changes.notes) is noted
    assert not changes.addresses
    assert mesh.revision == revision
    assert uids(mesh) == {"a"}


def test_a_cidr_lookup_gives_the_current_service_and_its_endpoints() -> None:
    mesh = mesh_of(service(SVC1, cidrs=["10.9.0.0/16"]))
    tell(mesh, pod("a", "10.0.0.1", services=[SVC1]))
    assert reached(mesh, "10.9.1.1") == {"a"}

    tell(mesh, service(SVC1, cidrs=["10.9.0.0/16"], ports={80: 1234}))

    found = mesh.service_at(at("10.9.1.1"), None)
    assert found is mesh.service(key(SVC1))
    assert found is not None
    assert found.ports == {80: 1234}
    assert cidr_count(mesh) == 1


def test_host_network_workloads_are_never_found_by_address() -> None:
    info = WorkloadInfo("my-pod", "default", "default")
    mesh = mesh_of(service(SVC1), pod("a", "10.0.0.1", services=[SVC1], host_network=True))

    assert mesh.workload_at(at("10.0.0.1")) is None
    assert uids(mesh) == {"a"}
    assert name_of(mesh.workload("a")) == name_of(mesh.local_workload(info)) == "my-pod"
    tell(mesh, remove=["a"])
    assert counts(mesh).uids == 0


def test_lookup_address() -> None:
    mesh = mesh_of(workload_entry(Workload(uid="w", name="w", addresses=(at("127.0.0.1").ip,))))
    mesh.apply(Batch(addresses=[ServiceEntry(Service(namespace="default", hostname="defaulthost"))]))

    assert name_of(mesh.workload_at(at("127.0.0.1"))) == "w"
    assert mesh.service(key("default/defaulthost")) is not None
    assert mesh.workload_at(at("127.0.0.2")) is None
    assert mesh.service_at(at("127.0.0.2"), None) is None
    assert mesh.service(key("default/nothost")) is None
    assert mesh.workload_by_hostname(key("default/nothost")) is None


def test_workloads_are_found_by_hostname_in_their_namespace() -> None:
    mesh = mesh_of(
        pod("a", hostname="x.example", namespace="one"), pod("b", hostname="x.example", namespace="two")
    )

    found = mesh.workload_by_hostname(key("two/x.example"))
    assert found is not None
    assert found.uid == "b"
    tell(mesh, remove=["b"])
    assert mesh.workload_by_hostname(key("two/x.example")) is None
    assert mesh.workload_by_hostname(key("one/x.example")) is not None


def test_only_this_nodes_workloads_are_found_by_info() -> None:
    mesh = mesh_of(
        pod("a", name="web-0", account="web", node="n1"),
        pod("b", name="web-1", account="web", node="n2"),
        local_node="n1",
    )

    found = mesh.local_workload(WorkloadInfo("web-0", "default", "web"))
    assert found is not None
    assert found.uid == "a"
    assert mesh.local_workload(WorkloadInfo("web-1", "default", "web")) is None
    assert mesh.local_workload(WorkloadInfo("web-0", "default", "other")) is None
    assert mesh.has_local_identity("default", "web")
    assert not mesh.has_local_identity("other", "web")


def test_changes_name_this_nodes_workloads() -> None:
    mesh = Mesh(local_node="n1")
    identity = SpiffeId("cluster.local", "default", "web")

    changes = tell(
        mesh,
        pod("a", account="web", node="n1", hbone=True),
        pod("b", account="web", node="n1"),
        pod("c", account="web", node="n2", hbone=True),
    )
    assert changes.put == (
        LocalWorkload("a", identity, "n1", True),
        LocalWorkload("b", identity, "n1", False),
    )
    assert (changes.workloads, changes.forgotten) == (3, ())

    assert tell(mesh, remove=["a"]).forgotten == ()  # b has the same identity
    assert tell(mesh, remove=["c"]).forgotten == ()
    assert tell(mesh, remove=["b"]).forgotten == (LocalWorkload("b", identity, "n1", False),)


def test_an_update_forgets_no_identity() -> None:
    mesh = mesh_of(pod("a", account="web", node="n1"), local_node="n1")

    assert tell(mesh, pod("a", account="other", node="n1")).forgotten == ()


def test_without_a_node_name_nothing_is_put_but_things_are_forgotten() -> None:
    mesh = Mesh()

    assert tell(mesh, pod("a", account="web", node="n1")).put == ()
    assert [gone.uid for gone in tell(mesh, remove=["a"]).forgotten] == ["a"]


def test_changes_of_attached_policies_are_told_for_this_node() -> None:
    mesh = mesh_of(pod("a", node="n1"), pod("b", node="n2"), local_node="n1")

    assert not tell(mesh, pod("a", node="n1")).attachments
    assert tell(mesh, pod("a", node="n1", policies=["default/x"])).attachments
    assert not tell(mesh, pod("b", node="n2", policies=["default/x"])).attachments


def policy(name: str, namespace: str, scope: PolicyScope) -> PolicyEntry:
    body = Authorization(name=name, namespace=namespace, scope=scope, action=Action.ALLOW)
    return PolicyEntry(f"{namespace}/{name}", body)


def test_policies_come_mesh_wide_first_and_attached_last() -> None:
    mesh = mesh_of(pod("a", policies=["root/selected", "root/unknown"]))
    mesh.apply(
        Batch(
            policies=[
                policy("selected", "root", PolicyScope.WORKLOAD_SELECTOR),
                policy("own", "default", PolicyScope.NAMESPACE),
                policy("other", "elsewhere", PolicyScope.NAMESPACE),
                policy("all", "root", PolicyScope.GLOBAL),
            ]
        )
    )
    workload = mesh.workload("a")
    assert workload is not None

    found, unknown = mesh.policies_for(workload)

    assert [each.key for each in found] == ["root/all", "default/own", "root/selected"]
    assert unknown == ["root/unknown"]


def test_only_real_changes_of_policies_are_told() -> None:
    mesh = Mesh()
    one = policy("one", "ns", PolicyScope.NAMESPACE)

    assert mesh.apply(Batch(policies=[one])).policies
    assert not mesh.apply(Batch(removed_policies=["ns/none"])).policies
    assert mesh.apply(Batch(removed_policies=["ns/one"])).policies
    assert mesh.policy_keys() == []


def test_replaced_workloads_are_seen_at_once() -> None:
    mesh = mesh_of(pod("a", "10.0.0.1", name="old"))
    assert name_of(mesh.workload("a")) == "old"

    tell(mesh, pod("a", "10.0.0.2", name="new"))

    assert name_of(mesh.workload("a")) == "new"
    assert mesh.workload_at(at("10.0.0.1")) is None


def test_given_endpoints_of_a_file_go_with_their_service() -> None:
    body = Service(namespace="ns", hostname="given")
    mesh = mesh_of(pod("a", services=["ns/given"]))
    given = {"b": Endpoint("b", {80: 1}), "a": Endpoint("a", {80: 1})}
    tell(mesh, ServiceEntry(body, given))
    assert dict(mesh.endpoints(body.key)) == {"a": Endpoint("a", {80: 8080}), "b": Endpoint("b", {80: 1})}
    assert mesh.endpoints_version(body) is None

    tell(mesh, ServiceEntry(body))

    assert set(mesh.endpoints(body.key)) == {"a"}
    assert mesh.endpoints_version(body) is not None


def test_visibility_is_asked_of_the_client_only() -> None:
    mesh = mesh_of(service("ns-a/x.example", "10.0.0.1", visibility=Visibility.NAMESPACE))

    assert mesh.service(key("ns-a/x.example")) is not None
    assert mesh.service_named("x.example", "ns-b") is None
    assert mesh.service_named("x.example", None) is not None


def test_the_recorded_answers_make_a_mesh() -> None:
    mesh = recorded_mesh()

    assert counts(mesh) == Counts(addresses=22, uids=24, vips=19, services=19, staged=0)
    assert len(mesh.policy_keys()) == 8
    sleep = mesh.local_workload(WorkloadInfo("sleep", "default", "sleep"))
    assert sleep is not None
    assert str(sleep.identity) == "spiffe://cluster.local/ns/default/sa/sleep"
    assert sleep.locality.zone == "r1-a"
    assert uids(mesh, "default/db-notready.default.svc.cluster.local") == {
        "Kubernetes//Pod/default/purchase-history",
        "Kubernetes//Pod/default/purchase-history-notready",
        "Kubernetes//Pod/default/purchase-history-v2",
    }
    assert len(uids(mesh, "default/purchase-history.default.svc.cluster.local")) == 2
    strict = mesh.workload("Kubernetes//Pod/foo/strict-app")
    assert strict is not None
    assert [each.name for each in mesh.services_of(strict)] == ["strict-app"]
    assert mesh.policy("istio-system/mesh-deny-port-9") is not None
    policies, unknown = mesh.policies_for(strict)
    assert [each.key for each in policies] == [
        "istio-system/mesh-deny-port-9",
        "foo/converted_peer_authentication_strict",
    ]
    assert unknown == []


def test_a_recorded_mesh_can_be_forgotten_completely() -> None:
    mesh = recorded_mesh()
    names = [*mesh.uids(), *[str(each.key) for each in mesh.services()]]

    tell(mesh, remove=names)

    assert counts(mesh) == Counts()
    assert not mesh._services._by_key
    assert not mesh._services._by_cidr
    assert len(mesh._workloads._kinds) == len(mesh._workloads._localities) == 0
    assert not mesh._workloads._local


def test_a_workload_that_comes_again_as_it_was_changes_nothing() -> None:
    mesh = mesh_of(service("ns/a", "10.1.0.1"), pod("x", "10.0.0.1", services=["ns/a"]))
    before, revision = mesh.workload("x"), mesh.revision

    changes = mesh.apply(Batch(addresses=[pod("x", "10.0.0.1", services=["ns/a"])]))

    assert not changes.addresses
    assert mesh.revision == revision
    assert mesh.workload("x") is before


def test_a_workload_that_moves_keeps_its_address_and_shows_its_new_place() -> None:
    mesh = mesh_of(pod("x", "10.0.0.1", node="n1"))

    mesh.apply(Batch(addresses=[pod("x", "10.0.0.1", node="n2")]))

    found = mesh.workload_at(at("10.0.0.1"))
    assert found is not None
    assert found.node == "n2"


def uid_at(mesh: Mesh, address: str) -> str | None:
    found = mesh.workload_at(at(address))
    return None if found is None else found.uid


def test_clashes_are_told_once_and_stay_in_sight() -> None:
    a, b = service("ns/a", "10.0.0.1"), service("ns/b", "10.0.0.1", cidrs=["10.1.0.0/16"])
    mesh = mesh_of(a)

    told = tell(mesh, b).notes
    assert told == ("/10.0.0.1 is claimed by ns/a, which gets it, and by ns/b",)
    assert tell(mesh, b).notes == ()
    assert tell(mesh, b, a).notes == ()
    assert [each.claimants for each in mesh.service_clashes()] == [("ns/a", "ns/b")]
    assert tell(mesh, service("ns/c", "10.0.0.1")).notes == (
        "/10.0.0.1 is claimed by ns/a, which gets it, and by ns/b, ns/c",
    )
    assert tell(mesh, service("ns/d", cidrs=["10.1.0.0/16"])).notes == (
        "/10.1.0.0/16 is claimed by ns/b, which gets it, and by ns/d",
    )

    tell(mesh, remove=["ns/b", "ns/c"])
    assert mesh.service_clashes() == []
    assert tell(mesh, b).notes != ()


def test_a_clash_of_workloads_is_told_where_the_uid_decides() -> None:
    mesh = mesh_of(pod("x//Pod/b", "10.0.0.1", hbone=True), pod("entry", "10.0.0.1"))
    assert [each.claimants for each in mesh.workload_clashes()] == [("x//Pod/b", "entry")]

    told = tell(mesh, pod("x//Pod/a", "10.0.0.1", hbone=True)).notes

    assert told == ("/10.0.0.1 is claimed by x//Pod/a, which gets it, and by x//Pod/b, entry",)
    tell(mesh, remove=["x//Pod/a", "x//Pod/b"])
    assert mesh.workload_clashes() == []


def test_of_many_clashes_at_once_some_are_told() -> None:
    vips = [f"10.0.0.{n}" for n in range(30)]

    notes = tell(Mesh(), service("ns/a", *vips), service("ns/b", *vips)).notes

    assert len(notes) == 11
    assert notes[-1] == "20 more addresses are claimed by several: see the dump"


def test_policies_are_found_under_whatever_name_they_have() -> None:
    mesh = Mesh()
    mesh.apply(Batch(policies=[PolicyEntry("odd", policy("one", "ns", PolicyScope.GLOBAL).policy)]))

    assert mesh.policy_keys() == ["odd"]
    assert mesh.policy("odd") is not None
