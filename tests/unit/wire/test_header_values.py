"""The values of HBONE's headers, as the Rust ztunnel writes and reads them."""

import pytest

from ztunnel_trio.errors import WeBrokeProtocol
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

FULL = Workload(
    cluster="Kubernetes",
    namespace="default",
    workload_name="productpage-v1",
    workload_type="deployment",
    canonical_name="productpage",
    canonical_revision="v1",
    locality=Locality("us-east1", "us-east1-b", "rack"),
)
FULL_HEADER = (
    b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=productpage-v1,"
    b"service.name=productpage,service.version=v1,cloud.region=us-east1,cloud.availability_zone=us-east1-b"
)
FULL_BAGGAGE = Baggage(
    cluster="Kubernetes",
    namespace="default",
    workload_name="productpage-v1",
    service_name="productpage",
    revision="v1",
    region="us-east1",
    zone="us-east1-b",
)


def test_baggage_names_a_workload_in_a_fixed_order() -> None:
    assert encode_baggage(FULL) == FULL_HEADER


def test_empty_members_of_baggage_are_left_out() -> None:
    assert encode_baggage(Workload(cluster="", namespace="default")) == b"k8s.namespace.name=default"
    assert encode_baggage(Workload(cluster="")) == b""


def test_a_name_no_header_can_carry_does_not_break_the_message() -> None:
    assert encode_baggage(Workload(cluster="a\r\nb\N{SNOWMAN}")) == b"k8s.cluster.name=a__b_"


@pytest.mark.parametrize(
    ("lines", "baggage"),
    [
        ([FULL_HEADER], FULL_BAGGAGE),
        (FULL_HEADER.split(b","), FULL_BAGGAGE),  # several header lines are one
        ([b"k8s.cluster.name=,k8s.namespace.name=,k8s.pod.name=,service.name="], Baggage()),
        ([b""], Baggage()),
        ([b"k8s.cronjob.name=a"], Baggage(workload_name="a")),
        ([b"k8s.pod.name=a"], Baggage(workload_name="a")),
        ([b"k8s.job.name=a"], Baggage(workload_name="a")),
        ([b"service.name=a=b,unknown=c,nothing, service.version=d"], Baggage(service_name="a")),
        ([], None),
        ([b"service.name=a", "service.version=ö".encode()], None),
        ([b"service.name=a\x00"], None),
    ],
)
def test_baggage_is_read(lines: list[bytes], baggage: Baggage | None) -> None:
    assert parse_baggage(lines) == baggage


def test_a_fresh_trace_is_version_0_without_flags() -> None:
    trace = TraceParent.generate(bytes(range(TRACE_BYTES)))

    assert str(trace) == "00-000102030405060708090a0b0c0d0e0f-1011121314151617-00"
    assert trace.trace_id == "000102030405060708090a0b0c0d0e0f"
    assert TraceParent.parse(str(trace).encode()) == trace


def test_a_trace_takes_its_number_of_random_bytes() -> None:
    with pytest.raises(WeBrokeProtocol):
        TraceParent.generate(b"short")


TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("value", "trace"),
    [
        (TRACE, TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", flags="01")),
        (TRACE.upper(), TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", flags="01")),
        (None, None),
        (b"", None),
        (TRACE + b"0", None),
        (TRACE.replace(b"-", b"0"), None),  # the right length, not the right parts
        (TRACE.replace(b"4b", b"4g"), None),
        (TRACE.replace(b"4b", b"+b"), None),
        (b"000-" + TRACE[3:35].strip(b"-") + b"-00f067aa0ba902b7-01", None),
        (b"\xc3\xa4" + TRACE[2:], None),
    ],
)
def test_a_trace_is_read(value: bytes | None, trace: TraceParent | None) -> None:
    assert TraceParent.parse(value) == trace


@pytest.mark.parametrize(
    ("client", "service", "value"),
    [
        ("127.0.0.1:80", None, b'for="127.0.0.1:80"'),
        ("[::1]:80", None, b'for="[::1]:80"'),
        ("127.0.0.1:80", "example.com", b'for="127.0.0.1:80";host=example.com'),
    ],
)
def test_forwarded_names_the_client_and_the_service_it_meant(
    client: str, service: str | None, value: bytes
) -> None:
    assert encode_forwarded(SocketAddress.parse(client), service) == value


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"by=identifier;for=identifier;host=example.com;proto=https", "example.com"),
        (b'by=identifier;for=identifier;host="example.com";proto=https', "example.com"),
        (b"by=identifier; host=example.com ;host=other", "example.com"),
        (b"by=identifier;for=identifier;proto=https", None),
        (b"by=identifier;for=identifier;host=;proto=https", None),
        (b'host=""', None),
        (b"Host=example.com", None),
        ("host=exämple.com".encode(), None),
        (b"", None),
        (None, None),
    ],
)
def test_the_host_of_a_forwarded_header_is_read(value: bytes | None, host: str | None) -> None:
    assert parse_forwarded_host(value) == host


@pytest.mark.parametrize(
    ("value", "network", "through"),
    [
        (None, "", False),
        (b"", "", False),
        (b"", "east", True),
        (b"EAST", "east", False),
        (b"west", "east", True),
        (b"west", "", True),
        (b"\xff", "east", True),
    ],
)
def test_another_network_means_a_gateway_between(value: bytes | None, network: str, through: bool) -> None:
    assert came_through_gateway(value, network) is through


def test_a_value_becomes_no_label_of_any_length() -> None:
    baggage = parse_baggage([b"k8s.cluster.name=" + b"c" * 60_000])

    assert baggage == Baggage(cluster="c" * 253)
