"""The process and its event loop, under the names dashboards ask for."""

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Final

import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ztunnel_trio.observe.metrics.exposition import RenderedFamily, float_text, single

Worked = Callable[[float, float], None]
"""Told before the event loop waits: the seconds it worked since it last woke, and how long it may wait."""
HOLD_FAMILY: Final = "event_loop_hold_seconds"
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
            lines.append(f'{HOLD_FAMILY}_bucket{{le="{most}"}} {total}')
        lines += [f"{HOLD_FAMILY}_count {total}", f"{HOLD_FAMILY}_sum {float_text(self.held_seconds)}"]
        return lines


class ProcessAndLoop(Collector):
    """The process and its event loop, under the names dashboards ask for.

    There is one event loop: the `tokio_` families describe it truthfully as one worker. Busy time is
    the CPU time of the loop's thread; the queue is the tasks that are ready to run.
    """

    def __init__(self) -> None:
        self.watch: LoopWatch | None = None

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield single("process_open_fds", "Number of open file descriptors", "gauge", count_descriptors())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield single("process_max_fds", "Maximum number of file descriptors", "gauge", most)
        try:
            loop = trio.lowlevel.current_statistics()
        except RuntimeError:  # read outside the loop
            return
        yield single("tokio_num_workers", "the number of worker threads used by the runtime", "gauge", 1)
        text = "the number of tasks currently scheduled in the runtime's global queue"
        yield single("tokio_global_queue_depth", text, "gauge", loop.tasks_runnable)
        text = "the number of alive tasks in the runtime"
        yield single("tokio_num_alive_tasks", text, "gauge", loop.tasks_living)
        name = "tokio_worker_total_busy_duration_seconds"
        line = f'{name}_total{{worker="0"}} {float_text(time.thread_time())}'
        yield RenderedFamily(name, "the amount of time worker threads have been busy", [line])
        if self.watch is not None:
            name = "tokio_worker_park_count"
            text = "the total number of times the given worker thread has parked"
            yield RenderedFamily(name, text, [f'{name}_total{{worker="0"}} {self.watch.parked}'])
            name = "tokio_worker_park_unpark_count"
            both = 2 * self.watch.parked  # whoever reads this is awake
            text = "the total number of times the given worker thread has parked and unparked"
            yield RenderedFamily(name, text, [f'{name}_total{{worker="0"}} {both}'])
            text = "how long the event loop worked before it looked at the network again (unstable)"
            yield RenderedFamily(HOLD_FAMILY, text, self.watch.hold_lines(), "histogram")


def count_descriptors() -> int:
    """The process's open descriptors, without the one used for counting."""
    return len(os.listdir("/dev/fd")) - 1
