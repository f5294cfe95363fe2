"""The labels of a connection's metrics, by name (ztunnel src/proxy/metrics.rs)."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import NOWHERE, Workload
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.metrics import UNKNOWN

MOST_PARTIES: Final = 1024  # combinations of workloads, identities and services whose labels are kept


class Party(NamedTuple):
    """One side of a connection, in the order of `SOURCE_LABELS` and of the last eight destination labels."""

    workload: str = UNKNOWN
    canonical_service: str = UNKNOWN
    canonical_revision: str = UNKNOWN
    namespace: str = UNKNOWN
    principal: str = UNKNOWN
    app: str = UNKNOWN
    version: str = UNKNOWN
    cluster: str = UNKNOWN


class ServiceLabels(NamedTuple):
    """The destination's service, in the order of the first three destination labels."""

    hostname: str = UNKNOWN
    namespace: str = UNKNOWN
    name: str = UNKNOWN


class Place(NamedTuple):
    """Where one side is, in the order of the locality labels."""

    region: str = UNKNOWN
    zone: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class TrafficLabels:
    """All labels of a connection but the response flags. `places` is None where neither side is known."""

    reporter: str
    source: Party
    service: ServiceLabels
    destination: Party
    security_policy: str
    places: tuple[Place, Place] | None
    values: tuple[str, ...] = field(init=False)  # of `TRAFFIC_LABELS`, without the response flags

    def __post_init__(self) -> None:
        flat: tuple[str, ...] = (
            self.reporter,
            *self.source,
            *self.service,
            *self.destination,
            "tcp",
            self.security_policy,
        )
        if self.places is not None:
            flat = (*flat, *self.places[0], *self.places[1])
        object.__setattr__(self, "values", flat)


def party(workload: Workload | None, identity: SpiffeId | None, baggage: Baggage | None) -> Party:
    """One side's labels: the workload's record wins over baggage, the principal is TLS's."""
    principal = UNKNOWN if identity is None else str(identity)
    if workload is not None:
        canonical = workload.canonical_name or UNKNOWN
        revision = workload.canonical_revision or UNKNOWN
        return Party(
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
        return Party(principal=principal)
    name = baggage.workload_name or UNKNOWN
    revision = baggage.revision or UNKNOWN
    return Party(
        name,
        baggage.service_name or UNKNOWN,
        revision,
        baggage.namespace or UNKNOWN,
        principal,
        name,
        revision,
        baggage.cluster or UNKNOWN,
    )


def place(workload: Workload | None, baggage: Baggage | None) -> Place:
    """Region and zone of one side."""
    if workload is not None:
        where = workload.locality
        return Place() if where is NOWHERE else Place(where.region or UNKNOWN, where.zone or UNKNOWN)
    if baggage is not None:
        return Place(baggage.region or UNKNOWN, baggage.zone or UNKNOWN)
    return Place()


def traffic_labels(facts: ConnectionFacts) -> TrafficLabels:
    """The labels of a connection."""
    service, baggage = facts.destination_service, facts.destination_baggage
    target, identity = facts.destination_workload, facts.destination_identity
    if baggage is not None:
        target = None
    elif identity is None and target is not None:
        identity = target.identity
    is_somebody_known = facts.source_workload or facts.source_baggage or target or baggage
    return TrafficLabels(
        "source" if facts.direction is Direction.OUTBOUND else "destination",
        party(facts.source_workload, facts.source_identity, facts.source_baggage),
        ServiceLabels()
        if service is None
        else ServiceLabels(
            service.hostname or UNKNOWN, service.namespace or UNKNOWN, service.name or UNKNOWN
        ),
        party(target, identity, baggage),
        "mutual_tls" if facts.mutual_tls else UNKNOWN,
        (place(facts.source_workload, facts.source_baggage), place(target, baggage))
        if is_somebody_known
        else None,
    )


class LabelMemo:
    """`traffic_labels` of the parties seen last, by who they are as objects: all of them are values.

    Most connections are between parties that had one before; their 27 labels take 15 µs to find.
    """

    def __init__(self, most: int = MOST_PARTIES) -> None:
        self._most = most
        # the parties are kept, so that their ids stay theirs
        self._known: dict[tuple[object, ...], tuple[tuple[object, ...], TrafficLabels]] = {}

    def of(self, facts: ConnectionFacts) -> TrafficLabels:
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
