"""Every metric family of one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import trio

from ztunnel_trio.observe.metrics import families
from ztunnel_trio.observe.metrics.exposition import RenderedFamily, exposition
from ztunnel_trio.observe.metrics.families import Family, Present
from ztunnel_trio.observe.metrics.labels import UNKNOWN, Reporter
from ztunnel_trio.observe.metrics.lookups import DnsSeries, LookupSeries, dns_families, lookup_family
from ztunnel_trio.observe.metrics.memory import give_back
from ztunnel_trio.observe.metrics.plain import PlainFamily, Values
from ztunnel_trio.observe.metrics.process import LoopWatch, ProcessAndLoop, Worked
from ztunnel_trio.observe.metrics.series import SeriesLimits, SeriesTable
from ztunnel_trio.observe.metrics.tally import Tally
from ztunnel_trio.observe.metrics.traffic import Scrape, Series, TrafficSeries

SWEEP_SECONDS: Final = 60.0
MANY_GONE: Final = 2000  # label sets; some 10 MiB
KEPT_APART: Final = frozenset(
    {families.OPENED, families.CLOSED, families.RECEIVED, families.SENT, families.FAILED}
    | {families.ON_DEMAND_DNS, families.DNS_REQUESTS, families.DNS_UPSTREAM_REQUESTS}
    | {families.DNS_UPSTREAM_FAILURES, families.DNS_UPSTREAM_DURATION}
)  # their labels are bounded tables


Table = SeriesTable[Series] | SeriesTable[LookupSeries] | SeriesTable[DnsSeries]


class Metrics:
    """The registry of one process.

    Args:
        version: Istio's version, the `tag` of `istio_build`.
        shared: whether the families of the in-pod manager exist.
        dns: whether the families of the DNS proxy exist.
        clock: seconds on any scale, for expiry.
        limits: of each table of label sets that peers can write.
    """

    def __init__(
        self,
        *,
        version: str = UNKNOWN,
        shared: bool = True,
        dns: bool = True,
        clock: Callable[[], float] = time.monotonic,
        limits: SeriesLimits | None = None,
    ) -> None:
        limits = SeriesLimits() if limits is None else limits
        present = (
            {Present.ALWAYS} | ({Present.SHARED} if shared else set()) | ({Present.DNS} if dns else set())
        )
        self._plain = {
            family: PlainFamily(family)
            for family in families.TABLE
            if family not in KEPT_APART and family.present in present
        }
        self._process = ProcessAndLoop()
        self._sockets: dict[Reporter, Tally] = {}
        self._dns = SeriesTable(DnsSeries, clock, limits, fixed=2) if dns else None
        self._lookups: SeriesTable[LookupSeries] = SeriesTable(LookupSeries, clock, limits)
        self.clock = clock
        self.traffic = TrafficSeries(clock, limits)
        self._tables: dict[str, Table] = {"traffic": self.traffic.table, "on_demand_dns": self._lookups}
        if self._dns is not None:
            self._tables["dns"] = self._dns
        self._plain[families.BUILD].set(1, "ztunnel", version)
        self.show(
            families.SOCKETS_OPEN, lambda: {(side,): tally.count for side, tally in self._sockets.items()}
        )
        self.show(families.SERIES, lambda: {(of,): len(table) for of, table in self._tables.items()})
        self.show(
            families.SERIES_OVERFLOWED,
            lambda: {(of,): table.overflowed for of, table in self._tables.items() if table.overflowed},
        )

    async def run(self) -> NoReturn:
        """Let idle series go, for ever."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            gone = sum([await table.sweep() for table in self._tables.values()])
            if gone >= MANY_GONE:
                await trio.to_thread.run_sync(give_back)

    def watch_loop(self, tell: Callable[[Worked], bool] = lambda _: False) -> None:
        """Count the loop's sleeps from now on; call once, inside `trio.run`.

        `tell` hands what is to be told of each wait to whoever stands in front of it, and is False where
        nobody does.
        """
        watch = self._process.watch = LoopWatch()
        if not tell(watch.worked):  # an instrument takes six calls a turn
            trio.lowlevel.add_instrument(watch)

    def show(self, family: Family, read: Callable[[], Values]) -> None:
        """Ask for a family's samples whenever they are shown. Nothing where the family does not exist."""
        if family in self._plain:
            self._plain[family].read_from(read)

    def count(self, family: Family, *labels: str, by: float = 1) -> None:
        """Count on in a family whose labels only we write. Nothing where the family does not exist."""
        if family in self._plain:
            self._plain[family].add(*labels, by=by)

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Set a gauge whose labels only we write. Nothing where the family does not exist."""
        if family in self._plain:
            self._plain[family].set(value, *labels)

    # control plane
    def xds_termination(self, reason: str) -> None:
        """A discovery stream ended: `ConnectionError`, `Error`, `Reconnect` or `Complete`."""
        self.count(families.XDS_TERMINATIONS, reason)

    def xds_message(self, url: str, size: int) -> None:
        """A response came: its type and the sum of its resources' sizes."""
        self.count(families.XDS_MESSAGES, url)
        self.count(families.XDS_BYTES, url, by=size)

    # data plane
    def sockets_open(self, reporter: Reporter) -> Tally:
        """The count of accepted sockets of one side; each is served within it."""
        found = self._sockets.get(reporter)
        if found is None:
            found = self._sockets[reporter] = Tally()
        return found

    def on_demand_dns(self, source: Sequence[str], hostname: str) -> None:
        """A hostname workload was resolved; `source` are the values of `SOURCE_LABELS`."""
        self._lookups.get((*source, hostname)).count += 1

    def crl_rejection(self, reporter: Reporter) -> None:
        """A peer was turned away, or cut off, because its certificate is revoked."""
        self.count(families.CRL_REJECTIONS, reporter)

    def crl_untracked(self, reporter: Reporter) -> None:
        """A connection's chain could not be watched for later revocation."""
        self.count(families.CRL_UNTRACKED, reporter)

    def connect_retry(self, reporter: Reporter) -> None:
        """A connection attempt is repeated at another endpoint."""
        self.count(families.RETRIES, reporter)

    def flood_cut(self, kind: str) -> None:
        """A tunnel was ended because its peer flooded it with frames of one kind, by its name in RFC 9113."""
        self.count(families.FLOODS_CUT, kind)

    def refusal(self, reporter: Reporter, reason: str) -> None:
        """A connection was refused or failed; `reason` is one of a fixed set."""
        self.count(families.REFUSALS, reporter, reason)

    # DNS: `labels` are the values of DNS_LABELS; without the DNS proxy these do nothing
    def dns_request(self, labels: Sequence[str]) -> None:
        """A query came in."""
        if self._dns is not None:
            self._dns.get(tuple(labels)).requests += 1

    def dns_upstream_request(self, labels: Sequence[str]) -> None:
        """It was passed on to the resolver upstream."""
        if self._dns is not None:
            self._dns.get(tuple(labels)).upstream += 1

    def dns_upstream_failure(self, labels: Sequence[str]) -> None:
        """The resolver upstream failed."""
        if self._dns is not None:
            self._dns.get(tuple(labels)).failures += 1

    def dns_upstream_duration(self, labels: Sequence[str], seconds: float) -> None:
        """How long the resolver upstream took."""
        if self._dns is not None:
            self._dns.get(tuple(labels)).observe(seconds)

    def dns_unread(self, count: int) -> None:
        """So many questions more were dropped unread, as their pod had had its share."""
        self.count(families.DNS_UNREAD, by=count)

    # in-pod manager; nothing outside shared mode
    def proxies(self, *, active: int, pending: int) -> None:
        """So many pods have a running proxy, and so many wait for theirs."""
        self.set(families.PROXIES_ACTIVE, active)
        self.set(families.PROXIES_PENDING, pending)

    def proxy_started(self) -> None:
        """A pod's proxy was started."""
        self.count(families.PROXIES_STARTED)

    def proxy_stopped(self) -> None:
        """A pod's proxy was stopped."""
        self.count(families.PROXIES_STOPPED)

    def pieces(self) -> Iterator[bytes]:
        """The OpenMetrics 1.0 text of all families that have samples. Call it on the loop's thread.

        Between two pieces others may run: each series shows numbers of one moment all the same.
        """
        return exposition(self._families())

    def render(self) -> bytes:
        """All of the text in one step, for tests and small processes."""
        return b"".join(self.pieces())

    def _families(self) -> Iterator[RenderedFamily]:
        scrape = Scrape(self.traffic)
        yield from self._process.families()
        for family in families.TABLE:
            if family in self._plain:
                yield RenderedFamily(family, self._plain[family].lines())
            elif family is families.OPENED:
                yield from scrape.families()
            elif family is families.FAILED:
                yield scrape.failures()
            elif family is families.ON_DEMAND_DNS:
                yield lookup_family(self._lookups)
            elif family is families.DNS_REQUESTS and self._dns is not None:
                yield from dns_families(self._dns)
