"""How long to wait before trying again what keeps failing."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The wait is `first_seconds` after one failure and grows by `factor` with each further one up to
    `limit_seconds`; `jitter` spreads it by that share to both sides.
    """

    first_seconds: float
    limit_seconds: float
    factor: float = 2.0
    jitter: float = 0.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row (none: no wait)."""
        if failures <= 0:
            return 0.0
        steps = min(failures - 1, 64)  # beyond it any factor has long met the limit
        seconds = min(self.first_seconds * self.factor**steps, self.limit_seconds)
        return seconds * (1 + self.jitter * (2 * rng.random() - 1)) if self.jitter else seconds
