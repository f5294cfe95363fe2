import pytest

from tests.fakes.machine import loaded
from ztunnel_trio.config import ProxyMode, Unstartable
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts.defaults import INPOD_SOCKET
from ztunnel_trio.grammar import Localhost


def test_defaults() -> None:
    config = loaded()

    assert config.proxy_mode is ProxyMode.SHARED
    assert (config.proxy, config.dns_proxy, config.listeners.socks5_addr) == (True, True, None)
    assert str(config.control.xds_address) == str(config.control.ca_address) == "https://localhost:15012"
    assert config.cluster_id == "Kubernetes"
    assert config.packet_mark == 1337
    assert config.control.auth is None
    assert config.require_original_source is None
    assert config.self_termination_deadline_seconds == 5
    assert config.inpod_uds == INPOD_SOCKET
    assert config.illegal_ports == {15008, 15006, 15001}
    assert config.listeners.admin_addr == Localhost(ipv6=True, port=15000)
    assert str(config.listeners.stats_addr) == "[::]:15020"


BAD = [
    ({"PROXY_MODE": "sidecar"}, "PROXY_MODE must be one of dedicated, shared"),
    (
        {"PROXY_MODE": "dedicated"},
        "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set",
    ),
    ({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b"}, "namespace/name/service-account"),
    (
        {"ENABLE_PROXY": "yes"},
        "invalid env var ENABLE_PROXY=yes (provided string was not `true` or `false`)",
    ),
    ({"XDS_ON_DEMAND": ""}, "invalid env var XDS_ON_DEMAND="),
    (
        {"HTTP2_STREAM_WINDOW_SIZE": "4k"},
        "invalid env var HTTP2_STREAM_WINDOW_SIZE=4k (invalid digit found in string)",
    ),
    ({"HTTP2_STREAM_WINDOW_SIZE": "2147483648"}, "invalid env var HTTP2_STREAM_WINDOW_SIZE=2147483648 (must"),
    (
        {"HTTP2_CONNECTION_WINDOW_SIZE": "1"},
        "invalid env var HTTP2_CONNECTION_WINDOW_SIZE=1 (must be between",
    ),
    ({"HTTP2_FRAME_SIZE": "16383"}, "must be between 16384 and 16777215"),
    ({"POOL_MAX_STREAMS_PER_CONNECTION": "65536"}, "invalid env var POOL_MAX_STREAMS_PER_CONNECTION=65536"),
    ({"POOL_MAX_STREAMS_PER_CONNECTION": "0"}, "invalid env var POOL_MAX_STREAMS_PER_CONNECTION=0"),
    ({"SECRET_TTL": "1.5s"}, "invalid env var SECRET_TTL=1.5s"),
    ({"CONNECTION_TERMINATION_DEADLINE": ""}, "CONNECTION_TERMINATION_DEADLINE= (Empty input)"),
    ({"TERMINATION_GRACE_PERIOD_SECONDS": "-1"}, "invalid env var TERMINATION_GRACE_PERIOD_SECONDS=-1"),
    ({"XDS_ADDRESS": "http://[bad"}, "invalid uri: http://[bad"),
    ({"CA_ADDRESS": ":::"}, "invalid uri: :::"),
    (
        {"XDS_ADDRESS": "http://istiod:15010"},
        "invalid configuration: XDS_ADDRESS=http://istiod:15010: the sch",
    ),
    ({"CA_ADDRESS": "http://ca"}, "invalid configuration: CA_ADDRESS=http://ca: the scheme must be https"),
    (
        {"PROXY_CONFIG": "discoveryAddress: http://d:1"},
        "invalid configuration: discoveryAddress=http://d:1: ",
    ),
    ({"ZTUNNEL_WORKER_THREADS": "150%"}, "percentage must be between 0 and 100"),
    ({"ZTUNNEL_WORKER_THREADS": "2", "ZTUNNEL_RESOURCE_CPU_LIMIT": "x"}, "ZTUNNEL_RESOURCE_CPU_LIMIT=x"),
    (
        {"XDS_ON_DEMAND": "true"},
        "error parsing proxy config: DNS proxy does not currently support on-demand mode",
    ),
    (
        {"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "false"},
        "error parsing proxy config: ztunnel run without any servers enabled",
    ),
    (
        {"ISTIO_META_DNS_PROXY_ADDR": "not-an-address"},
        "invalid configuration: failed to parse DNS_PROXY_ADDR: not-an-address",
    ),
    ({"PROXY_CONFIG": "{"}, "error parsing proxy config: failed parsing proxy config env: "),
    ({"PROXY_CONFIG": "statsPort: 70000"}, "error parsing proxy config: failed parsing proxy config env: "),
    ({"PROXY_CONFIG": "[]"}, "error parsing proxy config: failed parsing proxy config env: "),
    (
        {"LOCAL_XDS": "{}", "LOCAL_XDS_PATH": "x"},
        "invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set",
    ),
    ({"XDS_HEADER_": "x"}, "failed to parse header key: XDS_HEADER_"),
    ({"CA_HEADER_X-BIN": "x"}, "failed to parse header key: CA_HEADER_X-BIN"),
    ({"CA_HEADER_X": "a\x00"}, "failed to parse header value: a\x00"),
]


@pytest.mark.parametrize(("environ", "text"), BAD)
def test_a_bad_value_is_named_with_its_reason(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(environ)

    assert text in str(caught.value)
    assert not isinstance(caught.value, Unstartable)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"COMPLIANCE_POLICY": "pqc"}, "COMPLIANCE_POLICY=pqc requires key exchange by X25519MLKEM768"),
        ({"CA_ADDRESS": ""}, "CA_ADDRESS is empty"),
    ],
)
def test_what_cannot_be_honoured_ends_the_start(environ: dict[str, str], text: str) -> None:
    with pytest.raises(Unstartable, match=text):
        loaded(environ)


@pytest.mark.parametrize(
    ("environ", "mark"),
    [({"PACKET_MARK": "0"}, None), ({"PACKET_MARK": "7"}, 7), ({}, 1337)],
)
def test_packet_marks(environ: dict[str, str], mark: int | None) -> None:
    assert loaded(environ).packet_mark == mark


@pytest.mark.parametrize(
    ("value", "on"), [("true", True), ("TRUE", True), ("false", False), ("", False), ("1", False)]
)
def test_dns_capture(value: str, *, on: bool) -> None:
    assert loaded({"ISTIO_META_DNS_CAPTURE": value}).dns_proxy is on
