"""Every metric family of one process."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ztunnel_trio.observe.metrics.exposition import exposition
from ztunnel_trio.observe.metrics.labels import DNS_LABELS, SOURCE_LABELS, UNKNOWN, Reporter
from ztunnel_trio.observe.metrics.process import LoopWatch, ProcessAndLoop, Worked
from ztunnel_trio.observe.metrics.recent import Recent
from ztunnel_trio.observe.metrics.sockets import OpenSockets, Tally
from ztunnel_trio.observe.metrics.traffic import IDLE_SECONDS, MOST_SERIES, FailedSeries, TrafficSeries

DNS_BUCKETS: Final = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)


class Metrics:
    """The registry of one process.

    Args:
        version: Istio's version, the `tag` of `istio_build`.
        shared: whether the families of the in-pod manager exist.
        dns: whether the families of the DNS proxy exist.
        clock: seconds on any scale, for expiry.
    """

    def __init__(
        self,
        *,
        version: str = UNKNOWN,
        shared: bool = True,
        dns: bool = True,
        clock: Callable[[], float] = time.monotonic,
        most_series: int = MOST_SERIES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.clock = clock
        self._process = ProcessAndLoop()
        self.registry.register(self._process)

        def counter(name: str, text: str, labels: Sequence[str] = (), unit: str = "") -> Counter:
            return Counter(name, text, labels, unit=unit, registry=self.registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        build = gauge("istio_build", "Istio component build info.", ("component", "tag"))
        build.labels("ztunnel", version).set(1)
        text = "The total number of completed connections to xds server (unstable)."
        self._xds_terminations = counter("istio_xds_connection_terminations", text, ("reason",))
        text = "Total number of messages received (unstable)."
        self._xds_messages = counter("istio_xds_message", text, ("url",))
        text = "Total number of bytes received (unstable)."
        self._xds_bytes = counter("istio_xds_message_bytes", text, ("url",), unit="bytes")

        self.traffic = TrafficSeries(clock, most_series, idle_seconds)
        self.registry.register(self.traffic)
        text = "The total number of requests that used on-demand DNS (unstable)."
        self._on_demand_dns = counter("istio_on_demand_dns", text, (*SOURCE_LABELS, "hostname"))
        self._on_demand_recent = Recent(most_series)
        self.registry.register(FailedSeries(self.traffic))
        self._sockets = OpenSockets()
        self.registry.register(self._sockets)
        text = "The total number of connections rejected due to CRL certificate revocation (unstable)."
        self._crl_rejections = counter("istio_crl_policy_rejections", text, ("reporter",))
        text = "The total number of connections not tracked for CRL enforcement (unstable)."
        self._crl_untracked = counter("istio_crl_untracked_connections", text, ("reporter",))
        text = "The total number of repeated attempts to connect (unstable)."
        self._retries = counter("istio_connect_retries", text, ("reporter",))

        self._dns_recent = Recent(most_series)
        self._dns: tuple[Counter, Counter, Counter, Histogram] | None = None
        if dns:
            self._dns = (
                counter("istio_dns_requests", "Total number of DNS requests (unstable).", DNS_LABELS),
                counter(
                    "istio_dns_upstream_requests",
                    "Total number of DNS requests forwarded to upstream (unstable).",
                    DNS_LABELS,
                ),
                counter(
                    "istio_dns_upstream_failures",
                    "Total number of DNS requests forwarded to upstream that failed (unstable).",
                    DNS_LABELS,
                ),
                Histogram(
                    "istio_dns_upstream_request_duration_seconds",
                    "Total time in seconds Istio takes to get DNS response from upstream (unstable).",
                    DNS_LABELS,
                    unit="seconds",
                    buckets=DNS_BUCKETS,
                    registry=self.registry,
                ),
            )
        if shared:
            text = "The total number current workloads with active proxies (unstable)."
            self._active = gauge("workload_manager_active_proxy_count", text)
            text = "The total number current workloads with pending proxies (unstable)."
            self._pending = gauge("workload_manager_pending_proxy_count", text)
            text = "The total number of proxies that were started (unstable)."
            self._started = counter("workload_manager_proxies_started", text)
            text = "The total number of proxies that were stopped (unstable)."
            self._stopped = counter("workload_manager_proxies_stopped", text)
        self._shared = shared

    def watch_loop(self, tell: Callable[[Worked], bool] = lambda _: False) -> None:
        """Count the loop's sleeps from now on; call once, inside `trio.run`.

        `tell` hands what is to be told of each wait to whoever stands in front of it, and is False where
        nobody does.
        """
        watch = self._process.watch = LoopWatch()
        if not tell(watch.worked):  # an instrument takes six calls a turn
            trio.lowlevel.add_instrument(watch)

    # control plane
    def xds_termination(self, reason: str) -> None:
        """A discovery stream ended: `ConnectionError`, `Error`, `Reconnect` or `Complete`."""
        self._xds_terminations.labels(reason).inc()

    def xds_message(self, url: str, size: int) -> None:
        """A response came: its type and the sum of its resources' sizes."""
        self._xds_messages.labels(url).inc()
        self._xds_bytes.labels(url).inc(size)

    # data plane
    def sockets_open(self, reporter: Reporter) -> Tally:
        """The count of accepted sockets of one side; each is served within it."""
        found = self._sockets.of.get(reporter)
        if found is None:
            found = self._sockets.of[reporter] = Tally()
        return found

    def on_demand_dns(self, source: Sequence[str], hostname: str) -> None:
        """A hostname workload was resolved; `source` are the values of `SOURCE_LABELS`."""
        values = (*source, hostname)
        dropped = self._on_demand_recent.use(values)
        if dropped is not None:
            self._on_demand_dns.remove(*dropped)
        self._on_demand_dns.labels(*values).inc()

    def crl_rejection(self, reporter: Reporter) -> None:
        """A peer was turned away, or cut off, because its certificate is revoked."""
        self._crl_rejections.labels(reporter).inc()

    def crl_untracked(self, reporter: Reporter) -> None:
        """A connection's chain could not be watched for later revocation."""
        self._crl_untracked.labels(reporter).inc()

    def connect_retry(self, reporter: Reporter) -> None:
        """A connection attempt is repeated at another endpoint."""
        self._retries.labels(reporter).inc()

    # DNS: `labels` are the values of DNS_LABELS; without the DNS proxy these do nothing
    def dns_request(self, labels: Sequence[str]) -> None:
        """A query came in; counted once for each, before the others are."""
        if self._dns is not None:
            dropped = self._dns_recent.use(tuple(labels))
            if dropped is not None:
                for family in self._dns:
                    family.remove(*dropped)
            self._dns[0].labels(*labels).inc()

    def dns_upstream_request(self, labels: Sequence[str]) -> None:
        """It was passed on to the resolver upstream."""
        if self._dns is not None:
            self._dns[1].labels(*labels).inc()

    def dns_upstream_failure(self, labels: Sequence[str]) -> None:
        """The resolver upstream failed."""
        if self._dns is not None:
            self._dns[2].labels(*labels).inc()

    def dns_upstream_duration(self, labels: Sequence[str], seconds: float) -> None:
        """How long the resolver upstream took."""
        if self._dns is not None:
            self._dns[3].labels(*labels).observe(seconds)

    # in-pod manager; nothing outside shared mode
    def proxies_active(self, count: int) -> None:
        """So many pods have a running proxy."""
        if self._shared:
            self._active.set(count)

    def proxies_pending(self, count: int) -> None:
        """So many pods wait for theirs."""
        if self._shared:
            self._pending.set(count)

    def proxy_started(self) -> None:
        """A pod's proxy was started."""
        if self._shared:
            self._started.inc()

    def proxy_stopped(self) -> None:
        """A pod's proxy was stopped."""
        if self._shared:
            self._stopped.inc()

    def render(self) -> bytes:
        """The OpenMetrics 1.0 text of all families that have samples. Call it on the loop's thread."""
        return exposition(self.registry.collect()).encode("utf-8", "replace")
