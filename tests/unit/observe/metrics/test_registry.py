import re

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztunnel_trio.observe.metrics import (
    DNS_LABELS,
    SOURCE_LABELS,
    TRAFFIC_LABELS,
    Metrics,
    SeriesLimits,
    Traffic,
)
from ztunnel_trio.observe.metrics.families import (
    CERTIFICATE_LEFT,
    CERTIFICATES,
    NOT_READY_SECONDS,
    PART_RESTARTS,
    REVOCATIONS_LEFT,
)

LABELS = tuple(f"v{number}" for number in range(len(TRAFFIC_LABELS) - 1))
STABLE = {
    "istio_build", "istio_tcp_connections_opened", "istio_tcp_connections_closed", "istio_tcp_received_bytes",
    "istio_tcp_sent_bytes", "process_max_fds", "process_open_fds", "tokio_num_workers",
    "tokio_global_queue_depth", "tokio_num_alive_tasks", "tokio_worker_park_count",
    "tokio_worker_park_unpark_count", "tokio_worker_total_busy_duration_seconds",
}  # fmt: skip


def with_reporter(reporter: str, *rest: str) -> tuple[str, ...]:
    return (reporter, *rest, *LABELS[1 + len(rest) :])


def everything() -> Metrics:
    """A registry in which every family has a sample."""
    metrics = Metrics(version="1.30.0")
    metrics.xds_termination("Reconnect")
    metrics.xds_message("type.googleapis.com/istio.workload.Address", 100)
    metrics.traffic.open(LABELS, Traffic()).finish(Traffic(), "CONNECT", 0)
    metrics.on_demand_dns(["a"] * len(SOURCE_LABELS), "host")
    with metrics.sockets_open("source"):
        pass
    metrics.crl_rejection("destination")
    metrics.crl_untracked("source")
    metrics.connect_retry("source")
    metrics.refusal("source", "NO_ROUTE")
    metrics.flood_cut("PING")
    metrics.count(PART_RESTARTS, "agent")
    metrics.set(NOT_READY_SECONDS, 1.5, "proxy")
    metrics.set(CERTIFICATES, 2, "available")
    metrics.set(CERTIFICATE_LEFT, 3600)
    metrics.set(REVOCATIONS_LEFT, 60.5)
    labels = ["a"] * len(DNS_LABELS)
    metrics.dns_request(labels)
    metrics.dns_upstream_request(labels)
    metrics.dns_upstream_failure(labels)
    metrics.dns_upstream_duration(labels, 0.002)
    return metrics


def families(text: str) -> list[str]:
    return re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)


def test_families_come_in_their_order() -> None:
    assert families(everything().render().decode()) == [
        "process_open_fds",
        "process_max_fds",
        "istio_build",
        "istio_xds_connection_terminations",
        "istio_xds_message",
        "istio_xds_message_bytes",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
        "istio_on_demand_dns",
        "istio_tcp_connections_failed",
        "istio_tcp_sockets_open",
        "istio_crl_policy_rejections",
        "istio_crl_untracked_connections",
        "istio_connect_retries",
        "istio_dns_requests",
        "istio_dns_upstream_requests",
        "istio_dns_upstream_failures",
        "istio_dns_upstream_request_duration_seconds",
        "workload_manager_active_proxy_count",
        "workload_manager_pending_proxy_count",
        "workload_manager_proxies_started",
        "workload_manager_proxies_stopped",
        "ztunnel_trio_refusals",
        "ztunnel_trio_floods_cut",
        "ztunnel_trio_part_restarts",
        "ztunnel_trio_clock_steps",
        "ztunnel_trio_clock_skew_seconds",
        "ztunnel_trio_ready",
        "ztunnel_trio_not_ready_seconds",
        "ztunnel_trio_certificates",
        "ztunnel_trio_certificate_left_seconds",
        "ztunnel_trio_revocation_list_left_seconds",
        "ztunnel_trio_series",
        "ztunnel_trio_dns_unread_questions",
    ]


def test_the_text_is_what_a_parser_of_openmetrics_takes() -> None:
    text = everything().render().decode()

    parsed = {family.name for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]

    assert parsed == set(families(text))
    assert text.endswith("\n# EOF\n")


def test_a_fresh_registry_shows_plain_metrics_only() -> None:
    text = Metrics(version="1.2.3").render().decode()

    assert text[text.index("# HELP istio_build") : text.index("# HELP ztunnel_trio_clock_steps")] == (
        "# HELP istio_build Istio component build info.\n"
        "# TYPE istio_build gauge\n"
        'istio_build{component="ztunnel",tag="1.2.3"} 1\n'
        "# HELP workload_manager_active_proxy_count"
        " The total number current workloads with active proxies (unstable).\n"
        "# TYPE workload_manager_active_proxy_count gauge\n"
        "workload_manager_active_proxy_count 0\n"
        "# HELP workload_manager_pending_proxy_count"
        " The total number current workloads with pending proxies (unstable).\n"
        "# TYPE workload_manager_pending_proxy_count gauge\n"
        "workload_manager_pending_proxy_count 0\n"
        "# HELP workload_manager_proxies_started The total number of proxies that were started (unstable).\n"
        "# TYPE workload_manager_proxies_started counter\n"
        "workload_manager_proxies_started_total 0\n"
        "# HELP workload_manager_proxies_stopped The total number of proxies that were stopped (unstable).\n"
        "# TYPE workload_manager_proxies_stopped counter\n"
        "workload_manager_proxies_stopped_total 0\n"
    )


def test_a_unit_has_its_own_line() -> None:
    metrics = Metrics()
    metrics.xds_message("t", 512)

    assert (
        "# HELP istio_xds_message_bytes Total number of bytes received (unstable).\n"
        "# TYPE istio_xds_message_bytes counter\n"
        "# UNIT istio_xds_message_bytes bytes\n"
        'istio_xds_message_bytes_total{url="t"} 512\n'
    ) in metrics.render().decode()


def test_every_family_that_is_not_stable_says_so() -> None:
    for name, text in re.findall(r"^# HELP (\S+) (.*)$", everything().render().decode(), re.MULTILINE):
        assert ("unstable" in text) is (name not in STABLE), name


def test_help_ends_with_a_full_stop_except_for_process_and_loop() -> None:
    for name, text in re.findall(r"^# HELP (\S+) (.*)$", everything().render().decode(), re.MULTILINE):
        assert text.endswith(".") is not name.startswith(("process_", "tokio_")), name


def test_a_histogram_shows_le_first_and_its_sum_as_a_float() -> None:
    metrics = Metrics()
    metrics.dns_upstream_duration(["a", "udp", "web", "v1"], 0.25)
    metrics.dns_upstream_duration(["a", "udp", "web", "v1"], 0.75)

    text = metrics.render().decode()
    rest = 'request_query_type="a",request_protocol="udp",source_canonical_service="web"'
    rest += ',source_canonical_revision="v1"'
    name = "istio_dns_upstream_request_duration_seconds"
    found = [line for line in text.splitlines() if line.startswith(name)]
    buckets = [("0.0005", 0), ("0.001", 0), ("0.01", 0), ("0.1", 0), ("1.0", 2), ("5.0", 2), ("+Inf", 2)]
    assert f"# UNIT {name} seconds" in text
    assert sorted(found) == sorted(
        [f"{name}_sum{{{rest}}} 1.0", f"{name}_count{{{rest}}} 2"]
        + [f'{name}_bucket{{le="{le}",{rest}}} {count}' for le, count in buckets]
    )


def test_names_asked_for_by_strangers_are_bounded() -> None:
    metrics = Metrics(limits=SeriesLimits(most=2))
    for number in (0, 1, 0, 2):
        metrics.on_demand_dns(["a"] * len(SOURCE_LABELS), f"host{number}")
        metrics.dns_request(["a", "udp", "web", f"v{number}"])

    text = metrics.render().decode()

    assert "host2" not in text
    assert re.search(r'hostname="host0"\} 2$', text, re.MULTILINE)
    assert re.search(r'hostname="overflow"\} 1$', text, re.MULTILINE)
    assert 'source_canonical_revision="v2"' not in text
    overflow = 'request_query_type="a",request_protocol="udp"'
    overflow += ',source_canonical_service="overflow",source_canonical_revision="overflow"'
    assert f"istio_dns_requests_total{{{overflow}}} 1\n" in text
    assert 'ztunnel_trio_series_overflowed_total{of="dns"} 1\n' in text


def test_without_shared_mode_and_dns_their_families_are_absent() -> None:
    metrics = Metrics(shared=False, dns=False)
    labels = ["a"] * len(DNS_LABELS)

    metrics.dns_request(labels)
    metrics.dns_upstream_request(labels)
    metrics.dns_upstream_failure(labels)
    metrics.dns_upstream_duration(labels, 1)
    metrics.proxies(active=1, pending=1)
    metrics.proxy_started()
    metrics.proxy_stopped()

    shown = families(metrics.render().decode())
    assert [name for name in shown if not name.startswith("ztunnel_trio_")] == [
        "process_open_fds",
        "process_max_fds",
        "istio_build",
    ]


def test_the_manager_counts_its_proxies() -> None:
    metrics = Metrics()

    metrics.proxies(active=4, pending=2)
    metrics.proxy_started()
    metrics.proxy_stopped()

    text = metrics.render().decode()
    assert "\nworkload_manager_active_proxy_count 4\n" in text
    assert "\nworkload_manager_pending_proxy_count 2\n" in text
    assert "\nworkload_manager_proxies_started_total 1\n" in text
    assert "\nworkload_manager_proxies_stopped_total 1\n" in text
