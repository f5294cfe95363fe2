import json

import pytest

from tests.fakes.machine import FakeMachine, loaded
from ztunnel_trio.config import (
    INPOD_SOCKET,
    LOOPBACK_IPV6_FILE,
    MESH_FILE,
    RESOLV_CONF,
    ROOT_FILE,
    TOKEN_FILE,
    ProxyMode,
    ThisMachine,
    Unstartable,
    load,
)
from ztunnel_trio.config_document import dump_config
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.grammar import Localhost
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.source import FromFile, Literal, SystemRoots
from ztunnel_trio.model.workload import WorkloadInfo


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


def test_a_machine_without_resolvers_cannot_start() -> None:
    with pytest.raises(Unstartable, match="no name servers"):
        loaded(files={RESOLV_CONF: "search x\n"})
    with pytest.raises(Unstartable, match=r"failed to read /etc/resolv\.conf: Permission denied"):
        load({}, FakeMachine(failing=frozenset({RESOLV_CONF})))


def test_a_dedicated_proxy_knows_who_it_is() -> None:
    config = loaded({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/name/sa/rest"})

    assert config.proxy_workload_information == WorkloadInfo("name", "ns", "sa/rest")
    assert config.packet_mark is None


def test_a_shared_proxy_ignores_who_it_is() -> None:
    assert loaded({"PROXY_WORKLOAD_INFO": "nonsense"}).proxy_workload_information is None


@pytest.mark.parametrize(
    ("environ", "mark"),
    [({"PACKET_MARK": "0"}, None), ({"PACKET_MARK": "7"}, 7), ({}, 1337)],
)
def test_packet_marks(environ: dict[str, str], mark: int | None) -> None:
    assert loaded(environ).packet_mark == mark


def test_the_proxys_own_identity_needs_three_names() -> None:
    names = {"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "POD_NAME": "ztunnel-a"}

    config = loaded({**names, "TRUST_DOMAIN": "td"})

    assert str(config.ztunnel_identity) == "spiffe://td/ns/istio-system/sa/ztunnel"
    assert config.ztunnel_workload == WorkloadInfo("ztunnel-a", "istio-system", "ztunnel")
    assert (config.told.pod_name, config.told.pod_namespace) == ("ztunnel-a", "istio-system")
    for missing in names:
        partly = loaded({name: value for name, value in names.items() if name != missing})
        assert (partly.ztunnel_identity, partly.ztunnel_workload) == (None, None)


@pytest.mark.parametrize(
    ("environ", "xds", "ca"),
    [
        ({"KUBERNETES_SERVICE_HOST": ""}, "https://istiod.istio-system.svc:15012", "same"),
        ({"XDS_ADDRESS": ""}, None, "https://localhost:15012"),
        ({"XDS_ADDRESS": "istiod:15012", "CA_ADDRESS": "HTTPS://ca"}, "https://istiod:15012", "HTTPS://ca"),
        ({"PROXY_CONFIG": "discoveryAddress: d:1"}, "https://d:1", "https://localhost:15012"),
        ({"FAKE_CA": "true", "CA_ADDRESS": ""}, "https://localhost:15012", None),
    ],
)
def test_addresses_of_control_plane_and_ca(environ: dict[str, str], xds: str | None, ca: str | None) -> None:
    config = loaded(environ)

    assert (None if config.control.xds_address is None else str(config.control.xds_address)) == xds
    assert (None if config.control.ca_address is None else str(config.control.ca_address)) == (
        xds if ca == "same" else ca
    )


@pytest.mark.parametrize(
    ("environ", "files", "roots"),
    [
        ({}, {ROOT_FILE: "PEM"}, FromFile(ROOT_FILE)),
        ({}, {}, Literal(ROOT_FILE)),
        ({"XDS_ROOT_CA": "/roots.pem"}, {"/roots.pem": "PEM"}, FromFile("/roots.pem")),
        ({"XDS_ROOT_CA": "SYSTEM"}, {}, SystemRoots()),
        ({"XDS_ROOT_CA": "SYSTEM"}, {"SYSTEM": "PEM"}, FromFile("SYSTEM")),
        ({"XDS_ROOT_CA": "-----BEGIN CERTIFICATE-----"}, {}, Literal("-----BEGIN CERTIFICATE-----")),
    ],
)
def test_trusted_roots(environ: dict[str, str], files: dict[str, str], roots: object) -> None:
    assert loaded(environ, files).control.xds_root_cert == roots


def test_a_root_file_that_is_missing_is_told() -> None:
    notes = loaded({"XDS_ROOT_CA": "/missing"}).notes

    assert any("XDS_ROOT_CA: there is no file /missing" in note for note in notes)
    assert loaded({"XDS_ADDRESS": "", "FAKE_CA": "true"}).notes == ()  # nobody to trust, nothing to tell


@pytest.mark.parametrize(
    ("environ", "files", "auth"),
    [
        ({}, {}, None),
        ({}, {TOKEN_FILE: "t"}, FromFile(TOKEN_FILE)),
        ({"AUTH_TOKEN": "/token"}, {"/token": "t"}, FromFile("/token")),
        ({"AUTH_TOKEN": "secret"}, {}, Literal("secret")),
        ({"AUTH_TOKEN": ""}, {TOKEN_FILE: "t"}, None),
    ],
)
def test_tokens(environ: dict[str, str], files: dict[str, str], auth: object) -> None:
    assert loaded(environ, files).control.auth == auth


@pytest.mark.parametrize("path", ["/no/token", "./token", "../token"])
def test_a_token_file_that_is_missing_is_told_without_its_text(path: str) -> None:
    notes = loaded({"AUTH_TOKEN": path}).notes

    assert any("AUTH_TOKEN looks like a path, but there is no such file" in note for note in notes)
    assert not any(path in note for note in notes)
    assert not any("AUTH_TOKEN" in note for note in loaded({"AUTH_TOKEN": "abc/def=="}).notes)
    assert not any("AUTH_TOKEN" in note for note in loaded({"AUTH_TOKEN": path}, {path: "t"}).notes)


def test_secrets_are_shown_nowhere() -> None:
    config = loaded({"AUTH_TOKEN": "tell-nobody", "LOCAL_XDS": "tell-nobody", "CA_ROOT_CA": "tell-nobody"})

    assert "tell-nobody" not in json.dumps(dump_config(config))
    assert "tell-nobody" not in repr(config).replace("notes=", "")[: repr(config).index("notes=")]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 5),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "2"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "1500ms"}, 1.5),
    ],
)
def test_the_drains_deadline(environ: dict[str, str], seconds: float) -> None:
    assert loaded(environ).self_termination_deadline_seconds == seconds


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, 2),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "500m"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "2500m"}, 3),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "1.5"}, 2),
        ({"ZTUNNEL_CPU_LIMIT": "32"}, 8),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "4", "ZTUNNEL_RESOURCE_CPU_REQUEST": "8"}, 8),
        ({"ZTUNNEL_RESOURCE_CPU_REQUEST": "5"}, 5),
        ({"ZTUNNEL_CPU_LIMIT": "16", "ZTUNNEL_WORKER_THREADS": "30%"}, 5),
        ({"ZTUNNEL_CPU_LIMIT": "4", "ZTUNNEL_WORKER_THREADS": "10%"}, 1),
        ({"ZTUNNEL_CPU_LIMIT": "4", "ZTUNNEL_WORKER_THREADS": "0"}, 4),
        ({"ZTUNNEL_WORKER_THREADS": "7"}, 7),
        ({"PROXY_CONFIG": "concurrency: 3"}, 3),
        ({"PROXY_CONFIG": "concurrency: 0", "ZTUNNEL_CPU_LIMIT": "6"}, 6),
        ({"PROXY_CONFIG": "concurrency: 0", "ZTUNNEL_RESOURCE_CPU_LIMIT": "nonsense"}, 2),
    ],
)
def test_worker_threads_are_computed_for_show(environ: dict[str, str], threads: int) -> None:
    assert loaded(environ).num_worker_threads == threads


MESH = """
defaultConfig:
  discoveryAddress: istiod.istio-system-rev0.svc:15012
  proxyAdminPort: 15099
  statsPort: 15888
  unknownKey: [1]
  proxyMetadata:
    ISTIO_META_FOO: foo
trustDomain: ignored
"""
OVER = """
proxyAdminPort: 15999
proxyMetadata:
  ISTIO_META_FOO: over
  ISTIO_META_BAR: bar
  NO_PREFIX: kept
"""


def test_the_mesh_file_alone() -> None:
    config = loaded(files={MESH_FILE: MESH})

    assert (config.listeners.stats_addr.port, config.listeners.admin_addr.port) == (15888, 15099)
    assert config.told.proxy_metadata == {"FOO": "foo"}
    assert config.cluster_id == "Kubernetes"
    assert str(config.control.xds_address) == "https://istiod.istio-system-rev0.svc:15012"


def test_the_environment_goes_over_the_mesh_file() -> None:
    environ = {
        "PROXY_CONFIG": OVER,
        "ISTIO_META_INCLUDE_THIS": "this",
        "ISTIO_META_ISTIO_META_TWICE": "twice",
        "NOT_INCLUDE": "not",
        "ISTIO_META_CLUSTER_ID": "test-cluster",
        "CLUSTER_ID": "loses",
        "XDS_HEADER_HEADER_FOO": "foo",
        "CA_HEADER_HEADER_BAR": "bar",
    }

    config = loaded(environ, {MESH_FILE: MESH})

    assert (config.listeners.stats_addr.port, config.listeners.admin_addr.port) == (15888, 15999)
    assert config.listeners.readiness_addr.port == 15021
    assert config.told.proxy_metadata == {
        "FOO": "over",
        "BAR": "bar",
        "NO_PREFIX": "kept",
        "INCLUDE_THIS": "this",
        "TWICE": "twice",
        "CLUSTER_ID": "test-cluster",
    }
    assert config.cluster_id == "test-cluster"
    assert config.control.xds_headers == (("header_foo", "foo"),)
    assert config.control.ca_headers == (("header_bar", "bar"),)


@pytest.mark.parametrize("text", ["", "[]", "{", "defaultConfig: 7", "a: b: c", "2001-99-99"])
def test_a_mesh_file_that_makes_no_sense_ends_the_start(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"error parsing proxy config: failed parsing mesh config file {MESH_FILE}: "
    ):
        loaded(files={MESH_FILE: text})


def test_a_mesh_file_that_cannot_be_read_ends_the_start() -> None:
    with pytest.raises(ConfigError, match=r"mesh config file .*: Permission denied \(os error 13\)"):
        load({}, FakeMachine(failing=frozenset({MESH_FILE})))


def test_an_empty_default_config_is_fine() -> None:
    assert loaded({"PROXY_CONFIG": ""}, {MESH_FILE: "defaultConfig: null"}).listeners.stats_addr.port == 15020


def test_without_ipv6_only_ipv4_is_bound() -> None:
    config = loaded({"IPV6_ENABLED": "false", "UNSTABLE_ENABLE_SOCKS5": "true"})

    assert str(config.listeners.inbound_addr) == "0.0.0.0:15008"
    assert config.listeners.admin_addr == Localhost(ipv6=False, port=15000)
    assert config.listeners.socks5_addr == SocketAddress.parse("127.0.0.1:15080")
    assert 15080 in config.illegal_ports


def test_ipv6_may_be_off_on_loopback_alone() -> None:
    config = loaded(files={LOOPBACK_IPV6_FILE: "1\n"})

    assert config.listeners.admin_addr == Localhost(ipv6=False, port=15000)
    assert str(config.listeners.inbound_addr) == "[::]:15008"


def test_an_unreadable_switch_counts_as_ipv6_on() -> None:
    config = load({}, FakeMachine(failing=frozenset({LOOPBACK_IPV6_FILE})))

    assert config.ipv6_loopback
    assert "Permission denied; taking IPv6 as enabled" in config.notes[0]


@pytest.mark.parametrize(
    ("value", "on"), [("true", True), ("TRUE", True), ("false", False), ("", False), ("1", False)]
)
def test_dns_capture(value: str, *, on: bool) -> None:
    assert loaded({"ISTIO_META_DNS_CAPTURE": value}).dns_proxy is on


def test_where_the_dns_proxy_listens() -> None:
    assert loaded().listeners.dns_proxy_addr == Localhost(ipv6=True, port=15053)
    assert loaded(
        {"ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:53"}
    ).listeners.dns_proxy_addr == SocketAddress.parse("127.0.0.1:53")


def test_values_that_are_not_utf8_count_as_unset() -> None:
    assert loaded({"ENABLE_PROXY": "\udcff", "CLUSTER_ID": "\udcff"}).cluster_id == "Kubernetes"


def test_flags_are_on_only_when_exactly_true() -> None:
    on = loaded({"TLS12_ENABLED": "true", "AUTHZ_POLICY_INFO_LOGGING": "true"})
    off = loaded({"TLS12_ENABLED": "True", "AUTHZ_POLICY_INFO_LOGGING": "1"})

    assert (on.tls12_enabled, on.authz_policy_info_logging) == (True, True)
    assert (off.tls12_enabled, off.authz_policy_info_logging) == (False, False)


def test_metadata_in_json_is_parsed_and_bad_metadata_left_out() -> None:
    config = loaded({"ISTIO_METAJSON_GOOD": '{"a": [1]}', "ISTIO_METAJSON_BAD": "{"})

    assert config.told.node_metadata_json == {"GOOD": {"a": [1]}}
    assert any(note.startswith("ISTIO_METAJSON_BAD is left out") for note in config.notes)


def test_other_policies_have_no_effect() -> None:
    assert loaded({"COMPLIANCE_POLICY": "fips-140-2"}) == loaded({})


def test_the_crl_path_may_be_empty() -> None:
    assert loaded({"CRL_PATH": ""}).control.crl_path is None
    assert loaded({"CRL_PATH": "/crl.pem"}).control.crl_path == "/crl.pem"


def test_this_machine_is_asked_for_real(tmp_path: object) -> None:
    machine = ThisMachine()

    assert machine.cpu_count() >= 1
    assert machine.exists("/proc/self/status")
    assert not machine.exists("-----BEGIN CERTIFICATE-----\x00" + "x" * 5000)
    assert "Name:" in machine.read_text("/proc/self/status")
