"""One line a connection, and its counters: what operators read first.

`describe`, `flags_of` and `status_of` are the one place where a `Reason` becomes text, response flag
and HTTP status (ztunnel src/proxy.rs Error, src/proxy/metrics.rs, src/proxy/inbound.rs).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from ztunnel_trio.model.address import HboneTarget, SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import NOWHERE, Workload
from ztunnel_trio.observe import log
from ztunnel_trio.observe.log import Bare, FieldValue
from ztunnel_trio.observe.metrics import SUCCESS, UNKNOWN, Metrics, Series, Traffic

ACCESS: Final = "access"
MOST_PARTIES: Final = 1024  # combinations of workloads, identities and services whose labels are kept

# `{}` is the refusal's detail
TEXTS: Final[Mapping[Reason, str]] = {
    Reason.RECURSIVE_CALL: "attempted recursive call to ourselves",
    Reason.UNKNOWN_LOCAL_WORKLOAD: "failed to fetch information about local workload: {}",
    Reason.NO_HEALTHY_UPSTREAM: "no healthy upstream: {}",
    Reason.NO_VALID_DESTINATION: "no valid routing destination for workload: {}",
    Reason.NO_SERVICE_FOR_TARGET: "no service for target address: {}",
    Reason.UNKNOWN_WAYPOINT: "unknown waypoint: waypoint {} not found",
    Reason.UNKNOWN_NETWORK_GATEWAY: "unknown network gateway: network gateway {} not found",
    Reason.NO_RESOLVED_ADDRESSES: "no ip addresses were resolved for workload: {}",
    Reason.NO_USABLE_RECORDS: (
        "ip addresses were resolved for workload {}, but valid dns response had no A/AAAA records"
    ),
    Reason.WRONG_METHOD: "expected method CONNECT, got {}",
    Reason.BAD_AUTHORITY: "no valid authority pseudo header: {}",
    Reason.IP_MISMATCH: "ip mismatch: {}",
    Reason.UNKNOWN_HOSTNAME: "no service or workload for hostname: {}",
    Reason.UNRESOLVED_SERVICE_PORT: "requested service {} found, but cannot resolve port",
    Reason.SERVICE_WITHOUT_ADDRESS: "requested service {} found, but has no IP addresses",
    Reason.POLICY_REJECTION: "connection closed due to policy rejection: {}",
    Reason.IDENTITY: "identity error: {}",
    Reason.SIGNING: "signing error: {}",
    Reason.TLS_HANDSHAKE: "tls handshake error: {}",
    Reason.TLS_CONFIG: "tls error: {}",
    Reason.IO: "io error: {}",
    Reason.CONNECT_FAILED: "connection failed: {}",
    Reason.HBONE_CONNECT_TIMEOUT: (
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {}"
    ),
    Reason.H2_HANDSHAKE: "http2 handshake failed: {}",
    Reason.H2: "h2 failed: {}",
    Reason.HTTP_STATUS: "http status: {}",
    Reason.POOL_DRAINING: "pool draining",
    Reason.RELAY: "{}",
    Reason.POLICY_CHANGE: "connection closed due to policy change",
    Reason.CERTIFICATE_REVOKED: "connection closed: peer certificate revoked by CRL",
    Reason.DRAIN: "connection closed due to connection drain",
}
FLAGS: Final[Mapping[Reason, str]] = {
    Reason.POLICY_REJECTION: "DENY",
    Reason.POLICY_CHANGE: "DENY",
    Reason.TLS_CONFIG: "TLS_FAILURE",
    Reason.H2_HANDSHAKE: "H2_HANDSHAKE_FAILURE",
    Reason.H2: "H2_HANDSHAKE_FAILURE",
    Reason.HBONE_CONNECT_TIMEOUT: "NETWORK_POLICY",
    Reason.IDENTITY: "IDENTITY_ERROR",
    Reason.SIGNING: "IDENTITY_ERROR",
    Reason.CERTIFICATE_REVOKED: "CERT_REVOKED",
    Reason.DRAIN: SUCCESS,  # ended by us, not failed
}
STATUSES: Final[Mapping[Reason, int]] = {
    Reason.WRONG_METHOD: 400,
    Reason.BAD_AUTHORITY: 400,
    Reason.IP_MISMATCH: 400,
    Reason.POLICY_REJECTION: 401,  # 401, not 403: ztunnel src/proxy/inbound.rs
}
INSERTS: Final = frozenset(reason for reason, text in TEXTS.items() if "{}" in text)


def describe(refusal: Refusal) -> str:
    """The text of `error` in the access log. A detail that is the whole text already stays as it is."""
    text, detail = TEXTS[refusal.reason], refusal.detail
    if refusal.reason not in INSERTS:
        return text
    head, _, tail = text.partition("{}")
    if refusal.reason is Reason.HTTP_STATUS:
        detail = status_text(detail)
    return detail if head and detail.startswith(head) else f"{head}{detail}{tail}"


def status_text(code: str) -> str:
    """`503 Service Unavailable` for `503`; codes nobody named get the reference's placeholder."""
    if not (code.isascii() and code.isdigit()):
        return code
    try:
        return f"{code} {HTTPStatus(int(code)).phrase}"
    except ValueError:
        return f"{code} <unknown status code>"


def flags_of(reason: Reason) -> str:
    """The label `response_flags`; everything without a flag of its own is `CONNECT`."""
    return FLAGS.get(reason, "CONNECT")


def status_of(reason: Reason) -> int:
    """The HTTP status that answers a refused CONNECT."""
    return STATUSES.get(reason, 503)


@dataclass(slots=True, kw_only=True)
class ConnectionFacts:
    """What is known of a connection when its record is opened.

    `source_identity` is proven by TLS. `destination_identity` None means the destination record's.
    `destination_baggage` is what the inner peer of a double HBONE tunnel told of itself; it replaces
    the destination's labels altogether. `mutual_tls`: the connection is HBONE.
    """

    direction: Direction
    source: SocketAddress
    destination: SocketAddress
    hbone_target: HboneTarget | None = None
    source_workload: Workload | None = None
    source_identity: SpiffeId | None = None
    source_baggage: Baggage | None = None
    destination_workload: Workload | None = None
    destination_identity: SpiffeId | None = None
    destination_baggage: Baggage | None = None
    destination_service: Service | None = None
    mutual_tls: bool = False


def source_labels(
    workload: Workload | None, identity: SpiffeId | None, baggage: Baggage | None
) -> tuple[str, str, str, str, str, str, str, str]:
    """The values of `SOURCE_LABELS`: the workload's record wins over baggage, the principal is TLS's."""
    principal = UNKNOWN if identity is None else str(identity)
    if workload is not None:
        canonical = workload.canonical_name or UNKNOWN
        revision = workload.canonical_revision or UNKNOWN
        return (
            workload.workload_name or UNKNOWN,
            canonical,
            revision,
            workload.namespace or UNKNOWN,
            principal,
            canonical,
            revision,
            workload.cluster or UNKNOWN,
        )
    if baggage is None:
        return (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, principal, UNKNOWN, UNKNOWN, UNKNOWN)
    name = baggage.workload_name or UNKNOWN
    revision = baggage.revision or UNKNOWN
    return (
        name,
        baggage.service_name or UNKNOWN,
        revision,
        baggage.namespace or UNKNOWN,
        principal,
        name,
        revision,
        baggage.cluster or UNKNOWN,
    )


def destination_labels(facts: ConnectionFacts) -> tuple[str, str, str, str, str, str, str, str]:
    """The values of the last eight `DESTINATION_LABELS`."""
    identity, workload = facts.destination_identity, facts.destination_workload
    if facts.destination_baggage is not None:
        return source_labels(None, identity, facts.destination_baggage)
    if identity is None and workload is not None:
        identity = workload.identity
    return source_labels(workload, identity, None)


def traffic_labels(facts: ConnectionFacts) -> tuple[str, ...]:
    """The values of `TRAFFIC_LABELS` without the response flags."""
    service = facts.destination_service
    labels = (
        "source" if facts.direction is Direction.OUTBOUND else "destination",
        *source_labels(facts.source_workload, facts.source_identity, facts.source_baggage),
        (service.hostname or UNKNOWN) if service is not None else UNKNOWN,
        (service.namespace or UNKNOWN) if service is not None else UNKNOWN,
        (service.name or UNKNOWN) if service is not None else UNKNOWN,
        *destination_labels(facts),
        "tcp",
        "mutual_tls" if facts.mutual_tls else UNKNOWN,
    )
    if not (
        facts.source_workload
        or facts.source_baggage
        or facts.destination_workload
        or facts.destination_baggage
    ):
        return labels
    return (
        *labels,
        *locality_labels(facts.source_workload, facts.source_baggage),
        *locality_labels(
            None if facts.destination_baggage else facts.destination_workload, facts.destination_baggage
        ),
    )


class LabelMemo:
    """`traffic_labels` of the parties seen last, by who they are as objects: all of them are values.

    Most connections are between parties that had one before; their 27 labels take 15 µs to find.
    """

    def __init__(self, most: int = MOST_PARTIES) -> None:
        self._most = most
        # the parties are kept, so that their ids stay theirs
        self._known: dict[tuple[object, ...], tuple[tuple[object, ...], tuple[str, ...]]] = {}

    def of(self, facts: ConnectionFacts) -> tuple[str, ...]:
        """The labels of a connection."""
        parties = (
            facts.source_workload,
            facts.source_identity,
            facts.source_baggage,
            facts.destination_workload,
            facts.destination_identity,
            facts.destination_baggage,
            facts.destination_service,
        )
        key = (facts.direction is Direction.OUTBOUND, facts.mutual_tls, *map(id, parties))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._most:
                self._known.clear()
            found = self._known[key] = (parties, traffic_labels(facts))
        return found[1]


def locality_labels(workload: Workload | None, baggage: Baggage | None) -> tuple[str, str]:
    """Region and zone of one side."""
    if workload is not None:
        where = workload.locality
        return (UNKNOWN, UNKNOWN) if where is NOWHERE else (where.region or UNKNOWN, where.zone or UNKNOWN)
    if baggage is not None:
        return (baggage.region or UNKNOWN, baggage.zone or UNKNOWN)
    return (UNKNOWN, UNKNOWN)


def known(label: str) -> str | None:
    return None if label == UNKNOWN else label


def identifying_fields(facts: ConnectionFacts, labels: tuple[str, ...]) -> list[tuple[str, FieldValue]]:
    """The fields of every line of a record, `src.addr` to `direction`; unknown ones are None."""
    source, target = facts.source_workload, facts.destination_workload
    proven = facts.mutual_tls
    if facts.destination_baggage is not None:
        target_name = facts.destination_baggage.workload_name
    else:
        target_name = None if target is None else target.name or None
    return [
        ("src.addr", Bare(facts.source)),
        ("src.workload", known(labels[2]) if source is None else source.name or None),
        ("src.namespace", known(labels[4])),
        ("src.identity", known(labels[5]) if proven else None),
        ("src.cluster", known(labels[8])),
        ("dst.addr", Bare(facts.destination)),
        ("dst.hbone_addr", None if facts.hbone_target is None else Bare(facts.hbone_target)),
        ("dst.service", known(labels[9])),
        ("dst.workload", target_name),
        ("dst.namespace", known(labels[15])),
        ("dst.identity", known(labels[16]) if proven else None),
        ("dst.cluster", known(labels[19])),
        ("direction", facts.direction.value),
    ]


@dataclass(slots=True, eq=False)
class ConnectionRecord:
    """One connection from its record's opening to its one complete line.

    The engine adds to `traffic`; `finish` may be called from several ways out, the first counts.
    """

    traffic: Traffic
    facts: ConnectionFacts
    labels: tuple[str, ...]
    series: Series
    began: float
    clock: Callable[[], float]
    is_finished: bool = False

    def finish(self, refusal: Refusal | None = None) -> None:
        """Write `connection complete` and move the closed, failed and byte counters. Idempotent."""
        if self.is_finished:
            return
        self.is_finished = True
        flags = SUCCESS if refusal is None else flags_of(refusal.reason)
        now = self.clock()
        self.series.finish(self.traffic, flags, now)
        level = log.INFO if refusal is None else log.ERROR
        if not log.is_enabled(ACCESS, level):
            return
        towards, back = self.traffic.to_destination, self.traffic.to_source
        is_outbound = self.facts.direction is Direction.OUTBOUND
        fields = identifying_fields(self.facts, self.labels)
        fields.append(("bytes_sent", towards if is_outbound else back))  # as the local workload sees it
        fields.append(("bytes_recv", back if is_outbound else towards))
        fields.append(("duration", f"{int((now - self.began) * 1000)}ms"))
        if refusal is not None:
            fields.append(("error", describe(refusal)))
        log.write_event(level, ACCESS, "connection complete", fields)


class AccessLog:
    """Opens connection records and writes the lines of connections that never got one."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = metrics
        self._clock = clock
        self._labels = LabelMemo()

    def now(self) -> float:
        """The moment to pass as `began` when a record is opened later than its connection."""
        return self._clock()

    def refuse(
        self, *, source: SocketAddress, destination: SocketAddress, direction: Direction, refusal: Refusal
    ) -> None:
        """Write `connection failed` for a connection refused before its record; no counter moves."""
        if log.is_enabled(ACCESS, log.WARN):
            fields: list[tuple[str, FieldValue]] = [
                ("src.addr", Bare(source)),
                ("dst.addr", Bare(destination)),
                ("direction", direction.value),
                ("error", describe(refusal)),
            ]
            log.write_event(log.WARN, ACCESS, "connection failed", fields)

    def open(self, facts: ConnectionFacts, *, began: float | None = None) -> ConnectionRecord:
        """Count the connection opened and write `connection opened` (debug).

        `began` is when the connection was accepted, on this log's clock; None: now.
        """
        labels, traffic = self._labels.of(facts), Traffic()
        series = self.metrics.traffic.open(labels, traffic)
        record = ConnectionRecord(
            traffic,
            facts,
            series.labels if series.labels == labels else labels,  # the same for all of a series
            series,
            self._clock() if began is None else began,
            self._clock,
        )
        if log.is_enabled(ACCESS, log.DEBUG):
            log.write_event(log.DEBUG, ACCESS, "connection opened", identifying_fields(facts, labels))
        return record
