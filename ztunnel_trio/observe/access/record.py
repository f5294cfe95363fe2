"""A connection from its acceptance to its one line: a context manager that nothing leaves without a word.

    with access.connection(client, target, Direction.OUTBOUND) as record:
        ...                     # a refusal here is the line `connection failed`; no counter moves
        record.about(facts)     # from here on the line is `connection complete`
    record.open(facts)      # counted as opened
        record.finish(ending)   # the line, and the counters of what is over

Leaving the block by an exception finishes the record with what the exception says: a `Refused` goes no
further, everything else does. The first `finish` counts.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import trio

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.ending import CLEAN, Bug, Drained, PodGone
from ztunnel_trio.model.refusal import Refusal, Refused
from ztunnel_trio.observe import log
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.labels import LabelMemo, TrafficLabels
from ztunnel_trio.observe.log import Bare, FieldValue
from ztunnel_trio.observe.metrics import SUCCESS, UNKNOWN, Metrics, Reporter, Series, Traffic
from ztunnel_trio.observe.words import Outcome, error_text, flags_of

ACCESS: Final = "access"


def known(label: str) -> str | None:
    return None if label == UNKNOWN else label


def identifying_fields(facts: ConnectionFacts, labels: TrafficLabels) -> list[tuple[str, FieldValue]]:
    """The fields of every line of a record, `src.addr` to `direction`; unknown ones are None."""
    source, target = facts.source_workload, facts.destination_workload
    proven = facts.mutual_tls
    if facts.destination_baggage is not None:
        target_name = facts.destination_baggage.workload_name
    else:
        target_name = None if target is None else target.name or None
    return [
        ("src.addr", Bare(facts.source)),
        ("src.workload", known(labels.source.canonical_service) if source is None else source.name or None),
        ("src.namespace", known(labels.source.namespace)),
        ("src.identity", known(labels.source.principal) if proven else None),
        ("src.cluster", known(labels.source.cluster)),
        ("dst.addr", Bare(facts.destination)),
        ("dst.hbone_addr", None if facts.hbone_target is None else Bare(facts.hbone_target)),
        ("dst.service", known(labels.service.hostname)),
        ("dst.workload", target_name),
        ("dst.namespace", known(labels.destination.namespace)),
        ("dst.identity", known(labels.destination.principal) if proven else None),
        ("dst.cluster", known(labels.destination.cluster)),
        ("direction", facts.direction.value),
    ]


def ended_by(error: BaseException) -> Outcome:
    """What the line says of a connection that was ended by an exception, not by an outcome."""
    match error:
        case Refused(refusal=refusal):
            return refusal
        case trio.Cancelled(source="deadline"):  # the drain's
            return Drained()
        case trio.Cancelled():
            return PodGone()
        case BaseExceptionGroup():
            return ended_by(error.exceptions[0])
        case _:
            return Bug(repr(error))


class ConnectionRecord:
    """See the module. The engine adds to `traffic` once the record is open."""

    __slots__ = (
        "_access",
        "_began",
        "_facts",
        "_is_finished",
        "_is_outbound",
        "_labels",
        "_parties",
        "_series",
        "traffic",
    )

    def __init__(
        self,
        access: "AccessLog",
        parties: tuple[SocketAddress, SocketAddress],
        direction: Direction,
        began: float,
    ) -> None:
        self._access = access
        self._parties: tuple[SocketAddress, SocketAddress] | None = parties  # until the record is open
        self._is_outbound = direction is Direction.OUTBOUND
        self._began = began
        self._is_finished = False
        self._facts: ConnectionFacts | None = None
        self._labels: TrafficLabels
        self._series: Series
        self.traffic = Traffic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is not None:
            self.finish(ended_by(error))
        elif self._parties is None:
            self.finish(CLEAN)
        return isinstance(error, Refused)

    def about(self, facts: ConnectionFacts) -> None:
        """Say what is known by now: should the connection fail, it is counted, and its line tells this."""
        self._facts = facts

    def open(self, facts: ConnectionFacts) -> None:
        """Count the connection opened and write `connection opened` (debug)."""
        access = self._access
        self._parties, self._facts = None, facts
        labels = self._labels = access.labels.of(facts)
        self._series = access.metrics.traffic.open(labels.values, self.traffic)
        if log.is_enabled(ACCESS, log.DEBUG):
            log.write_event(log.DEBUG, ACCESS, "connection opened", identifying_fields(facts, labels))

    def finish(self, outcome: Outcome) -> None:
        """Write the line, and move the counters of a connection that was opened. Idempotent."""
        if self._is_finished:
            return
        self._is_finished = True
        if isinstance(outcome, Refusal):
            reporter: Reporter = "source" if self._is_outbound else "destination"
            self._access.metrics.refusal(reporter, outcome.reason.value)
        if self._parties is not None and self._facts is not None:
            self.open(self._facts)
        if self._parties is not None or self._facts is None:
            self._fail(outcome)
            return
        flags, text, now = SUCCESS, None, self._access.clock()
        if outcome is not CLEAN:  # nearly all are
            flags, text = flags_of(outcome), error_text(outcome)
        self._series.finish(self.traffic, flags, now)
        level = log.INFO if text is None else log.ERROR
        if not log.is_enabled(ACCESS, level):
            return
        towards, back = self.traffic.to_destination, self.traffic.to_source
        is_outbound = self._is_outbound
        fields = identifying_fields(self._facts, self._labels)
        fields.append(("bytes_sent", towards if is_outbound else back))  # as the local workload sees it
        fields.append(("bytes_recv", back if is_outbound else towards))
        fields.append(("duration", f"{int((now - self._began) * 1000)}ms"))
        if text is not None:
            fields.append(("error", text))
        log.write_event(level, ACCESS, "connection complete", fields)

    def _fail(self, outcome: Outcome) -> None:
        """Write `connection failed` for a connection of which too little is known; no counter moves."""
        assert self._parties is not None
        source, destination = self._parties
        direction = Direction.OUTBOUND if self._is_outbound else Direction.INBOUND
        if log.is_enabled(ACCESS, log.WARN):
            fields: list[tuple[str, FieldValue]] = [
                ("src.addr", Bare(source)),
                ("dst.addr", Bare(destination)),
                ("direction", direction.value),
                ("error", error_text(outcome)),
            ]
            log.write_event(log.WARN, ACCESS, "connection failed", fields)


class AccessLog:
    """Where the connections of a process are recorded; `clock` is monotonic."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = metrics
        self.clock = clock
        self.labels = LabelMemo()

    def connection(
        self,
        source: SocketAddress,
        destination: SocketAddress,
        direction: Direction,
        *,
        began: float | None = None,
    ) -> ConnectionRecord:
        """A connection from now on, or from `began` (on this log's clock) where that was earlier."""
        return ConnectionRecord(
            self, (source, destination), direction, self.clock() if began is None else began
        )
