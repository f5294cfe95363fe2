"""The supervisor: parts that run again after they failed, by one rule.

Theory of operation. A part is a function that runs until it has ended, and says how: `Done` ends it for
good, `Again` is an ordinary end, `Failed` one that is worth a wait. What it raises is a bug of ours, told
with its traceback, counted, and a failure like others, except for the part's own `fatal` ones, which go up.
Failures in a row make the wait grow (`Backoff`); an ordinary end, or a run that lasted `healthy_seconds`,
begins the count anew. A part's gate is closed when it fails; it opens the gate itself when it is ready.

This is one of the three places that catch everything (beside a connection's task and the engine's pumps).
"""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.supervise.readiness import format_elapsed

CRASHES: Final = Backoff(first_seconds=1.0, limit_seconds=30.0, jitter=0.1)


@dataclass(frozen=True, slots=True)
class Done:
    """The part has nothing more to do."""


@dataclass(frozen=True, slots=True)
class Again:
    """An ordinary end: run it again in `seconds`. `is_success` begins the count of failures anew."""

    seconds: float = 0.0
    is_success: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The run failed in a way that was foreseen.

    `tell` writes it to the log and is given the seconds until the next run; `is_first` begins the count of
    failures anew with this one; `backoff` is instead of the part's.
    """

    tell: Callable[[float], None]
    is_first: bool = False
    backoff: Backoff | None = None


RunEnd = Done | Again | Failed


class HasGate(Protocol):
    """What is closed while a part is not running; `supervise.readiness.Gate` is one."""

    def close(self) -> None:
        """It is not there any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One supervised part. `name` is for people, `kind` for the metric: one of a few."""

    kind: str
    name: str = ""
    backoff: Backoff = CRASHES
    healthy_seconds: float = 60.0
    fatal: tuple[type[Exception], ...] = ()
    gate: HasGate | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("ztunnel::app"))

    def __str__(self) -> str:
        return self.name or self.kind


async def pause(seconds: float) -> bool:
    """Sleep all of it: nobody asks this part to stop other than by cancelling it."""
    await trio.sleep(seconds)
    return True


def count_nothing(kind: str) -> None:
    """For who keeps no count of restarts."""


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Runs parts. `count` is told the kind of each that failed; `rng` spreads the waits."""

    rng: random.Random = field(default_factory=random.Random)
    count: Callable[[str], None] = count_nothing

    async def keep_running(
        self,
        part: Part,
        run: Callable[[], Awaitable[RunEnd]],
        *,
        pause: Callable[[float], Awaitable[bool]] = pause,
    ) -> None:
        """Run a part again and again until it is `Done`, or `pause` says that its sleep was cut short.

        Raises:
            ExceptionGroup: of the part's `fatal` exceptions.
        """
        failures, failing_since = 0, 0.0
        while True:
            began = trio.current_time()
            ended = await self._run_once(part, run)
            if isinstance(ended, Done):
                return
            if isinstance(ended, Again):
                failures = 0 if ended.is_success else failures
                seconds = ended.seconds
            else:
                now = trio.current_time()
                if not failures or ended.is_first or now - began >= part.healthy_seconds:
                    failures, failing_since = 0, now
                failures += 1
                backoff = ended.backoff or part.backoff
                seconds = backoff.delay(failures, self.rng, failing_seconds=now - failing_since)
                self.count(part.kind)
                if part.gate is not None:
                    part.gate.close()
                ended.tell(seconds)
            if not await pause(seconds):
                return

    async def _run_once(self, part: Part, run: Callable[[], Awaitable[RunEnd]]) -> RunEnd:
        ended: RunEnd = Done()
        try:
            ended = await run()
        except* part.fatal:
            raise
        except* Exception as group:  # noqa: BLE001  a bug of ours: loud, and contained in this part
            crash = group  # the name is unbound behind the clause

            def tell(seconds: float) -> None:
                text = "%s failed, starting it again in %s"
                part.log.error(text, part, format_elapsed(seconds), exc_info=crash)

            ended = Failed(tell)
        return ended
