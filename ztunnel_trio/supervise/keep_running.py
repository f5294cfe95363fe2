"""Keep a child running: whatever ends it, start it again, later each time it keeps failing."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

import trio

log = logging.getLogger("ztunnel::app")

Child = Callable[[], Awaitable[None]]
Fatal = tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next attempt.

    The wait is `first_seconds` after one failure and grows by `factor` with each further one up to
    `limit_seconds`; `jitter` spreads it by that share to both sides. A child that ran for
    `healthy_seconds` starts from the first wait again.
    """

    first_seconds: float
    limit_seconds: float
    factor: float = 2.0
    jitter: float = 0.0
    healthy_seconds: float = 60.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row (none: no wait)."""
        if failures <= 0:
            return 0.0
        steps = min(failures - 1, 64)  # beyond it any factor has long met the limit
        seconds = min(self.first_seconds * self.factor**steps, self.limit_seconds)
        return seconds * (1 + self.jitter * (2 * rng.random() - 1)) if self.jitter else seconds


async def keep_running(
    what: str, child: Child, *, backoff: Backoff, fatal: Fatal = (), rng: random.Random
) -> NoReturn:
    """Run `child` for ever. Ends only by cancellation or by an exception of the `fatal` kinds.

    A return counts as a failure too: it is restarted with the same patience. `fatal` leaves as an
    exception group, together with nothing else: what failed beside it is logged.
    """
    failures = 0
    while True:
        began = trio.current_time()
        try:
            await child()
        except* fatal:
            raise
        except* Exception as group:
            log.warning("%s failed: %s", what, first_of(group))
            log.debug("%s failed", what, exc_info=group)
        failures = 1 if trio.current_time() - began >= backoff.healthy_seconds else failures + 1
        await trio.sleep(backoff.delay(failures, rng))


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
