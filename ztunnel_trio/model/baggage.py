"""The telemetry a peer tells of itself in the `baggage` header."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Baggage:
    """Each member None when the header did not carry it (an empty value counts as absent)."""

    cluster: str | None = None
    namespace: str | None = None
    workload_name: str | None = None
    service_name: str | None = None
    revision: str | None = None
    region: str | None = None
    zone: str | None = None
