"""The wall clock, and news of its steps: what certificates live by, and a sleep does not.

Theory of operation. Trio's clock is the kernel's monotonic one: it stands still while the machine is
suspended, and nobody can set it. The wall clock does neither. So a wait of hours for a wall-clock time is
told of it by `steps` when the two have come apart: `run` compares them every `LOOK_SECONDS`, which is also
the longest that a step goes unseen. A slow correction (NTP slews by half a millisecond a second at most) is
none. A timerfd with TFD_TIMER_CANCEL_ON_SET would tell of a set clock at once, but not of a suspend
(docs/decisions/0020-wall-clock.md).
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NoReturn

import trio

from ztunnel_trio.supervise.watch import Watch

log = logging.getLogger("ztunnel::app")

LOOK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 1.0  # smaller ones change nothing that is measured in minutes


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


class WallClock:
    """Now, and the steps of it. `steps` holds the size of the latest in seconds, positive for forward."""

    __slots__ = ("_on_step", "now", "steps")

    def __init__(
        self, now: Callable[[], datetime] = utc_now, *, on_step: Callable[[], None] = lambda: None
    ) -> None:
        self.now = now
        self.steps: Watch[float] = Watch(0.0)
        self._on_step = on_step

    async def run(self) -> NoReturn:
        """Look for steps until cancelled."""
        apart = self._apart()
        while True:
            await trio.sleep(LOOK_SECONDS)
            before, apart = apart, self._apart()
            if abs(apart - before) >= STEP_SECONDS:
                log.warning(
                    "the wall clock has moved by %+.0f s beside the monotonic one (set, or suspended)",
                    apart - before,
                )
                self._on_step()
                self.steps.publish(apart - before)

    def _apart(self) -> float:
        return self.now().timestamp() - trio.current_time()
