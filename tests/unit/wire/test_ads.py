"""Delta xDS: what is asked first, what is remembered, what is answered."""

from collections.abc import Iterable

import pytest

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.wire.ads import (
    Discovery,
    Finished,
    NodeFacts,
    Subscription,
)
from ztunnel_trio.wire.delta_response import DiscoveryResponse, Resource
from ztunnel_trio.wire.rejection import RejectedResource, Rejections

NODE = NodeFacts(instance_ip="10.0.0.1", pod_name="zt", pod_namespace="istio-system", node_name="node1")
Request = xds_pb2.DeltaDiscoveryRequest


def discovery(*, on_demand: bool = False, limit: int = 4_000_000) -> Discovery:
    subscriptions = [Subscription(ADDRESS_TYPE, on_demand=on_demand), Subscription(AUTHORIZATION_TYPE)]
    return Discovery(NODE.as_node(), subscriptions, request_limit_bytes=limit)


def requests(encoded: Iterable[bytes | None]) -> list[xds_pb2.DeltaDiscoveryRequest]:
    return [Request.FromString(one) for one in encoded if one is not None]


def resource(name: str, version: str = "", aliases: tuple[str, ...] = ()) -> Resource:
    return Resource(name, version, aliases, b"")


def take(
    core: Discovery,
    *resources: Resource,
    type_url: str = ADDRESS_TYPE,
    removed: list[str] | None = None,
    refused: list[RejectedResource] | None = None,
    undecodable: list[RejectedResource] | None = None,
) -> Finished:
    """Receive and finish one response."""
    response = DiscoveryResponse(type_url=type_url, nonce="n1", removed=removed or [])
    response.resources.count = len(resources)
    rejections = Rejections(refused or [], undecodable or [])
    if core.handles(type_url):
        rejected = {one.resource for one in (*rejections.refused, *rejections.undecodable)}
        core.received(type_url, resources, rejected)
        core.removed(type_url, response.removed)
        for names in core.vanished(type_url):
            core.removed(type_url, names)
    return core.finish(response, rejections)


def test_the_node_is_named_in_four_parts_and_metadata_override_each_other() -> None:
    facts = NodeFacts(
        instance_ip="10.0.0.1",
        pod_name="zt",
        pod_namespace="ns",
        node_name="node1",
        proxy_metadata={"NAME": "other", "CLUSTER_ID": "c1"},
        json_metadata={"CLUSTER_ID": "c2", "LABELS": {"app": "foo"}, "L": ["x", True, 1, None]},
    )

    node = facts.as_node()

    assert node.id == "ztunnel~10.0.0.1~zt.ns~ns.svc.cluster.local"
    assert (node.cluster, node.build_version) == ("", "")
    fields = node.metadata.fields
    assert {
        name: fields[name].string_value for name in ("NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME")
    } == {
        "NAME": "other",
        "NAMESPACE": "ns",
        "INSTANCE_IPS": "10.0.0.1",
        "NODE_NAME": "node1",
    }
    assert fields["CLUSTER_ID"].string_value == "c2"
    assert fields["LABELS"].struct_value.fields["app"].string_value == "foo"
    kinds = [value.WhichOneof("kind") for value in fields["L"].list_value.values]
    assert kinds == ["string_value", "bool_value", "number_value", "null_value"]


def test_the_first_requests_carry_the_node_and_nothing_else() -> None:
    first = requests(discovery().open_stream())

    assert [one.type_url for one in first] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
    for one in first:
        assert one.node.id.startswith("ztunnel~")
        assert not one.resource_names_subscribe
        assert not one.resource_names_unsubscribe
        assert not one.initial_resource_versions
        assert (one.response_nonce, one.HasField("error_detail")) == ("", False)


def test_on_demand_subscribes_to_nothing_yet_and_policies_to_all() -> None:
    address, policy = requests(discovery(on_demand=True).open_stream())

    assert [*address.resource_names_subscribe, *address.resource_names_unsubscribe] == ["*", "*"]
    assert [*policy.resource_names_subscribe, *policy.resource_names_unsubscribe] == []


def test_an_accepted_response_is_acknowledged_by_its_nonce_alone() -> None:
    core = discovery()
    requests(core.open_stream())

    finished = take(core, resource("a", "v1"))

    request = Request.FromString(finished.request)
    assert request == Request(type_url=ADDRESS_TYPE, response_nonce="n1")
    assert finished.error is None
    assert core.known(ADDRESS_TYPE) == {"a": "v1"}


def test_a_rejection_is_told_and_leaves_the_version_before() -> None:
    core = discovery()
    requests(core.open_stream())
    take(core, resource("old", "v1"))

    finished = take(
        core,
        resource("old", "v2"),
        resource("new", "v2"),
        resource("good", "v2"),
        refused=[RejectedResource("new", "", "unknown address type")],
        undecodable=[RejectedResource("old", "", "decode: bad")],
    )

    request = Request.FromString(finished.request)
    assert (request.response_nonce, request.error_detail.code) == ("n1", 0)
    assert request.error_detail.message == "new: unknown address type; old: decode: bad" == finished.error
    assert core.known(ADDRESS_TYPE) == {"old": "v1", "good": "v2"}


def test_a_reconnect_echoes_what_was_kept() -> None:
    """ztunnel src/xds/client.rs, test_reconnect_echoes_retained_versions."""
    core = discovery()
    requests(core.open_stream())
    take(
        core,
        resource("foo0", "0.0.1"),
        resource("bad", "9.9.9"),
        undecodable=[RejectedResource("bad", "", "decode: x")],
    )

    address, policy = requests(core.open_stream())

    assert dict(address.initial_resource_versions) == {"foo0": "0.0.1"}
    assert not policy.initial_resource_versions
    assert address.node.id


def test_an_empty_version_is_a_version() -> None:
    core = discovery()
    requests(core.open_stream())
    take(core, resource("ns/policy", ""), type_url=AUTHORIZATION_TYPE)

    assert dict(requests(core.open_stream())[1].initial_resource_versions) == {"ns/policy": ""}


def test_what_one_response_brings_and_removes_is_gone_as_it_is_from_the_mesh() -> None:
    core = discovery()
    requests(core.open_stream())
    take(core, resource("a", "v1"), resource("b", "v1"), resource("c", "v1"))
    take(core, resource("b", "v2"), removed=["a", "b", "never"])

    assert core.known(ADDRESS_TYPE) == {"c": "v1"}


def test_an_unknown_type_is_acknowledged_and_leaves_no_trace() -> None:
    core = discovery()
    requests(core.open_stream())

    finished = take(core, resource("a", "v1"), type_url="type/Nonsense")

    assert Request.FromString(finished.request) == Request(type_url="type/Nonsense", response_nonce="n1")
    assert finished.answered == ()
    assert core.known(ADDRESS_TYPE) == {}


def test_ready_once_every_wildcard_type_was_accepted() -> None:
    core = discovery()
    requests(core.open_stream())

    assert not take(core, resource("a"), refused=[RejectedResource("a", "", "no")]).became_ready
    assert not take(core, type_url=AUTHORIZATION_TYPE).became_ready
    assert not core.is_ready
    assert take(core).became_ready
    assert core.is_ready
    assert not take(core).became_ready


def test_on_demand_readiness_waits_for_policies_only() -> None:
    core = discovery(on_demand=True)
    requests(core.open_stream())

    assert take(core, type_url=AUTHORIZATION_TYPE).became_ready


def test_a_demand_subscribes_one_name_without_node_and_nonce() -> None:
    core = discovery(on_demand=True)
    requests(core.open_stream())

    request = Request.FromString(core.demand(ADDRESS_TYPE, "/127.0.0.1", 0.0))

    assert request == Request(type_url=ADDRESS_TYPE, resource_names_subscribe=["/127.0.0.1"])
    assert core.known(ADDRESS_TYPE) == {"/127.0.0.1": ""}


def test_a_demand_for_something_known_keeps_its_version() -> None:
    core = discovery(on_demand=True)
    requests(core.open_stream())
    take(core, resource("uid", "v1"))
    core.demand(ADDRESS_TYPE, "uid", 0.0)

    assert core.known(ADDRESS_TYPE) == {"uid": "v1"}


def test_a_demand_for_a_type_never_subscribed_is_our_bug() -> None:
    with pytest.raises(WeBrokeProtocol):
        discovery().demand("type/Nonsense", "a", 0.0)


def test_a_demand_is_answered_by_name_alias_absence_or_an_empty_answer() -> None:
    core = discovery(on_demand=True)
    requests(core.open_stream())
    assert take(core).answered == ()  # the answer to the first request asks nobody
    for name in ("uid", "/10.0.0.1", "/10.0.0.2", "/10.0.0.3", "/10.0.0.4"):
        core.demand(ADDRESS_TYPE, name, 0.0)

    assert take(core, resource("uid", "v1")).answered == ("uid",)
    assert take(core, resource("uid2", "v1", ("/10.0.0.1", "net/10.0.0.1"))).answered == ("/10.0.0.1",)
    assert take(core, removed=["/10.0.0.2"]).answered == ("/10.0.0.2",)
    assert take(core).answered == ("/10.0.0.3",)
    assert take(core).answered == ("/10.0.0.4",)
    assert take(core).answered == ()
    assert "/10.0.0.2" not in core.known(ADDRESS_TYPE)


def test_a_key_answered_with_nothing_is_unsubscribed_a_minute_after_its_last_use() -> None:
    core = discovery(on_demand=True)
    requests(core.open_stream())
    take(core)
    for name, at in (("/10.0.0.1", 0.0), ("/10.0.0.2", 5.0), ("/10.0.0.3", 5.0)):
        core.demand(ADDRESS_TYPE, name, at)
    take(core)
    take(core, resource("uid", "v1", ("/10.0.0.2",)))
    take(core, removed=["/10.0.0.3"])

    assert core.next_forgetting() == 60.0
    assert list(core.forget(59.9)) == []
    assert [Request.FromString(one) for one in core.forget(60.0)] == [
        Request(type_url=ADDRESS_TYPE, resource_names_unsubscribe=["/10.0.0.1"])
    ]
    assert [Request.FromString(one).resource_names_unsubscribe for one in core.forget(99.0)] == [
        ["/10.0.0.3"]
    ]
    assert set(core.known(ADDRESS_TYPE)) == {"/10.0.0.2", "uid"}
    assert core.next_forgetting() is None


NAMES = [f"cluster1//v1/Pod/ns/pod-{number:04}" for number in range(100)]


def test_what_does_not_fit_the_first_request_is_gone_if_it_does_not_come_again() -> None:
    core = discovery(limit=1500)
    requests(core.open_stream())
    take(core, *(resource(name, "0123456789abcdef") for name in NAMES))

    again = [one for one in core.open_stream() if one is not None]

    assert all(len(one) <= 1500 for one in again)
    named = set(requests(again)[0].initial_resource_versions)
    left_out = sorted(set(NAMES) - named)
    assert 10 < len(named) < 40
    take(
        core,
        *(resource(name, "v2") for name in left_out[2:]),
        resource(left_out[1]),
        refused=[RejectedResource(left_out[1], "", "bad")],
    )
    assert set(core.known(ADDRESS_TYPE)) == set(NAMES) - {left_out[0]}


def test_what_did_not_come_before_a_stream_broke_is_not_gone_yet() -> None:
    core = discovery(limit=1500)
    requests(core.open_stream())
    take(core, *(resource(name, "0123456789abcdef") for name in NAMES))
    requests(core.open_stream())
    core.received(ADDRESS_TYPE, [resource(NAMES[-1], "fedcba9876543210")])

    requests(core.open_stream())
    take(core, *(resource(name, "fedcba9876543210") for name in NAMES[10:-1]))

    assert NAMES[-1] not in core.known(ADDRESS_TYPE)
    assert NAMES[-2] in core.known(ADDRESS_TYPE)


def test_only_the_first_answer_of_a_stream_tells_what_vanished() -> None:
    core = discovery(limit=1500)
    requests(core.open_stream())
    take(core, *(resource(name, "v1") for name in NAMES))
    requests(core.open_stream())
    take(core, *(resource(name, "v1") for name in NAMES))

    take(core, resource(NAMES[0], "v2"))

    assert set(core.known(ADDRESS_TYPE)) == set(NAMES)


def test_versions_are_kept_for_as_many_as_one_request_can_name() -> None:
    core = discovery(limit=1500)
    requests(core.open_stream())
    take(core, *(resource(name, "v1") for name in NAMES))
    first = [name for name, version in core.known(ADDRESS_TYPE).items() if version is not None]

    take(core, removed=first[:2])
    take(core, resource(NAMES[-1], "v2"))
    take(core, resource(first[2], "a longer version " * 20))

    known = core.known(ADDRESS_TYPE)
    assert known[NAMES[-1]] == "v2"
    assert known[first[2]] is None
    encoded = [one for one in core.open_stream() if one is not None]
    assert all(len(one) <= 1500 for one in encoded)
    named = {name: version for name, version in known.items() if version is not None}
    assert dict(requests(encoded)[0].initial_resource_versions) == named


def test_on_demand_names_that_do_not_fit_follow_in_further_requests() -> None:
    core = discovery(on_demand=True, limit=1500)
    requests(core.open_stream())
    take(core, *(resource(name, "v1") for name in NAMES))

    again = requests(core.open_stream())

    assert all(len(one.SerializeToString()) <= 1500 for one in again)
    asked = [name for one in again[1:] for name in one.resource_names_subscribe]
    assert sorted([*again[0].initial_resource_versions, *asked]) == NAMES
    assert not any(one.HasField("node") for one in again[1:-1])
    assert list(core.vanished(ADDRESS_TYPE)) == []


def test_a_nack_text_is_bounded() -> None:
    core = discovery(limit=1500)
    requests(core.open_stream())

    finished = take(core, refused=[RejectedResource(f"name-{number}", "", "é" * 50) for number in range(100)])

    assert len(finished.request) < 1500
    assert Request.FromString(finished.request).error_detail.message.endswith("…")
