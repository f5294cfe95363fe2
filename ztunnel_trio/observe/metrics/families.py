"""The table of metric families: name, kind, labels, text; in the order they are shown.

`docs/reference/metrics.md` is made from this table. Names that begin with `ztunnel_trio_` are ours; the
others are what dashboards for ztunnel ask for (metrics.rs of its proxy, dns and inpod).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.observe.metrics.labels import DNS_LABELS, SOURCE_LABELS, TRAFFIC_LABELS


class FamilyKind(Enum):
    """The value is the TYPE in the exposition."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Present(Enum):
    """In which processes a family exists."""

    ALWAYS = "always"
    DNS = "with the DNS proxy"
    SHARED = "in shared mode"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. The samples of a counter are named with `_total` behind `name`.

    One without labels is 0 until it is set, unless 0 would say something: then it is not shown.
    """

    name: str
    kind: FamilyKind
    text: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    present: Present = Present.ALWAYS
    begins_at_zero: bool = True


OPENED: Final = Family(
    "istio_tcp_connections_opened",
    FamilyKind.COUNTER,
    "The total number of TCP connections opened.",
    TRAFFIC_LABELS,
)
CLOSED: Final = Family(
    "istio_tcp_connections_closed",
    FamilyKind.COUNTER,
    "The total number of TCP connections closed.",
    TRAFFIC_LABELS,
)
RECEIVED: Final = Family(
    "istio_tcp_received_bytes",
    FamilyKind.COUNTER,
    "The size of total bytes received during request in case of a TCP connection.",
    TRAFFIC_LABELS,
)
SENT: Final = Family(
    "istio_tcp_sent_bytes",
    FamilyKind.COUNTER,
    "The size of total bytes sent during response in case of a TCP connection.",
    TRAFFIC_LABELS,
)
FAILED: Final = Family(
    "istio_tcp_connections_failed",
    FamilyKind.COUNTER,
    "The total number of TCP connections that failed to establish (unstable).",
    TRAFFIC_LABELS,
)
ON_DEMAND_DNS: Final = Family(
    "istio_on_demand_dns",
    FamilyKind.COUNTER,
    "The total number of requests that used on-demand DNS (unstable).",
    (*SOURCE_LABELS, "hostname"),
)
SOCKETS_OPEN: Final = Family(
    "istio_tcp_sockets_open",
    FamilyKind.GAUGE,
    "The current number of open TCP sockets (unstable).",
    ("reporter",),
)
DNS_REQUESTS: Final = Family(
    "istio_dns_requests",
    FamilyKind.COUNTER,
    "Total number of DNS requests (unstable).",
    DNS_LABELS,
    present=Present.DNS,
)
DNS_UPSTREAM_REQUESTS: Final = Family(
    "istio_dns_upstream_requests",
    FamilyKind.COUNTER,
    "Total number of DNS requests forwarded to upstream (unstable).",
    DNS_LABELS,
    present=Present.DNS,
)
DNS_UPSTREAM_FAILURES: Final = Family(
    "istio_dns_upstream_failures",
    FamilyKind.COUNTER,
    "Total number of DNS requests forwarded to upstream that failed (unstable).",
    DNS_LABELS,
    present=Present.DNS,
)
DNS_UPSTREAM_DURATION: Final = Family(
    "istio_dns_upstream_request_duration_seconds",
    FamilyKind.HISTOGRAM,
    "Total time in seconds Istio takes to get DNS response from upstream (unstable).",
    DNS_LABELS,
    unit="seconds",
    present=Present.DNS,
)
DNS_UNREAD: Final = Family(
    "ztunnel_trio_dns_unread_questions",
    FamilyKind.COUNTER,
    "Questions in datagrams dropped unread: their pod asks more than its share of the loop (unstable).",
    present=Present.DNS,
)

BUILD: Final = Family("istio_build", FamilyKind.GAUGE, "Istio component build info.", ("component", "tag"))
XDS_TERMINATIONS: Final = Family(
    "istio_xds_connection_terminations",
    FamilyKind.COUNTER,
    "The total number of completed connections to xds server (unstable).",
    ("reason",),
)
XDS_MESSAGES: Final = Family(
    "istio_xds_message", FamilyKind.COUNTER, "Total number of messages received (unstable).", ("url",)
)
XDS_BYTES: Final = Family(
    "istio_xds_message_bytes",
    FamilyKind.COUNTER,
    "Total number of bytes received (unstable).",
    ("url",),
    unit="bytes",
)
CRL_REJECTIONS: Final = Family(
    "istio_crl_policy_rejections",
    FamilyKind.COUNTER,
    "The total number of connections rejected due to CRL certificate revocation (unstable).",
    ("reporter",),
)
CRL_UNTRACKED: Final = Family(
    "istio_crl_untracked_connections",
    FamilyKind.COUNTER,
    "The total number of connections not tracked for CRL enforcement (unstable).",
    ("reporter",),
)
RETRIES: Final = Family(
    "istio_connect_retries",
    FamilyKind.COUNTER,
    "The total number of repeated attempts to connect (unstable).",
    ("reporter",),
)
PROXIES_ACTIVE: Final = Family(
    "workload_manager_active_proxy_count",
    FamilyKind.GAUGE,
    "The total number current workloads with active proxies (unstable).",
    present=Present.SHARED,
)
PROXIES_PENDING: Final = Family(
    "workload_manager_pending_proxy_count",
    FamilyKind.GAUGE,
    "The total number current workloads with pending proxies (unstable).",
    present=Present.SHARED,
)
PROXIES_STARTED: Final = Family(
    "workload_manager_proxies_started",
    FamilyKind.COUNTER,
    "The total number of proxies that were started (unstable).",
    present=Present.SHARED,
)
PROXIES_STOPPED: Final = Family(
    "workload_manager_proxies_stopped",
    FamilyKind.COUNTER,
    "The total number of proxies that were stopped (unstable).",
    present=Present.SHARED,
)

REFUSALS: Final = Family(
    "ztunnel_trio_refusals",
    FamilyKind.COUNTER,
    "Connections that were refused or failed, by reason (unstable).",
    ("reporter", "reason"),
)
FLOODS_CUT: Final = Family(
    "ztunnel_trio_floods_cut",
    FamilyKind.COUNTER,
    "Tunnels ended because their peer flooded them, by kind of frame (unstable).",
    ("kind",),
)
PART_RESTARTS: Final = Family(
    "ztunnel_trio_part_restarts",
    FamilyKind.COUNTER,
    "Parts of the process that failed and were started again, by part (unstable).",
    ("part",),
)
CLOCK_STEPS: Final = Family(
    "ztunnel_trio_clock_steps",
    FamilyKind.COUNTER,
    "How often the wall clock jumped, or the machine was suspended (unstable).",
)
CLOCK_SKEW: Final = Family(
    "ztunnel_trio_clock_skew_seconds",
    FamilyKind.GAUGE,
    "How far this clock was outside the validity of the certificate that came last, 0 within it (unstable).",
    unit="seconds",
)
READY: Final = Family(
    "ztunnel_trio_ready", FamilyKind.GAUGE, "Whether the process is ready, 1 or 0 (unstable)."
)
NOT_READY_SECONDS: Final = Family(
    "ztunnel_trio_not_ready_seconds",
    FamilyKind.GAUGE,
    "For how long the process has waited for what it is not ready without (unstable).",
    ("task",),
    unit="seconds",
)
CERTIFICATES: Final = Family(
    "ztunnel_trio_certificates",
    FamilyKind.GAUGE,
    "Workload identities by the state of their certificate now (unstable).",
    ("state",),
)
CERTIFICATE_LEFT: Final = Family(
    "ztunnel_trio_certificate_left_seconds",
    FamilyKind.GAUGE,
    "How long the workload certificate that ends first is still valid (unstable).",
    unit="seconds",
    begins_at_zero=False,
)
REVOCATIONS_LEFT: Final = Family(
    "ztunnel_trio_revocation_list_left_seconds",
    FamilyKind.GAUGE,
    "How long until the first revocation list should be replaced, negative past it (unstable).",
    unit="seconds",
    begins_at_zero=False,
)
SERIES: Final = Family(
    "ztunnel_trio_series",
    FamilyKind.GAUGE,
    "Label sets held for families whose labels peers can write (unstable).",
    ("of",),
)
SERIES_OVERFLOWED: Final = Family(
    "ztunnel_trio_series_overflowed",
    FamilyKind.COUNTER,
    "Events counted on the overflow series because there were too many label sets (unstable).",
    ("of",),
)

TABLE: Final = (
    BUILD, XDS_TERMINATIONS, XDS_MESSAGES, XDS_BYTES,
    OPENED, CLOSED, RECEIVED, SENT, ON_DEMAND_DNS, FAILED, SOCKETS_OPEN,
    CRL_REJECTIONS, CRL_UNTRACKED, RETRIES,
    DNS_REQUESTS, DNS_UPSTREAM_REQUESTS, DNS_UPSTREAM_FAILURES, DNS_UPSTREAM_DURATION,
    PROXIES_ACTIVE, PROXIES_PENDING, PROXIES_STARTED, PROXIES_STOPPED,
    REFUSALS, FLOODS_CUT, PART_RESTARTS, CLOCK_STEPS, CLOCK_SKEW, READY, NOT_READY_SECONDS,
    CERTIFICATES, CERTIFICATE_LEFT, REVOCATIONS_LEFT, SERIES, SERIES_OVERFLOWED, DNS_UNREAD,
)  # fmt: skip
"""Behind the families of the process and its event loop (`process`), which name none of this program."""
