"""How long to wait before trying again what keeps failing: the one rule of growth in this program."""

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The wait is `first_seconds` after one failure and grows by `factor` with each further one up to
    `limit_seconds`; `jitter` spreads it by that share to both sides.

    After `growing_seconds` of failing in a row the wait is `limit_seconds` exactly.
    """

    first_seconds: float
    limit_seconds: float
    factor: float = 2.0
    jitter: float = 0.0
    growing_seconds: float = inf

    def delay(self, failures: int, rng: "random.Random", *, failing_seconds: float = 0.0) -> float:
        """Seconds to wait after that many failures in a row (none: no wait), the first so long ago."""
        if failures <= 0:
            return 0.0
        if failing_seconds > self.growing_seconds:
            return self.limit_seconds
        steps = min(failures - 1, 64)  # beyond it any factor has long met the limit
        seconds = min(self.first_seconds * self.factor**steps, self.limit_seconds)
        return seconds * (1 + self.jitter * (2 * rng.random() - 1)) if self.jitter else seconds
