"""How a proxy takes a large mesh, with traffic running:

    python -m tests.benchmarks.control [COUNT ...] [--rounds 1] [--beside COMMAND [--itself]] [--json FILE]

For each number of workloads, in a twentieth as many services: a node with two pods is started and given the
mesh; then istiod ends the stream and it is opened again with all versions known (as many as a request may
name); then every resource has changed and comes again. Meanwhile one connection between the pods makes round
trips of 100 bytes. Needs root or a user namespace.

Holds of the event loop are the proxy's own (`event_loop_hold_seconds`): how long it worked before it looked
at the network again. CPU is that of the phase, of its round trips too. Waiting for a processor is the
kernel's figure (`schedstat`): what of the round trips is the machine's. The peak is that of the phase.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import trio

from tests.benchmarks import yardstick
from tests.benchmarks.datapath import in_host
from ztunnel_trio.lab import privilege, resources
from ztunnel_trio.lab.istiod import AdsStream
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.lab.resources import Stored, stored
from ztunnel_trio.pb.workload_pb2 import Locality, Service, Workload

COUNTS: Final = (2_000, 20_000, 200_000)
PORT: Final = 8080
QUIET_SECONDS: Final = 4.0
BUSY_SECONDS: Final = 10.0
LIKE_OTHERS: Final = ("chrt", "--other", "0")
HOLDS: Final = "event_loop_hold_seconds_bucket"


def services(count: int) -> Iterator[Service]:
    for n in range(max(1, count // 20)):
        hostname = f"app-{n}.team-{n % 200}.svc.cluster.local"
        address = str(IPv4Address("11.0.0.0") + n)
        yield resources.service(hostname, namespace=f"team-{n % 200}", addresses=[address], ports={80: 8080})


def workloads(count: int, revision: str) -> Iterator[Workload]:
    """Pods as istiod tells of them: twenty of a deployment, on a thousand nodes in three zones."""
    for n in range(count):
        app = n % max(1, count // 20)
        namespace = f"team-{app % 200}"
        made = resources.workload(
            f"app-{app}-6d5f7c9b84-{n:06x}",
            namespace=namespace,
            service_account=f"app-{app}",
            addresses=[str(IPv4Address("12.0.0.0") + n)],
            node=f"worker-{n * 7919 % 1000}.example.internal",
            services={f"{namespace}/app-{app}.{namespace}.svc.cluster.local": {80: 8080}},
        )
        made.workload_name = made.canonical_name = f"app-{app}"
        made.canonical_revision = revision
        made.locality.CopyFrom(Locality(region="region-1", zone=f"region-1-{n * 7919 % 1000 % 3}"))
        yield made


@dataclass(frozen=True)
class Holds:
    """Turns of the loop by the upper bound of their length."""

    counts: dict[float, int]

    @classmethod
    async def of(cls, node: Node) -> "Holds":
        counts: dict[float, int] = {}
        for line in (await node.proxy.metrics()).splitlines():
            if line.startswith(HOLDS):
                bound, _, total = line.removeprefix(f'{HOLDS}{{le="').partition('"} ')
                counts[float(bound)] = int(total)
        return cls(counts)

    def since(self, before: "Holds") -> "Holds":
        return Holds({bound: total - before.counts.get(bound, 0) for bound, total in self.counts.items()})

    def quantile(self, part: float) -> float:
        """The bound that so large a part of the turns stayed below, in ms."""
        total = self.counts[float("inf")]
        return 1000 * next(bound for bound, count in self.counts.items() if count >= part * total)


def usage(pid: int) -> dict[str, float]:
    """Seconds of CPU and of waiting for one, MiB held and at most."""
    base = Path(f"/proc/{pid}")
    ran, waited, _ = base.joinpath("schedstat").read_text().split()
    status = dict(line.split(":", 1) for line in base.joinpath("status").read_text().splitlines())
    return {
        "cpu": int(ran) / 1e9,
        "waited": int(waited) / 1e9,
        "rss": int(status["VmRSS"].split()[0]) / 1024,
        "peak": int(status["VmHWM"].split()[0]) / 1024,
    }


class Bench:
    """One node, two pods, and what is measured of its proxy."""

    def __init__(self, lab: Lab, node: Node, client: Pod, server: Pod) -> None:
        self.lab, self.node, self.client, self.server = lab, node, client, server
        self.figures: yardstick.Figures = {}

    async def round_trips(self, seconds: float, found: dict[str, float]) -> None:
        command = in_host(
            self.client.host, "round-trips", str(self.server.ip), str(PORT), "1", str(seconds), "100"
        )
        with trio.fail_after(seconds + 30):
            done = await trio.run_process([*LIKE_OTHERS, *command], capture_stdout=True)
        found.update(json.loads(done.stdout))

    async def phase(
        self, name: str, seconds: float, change: Callable[[], object] | None, *, pid: int
    ) -> None:
        """Round trips for a while, and a change of the mesh in their midst."""
        await trio.Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts over
        before, holds = usage(pid), await Holds.of(self.node)
        trips: dict[str, float] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.round_trips, seconds, trips)
            if change is not None:
                await trio.sleep(1)
                mark = len(self.lab.istiod.streams)
                change()
                with trio.fail_after(120):
                    await self.lab.istiod.wait_for(partial(self.is_answered, mark))
        after, held = usage(pid), (await Holds.of(self.node)).since(holds)
        used = after["cpu"] - before["cpu"]
        found = {
            "CPU s": used,
            "CPU us/exchange": used / trips["n"] * 1e6,
            "waited for CPU s": after["waited"] - before["waited"],
            "resident MiB": after["rss"],
            "peak MiB": after["peak"],
            "hold p99.9 ms": held.quantile(0.999),
            "hold max ms": held.quantile(1.0),
            "rtt p50 us": trips["p50_us"],
            "rtt p99 us": trips["p99_us"],
            "round trips per_second": trips["per_second"],
        }
        self.figures |= {f"{name}: {figure}": value for figure, value in found.items()}

    def is_answered(self, mark: int) -> bool:
        streams: list[AdsStream] = self.lab.istiod.streams[mark:]
        return any(len(stream.answers) >= 2 for stream in streams)


async def measure(count: int, proxy: Sequence[str]) -> yardstick.Figures:
    settings = LabSettings(
        nodes=["node-1"],
        command=proxy,
        environment={"RUST_LOG": "warn"},
        watch_wire=False,
        ready_seconds=180,
    )
    async with open_lab(settings) as lab:
        lab.istiod.related = False
        client = await lab.add_pod("client", node="node-1")
        server = await lab.add_pod("server", node="node-1")
        lab.istiod.put(*services(count), *workloads(count, "v1"))
        node = lab.nodes["node-1"]
        began = trio.current_time()
        await lab.start()
        ready = trio.current_time() - began
        pid = node.proxy.pid
        bench = Bench(lab, node, client, server)
        held, used = await Holds.of(node), usage(pid)
        bench.figures = {
            "ready: seconds": ready,
            "ready: CPU s": used["cpu"],
            "ready: waited for CPU s": used["waited"],
            "ready: resident MiB": used["rss"],
            "ready: peak MiB": used["peak"],
            "ready: hold p99.9 ms": held.quantile(0.999),
            "ready: hold max ms": held.quantile(1.0),
        }
        lab.nursery.start_soon(trio.run_process, in_host(server.host, "serve", str(PORT)))
        await trio.sleep(1)
        schedule(
            os.SCHED_IDLE
        )  # istiod is elsewhere in a cluster: here it leaves the processors to the others
        await bench.phase("quiet", QUIET_SECONDS, None, pid=pid)
        await bench.phase("reconnect", BUSY_SECONDS, lab.istiod.cut, pid=pid)
        again = [replace(one, version=f"{one.version}x") for one in map(stored, services(count))]
        lab.istiod.put(*again, *workloads(count, "v2"), *(again_of(pod) for pod in (client, server)))
        await bench.phase("full resend", BUSY_SECONDS, lab.istiod.cut, pid=pid)
        return bench.figures


def schedule(policy: int) -> None:
    """Put this process, which is istiod, under a scheduling policy."""
    os.sched_setscheduler(0, policy, os.sched_param(0))


def again_of(pod: Pod) -> Stored:
    """A pod's workload in another version, though nothing about it has changed."""
    one = stored(pod.workload())
    return replace(one, version=f"{one.version}x")


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        parents=[yardstick.parser_of_rounds(1)],
    )
    parser.add_argument("counts", nargs="*", type=int, default=COUNTS)
    chosen = parser.parse_args()
    if (told := privilege.become_able()) is not None:
        sys.stderr.write(told + "\n")
    asked = yardstick.rounds_of(chosen)
    for build in asked.order():
        figures: yardstick.Figures = {}
        for count in chosen.counts:
            found = trio.run(measure, count, build.proxy)
            schedule(os.SCHED_OTHER)
            figures |= {f"{count:,} {name}": value for name, value in found.items()}
        asked.note(build.name, figures)
    asked.finish()


if __name__ == "__main__":
    run()
