"""Limits and times of one name server, and what it counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ztunnel_trio.decide.answer import NameSettings


class DnsMetrics(Protocol):
    """What is counted; labels are query type, protocol, source's canonical service and revision."""

    def dns_request(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_request(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_failure(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_duration(self, labels: Sequence[str], seconds: float) -> None: ...

    def dns_unread(self, count: int) -> None:
        """So many questions more were dropped unread, as their pod had had its share."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """Limits and times of one server, and how names are read."""

    names: NameSettings = field(default_factory=NameSettings)
    idle_seconds: float = 5.0  # ztunnel src/dns/server.rs, between two messages of a TCP connection
    local_workload_seconds: float = 5.0  # ztunnel src/state.rs, the wait for the workload's own record
    connections: int = 128  # TCP connections at once; one more is closed
    in_flight: int = 256  # queries that wait for somebody else; one more is SERVFAIL
    kept_answers: int = 512  # encoded answers
