"""The accepted sockets of each side."""

from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ztunnel_trio.observe.metrics.labels import Reporter


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
