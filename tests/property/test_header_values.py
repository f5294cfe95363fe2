"""Properties of HBONE's header values: none of them can be wrong, only absent."""

import string

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.workload import Locality, Workload
from ztunnel_trio.wire.header_values import (
    TRACE_BYTES,
    TraceParent,
    came_through_gateway,
    encode_baggage,
    encode_forwarded,
    parse_baggage,
    parse_forwarded_host,
)

values = st.text(string.ascii_letters + string.digits + ".-_ ", max_size=12)
near_headers = st.text(st.sampled_from('k8s.cluster.name=,;host="0a-\t\x00é'), max_size=60).map(str.encode)
headers = st.binary(max_size=80) | near_headers
workloads = st.builds(
    Workload,
    cluster=values,
    namespace=values,
    workload_name=values,
    workload_type=st.sampled_from(["deployment", "cronjob", "pod", "job"]),
    canonical_name=values,
    canonical_revision=values,
    locality=st.builds(Locality, values, values),
)


# ztunnel src/baggage.rs: "k8s.cluster.name=…,k8s.namespace.name=…,…", empty values are absent
@given(workloads)
def test_baggage_is_read_as_written(workload: Workload) -> None:
    assert parse_baggage([encode_baggage(workload)]) == Baggage(
        cluster=workload.cluster or None,
        namespace=workload.namespace or None,
        workload_name=workload.workload_name or None,
        service_name=workload.canonical_name or None,
        revision=workload.canonical_revision or None,
        region=workload.locality.region or None,
        zone=workload.locality.zone or None,
    )


@given(st.builds(Workload, cluster=st.text(), canonical_name=st.text()))
def test_written_baggage_is_always_a_header(workload: Workload) -> None:
    assert parse_baggage([encode_baggage(workload)]) is not None


@given(st.lists(headers, max_size=3))
def test_any_bytes_are_baggage_or_none(lines: list[bytes]) -> None:
    assert parse_baggage(lines) is None or lines


# W3C trace context 3.2: version "-" trace-id "-" parent-id "-" trace-flags, lower-case hexadecimal
@given(st.binary(min_size=TRACE_BYTES, max_size=TRACE_BYTES))
def test_a_trace_is_read_as_written(chance: bytes) -> None:
    trace = TraceParent.generate(chance)

    assert TraceParent.parse(str(trace).encode()) == trace


@given(headers | st.text(st.sampled_from("0123456789abcdef-g"), min_size=55, max_size=55).map(str.encode))
def test_any_bytes_are_a_trace_or_none(value: bytes) -> None:
    trace = TraceParent.parse(value)

    assert trace is None or str(trace).encode() == value.lower()


@given(st.ip_addresses(), st.integers(0, 65535), st.from_regex(r"[a-z0-9.*-]{1,40}", fullmatch=True))
def test_the_forwarded_host_is_read_as_written(ip: object, port: int, host: str) -> None:
    client = SocketAddress(ip, port)  # type: ignore[arg-type]

    assert parse_forwarded_host(encode_forwarded(client, host)) == host
    assert parse_forwarded_host(encode_forwarded(client, None)) is None


@given(headers, st.text(max_size=10))
def test_any_bytes_are_a_forwarded_header_and_a_network(value: bytes, network: str) -> None:
    assert parse_forwarded_host(value) != ""
    assert came_through_gateway(value, network) == (value.lower() != network.encode().lower())
