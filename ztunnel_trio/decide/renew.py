"""When to fetch a certificate next, and whether the one at hand still serves.

The numbers and their reasons are those of ztunnel src/identity/manager.rs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait after failures: 1, 2, 4 … 150 s, each spread by a fifth to both sides.

    After `growth_seconds` of failing in a row the wait is `limit_seconds` exactly.
    """

    first_seconds: float = 1.0
    factor: float = 2.0
    limit_seconds: float = 150.0
    spread: float = 0.2
    growth_seconds: float = 15 * 60.0

    def delay(self, failures: int, failing_seconds: float, rng: "Random") -> float:
        """The wait after that many failures in a row, the first of them `failing_seconds` ago."""
        if failing_seconds > self.growth_seconds:
            return self.limit_seconds
        exponent = min(failures - 1, 64)  # beyond it any factor has long met the limit
        nominal = min(self.first_seconds * self.factor**exponent, self.limit_seconds)
        return nominal * (1 + self.spread * (2 * rng.random() - 1))


DEFAULT_PATIENCE = Patience()


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
    patience: Patience = DEFAULT_PATIENCE,
) -> Renew | Retain | GoWithout:
    """Decide what follows a fetch. `lifetime` is that of the newest certificate we ever got, if any."""
    if failures is None:
        assert lifetime is not None
        return Renew(max(0.0, (lifetime.refresh_at - now).total_seconds()))
    delay = patience.delay(failures.count, failures.seconds, rng)
    if lifetime is None or now >= lifetime.not_after:
        return GoWithout(delay)
    retry_at = min(now + timedelta(seconds=delay), lifetime.not_after)
    return Retain((retry_at - now).total_seconds(), lifetime.not_after, retry_at)
