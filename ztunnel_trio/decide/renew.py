"""When to fetch a certificate next, and whether the one at hand still serves.

The numbers and their reasons are those of ztunnel src/identity/manager.rs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ztunnel_trio.model.backoff import Backoff

if TYPE_CHECKING:
    from random import Random


FETCHING: Final = Backoff(first_seconds=1.0, limit_seconds=150.0, jitter=0.2, growing_seconds=15 * 60.0)
"""The waits after fetches that failed: 1, 2, 4 … 150 s, each spread by a fifth to both sides."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A certificate's validity, aware UTC."""

    not_before: datetime
    not_after: datetime

    @property
    def refresh_at(self) -> datetime:
        """Half of the lifetime; at once for one that ends before it begins."""
        if self.not_after < self.not_before:
            return self.not_after
        return self.not_before + (self.not_after - self.not_before) / 2

    def skew_seconds(self, now: datetime) -> float:
        """How far a clock is outside: positive past the end, negative before the beginning, 0 within."""
        if now >= self.not_after:
            return (now - self.not_after).total_seconds()
        return min(0.0, (now - self.not_before).total_seconds())

    def is_over(self, now: datetime) -> bool:
        """Whether it has ended: nobody would take it any more."""
        return now >= self.not_after

    def told(self, now: datetime) -> str:
        """Why a clock is outside, with both times; empty within."""
        if self.is_over(now):
            return f"the certificate ended at {moment(self.not_after)}, and it is {moment(now)} here"
        if now < self.not_before:
            return f"the certificate is valid from {moment(self.not_before)}, and it is {moment(now)} here"
        return ""


def moment(when: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Renew:
    """The last fetch was good: serve it and fetch again in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Retain:
    """The last fetch failed, the certificate before it still serves; try again in `seconds`."""

    seconds: float
    until: datetime
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class GoWithout:
    """The last fetch failed and there is nothing to serve; try again in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed fetches in a row; the first was `seconds` ago."""

    count: int
    seconds: float


def next_step(
    lifetime: Lifetime | None,
    failures: Failures | None,
    now: datetime,
    rng: "Random",
    backoff: Backoff = FETCHING,
) -> Renew | Retain | GoWithout:
    """Decide what follows a fetch. `lifetime` is that of the newest certificate we ever got, if any."""
    if failures is None:
        assert lifetime is not None
        return Renew(max(0.0, (lifetime.refresh_at - now).total_seconds()))
    delay = backoff.delay(failures.count, rng, failing_seconds=failures.seconds)
    if lifetime is None or now >= lifetime.not_after:
        return GoWithout(delay)
    retry_at = min(now + timedelta(seconds=delay), lifetime.not_after)
    return Retain((retry_at - now).total_seconds(), lifetime.not_after, retry_at)
