"""How long operators' questions hold the loop: `python -m tests.benchmarks.operators`.

A scrape (plain and gzip), a config dump and a burst of log lines run beside nothing else, in the proxy's own
code; each step of a task is timed by the thread's processor time. The longest one is what everybody else is
late by. Exit code 1 when one is longer than 10 ms.
"""

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from tests.benchmarks.mesh_scale import in_groups, load, resident, service_payload, workload_payload
from ztunnel_trio.admin.dump import ConfigDump, mesh_parts
from ztunnel_trio.admin.server import compressed
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.observe.log import configure, get_logger, span, unconfigure
from ztunnel_trio.observe.metrics import TRAFFIC_LABELS, Metrics, Traffic
from ztunnel_trio.observe.metrics.registry import SWEEP_SECONDS

LIMIT_SECONDS = 0.010
BURST_LINES = 20_000


class Holds(trio.abc.Instrument):
    """The longest step of any task, in seconds of the thread's processor time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


def mesh_of(workloads: int) -> Mesh:
    """A mesh as istiod would tell it, 20 workloads of a service."""
    services = max(1, workloads // 20)
    mesh = Mesh(local_node="node-1.example.internal")
    load(mesh, in_groups([service_payload(n) for n in range(services)]))
    load(mesh, in_groups([workload_payload(n, services) for n in range(workloads)]))
    return mesh


def metrics_of(series: int) -> Metrics:
    """As many traffic series, half of them with an open connection."""
    metrics = Metrics()
    for number in range(series):
        labels = (
            "source",
            *(f"label-{number % 7}-value-{place}" for place in range(len(TRAFFIC_LABELS) - 3)),
        )
        traffic = Traffic(number, number)
        found = metrics.traffic.open((*labels, f"zone-{number}"), traffic)
        if number % 2:
            found.finish(traffic, "-", time.monotonic())
    return metrics


async def take(piece: bytes) -> None:
    """A client that takes everything at once."""
    await trio.lowlevel.checkpoint()


async def scrape(metrics: Metrics, coding: str) -> None:
    response = await compressed(metrics.pieces(), "text/plain", [coding])
    if not isinstance(response.body, bytes):
        await response.body(take)


async def dump(mesh: Mesh) -> None:
    write = await ConfigDump(mesh_parts(mesh)).begin()
    await write(take)


async def burst() -> None:
    """Many connections at once, each with its lines."""
    log = get_logger("access")

    async def one(number: int) -> None:
        with span("connection", id=number):
            for _ in range(10):
                log.info(
                    "connection complete", extra={"fields": {"src.addr": "10.0.0.1:1", "number": number}}
                )

    async with trio.open_nursery() as nursery:
        for number in range(BURST_LINES // 10):
            nursery.start_soon(one, number)
            await trio.lowlevel.checkpoint()


def churn(identities: int, *, is_told: bool = True) -> bool:
    """As many pod identities come and go, with a connection each, while somebody scrapes: what is left."""
    now = [0.0]
    metrics = Metrics(clock=lambda: now[0])
    rest = [f"label-value-{place}" for place in range(len(TRAFFIC_LABELS) - 3)]
    for number in range(10):
        traffic = Traffic()
        metrics.traffic.open(("source", f"stays-{number}", *rest), traffic)
    before, at_first = resident(), metrics.render().count(b"\n")
    most = 0
    for number in range(identities):
        now[0] += 0.1
        traffic = Traffic()
        # workload, canonical service, app and principal of its own; the rest as another string each time
        own = (f"pod-{number:06}", f"service-{number}", f"app-{number}", f"spiffe://td/ns/a/sa/sa-{number}")
        labels = ("source", *own, *(f"{one}-{number % 20}" for one in rest[3:]))
        metrics.traffic.open(labels, traffic).finish(traffic, "-", now[0])
        if number % 600 == 0:  # a minute
            metrics.traffic.table.expire()
            for _ in metrics.pieces():
                pass
            most = max(most, resident())
    now[0] += 3601

    async def expire() -> None:
        with trio.move_on_after(SWEEP_SECONDS + 1):
            await metrics.run()

    trio.run(expire, clock=trio.testing.MockClock(autojump_threshold=0.5))
    gc.collect()
    left, kept = resident() - before, len(metrics.traffic)
    again = metrics.render().count(b"\n") - (6 if metrics.traffic.table.overflowed else 0)
    if not is_told:
        return True
    say(
        f"churn of {identities}: {kept} series after the expiry (10 before), {left / 2**20:.1f} MiB more than"
        f" before, {(most - before) / 2**20:.0f} MiB at most, {metrics.traffic.table.overflowed} overflowed,"
        f" {again - at_first:+} lines"
    )
    return kept == 10 and left <= 10 << 20


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def measure(what: str, work: Callable[[], Awaitable[object]]) -> bool:
    """Run it, tell its longest hold and its cost; whether it stays within the limit."""
    holds = Holds()
    began, wall = time.process_time(), time.perf_counter()
    trio.run(work, instruments=[holds])
    spent, took = time.process_time() - began, time.perf_counter() - wall
    longest = holds.longest * 1e3
    say(f"{what:<16} longest hold {longest:6.2f} ms, {spent:5.2f} s of processor in {took:5.2f} s")
    return holds.longest < LIMIT_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workloads", type=int, default=200_000)
    parser.add_argument("--series", type=int, default=20_000)
    parser.add_argument("--identities", type=int, default=100_000)
    chosen = parser.parse_args()
    metrics, mesh = metrics_of(chosen.series), mesh_of(chosen.workloads)
    gc.set_threshold(20_000, 10, 10)  # as the proxy does
    gc.collect()
    gc.freeze()  # as the proxy does with its mesh
    reader, writer = os.pipe()
    threading.Thread(target=lambda: drain(reader), daemon=True).start()
    with open(writer, "w") as stream:
        configure("info", stream=stream)
        say(f"{chosen.workloads} workloads, {chosen.series} series, {BURST_LINES} lines")
        fine = [
            measure("scrape", lambda: scrape(metrics, "identity")),
            measure("scrape, gzip", lambda: scrape(metrics, "gzip")),
            measure("config dump", lambda: dump(mesh)),
            measure("log burst", burst),
            churn(chosen.identities // 4, is_told=False)
            and churn(chosen.identities),  # the heap is warm then
        ]
        unconfigure()
    return 0 if all(fine) else 1


def drain(reader: int) -> None:
    """Read the log away."""
    while os.read(reader, 1 << 16):
        pass


if __name__ == "__main__":
    sys.exit(main())
