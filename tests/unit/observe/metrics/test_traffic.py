import re

from tests.unit.observe.metrics.test_registry import LABELS, with_reporter
from ztunnel_trio.observe.metrics import TRAFFIC_LABELS, Metrics, SeriesLimits, Traffic
from ztunnel_trio.observe.metrics.traffic import Scrape


def test_traffic_labels_keep_their_order_and_flags_their_place() -> None:
    metrics = Metrics()

    metrics.traffic.open(LABELS, Traffic()).finish(Traffic(), "DENY", 0)

    (line,) = re.findall(
        r"^istio_tcp_connections_closed_total\{(.*)\} 1$", metrics.render().decode(), re.MULTILINE
    )
    assert re.findall(r'(\w+)="', line) == list(TRAFFIC_LABELS)
    assert 'response_flags="DENY"' in line


def test_live_bytes_are_summed_when_read() -> None:
    metrics = Metrics()
    first, second = Traffic(), Traffic()
    series = metrics.traffic.open(LABELS, first)
    metrics.traffic.open(LABELS, second)
    first.to_destination, first.to_source, second.to_source = 5, 1, 10
    series.finish(first, "-", 0)
    second.to_destination = 7

    text = metrics.render().decode()

    assert re.search(r"^istio_tcp_received_bytes_total\{.*\} 12$", text, re.MULTILINE)
    assert re.search(r"^istio_tcp_sent_bytes_total\{.*\} 11$", text, re.MULTILINE)
    assert re.search(r"^istio_tcp_connections_opened_total\{.*\} 2$", text, re.MULTILINE)
    assert "istio_tcp_connections_failed" not in text


def test_a_family_shows_no_later_moment_than_another() -> None:
    metrics = Metrics()
    traffic = Traffic()
    series = metrics.traffic.open(LABELS, traffic)
    scrape = Scrape(metrics.traffic)
    opened, closed, *_ = scrape.families()

    lines = list(opened.lines)
    series.finish(traffic, "DENY", 0)

    assert len(lines) == 1
    assert list(closed.lines) == []
    assert list(scrape.failures().lines) == []


def test_too_many_label_sets_are_counted_together_under_their_reporter() -> None:
    metrics = Metrics(clock=lambda: 0.0, limits=SeriesLimits(most=2))
    for number in range(5):
        traffic = Traffic()
        metrics.traffic.open(with_reporter("source", f"w{number}"), traffic).finish(traffic, "-", 0)

    text = metrics.render().decode()

    assert len(metrics.traffic) == 2
    rest = 'reporter="source",source_workload="overflow",'
    assert re.search(rf"^istio_tcp_connections_opened_total\{{{rest}.*\}} 3$", text, re.MULTILINE)
    assert re.search(rf"^istio_tcp_connections_closed_total\{{{rest}.*\}} 3$", text, re.MULTILINE)
    assert 'ztunnel_trio_series_overflowed_total{of="traffic"} 3\n' in text


def test_series_in_use_are_never_forgotten_and_idle_ones_leave_whole() -> None:
    now = [0.0]
    metrics = Metrics(clock=lambda: now[0], limits=SeriesLimits(idle_seconds=60))
    traffic = Traffic()
    metrics.traffic.open(with_reporter("source", "old"), traffic).finish(traffic, "DENY", 0)
    metrics.traffic.open(with_reporter("source", "live"), Traffic())
    now[0] = 61

    metrics.traffic.table.expire()

    text = metrics.render().decode()
    assert 'source_workload="old"' not in text
    assert 'source_workload="live"' in text
