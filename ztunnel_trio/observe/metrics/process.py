"""The process and its event loop, under the names dashboards ask for."""

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from math import inf
from typing import Final

import trio

from ztunnel_trio.observe.metrics.exposition import RenderedFamily, float_text
from ztunnel_trio.observe.metrics.families import Family, FamilyKind

Worked = Callable[[float, float], None]
"""Told before the event loop waits: the seconds it worked since it last woke, and how long it may wait."""
OPEN_FDS: Final = Family("process_open_fds", FamilyKind.GAUGE, "Number of open file descriptors")
MAX_FDS: Final = Family("process_max_fds", FamilyKind.GAUGE, "Maximum number of file descriptors")
WORKERS: Final = Family(
    "tokio_num_workers", FamilyKind.GAUGE, "the number of worker threads used by the runtime"
)
QUEUE_DEPTH: Final = Family(
    "tokio_global_queue_depth",
    FamilyKind.GAUGE,
    "the number of tasks currently scheduled in the runtime's global queue",
)
ALIVE_TASKS: Final = Family(
    "tokio_num_alive_tasks", FamilyKind.GAUGE, "the number of alive tasks in the runtime"
)
BUSY_SECONDS: Final = Family(
    "tokio_worker_total_busy_duration_seconds",
    FamilyKind.COUNTER,
    "the amount of time worker threads have been busy",
)
PARKS: Final = Family(
    "tokio_worker_park_count",
    FamilyKind.COUNTER,
    "the total number of times the given worker thread has parked",
)
PARKS_UNPARKS: Final = Family(
    "tokio_worker_park_unpark_count",
    FamilyKind.COUNTER,
    "the total number of times the given worker thread has parked and unparked",
)
HOLDS: Final = Family(
    "event_loop_hold_seconds",
    FamilyKind.HISTOGRAM,
    "how long the event loop worked before it looked at the network again (unstable)",
)
HOLD_BUCKETS: Final = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25
)  # fmt: skip
SHORTEST_HOLD: Final = HOLD_BUCKETS[0]


class LoopWatch(trio.abc.Instrument):
    """Counts how often the event loop went to sleep, and the turns in which it let nobody in.

    An instrument where nobody else stands in front of the loop's wait to call `worked`.
    """

    def __init__(self) -> None:
        self.parked = 0
        self.holds = [0] * (len(HOLD_BUCKETS) + 1)
        self.turns = 0
        self.held_seconds = 0.0
        self._began = time.perf_counter()

    def worked(self, held: float, timeout: float) -> None:
        """The loop worked for `held` seconds and waits now, for up to `timeout`."""
        self.turns += 1
        self.held_seconds += held
        if held > SHORTEST_HOLD:
            self.holds[bisect_left(HOLD_BUCKETS, held)] += 1
        if timeout > 0:
            self.parked += 1

    def before_io_wait(self, timeout: float) -> None:
        self.worked(time.perf_counter() - self._began, timeout)

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def hold_lines(self) -> list[str]:
        """The histogram of holds, as samples."""
        self.holds[0] = self.turns - sum(self.holds[1:])
        total, lines = 0, []
        for bound, count in zip((*HOLD_BUCKETS, inf), self.holds, strict=True):
            total += count
            most = "+Inf" if bound == inf else float_text(bound)
            lines.append(f'{HOLDS.name}_bucket{{le="{most}"}} {total}')
        lines += [f"{HOLDS.name}_count {total}", f"{HOLDS.name}_sum {float_text(self.held_seconds)}"]
        return lines


class ProcessAndLoop:
    """The process and its event loop, under the names dashboards ask for.

    There is one event loop: the `tokio_` families describe it truthfully as one worker. Busy time is
    the CPU time of the loop's thread; the queue is the tasks that are ready to run.
    """

    def __init__(self) -> None:
        self.watch: LoopWatch | None = None

    def families(self) -> Iterator[RenderedFamily]:
        """As they are now; those of the loop only when asked for inside it."""
        yield one_sample(OPEN_FDS, count_descriptors())
        yield one_sample(MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            loop = trio.lowlevel.current_statistics()
        except RuntimeError:  # read outside the loop
            return
        yield one_sample(WORKERS, 1)
        yield one_sample(QUEUE_DEPTH, loop.tasks_runnable)
        yield one_sample(ALIVE_TASKS, loop.tasks_living)
        yield worker_sample(BUSY_SECONDS, float_text(time.thread_time()))
        if self.watch is not None:
            parked = self.watch.parked
            yield worker_sample(PARKS, str(parked))
            yield worker_sample(PARKS_UNPARKS, str(2 * parked))  # whoever reads this is awake
            yield RenderedFamily(HOLDS, self.watch.hold_lines())


def one_sample(family: Family, value: int) -> RenderedFamily:
    """A gauge without labels."""
    return RenderedFamily(family, [f"{family.name} {value}"])


def worker_sample(family: Family, value: str) -> RenderedFamily:
    """A counter of the one worker."""
    return RenderedFamily(family, [f'{family.name}_total{{worker="0"}} {value}'])


def count_descriptors() -> int:
    """The process's open descriptors. Linux from 6.2 on tells the number; before, they are listed."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
