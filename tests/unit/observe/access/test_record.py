import io
import json
import re
from collections.abc import Iterator

import pytest
import trio

from tests.fakes.connections import BAGGAGE, GATEWAY, at, outbound
from ztunnel_trio.model.address import HostPort
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.ending import (
    CLEAN,
    AnsweredStatus,
    Bug,
    Drained,
    PodGone,
    PolicyChanged,
    SystemFailure,
)
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.record import AccessLog, ConnectionRecord, ended_by
from ztunnel_trio.observe.log import configure, unconfigure
from ztunnel_trio.observe.metrics import Metrics


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

    def open(self, facts: ConnectionFacts) -> ConnectionRecord:
        """A connection whose record is open."""
        record = self.access_log.connection(facts.source, facts.destination, facts.direction)
        record.open(facts)
        return record

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
    record = desk.open(outbound())
    record.traffic.to_destination += 11
    record.traffic.to_source += 22
    desk.clock.now += 0.0139
    record.finish(CLEAN)

    assert desk.lines() == [
        f"info\taccess\tconnection complete\t{CLIENT_FIELDS} dst.addr=10.77.2.11:15008"
        f' dst.hbone_addr=10.77.2.11:8080 dst.service="server.default.svc.cluster.local" {SERVER_FIELDS}'
        ' direction="outbound" bytes_sent=11 bytes_recv=22 duration="13ms"'
    ]


def test_an_inbound_line_counts_what_the_server_sent_as_sent(desk: Desk) -> None:
    record = desk.open(outbound(direction=Direction.INBOUND))
    record.traffic.to_destination += 11
    record.traffic.to_source += 22
    record.finish(CLEAN)

    assert ' direction="inbound" bytes_sent=22 bytes_recv=11 duration="0ms"' in desk.lines()[0]
    assert desk.samples("received_bytes") == {"-": 11}
    assert desk.samples("sent_bytes") == {"-": 22}


def test_a_failure_is_an_error_line_with_its_text_last(desk: Desk) -> None:
    desk.open(outbound(destination_service=None)).finish(
        Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(401))
    )

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

    desk.open(plain).finish(CLEAN)

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

    refusal = Refusal(Reason.CONNECT_FAILED, cause=SystemFailure(111))
    desk.open(passthrough).finish(refusal)

    assert desk.lines() == [
        "error\taccess\tconnection complete\tsrc.addr=10.77.2.12:50000 dst.addr=10.77.2.11:9"
        ' dst.service="server.default.svc.cluster.local" dst.workload="server-0" dst.namespace="default"'
        ' dst.cluster="Kubernetes" direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms"'
        ' error="connection failed: Connection refused (os error 111)"'
    ]


def test_ipv6_addresses_are_bracketed_and_hostnames_shown_bare(desk: Desk) -> None:
    desk.open(
        outbound(source=at("[fd77::2:a]:1"), hbone_target=HostPort("remote.default.svc.cluster.local", 8080))
    ).finish(CLEAN)

    assert "src.addr=[fd77::2:a]:1 " in desk.lines()[0]
    assert " dst.hbone_addr=remote.default.svc.cluster.local:8080 " in desk.lines()[0]


def test_a_json_line_has_the_same_fields_in_the_same_order(json_desk: Desk) -> None:
    json_desk.open(outbound()).finish(CLEAN)

    entry = json.loads(json_desk.stream.getvalue())
    assert list(entry) == [
        "level", "time", "scope", "message", "src.addr", "src.workload", "src.namespace", "src.identity",
        "src.cluster", "dst.addr", "dst.hbone_addr", "dst.service", "dst.workload", "dst.namespace",
        "dst.identity", "dst.cluster", "direction", "bytes_sent", "bytes_recv", "duration",
    ]  # fmt: skip
    assert (entry["scope"], entry["bytes_sent"], entry["duration"]) == ("access", 0, "0ms")


def test_an_opened_connection_is_a_debug_line(debug_desk: Desk) -> None:
    debug_desk.open(outbound())

    (line,) = debug_desk.lines()
    assert line.startswith(f"debug\taccess\tconnection opened\t{CLIENT_FIELDS} dst.addr=")
    assert line.endswith(' direction="outbound"')


def test_an_early_refusal_is_a_warning_and_moves_no_counter(desk: Desk) -> None:
    with desk.access_log.connection(at("10.77.2.10:1"), at("10.96.0.11:80"), Direction.OUTBOUND):
        raise Refused(Refusal(Reason.NO_HEALTHY_UPSTREAM, "10.96.0.11:80"))

    assert desk.lines() == [
        "warn\taccess\tconnection failed\tsrc.addr=10.77.2.10:1 dst.addr=10.96.0.11:80"
        ' direction="outbound" error="no healthy upstream: 10.96.0.11:80"'
    ]
    assert "istio_tcp" not in desk.metrics.render().decode()


def test_only_the_first_finish_counts(desk: Desk) -> None:
    record = desk.open(outbound())

    record.finish(PolicyChanged())
    record.finish(CLEAN)

    assert len(desk.lines()) == 1
    assert desk.samples("connections_opened") == {"-": 1}
    assert desk.samples("connections_closed") == {"DENY": 1}
    assert desk.samples("connections_failed") == {"DENY": 1}


def test_a_drained_connection_has_an_error_but_no_flag(desk: Desk) -> None:
    desk.open(outbound()).finish(Drained())

    assert 'error="connection closed due to connection drain"' in desk.lines()[0]
    assert desk.samples("connections_closed") == {"-": 1}
    assert desk.samples("connections_failed") == {}


def test_a_silenced_access_log_still_counts() -> None:
    desk = Desk(level="access=off,info")

    desk.open(outbound()).finish(CLEAN)
    with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.INBOUND):
        raise Refused(Refusal(Reason.RECURSIVE_CALL))
    unconfigure()

    assert desk.lines() == []
    assert desk.samples("connections_closed") == {"-": 1}


def test_a_record_may_begin_before_it_is_opened(desk: Desk) -> None:
    began = desk.access_log.clock()
    desk.clock.now += 2

    with desk.access_log.connection(
        at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.INBOUND, began=began
    ) as record:
        record.open(outbound())

    assert 'duration="2000ms"' in desk.lines()[0]


def test_the_far_end_of_a_double_tunnel_replaces_the_gateway(desk: Desk) -> None:
    echo = SpiffeId("cluster.local", "far", "echo")
    double = outbound(
        destination_workload=GATEWAY, destination_identity=echo,
        destination_baggage=Baggage(workload_name="echo", namespace="far"),
    )  # fmt: skip

    desk.open(double).finish(CLEAN)

    assert f'dst.workload="echo" dst.namespace="far" dst.identity="{echo}" direction' in desk.lines()[0]


def test_baggage_names_the_source_in_the_line(desk: Desk) -> None:
    desk.open(outbound(direction=Direction.INBOUND, source_workload=None, source_baggage=BAGGAGE)).finish(
        CLEAN
    )

    assert 'src.workload="web-service" src.namespace="far" ' in desk.lines()[0]
    assert 'src.cluster="remote"' in desk.lines()[0]


def test_leaving_without_a_word_is_a_clean_end_once_it_was_open(desk: Desk) -> None:
    with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.INBOUND):
        pass
    assert desk.lines() == []

    with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.INBOUND) as record:
        record.open(outbound())
    assert "error=" not in desk.lines()[0]
    assert desk.samples("connections_closed") == {"-": 1}


def test_a_refusal_of_what_is_known_by_now_is_counted_and_told(desk: Desk) -> None:
    with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.OUTBOUND) as record:
        record.about(outbound(source_workload=None))
        record.about(outbound())
        raise Refused(Refusal(Reason.IO, cause=SystemFailure(111)))

    assert desk.lines()[0].startswith("error\taccess\tconnection complete\t")
    assert desk.lines()[0].endswith('error="io error: Connection refused (os error 111)"')
    assert desk.samples("connections_opened") == {"-": 1}
    assert desk.samples("connections_failed") == {"CONNECT": 1}


def test_what_is_no_refusal_goes_on(desk: Desk) -> None:
    def fail() -> None:
        with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.OUTBOUND) as record:
            record.open(outbound())
            raise KeyError("oh")

    with pytest.raises(KeyError):
        fail()

    assert desk.lines()[0].endswith("error=\"bug: KeyError('oh')\"")


def test_what_the_line_says_of_an_exception() -> None:
    refusal = Refusal(Reason.IO, cause=SystemFailure(111))
    assert ended_by(Refused(refusal)) == refusal
    assert ended_by(KeyError("oh")) == Bug("KeyError('oh')")
    assert ended_by(ExceptionGroup("", [KeyError("oh")])) == Bug("KeyError('oh')")

    async def cancelled(deadline: float) -> object:
        with trio.CancelScope(deadline=deadline) as scope:
            if deadline > 0:
                scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                return ended_by(error)
        raise AssertionError

    assert trio.run(cancelled, -float("inf")) == Drained()
    assert trio.run(cancelled, float("inf")) == PodGone()


def test_refusals_are_counted_by_reason_and_ends_are_not(desk: Desk) -> None:
    with desk.access_log.connection(at("10.0.0.1:1"), at("10.0.0.2:2"), Direction.OUTBOUND):
        raise Refused(Refusal(Reason.RECURSIVE_CALL))
    desk.open(outbound(direction=Direction.INBOUND)).finish(Refusal(Reason.POLICY_REJECTION, "x"))
    desk.open(outbound()).finish(PolicyChanged())

    text = desk.metrics.render().decode()
    assert 'ztunnel_trio_refusals_total{reporter="source",reason="recursive_call"} 1' in text
    assert 'ztunnel_trio_refusals_total{reporter="destination",reason="policy_rejection"} 1' in text
    assert text.count("ztunnel_trio_refusals_total{") == 2
