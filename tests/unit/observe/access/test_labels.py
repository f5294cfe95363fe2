"""The labels of a connection are what is known of its two sides."""

import pytest

from tests.fakes.connections import BAGGAGE, CLIENT, GATEWAY, outbound
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.labels import LabelMemo, traffic_labels
from ztunnel_trio.observe.metrics import TRAFFIC_LABELS


def labels(facts: ConnectionFacts) -> dict[str, str]:
    values = traffic_labels(facts).values
    names = [name for name in TRAFFIC_LABELS if name != "response_flags"]
    return dict(zip(names, values, strict=False))


def test_labels_of_an_hbone_connection() -> None:
    assert labels(outbound()) == {
        "reporter": "source",
        "source_workload": "client",
        "source_canonical_service": "client",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "default",
        "source_principal": "spiffe://cluster.local/ns/default/sa/client",
        "source_app": "client",
        "source_version": "v1",
        "source_cluster": "Kubernetes",
        "destination_service": "server.default.svc.cluster.local",
        "destination_service_namespace": "default",
        "destination_service_name": "server",
        "destination_workload": "server",
        "destination_canonical_service": "server",
        "destination_canonical_revision": "v2",
        "destination_workload_namespace": "default",
        "destination_principal": "spiffe://cluster.local/ns/default/sa/server",
        "destination_app": "server",
        "destination_version": "v2",
        "destination_cluster": "Kubernetes",
        "request_protocol": "tcp",
        "connection_security_policy": "mutual_tls",
        "source_region": "r1",
        "source_zone": "z1",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }


def test_the_principal_is_proven_by_tls_only() -> None:
    plain = labels(outbound(source_identity=None, mutual_tls=False))

    assert plain["source_principal"] == "unknown"
    assert plain["destination_principal"] == "spiffe://cluster.local/ns/default/sa/server"
    assert plain["connection_security_policy"] == "unknown"


def test_baggage_describes_a_source_without_a_record() -> None:
    found = labels(outbound(direction=Direction.INBOUND, source_workload=None, source_baggage=BAGGAGE))

    assert found["reporter"] == "destination"
    assert (found["source_workload"], found["source_app"]) == ("web", "web")
    assert found["source_canonical_service"] == "web-service"
    assert found["source_version"] == found["source_canonical_revision"] == "v7"
    assert (found["source_workload_namespace"], found["source_cluster"]) == ("far", "remote")
    assert (found["source_region"], found["source_zone"]) == ("r9", "z9")


def test_a_record_overrides_baggage_even_where_it_is_empty() -> None:
    found = labels(outbound(source_workload=GATEWAY, source_baggage=BAGGAGE))

    assert found["source_canonical_service"] == "unknown"
    assert found["source_region"] == "unknown"
    assert found["source_workload_namespace"] == "istio-gateways"


def test_the_far_end_of_a_double_tunnel_replaces_the_gateway() -> None:
    echo = SpiffeId("cluster.local", "far", "echo")
    double = outbound(
        destination_workload=GATEWAY, destination_identity=echo,
        destination_baggage=Baggage(workload_name="echo", namespace="far"),
    )  # fmt: skip

    found = labels(double)

    assert (found["destination_workload"], found["destination_app"]) == ("echo", "echo")
    assert found["destination_canonical_service"] == "unknown"
    assert found["destination_principal"] == str(echo)
    assert found["destination_cluster"] == "unknown"


def test_locality_labels_are_absent_when_no_side_is_known() -> None:
    nobody = outbound(source_workload=None, destination_workload=None)

    assert "source_region" not in labels(nobody)


@pytest.mark.parametrize(
    "changes",
    [
        {"source_workload": None},
        {"source_identity": None},
        {"source_baggage": Baggage(workload_name="other"), "source_workload": None},
        {"destination_workload": GATEWAY},
        {"destination_identity": CLIENT.identity},
        {"destination_baggage": Baggage(workload_name="other")},
        {"destination_service": None},
        {"direction": Direction.INBOUND},
        {"mutual_tls": False},
    ],
)
def test_remembered_labels_are_those_of_the_same_parties(changes: dict[str, object]) -> None:
    memo = LabelMemo()
    for facts in (outbound(), outbound(**changes), outbound()):
        assert memo.of(facts) == traffic_labels(facts)
    assert memo.of(outbound()) is memo.of(outbound())


def test_labels_are_remembered_of_so_many_parties_only() -> None:
    memo = LabelMemo(most=2)
    parties = [Workload(uid=str(n), name=str(n), namespace="default") for n in range(5)]
    first = memo.of(outbound(source_workload=parties[0]))
    for other in parties:
        memo.of(outbound(source_workload=other))
    assert memo.of(outbound(source_workload=parties[0])) == first
    assert memo.of(outbound(source_workload=parties[0])) is not first
