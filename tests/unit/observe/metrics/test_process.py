import re
import time
from collections.abc import Callable, Iterator

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.unit.observe.metrics.test_registry import families
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.observe.metrics.process import count_descriptors


@trio_test
async def test_the_loop_is_shown_as_one_worker() -> None:
    metrics = Metrics()
    assert "tokio_worker_park_count" not in metrics.render().decode()
    metrics.watch_loop()
    with trio.fail_after(5):
        while 'park_count_total{worker="0"} 0' in metrics.render().decode():  # noqa: ASYNC110  it counts turns
            await trio.sleep(0.002)  # one that waits, unless the machine is so busy that it is late already

    text = metrics.render().decode()

    assert families(text)[2:8] == [
        "tokio_num_workers",
        "tokio_global_queue_depth",
        "tokio_num_alive_tasks",
        "tokio_worker_total_busy_duration_seconds",
        "tokio_worker_park_count",
        "tokio_worker_park_unpark_count",
    ]
    assert "\ntokio_num_workers 1\n" in text
    assert re.search(r'^tokio_worker_park_count_total\{worker="0"\} [1-9]\d*$', text, re.MULTILINE)
    assert re.search(
        r'^tokio_worker_total_busy_duration_seconds_total\{worker="0"\} \d+\.\d+$', text, re.MULTILINE
    )


@trio_test
async def test_turns_in_which_the_loop_let_nobody_in_are_counted_by_length() -> None:
    metrics = Metrics()
    metrics.watch_loop()
    await trio.sleep(0.002)
    time.sleep(0.06)  # noqa: ASYNC251  the hold itself
    await trio.sleep(0.002)

    text = metrics.render().decode()

    counts = {
        match[1]: int(match[2])
        for match in re.finditer(r'^event_loop_hold_seconds_bucket\{le="(.+)"\} (\d+)$', text, re.MULTILINE)
    }
    total = int(re.search(r"^event_loop_hold_seconds_count (\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert counts["0.05"] == total - 1
    assert counts["0.25"] == counts["+Inf"] == total
    assert list(counts.values()) == sorted(counts.values())
    assert float(re.search(r"^event_loop_hold_seconds_sum (.+)$", text, re.MULTILINE)[1]) > 0.06  # type: ignore[index]


@trio_test
async def test_who_stands_before_the_loops_wait_tells_of_it() -> None:
    metrics = Metrics()
    tellers: list[Callable[[float, float], None]] = []

    def tell(worked: Callable[[float, float], None]) -> bool:
        tellers.append(worked)
        return True

    metrics.watch_loop(tell)
    await trio.sleep(0.001)
    tellers[0](0.3, 0.0)
    tellers[0](0.0001, 1.0)

    text = metrics.render().decode()

    assert '\ntokio_worker_park_count_total{worker="0"} 1\n' in text
    assert '\ntokio_worker_park_unpark_count_total{worker="0"} 2\n' in text
    assert "\nevent_loop_hold_seconds_count 2\n" in text
    assert '\nevent_loop_hold_seconds_bucket{le="0.25"} 1\n' in text


@pytest.fixture
def open_file() -> Iterator[None]:
    with open("/dev/null"):
        yield


def test_descriptors_are_counted(open_file: None) -> None:
    before = count_descriptors()
    with open("/dev/null"):
        assert count_descriptors() == before + 1
