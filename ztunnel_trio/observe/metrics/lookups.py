"""What is counted of names: DNS queries by who asked, and names resolved on demand."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final

from ztunnel_trio.observe.metrics.exposition import RenderedFamily, float_text, label_text
from ztunnel_trio.observe.metrics.families import (
    DNS_REQUESTS,
    DNS_UPSTREAM_DURATION,
    DNS_UPSTREAM_FAILURES,
    DNS_UPSTREAM_REQUESTS,
    ON_DEMAND_DNS,
    Family,
)
from ztunnel_trio.observe.metrics.labels import DNS_LABELS
from ztunnel_trio.observe.metrics.series import SeriesTable

BOUNDS: Final = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)  # seconds; ztunnel src/dns/metrics.rs


@dataclass(slots=True, eq=False)
class LookupSeries:
    """How often one workload had one name resolved on demand."""

    labels: tuple[str, ...]
    count: int = 0
    touched_at: float = 0.0

    @property
    def is_in_use(self) -> bool:
        return False


@dataclass(slots=True, eq=False)
class DnsSeries:
    """The queries of one workload: how many, how many went upstream, and how long that took."""

    labels: tuple[str, ...]
    requests: int = 0
    upstream: int = 0
    failures: int = 0
    durations: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    touched_at: float = 0.0

    @property
    def is_in_use(self) -> bool:
        return False

    def observe(self, seconds: float) -> None:
        """The resolver upstream took that long."""
        self.durations[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


def lookup_family(table: SeriesTable[LookupSeries]) -> RenderedFamily:
    """The names resolved on demand."""
    return RenderedFamily(
        ON_DEMAND_DNS,
        (
            f"{ON_DEMAND_DNS.name}_total{label_text(zip(ON_DEMAND_DNS.labels, one.labels, strict=True))}"
            f" {one.count}"
            for one in table.every()
        ),
    )


def dns_families(table: SeriesTable[DnsSeries]) -> Iterator[RenderedFamily]:
    """The four of the DNS proxy."""
    every = table.every()

    def counts(family: Family, values: Iterator[tuple[DnsSeries, int]]) -> RenderedFamily:
        return RenderedFamily(
            family, (f"{family.name}_total{dns_text(one)} {count}" for one, count in values if count)
        )

    yield counts(DNS_REQUESTS, ((one, one.requests) for one in every))
    yield counts(DNS_UPSTREAM_REQUESTS, ((one, one.upstream) for one in every))
    yield counts(DNS_UPSTREAM_FAILURES, ((one, one.failures) for one in every))
    yield RenderedFamily(DNS_UPSTREAM_DURATION, (line for one in every for line in duration_lines(one)))


def dns_text(series: DnsSeries) -> str:
    return label_text(zip(DNS_LABELS, series.labels, strict=True))


def duration_lines(series: DnsSeries) -> list[str]:
    """The histogram of one workload; nothing while nobody has gone upstream for it."""
    name, total, lines = DNS_UPSTREAM_DURATION.name, 0, list[str]()
    if not any(series.durations):
        return lines
    rest = list(zip(DNS_LABELS, series.labels, strict=True))
    for bound, count in zip((*BOUNDS, inf), series.durations, strict=True):
        total += count
        most = "+Inf" if bound == inf else float_text(bound)
        lines.append(f"{name}_bucket{label_text([('le', most), *rest])} {total}")
    text = label_text(rest)
    return [*lines, f"{name}_count{text} {total}", f"{name}_sum{text} {float_text(series.seconds)}"]
