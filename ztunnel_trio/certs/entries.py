"""What is known of a key's certificate, and how that is shown."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import trio

from ztunnel_trio.decide.renew import Lifetime
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import CertificateKey


@dataclass(frozen=True, slots=True)
class Initializing:
    """No fetch has ended yet."""


@dataclass(frozen=True, slots=True)
class Available:
    """A certificate to use."""

    certificate: WorkloadCertificate


@dataclass(frozen=True, slots=True)
class Missing:
    """No certificate to use, and why."""

    error: Unavailable


State = Initializing | Available | Missing


@dataclass(frozen=True, slots=True)
class CertificateState:
    """One key for the config dump; `state` is `Initializing`, `Available` or `Unavailable: <error>`."""

    key: CertificateKey
    state: str
    certificate: WorkloadCertificate | None


@dataclass(slots=True, eq=False)
class Entry:
    """What is published of a key; replaced when it is forgotten and asked for again."""

    key: CertificateKey
    state: State = Initializing()
    settled: trio.Event = field(default_factory=trio.Event)  # a first result, or forgotten
    news: trio.Event = field(default_factory=trio.Event)  # the next result, or forgotten
    is_forgotten: bool = False

    def publish(self, state: State) -> None:
        self.state = state
        self.settled.set()
        news, self.news = self.news, trio.Event()
        news.set()

    def forget(self) -> None:
        self.is_forgotten = True
        self.settled.set()
        self.news.set()


def lifetime_of(certificate: WorkloadCertificate) -> Lifetime:
    return Lifetime(certificate.not_before, certificate.not_after)


def state_text(state: State, now: datetime) -> str:
    """As the dump shows it: `Available` means that it is valid now."""
    match state:
        case Initializing():
            return "Initializing"
        case Missing(error):
            return f"Unavailable: {error}"
        case Available(certificate):
            lifetime = lifetime_of(certificate)
            if not lifetime.skew_seconds(now):
                return "Available"
            return f"{'Unavailable' if lifetime.is_over(now) else 'NotYetValid'}: {lifetime.told(now)}"


def census(states: Iterable[State], now: datetime) -> dict[str, int]:
    """How many are in which state now, for the metrics."""
    found = dict.fromkeys(("initializing", "available", "unavailable", "expired", "not_yet_valid"), 0)
    for state in states:
        match state:
            case Initializing():
                found["initializing"] += 1
            case Missing():
                found["unavailable"] += 1
            case Available(certificate):
                skew = lifetime_of(certificate).skew_seconds(now)
                found["available" if not skew else "expired" if skew > 0 else "not_yet_valid"] += 1
    return found
