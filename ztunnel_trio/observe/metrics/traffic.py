"""The five families of connections: one object for one set of labels.

A connection has 27 labels and five families, so its series are kept here instead of in
prometheus-client. The relay adds to two plain integers (`Traffic`); a series sums the live ones when it
is read. Label text is rendered once a series.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ztunnel_trio.observe.metrics.exposition import RenderedFamily, label_text
from ztunnel_trio.observe.metrics.families import CLOSED, FAILED, OPENED, RECEIVED, SENT, Family
from ztunnel_trio.observe.metrics.labels import FLAGS_AT, SUCCESS, TRAFFIC_LABELS
from ztunnel_trio.observe.metrics.series import SeriesLimits, SeriesTable

ROWS_AT_ONCE: Final = 1024  # looked at between two pieces of the text


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

    @property
    def is_in_use(self) -> bool:
        """One of its connections is open."""
        return bool(self.live)

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


class TrafficSeries:
    """All traffic series."""

    def __init__(self, clock: Callable[[], float], limits: SeriesLimits) -> None:
        self.table: SeriesTable[Series] = SeriesTable(Series, clock, limits, fixed=1)

    def __len__(self) -> int:
        return len(self.table)

    def open(self, labels: tuple[str, ...], traffic: Traffic) -> Series:
        """Count a connection opened; its `traffic` is summed until `Series.finish`.

        `labels` are the values of `TRAFFIC_LABELS` without the response flags, with or without the
        four of locality. Those of the series returned differ where they were too long or too many.
        """
        series = self.table.get(labels)
        series.opened += 1
        series.live.add(traffic)
        return series


Counts = tuple[tuple[str, int], ...]
"""By response flags."""


@dataclass(frozen=True, slots=True)
class Row:
    """The numbers of one series, taken together."""

    series: Series
    closed: Counts
    failed: Counts
    received: int
    sent: int


class Scrape:
    """One look at all series, in pieces: no family of a series shows a later moment than another.

    The numbers of a series are taken when its first family is written, so `opened` comes first.
    """

    def __init__(self, traffic: TrafficSeries) -> None:
        self._every = traffic.table.every()
        self._rows: list[Row] = []

    def families(self) -> Iterator[RenderedFamily]:
        """The four that come together."""
        yield RenderedFamily(OPENED, self._opened())
        yield RenderedFamily(CLOSED, self._by_flags(CLOSED, lambda row: row.closed))
        yield RenderedFamily(RECEIVED, (sample(RECEIVED, row, SUCCESS, row.received) for row in self._rows))
        yield RenderedFamily(SENT, (sample(SENT, row, SUCCESS, row.sent) for row in self._rows))

    def failures(self) -> RenderedFamily:
        """The fifth, shown behind the on-demand lookups."""
        return RenderedFamily(FAILED, self._by_flags(FAILED, lambda row: row.failed))

    def _by_flags(self, family: Family, counts: Callable[[Row], Counts]) -> Iterator[str]:
        """A sample for each of a series' response flags: of most series, none."""
        for number, row in enumerate(self._rows, start=1):
            for flags, count in counts(row):
                yield sample(family, row, flags, count)
            if number % ROWS_AT_ONCE == 0:
                yield ""

    def _opened(self) -> Iterator[str]:
        for series in self._every:
            received = series.received + sum([live.to_destination for live in series.live])
            sent = series.sent + sum([live.to_source for live in series.live])
            row = Row(series, tuple(series.closed.items()), tuple(series.failed.items()), received, sent)
            self._rows.append(row)
            yield sample(OPENED, row, SUCCESS, series.opened)


def sample(family: Family, row: Row, flags: str, value: int) -> str:
    """One line of one family."""
    return f"{family.name}_total{row.series.text(flags)} {value}"
