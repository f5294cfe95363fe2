import io
import json
import re
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import Locality, Workload
from ztunnel_trio.observe.access_log import (
    TEXTS,
    AccessLog,
    ConnectionFacts,
    LabelMemo,
    describe,
    flags_of,
    status_of,
    traffic_labels,
)
from ztunnel_trio.observe.log import configure, unconfigure
from ztunnel_trio.observe.metrics import TRAFFIC_LABELS, Metrics

CLIENT = Workload(
    uid="Kubernetes//Pod/default/client", name="client-0", namespace="default", service_account="client",
    workload_name="client", canonical_name="client", canonical_revision="v1",
    locality=Locality("r1", "z1", "s1"),
)  # fmt: skip
SERVER = Workload(
    uid="Kubernetes//Pod/default/server", name="server-0", namespace="default", service_account="server",
    workload_name="server", canonical_name="server", canonical_revision="v2",
)  # fmt: skip
SERVICE = Service(name="server", namespace="default", hostname="server.default.svc.cluster.local")
GATEWAY = Workload(uid="gw", name="gw-0", namespace="istio-gateways", workload_name="gw")


def at(text: str) -> SocketAddress:
    return SocketAddress.parse(text)


def outbound(**changes: object) -> ConnectionFacts:
    facts = ConnectionFacts(
        direction=Direction.OUTBOUND,
        source=at("10.77.2.10:40000"),
        destination=at("10.77.2.11:15008"),
        hbone_target=at("10.77.2.11:8080"),
        source_workload=CLIENT,
        source_identity=CLIENT.identity,
        destination_workload=SERVER,
        destination_service=SERVICE,
        mutual_tls=True,
    )
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


class Seconds:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """An access log whose lines and metrics can be read."""

    def __init__(self, *, level: str = "info", is_json: bool = False) -> None:
        self.stream = io.StringIO()
        configure(level, is_json=is_json, stream=self.stream)
        self.clock = Seconds()
        self.metrics = Metrics(clock=self.clock)
        self.access_log = AccessLog(self.metrics, clock=self.clock)

    def lines(self) -> list[str]:
        return [line.partition("\t")[2] for line in self.stream.getvalue().splitlines()]

    def samples(self, family: str) -> dict[str, int]:
        """Response flags -> value of every sample of a traffic family."""
        text = self.metrics.render().decode()
        found = re.findall(
            rf'^istio_tcp_{family}_total{{.*response_flags="(.*?)".*}} (\d+)$', text, re.MULTILINE
        )
        return {flags: int(value) for flags, value in found}


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield Desk()
    unconfigure()


@pytest.fixture
def debug_desk() -> Iterator[Desk]:
    yield Desk(level="access=debug")
    unconfigure()


@pytest.fixture
def json_desk() -> Iterator[Desk]:
    yield Desk(is_json=True)
    unconfigure()


CLIENT_FIELDS = (
    'src.addr=10.77.2.10:40000 src.workload="client-0" src.namespace="default"'
    ' src.identity="spiffe://cluster.local/ns/default/sa/client" src.cluster="Kubernetes"'
)
SERVER_FIELDS = (
    'dst.workload="server-0" dst.namespace="default"'
    ' dst.identity="spiffe://cluster.local/ns/default/sa/server" dst.cluster="Kubernetes"'
)


def test_an_outbound_line_counts_what_the_client_sent_as_sent(desk: Desk) -> None:
    record = desk.access_log.open(outbound())
    record.traffic.to_destination += 11
    record.traffic.to_source += 22
    desk.clock.now += 0.0139
    record.finish(None)

    assert desk.lines() == [
        f"info\taccess\tconnection complete\t{CLIENT_FIELDS} dst.addr=10.77.2.11:15008"
        f' dst.hbone_addr=10.77.2.11:8080 dst.service="server.default.svc.cluster.local" {SERVER_FIELDS}'
        ' direction="outbound" bytes_sent=11 bytes_recv=22 duration="13ms"'
    ]


def test_an_inbound_line_counts_what_the_server_sent_as_sent(desk: Desk) -> None:
    record = desk.access_log.open(outbound(direction=Direction.INBOUND))
    record.traffic.to_destination += 11
    record.traffic.to_source += 22
    record.finish()

    assert ' direction="inbound" bytes_sent=22 bytes_recv=11 duration="0ms"' in desk.lines()[0]
    assert desk.samples("received_bytes") == {"-": 11}
    assert desk.samples("sent_bytes") == {"-": 22}


def test_a_failure_is_an_error_line_with_its_text_last(desk: Desk) -> None:
    desk.access_log.open(outbound(destination_service=None)).finish(Refusal(Reason.HTTP_STATUS, "401"))

    (line,) = desk.lines()
    assert line.startswith("error\taccess\tconnection complete\t")
    assert line.endswith(
        f'dst.hbone_addr=10.77.2.11:8080 {SERVER_FIELDS} direction="outbound" bytes_sent=0 bytes_recv=0'
        ' duration="0ms" error="http status: 401 Unauthorized"'
    )


def test_plain_text_has_no_identities_and_unknown_parts_are_left_out(desk: Desk) -> None:
    plain = outbound(
        hbone_target=None, destination=at("10.77.2.12:8080"), source_identity=None,
        destination_workload=None, destination_service=None, mutual_tls=False,
    )  # fmt: skip

    desk.access_log.open(plain).finish()

    assert desk.lines() == [
        'info\taccess\tconnection complete\tsrc.addr=10.77.2.10:40000 src.workload="client-0"'
        ' src.namespace="default" src.cluster="Kubernetes" dst.addr=10.77.2.12:8080 direction="outbound"'
        ' bytes_sent=0 bytes_recv=0 duration="0ms"'
    ]


def test_plain_text_inbound_from_a_stranger(desk: Desk) -> None:
    passthrough = outbound(
        direction=Direction.INBOUND, source=at("10.77.2.12:50000"), destination=at("10.77.2.11:9"),
        hbone_target=None, source_workload=None, source_identity=None, mutual_tls=False,
    )  # fmt: skip

    refusal = Refusal(Reason.CONNECT_FAILED, "Connection refused (os error 111)")
    desk.access_log.open(passthrough).finish(refusal)

    assert desk.lines() == [
        "error\taccess\tconnection complete\tsrc.addr=10.77.2.12:50000 dst.addr=10.77.2.11:9"
        ' dst.service="server.default.svc.cluster.local" dst.workload="server-0" dst.namespace="default"'
        ' dst.cluster="Kubernetes" direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms"'
        ' error="connection failed: Connection refused (os error 111)"'
    ]


def test_ipv6_addresses_are_bracketed_and_hostnames_shown_bare(desk: Desk) -> None:
    desk.access_log.open(
        outbound(source=at("[fd77::2:a]:1"), hbone_target=HostPort("remote.default.svc.cluster.local", 8080))
    ).finish()

    assert "src.addr=[fd77::2:a]:1 " in desk.lines()[0]
    assert " dst.hbone_addr=remote.default.svc.cluster.local:8080 " in desk.lines()[0]


def test_a_json_line_has_the_same_fields_in_the_same_order(json_desk: Desk) -> None:
    json_desk.access_log.open(outbound()).finish()

    entry = json.loads(json_desk.stream.getvalue())
    assert list(entry) == [
        "level", "time", "scope", "message", "src.addr", "src.workload", "src.namespace", "src.identity",
        "src.cluster", "dst.addr", "dst.hbone_addr", "dst.service", "dst.workload", "dst.namespace",
        "dst.identity", "dst.cluster", "direction", "bytes_sent", "bytes_recv", "duration",
    ]  # fmt: skip
    assert (entry["scope"], entry["bytes_sent"], entry["duration"]) == ("access", 0, "0ms")


def test_an_opened_connection_is_a_debug_line(debug_desk: Desk) -> None:
    debug_desk.access_log.open(outbound())

    (line,) = debug_desk.lines()
    assert line.startswith(f"debug\taccess\tconnection opened\t{CLIENT_FIELDS} dst.addr=")
    assert line.endswith(' direction="outbound"')


def test_an_early_refusal_is_a_warning_and_moves_no_counter(desk: Desk) -> None:
    desk.access_log.refuse(
        source=at("10.77.2.10:1"),
        destination=at("10.96.0.11:80"),
        direction=Direction.OUTBOUND,
        refusal=Refusal(Reason.NO_HEALTHY_UPSTREAM, "10.96.0.11:80"),
    )

    assert desk.lines() == [
        "warn\taccess\tconnection failed\tsrc.addr=10.77.2.10:1 dst.addr=10.96.0.11:80"
        ' direction="outbound" error="no healthy upstream: 10.96.0.11:80"'
    ]
    assert "istio_tcp" not in desk.metrics.render().decode()


def test_only_the_first_finish_counts(desk: Desk) -> None:
    record = desk.access_log.open(outbound())

    record.finish(Refusal(Reason.POLICY_CHANGE))
    record.finish(None)

    assert len(desk.lines()) == 1
    assert desk.samples("connections_opened") == {"-": 1}
    assert desk.samples("connections_closed") == {"DENY": 1}
    assert desk.samples("connections_failed") == {"DENY": 1}


def test_a_drained_connection_has_an_error_but_no_flag(desk: Desk) -> None:
    desk.access_log.open(outbound()).finish(Refusal(Reason.DRAIN))

    assert 'error="connection closed due to connection drain"' in desk.lines()[0]
    assert desk.samples("connections_closed") == {"-": 1}
    assert desk.samples("connections_failed") == {}


def test_a_silenced_access_log_still_counts() -> None:
    desk = Desk(level="access=off,info")

    desk.access_log.open(outbound()).finish()
    desk.access_log.refuse(
        source=at("10.0.0.1:1"),
        destination=at("10.0.0.2:2"),
        direction=Direction.INBOUND,
        refusal=Refusal(Reason.RECURSIVE_CALL),
    )
    unconfigure()

    assert desk.lines() == []
    assert desk.samples("connections_closed") == {"-": 1}


def test_a_record_may_begin_before_it_is_opened(desk: Desk) -> None:
    began = desk.access_log.now()
    desk.clock.now += 2

    desk.access_log.open(outbound(), began=began).finish()

    assert 'duration="2000ms"' in desk.lines()[0]


def labels(facts: ConnectionFacts) -> dict[str, str]:
    values = traffic_labels(facts)
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


BAGGAGE = Baggage(
    cluster="remote", namespace="far", workload_name="web", service_name="web-service", revision="v7",
    region="r9", zone="z9",
)  # fmt: skip


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


def test_the_far_end_of_a_double_tunnel_replaces_the_gateway(desk: Desk) -> None:
    echo = SpiffeId("cluster.local", "far", "echo")
    double = outbound(
        destination_workload=GATEWAY, destination_identity=echo,
        destination_baggage=Baggage(workload_name="echo", namespace="far"),
    )  # fmt: skip

    found = labels(double)
    desk.access_log.open(double).finish()

    assert (found["destination_workload"], found["destination_app"]) == ("echo", "echo")
    assert found["destination_canonical_service"] == "unknown"
    assert found["destination_principal"] == str(echo)
    assert found["destination_cluster"] == "unknown"
    assert f'dst.workload="echo" dst.namespace="far" dst.identity="{echo}" direction' in desk.lines()[0]


def test_baggage_names_the_source_in_the_line(desk: Desk) -> None:
    desk.access_log.open(
        outbound(direction=Direction.INBOUND, source_workload=None, source_baggage=BAGGAGE)
    ).finish()

    assert 'src.workload="web-service" src.namespace="far" ' in desk.lines()[0]
    assert 'src.cluster="remote"' in desk.lines()[0]


def test_locality_labels_are_absent_when_no_side_is_known() -> None:
    nobody = outbound(source_workload=None, destination_workload=None)

    assert "source_region" not in labels(nobody)


@pytest.mark.parametrize(
    ("reason", "detail", "text"),
    [
        (Reason.RECURSIVE_CALL, "", "attempted recursive call to ourselves"),
        (
            Reason.UNKNOWN_LOCAL_WORKLOAD,
            "sa.ns (pod)",
            "failed to fetch information about local workload: sa.ns (pod)",
        ),
        (Reason.NO_HEALTHY_UPSTREAM, "1.2.3.4:80", "no healthy upstream: 1.2.3.4:80"),
        (
            Reason.NO_VALID_DESTINATION,
            str(SERVER),
            "no valid routing destination for workload: Workload{server-0 with uid"
            " Kubernetes//Pod/default/server (TCP)}",
        ),
        (Reason.NO_SERVICE_FOR_TARGET, "1.2.3.4:80", "no service for target address: 1.2.3.4:80"),
        (Reason.UNKNOWN_WAYPOINT, "ns/way", "unknown waypoint: waypoint ns/way not found"),
        (
            Reason.UNKNOWN_NETWORK_GATEWAY,
            "net/1.2.3.4",
            "unknown network gateway: network gateway net/1.2.3.4 not found",
        ),
        (Reason.NO_RESOLVED_ADDRESSES, "uid", "no ip addresses were resolved for workload: uid"),
        (
            Reason.NO_USABLE_RECORDS,
            "uid",
            "ip addresses were resolved for workload uid, but valid dns response had no A/AAAA records",
        ),
        (Reason.WRONG_METHOD, "GET", "expected method CONNECT, got GET"),
        (Reason.BAD_AUTHORITY, "x", "no valid authority pseudo header: x"),
        (Reason.IP_MISMATCH, "1.2.3.4 != 5.6.7.8", "ip mismatch: 1.2.3.4 != 5.6.7.8"),
        (Reason.UNKNOWN_HOSTNAME, "h", "no service or workload for hostname: h"),
        (Reason.UNRESOLVED_SERVICE_PORT, "h:80", "requested service h:80 found, but cannot resolve port"),
        (Reason.SERVICE_WITHOUT_ADDRESS, "h", "requested service h found, but has no IP addresses"),
        (
            Reason.POLICY_REJECTION,
            "explicitly denied by: default/no7777",
            "connection closed due to policy rejection: explicitly denied by: default/no7777",
        ),
        (Reason.IDENTITY, "x", "identity error: x"),
        (Reason.SIGNING, "x", "signing error: x"),
        (Reason.TLS_HANDSHAKE, "x", "tls handshake error: x"),
        (Reason.TLS_CONFIG, "x", "tls error: x"),
        (Reason.IO, "x", "io error: x"),
        (Reason.CONNECT_FAILED, "x", "connection failed: x"),
        (
            Reason.HBONE_CONNECT_TIMEOUT,
            "deadline has elapsed",
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed",
        ),
        (Reason.H2_HANDSHAKE, "x", "http2 handshake failed: x"),
        (Reason.H2, "x", "h2 failed: x"),
        (Reason.HTTP_STATUS, "503", "http status: 503 Service Unavailable"),
        (Reason.HTTP_STATUS, "401 Unauthorized", "http status: 401 Unauthorized"),
        (Reason.HTTP_STATUS, "499", "http status: 499 <unknown status code>"),
        (Reason.POOL_DRAINING, "", "pool draining"),
        (
            Reason.RELAY,
            "destination disconnected before all data was written",
            "destination disconnected before all data was written",
        ),
        (Reason.POLICY_CHANGE, "", "connection closed due to policy change"),
        (Reason.CERTIFICATE_REVOKED, "", "connection closed: peer certificate revoked by CRL"),
        (Reason.DRAIN, "SIGTERM", "connection closed due to connection drain"),
    ],
)
def test_every_reason_has_its_text(reason: Reason, detail: str, text: str) -> None:
    assert describe(Refusal(reason, detail)) == text


def test_a_detail_that_is_the_whole_text_is_not_wrapped_again() -> None:
    text = "unknown waypoint: waypoint ns/way not found"

    assert describe(Refusal(Reason.UNKNOWN_WAYPOINT, text)) == text


def test_no_reason_is_forgotten() -> None:
    assert set(TEXTS) == set(Reason)


@pytest.mark.parametrize(
    ("reason", "flags", "status"),
    [
        (Reason.POLICY_REJECTION, "DENY", 401),
        (Reason.POLICY_CHANGE, "DENY", 503),
        (Reason.WRONG_METHOD, "CONNECT", 400),
        (Reason.BAD_AUTHORITY, "CONNECT", 400),
        (Reason.IP_MISMATCH, "CONNECT", 400),
        (Reason.UNKNOWN_LOCAL_WORKLOAD, "CONNECT", 503),
        (Reason.RECURSIVE_CALL, "CONNECT", 503),
        (Reason.CONNECT_FAILED, "CONNECT", 503),
        (Reason.IO, "CONNECT", 503),
        (Reason.TLS_HANDSHAKE, "CONNECT", 503),
        (Reason.HTTP_STATUS, "CONNECT", 503),
        (Reason.RELAY, "CONNECT", 503),
        (Reason.TLS_CONFIG, "TLS_FAILURE", 503),
        (Reason.H2_HANDSHAKE, "H2_HANDSHAKE_FAILURE", 503),
        (Reason.H2, "H2_HANDSHAKE_FAILURE", 503),
        (Reason.HBONE_CONNECT_TIMEOUT, "NETWORK_POLICY", 503),
        (Reason.IDENTITY, "IDENTITY_ERROR", 503),
        (Reason.CERTIFICATE_REVOKED, "CERT_REVOKED", 503),
        (Reason.DRAIN, "-", 503),
    ],
)
def test_flags_and_statuses(reason: Reason, flags: str, status: int) -> None:
    assert (flags_of(reason), status_of(reason)) == (flags, status)


def test_addresses_are_what_they_are() -> None:
    assert ip_address("10.77.2.10") == at("10.77.2.10:1").ip


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
