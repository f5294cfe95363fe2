"""The five families of connections: one object for one set of labels.

A connection has 27 labels and five families, so its series are kept here instead of in
prometheus-client. The relay adds to two plain integers (`Traffic`); a series sums the live ones when it
is read. Label text is rendered once a series. Idle series are forgotten, oldest first, when there are
more than `MOST_SERIES`, or when they have not moved for `IDLE_SECONDS`: Prometheus takes that as a reset.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ztunnel_trio.observe.metrics.exposition import RenderedFamily, label_text
from ztunnel_trio.observe.metrics.labels import FLAGS_AT, SUCCESS, TRAFFIC_LABELS

MOST_SERIES: Final = 20_000
IDLE_SECONDS: Final = 4 * 3600.0
LOOK_AT: Final = 16  # series looked at to find one that may be forgotten


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
