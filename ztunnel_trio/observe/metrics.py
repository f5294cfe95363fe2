"""Every metric family, over prometheus-client, and their text form.

Theory of operation. Rare things are prometheus-client's counters and gauges. Traffic is not: a
connection has 27 labels and five families, so its series are kept here, one object for one set of
labels. The relay adds to two plain integers (`Traffic`); a series sums the live ones when it is read.
Label text is rendered once a series. Idle series are forgotten, oldest first, when there are more than
`MOST_SERIES`, or when they have not moved for `IDLE_SECONDS`: Prometheus takes that as a reset.

prometheus-client's own exposition sorts labels by name and shows integers as floats; what dashboards
and tests read keeps the order of ztunnel src/proxy/metrics.rs, so `exposition` is ours.
"""

import os
import resource
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

UNKNOWN: Final = "unknown"
MOST_SERIES: Final = 20_000
IDLE_SECONDS: Final = 4 * 3600.0
LOOK_AT: Final = 16  # series looked at to find one that may be forgotten

Reporter = Literal["source", "destination"]
Worked = Callable[[float, float], None]
"""Told before the event loop waits: the seconds it worked since it last woke, and how long it may wait."""

SOURCE_LABELS: Final = (
    "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
    "source_principal", "source_app", "source_version", "source_cluster",
)  # fmt: skip
DESTINATION_LABELS: Final = (
    "destination_service", "destination_service_namespace", "destination_service_name",
    "destination_workload", "destination_canonical_service", "destination_canonical_revision",
    "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
    "destination_cluster",
)  # fmt: skip
LOCALITY_LABELS: Final = ("source_region", "source_zone", "destination_region", "destination_zone")
TRAFFIC_LABELS: Final = (
    "reporter", *SOURCE_LABELS, *DESTINATION_LABELS,
    "request_protocol", "response_flags", "connection_security_policy", *LOCALITY_LABELS,
)  # fmt: skip
FLAGS_AT: Final = TRAFFIC_LABELS.index("response_flags")
DNS_LABELS: Final = (
    "request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"
)  # fmt: skip
DNS_BUCKETS: Final = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
HOLD_FAMILY: Final = "event_loop_hold_seconds"
HOLD_BUCKETS: Final = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25
)  # fmt: skip
SHORTEST_HOLD: Final = HOLD_BUCKETS[0]

SUCCESS: Final = "-"


@dataclass(slots=True, eq=False)
class Traffic:
    """The bytes of one live connection, counted when written: towards and from the destination."""

    to_destination: int = 0
    to_source: int = 0


@dataclass(slots=True, eq=False)
class Series:
    """Everything counted for one set of traffic labels (without `response_flags`)."""

    labels: tuple[str, ...]
    opened: int = 0
    received: int = 0
    sent: int = 0
    closed: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    live: set[Traffic] = field(default_factory=set)
    touched_at: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)

    def text(self, flags: str) -> str:
        """The labels in text form with these response flags."""
        found = self.texts.get(flags)
        if found is None:
            values = (*self.labels[:FLAGS_AT], flags, *self.labels[FLAGS_AT:])
            found = self.texts[flags] = label_text(zip(TRAFFIC_LABELS, values, strict=False))
        return found

    def finish(self, traffic: Traffic, flags: str, now: float) -> None:
        """The connection ended: keep its bytes, count it closed, and failed unless it succeeded."""
        self.live.discard(traffic)
        self.received += traffic.to_destination
        self.sent += traffic.to_source
        self.closed[flags] = self.closed.get(flags, 0) + 1
        if flags != SUCCESS:
            self.failed[flags] = self.failed.get(flags, 0) + 1
        self.touched_at = now


class RenderedFamily(Metric):
    """A family whose samples exist as text already."""

    def __init__(self, name: str, documentation: str, lines: list[str], kind: str = "counter") -> None:
        super().__init__(name, documentation, kind)
        self.lines = lines


class TrafficSeries(Collector):
    """All traffic series, least recently used first."""

    def __init__(self, clock: Callable[[], float], most: int, idle_seconds: float) -> None:
        self._clock = clock
        self._most = most
        self._idle_seconds = idle_seconds
        self._series: OrderedDict[tuple[str, ...], Series] = OrderedDict()

    def __len__(self) -> int:
        return len(self._series)

    def open(self, labels: tuple[str, ...], traffic: Traffic) -> Series:
        """Count a connection opened; its `traffic` is summed until `Series.finish`.

        `labels` are the values of `TRAFFIC_LABELS` without the response flags, with or without the
        four of locality.
        """
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series(labels)
        else:
            self._series.move_to_end(labels)
        series.opened += 1
        series.live.add(traffic)
        series.touched_at = self._clock()
        if len(self._series) > self._most:
            self._forget_one()
        return series

    def _forget_one(self) -> None:
        for _ in range(LOOK_AT):
            labels, series = self._series.popitem(last=False)
            if not series.live:
                return
            self._series[labels] = series  # in use: it counts as recent

    def expire(self) -> None:
        """Forget what has been idle for too long."""
        limit = self._clock() - self._idle_seconds
        idle = [key for key, series in self._series.items() if not series.live and series.touched_at < limit]
        for key in idle:
            del self._series[key]

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        self.expire()
        every = list(self._series.values())
        name = "istio_tcp_connections_opened"
        lines = [f"{name}_total{series.text(SUCCESS)} {series.opened}" for series in every]
        yield RenderedFamily(name, "The total number of TCP connections opened.", lines)
        name = "istio_tcp_connections_closed"
        lines = [f"{name}_total{s.text(flags)} {count}" for s in every for flags, count in s.closed.items()]
        yield RenderedFamily(name, "The total number of TCP connections closed.", lines)
        name = "istio_tcp_received_bytes"
        lines = [
            f"{name}_total{s.text(SUCCESS)} {s.received + sum(t.to_destination for t in s.live)}"
            for s in every
        ]
        text = "The size of total bytes received during request in case of a TCP connection."
        yield RenderedFamily(name, text, lines)
        name = "istio_tcp_sent_bytes"
        lines = [f"{name}_total{s.text(SUCCESS)} {s.sent + sum(t.to_source for t in s.live)}" for s in every]
        text = "The size of total bytes sent during response in case of a TCP connection."
        yield RenderedFamily(name, text, lines)

    def failures(self) -> RenderedFamily:
        """The fifth family, shown behind the on-demand lookups."""
        name = "istio_tcp_connections_failed"
        every = self._series.values()
        lines = [f"{name}_total{s.text(flags)} {count}" for s in every for flags, count in s.failed.items()]
        return RenderedFamily(
            name, "The total number of TCP connections that failed to establish (unstable).", lines
        )


class FailedSeries(Collector):
    """`TrafficSeries.failures` as a collector of its own, for its place in the order."""

    def __init__(self, traffic: TrafficSeries) -> None:
        self._traffic = traffic

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield self._traffic.failures()


class Tally:
    """How many bodies of `with tally:` run now. A Gauge makes eight calls for each of the two additions."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class OpenSockets(Collector):
    """The accepted sockets of each side."""

    def __init__(self) -> None:
        self.of: dict[Reporter, Tally] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        name = "istio_tcp_sockets_open"
        family = Metric(name, "The current number of open TCP sockets (unstable).", "gauge")
        for reporter, tally in self.of.items():
            family.add_sample(name, {"reporter": reporter}, tally.count)
        yield family


class LoopWatch(trio.abc.Instrument):
    """Counts how often the event loop went to sleep, and the turns in which it let nobody in.

    An instrument where nobody else stands in front of the loop's wait to call `worked`.
    """

    def __init__(self) -> None:
        self.parked = 0
        self.holds = [0] * (len(HOLD_BUCKETS) + 1)
        self.turns = 0
        self.held_seconds = 0.0
        self._began = time.perf_counter()

    def worked(self, held: float, timeout: float) -> None:
        """The loop worked for `held` seconds and waits now, for up to `timeout`."""
        self.turns += 1
        self.held_seconds += held
        if held > SHORTEST_HOLD:
            self.holds[bisect_left(HOLD_BUCKETS, held)] += 1
        if timeout > 0:
            self.parked += 1

    def before_io_wait(self, timeout: float) -> None:
        self.worked(time.perf_counter() - self._began, timeout)

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def hold_lines(self) -> list[str]:
        """The histogram of holds, as samples."""
        self.holds[0] = self.turns - sum(self.holds[1:])
        total, lines = 0, []
        for bound, count in zip((*HOLD_BUCKETS, inf), self.holds, strict=True):
            total += count
            most = "+Inf" if bound == inf else float_text(bound)
            lines.append(f'{HOLD_FAMILY}_bucket{{le="{most}"}} {total}')
        lines += [f"{HOLD_FAMILY}_count {total}", f"{HOLD_FAMILY}_sum {float_text(self.held_seconds)}"]
        return lines


class ProcessAndLoop(Collector):
    """The process and its event loop, under the names dashboards ask for.

    There is one event loop: the `tokio_` families describe it truthfully as one worker. Busy time is
    the CPU time of the loop's thread; the queue is the tasks that are ready to run.
    """

    def __init__(self) -> None:
        self.watch: LoopWatch | None = None

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield single("process_open_fds", "Number of open file descriptors", "gauge", count_descriptors())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield single("process_max_fds", "Maximum number of file descriptors", "gauge", most)
        try:
            loop = trio.lowlevel.current_statistics()
        except RuntimeError:  # read outside the loop
            return
        yield single("tokio_num_workers", "the number of worker threads used by the runtime", "gauge", 1)
        text = "the number of tasks currently scheduled in the runtime's global queue"
        yield single("tokio_global_queue_depth", text, "gauge", loop.tasks_runnable)
        text = "the number of alive tasks in the runtime"
        yield single("tokio_num_alive_tasks", text, "gauge", loop.tasks_living)
        name = "tokio_worker_total_busy_duration_seconds"
        line = f'{name}_total{{worker="0"}} {float_text(time.thread_time())}'
        yield RenderedFamily(name, "the amount of time worker threads have been busy", [line])
        if self.watch is not None:
            name = "tokio_worker_park_count"
            text = "the total number of times the given worker thread has parked"
            yield RenderedFamily(name, text, [f'{name}_total{{worker="0"}} {self.watch.parked}'])
            name = "tokio_worker_park_unpark_count"
            both = 2 * self.watch.parked  # whoever reads this is awake
            text = "the total number of times the given worker thread has parked and unparked"
            yield RenderedFamily(name, text, [f'{name}_total{{worker="0"}} {both}'])
            text = "how long the event loop worked before it looked at the network again (unstable)"
            yield RenderedFamily(HOLD_FAMILY, text, self.watch.hold_lines(), "histogram")


class Recent:
    """The label values used last, at most so many; tells which to drop when a new one comes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def use(self, values: tuple[str, ...]) -> tuple[str, ...] | None:
        """Note a use; returns the values whose series are to be removed, if any."""
        if values in self._used:
            self._used.move_to_end(values)
            return None
        self._used[values] = None
        return self._used.popitem(last=False)[0] if len(self._used) > self._most else None


def single(name: str, documentation: str, kind: str, value: int) -> Metric:
    """A family of one sample without labels."""
    family = Metric(name, documentation, kind)
    family.add_sample(name, {}, value)
    return family


def count_descriptors() -> int:
    """The process's open descriptors, without the one used for counting."""
    return len(os.listdir("/dev/fd")) - 1


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


# ------------------------------------------------------------------------------------------ text form


def exposition(families: Iterable[Metric]) -> str:
    """OpenMetrics text: HELP, TYPE, UNIT and samples of each family that has samples, then `# EOF`."""
    lines: list[str] = []
    for family in families:
        if isinstance(family, RenderedFamily):
            samples = family.lines
        else:
            samples = [sample_text(family, sample.name, sample.labels, sample.value)
                       for sample in family.samples if not sample.name.endswith("_created")]  # fmt: skip
        if samples:
            lines.append(f"# HELP {family.name} {escape_help(family.documentation)}")
            lines.append(f"# TYPE {family.name} {family.type}")
            if family.unit:
                lines.append(f"# UNIT {family.name} {family.unit}")
            lines += samples
    lines.append("# EOF\n")
    return "\n".join(lines)


def sample_text(family: Metric, name: str, labels: dict[str, str], value: float) -> str:
    """One sample; of a histogram the sum is a float and `le` comes first."""
    pairs = list(labels.items())
    if family.type == "histogram":
        pairs.sort(key=lambda pair: pair[0] != "le")
    is_float = name.endswith("_sum") and family.type == "histogram"
    shown = float_text(value) if is_float or value != int(value) else str(int(value))
    return f"{name}{label_text(pairs)} {shown}"


def label_text(pairs: Iterable[tuple[str, str]]) -> str:
    """`{a="b",c="d"}` in the order given; nothing for no labels."""
    inner = ",".join([f'{name}="{escape_label(value)}"' for name, value in pairs])
    return f"{{{inner}}}" if inner else ""


def escape_label(value: str) -> str:
    """Backslash, double quote and newline escaped (OpenMetrics 1.0, escaping)."""
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def float_text(value: float) -> str:
    """A float with its decimal point, never in scientific form."""
    return repr(value) if "e" not in repr(value) else f"{value:.9f}"
