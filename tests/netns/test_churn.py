"""Pods that come and go under load: addresses are reused by other workloads, connections never stop.

CHURN_SECONDS makes it longer than its default; the figures are printed (`pytest -rP`).
"""

import itertools
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import trio

from tests.netns.with_lab import with_lab
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod
from ztunnel_trio.lab.proxy_log import LogLine
from ztunnel_trio.model.address import SocketAddress

SECONDS = float(os.environ.get("CHURN_SECONDS", "10"))  # noqa: TID251  how a longer run is asked for
RATE = 200  # connections a second
ENDPOINTS = 5
EVERY = 1.0  # seconds between two replacements
STALE = 0.1  # seconds for which istiod still names an endpoint that was killed
PATIENCE = 15.0  # of a client; longer than the connect deadline
APP_PORT = 8080
OWN_PORTS = range(20_000, 32_768)  # of clients: none the kernel gives, so that the proxy sees the same
KEY = "default/web.default.svc.cluster.local"


@dataclass(slots=True, eq=False)
class Endpoint:
    """One life of one of the five endpoints. Its application tells whoever asks which identity it has."""

    pod: Pod
    was_killed: bool = False
    serving: int = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.serving += 1
        try:
            if await stream.receive_some(64):
                await stream.send_all(str(self.pod.identity).encode())
                await stream.send_eof()
                await stream.receive_some(64)
        finally:
            self.serving -= 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client's program saw: the identity it was told, or why not."""

    source: SocketAddress
    told: str
    error: str
    seconds: float


@dataclass(slots=True, eq=False)
class Churn:
    """The service, its endpoints now and before, and what its clients saw."""

    lab: Lab
    now: list[Endpoint] = field(default_factory=list)
    past: list[Endpoint] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ports: Iterator[int] = field(default_factory=lambda: itertools.cycle(OWN_PORTS))

    async def begin(self, ip: IPv4Address | None = None) -> Endpoint:
        """A new pod, with its application up before istiod names it."""
        name = f"web-{len(self.now) + len(self.past)}"
        pod = await self.lab.add_pod(name, node="node-2", known=False, ip=ip)
        pod.services[KEY] = {80: APP_PORT}
        endpoint = Endpoint(pod)
        await pod.serve(APP_PORT, endpoint)
        await self.lab.push(pod.workload())
        return endpoint

    async def replace(self, slot: int, *, kill: bool) -> None:
        """End an endpoint and let another workload have its address."""
        old = self.now[slot]
        old.was_killed = kill
        if kill:
            await self.kill(old.pod)
        else:
            await self.retire(old)
        self.past.append(old)
        self.now[slot] = await self.begin(old.pod.ip)

    async def retire(self, old: Endpoint) -> None:
        """As a rolling update: istiod forgets it, it serves out what it has, then it goes."""
        await self.lab.push(removed=[old.pod.workload_uid])
        quiet = 0
        while quiet < 5:
            await trio.sleep(0.02)
            quiet = 0 if old.serving else quiet + 1
        await self.lab.delete_pod(old.pod)

    async def kill(self, pod: Pod) -> None:
        """As a crash: applications, proxy and cable are gone at once, and istiod hears of it last."""
        pod.stop_apps()
        assert pod.node is not None
        await pod.node.agent.delete(pod.uid)
        await self.lab.fabric.unplug(pod.host)
        del self.lab.pods[pod.name]
        await trio.sleep(STALE)
        await self.lab.push(removed=[pod.workload_uid])

    async def go_on(self, seconds: float) -> None:
        """Replace one endpoint after the other, every second one by a crash."""
        began = trio.current_time()
        for number in range(int(seconds / EVERY)):
            await trio.sleep_until(began + (number + 0.5) * EVERY)
            await self.replace(number % ENDPOINTS, kill=number % 2 == 1)

    async def connect(self, client: Pod, target: SocketAddress) -> None:
        """One connection of one client."""
        began = trio.current_time()
        source, told, error = SocketAddress(client.ip, next(self.ports)), "", "no answer in time"
        with trio.move_on_after(PATIENCE):
            try:
                async with await client.connect(target, source=source.ip, source_port=source.port) as stream:
                    await stream.send_all(b"who are you?")
                    told = (await stream.receive_some(256)).decode()
                    error = "" if told else "closed"
            except (OSError, trio.BrokenResourceError) as failure:
                error = str(failure)
        self.outcomes.append(Outcome(source, told, error, trio.current_time() - began))


@with_lab(LabSettings(watch_wire=False), seconds=SECONDS + 60)
async def test_no_connection_fails_and_none_reaches_another_identity_while_endpoints_are_replaced(
    lab: Lab,
) -> None:
    churn = Churn(lab)
    clients = [await lab.add_pod(f"client-{number}", node="node-1") for number in range(2)]
    await lab.add_service("web", ports={80: APP_PORT})
    await lab.start()
    for _ in range(ENDPOINTS):
        churn.now.append(await churn.begin())
    target = lab.address_of("web")
    mark = lab.nodes["node-1"].log.mark()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(churn.go_on, SECONDS)
        for number in range(int(SECONDS * RATE)):
            await trio.sleep_until(began + number / RATE)
            nursery.start_soon(churn.connect, clients[number % len(clients)], target)
        lasted = trio.current_time() - began
    with trio.fail_after(20):
        lines = await lab.nodes["node-1"].log.wait_access(mark, count=len(churn.outcomes))

    seen = access_by_source(lines)
    failed = [one for one in churn.outcomes if one.error and not was_cut(seen[str(one.source)], churn)]
    report(churn, lasted, failed, lines, await lab.nodes["node-1"].proxy.metrics())
    assert [f"{one.source}: {one.error}" for one in failed] == []
    # Whoever answered is who the client's proxy had made sure of.
    assert [
        f"{one.source}: {one.told}"
        for one in churn.outcomes
        if one.told and one.told not in [line.get("dst.identity") for line in seen[str(one.source)]]
    ] == []
    inbound = lab.nodes["node-2"].log.access()
    known = {str(endpoint.pod.identity) for endpoint in [*churn.now, *churn.past]}
    assert {line.get("dst.identity") for line in inbound if line.get("bytes_recv") not in ("", "0")} <= known
    assert len(churn.past) >= int(SECONDS / EVERY) - 1


def access_by_source(lines: Sequence[LogLine]) -> dict[str, list[LogLine]]:
    """The access lines of each client address."""
    found: dict[str, list[LogLine]] = defaultdict(list)
    for line in lines:
        found[line.get("src.addr")].append(line)
    return found


def was_cut(lines: Sequence[LogLine], churn: Churn) -> bool:
    """Whether the connection had reached an endpoint that was then killed: there was nobody to take it."""
    killed = {str(endpoint.pod.identity) for endpoint in churn.past if endpoint.was_killed}
    return any(line.get("dst.identity") in killed and line.get("bytes_sent") != "0" for line in lines)


def report(
    churn: Churn, lasted: float, failed: Sequence[Outcome], lines: Sequence[LogLine], metrics: str
) -> None:
    """The figures."""
    times = sorted(one.seconds for one in churn.outcomes if not one.error)
    cut = sum(1 for one in churn.outcomes if one.error) - len(failed)
    figures = [
        f"{len(churn.outcomes)} connections in {lasted:.1f} s",
        f"{len(failed)} failed, {cut} cut with their pod",
        f"{len(churn.past)} endpoints replaced, {sum(one.was_killed for one in churn.past)} of these killed",
        *(line for line in metrics.splitlines() if line.startswith("istio_connect_retries")),
        f"seconds to the answer: median {statistics.median(times):.4f}, "
        f"99 % {times[len(times) * 99 // 100]:.4f}, longest {times[-1]:.4f}",
        f"errors logged: {Counter(line.get('error') for line in lines if line.get('error'))}",
        f"failures seen: {Counter(one.error for one in failed)}",
    ]
    print("\n".join(figures))  # noqa: T201


@with_lab(LabSettings(watch_wire=False), seconds=90)
async def test_an_endpoint_that_vanishes_without_a_word_costs_time_but_no_connection(lab: Lab) -> None:
    churn = Churn(lab)
    client = await lab.add_pod("client", node="node-1")
    await lab.add_service("web", ports={80: APP_PORT})
    await lab.start()
    for _ in range(ENDPOINTS):
        churn.now.append(await churn.begin())
    target = lab.address_of("web")
    for _ in range(10 * ENDPOINTS):  # a tunnel to each
        await churn.connect(client, target)

    await lab.fabric.unplug(churn.now[0].pod.host)
    del lab.pods[churn.now[0].pod.name]
    async with trio.open_nursery() as nursery:
        for _ in range(10 * ENDPOINTS):
            nursery.start_soon(churn.connect, client, target)
            await trio.sleep(0.05)

    assert [one for one in churn.outcomes if one.error] == []
    vanished = str(churn.now[0].pod.identity)
    assert vanished in {one.told for one in churn.outcomes[: 10 * ENDPOINTS]}
    assert max(one.seconds for one in churn.outcomes) < 10
