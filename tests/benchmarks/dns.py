"""Queries a second and latency of the DNS server, beside a stock one: mesh names and forwarded names. Then
what questions cost everybody else on the node.

    python -m tests.benchmarks.dns [--dnsmasq PATH] [--seconds 2]

Servers are child processes, the load generator is this one. Ours has `SERVICES` services in its mesh, dnsmasq
the same names as host records and no cache, so that both ask the same upstream for every forwarded query.
`CPU us/answer` is the server's.

The second part needs root: a lab of one node, three captured pods. Between two of them one connection
exchanges `MESSAGE_BYTES` back and forth through the proxy, while the third asks nothing, asks `LIVE_QUERIES`
questions a second that it answers itself (what asking costs a small machine), and asks the proxy as many.
The stretches alternate, so that all see the same machine.

`--hostile` measures those round trips while the third pod asks `HOSTILE_QUERIES` questions of 110 labels a
second, and while it sends as many datagrams to a port where nobody listens.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

import dns.message
import trio

from tests.benchmarks import yardstick
from tests.fakes.dns_mesh import CLIENT, kubernetes, mesh_of
from ztunnel_trio.dns.forward import Forwarder
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.dns.server import DnsServer, bind
from ztunnel_trio.dns.settings import DnsSettings
from ztunnel_trio.lab import resources
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.mesh import LabSettings, open_lab
from ztunnel_trio.lab.privilege import missing_capabilities
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.supervise.drain import Drain

LOOPBACK = IPv4Address("127.0.0.1")
SERVICES = 1000
OUTSTANDING = 32
MESSAGE_BYTES, ECHO_PORT = 100, 8080
CAPTURED_RESOLVER = "10.96.0.10"
LIVE_QUERIES = 2000
HOSTILE_QUERIES = 20_000
STRETCHES = 3


def service_name(n: int) -> str:
    return f"svc{n}.ns1.svc.cluster.local"


def service_address(n: int) -> str:
    return f"10.96.{n >> 8}.{n & 255}"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOOPBACK), 0))
        port: int = sock.getsockname()[1]
        return port


def serve_upstream(port: int) -> None:
    """A resolver that answers every question with one address, as fast as Python can."""
    answer = bytes.fromhex("c00c000100010000003c0004c0000201")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOOPBACK), port))
        while True:
            query, peer = sock.recvfrom(4096)
            end = query.index(b"\0", 12) + 5
            sock.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end] + answer, peer)


def serve_ours(port: int, upstream: int) -> None:
    services = [kubernetes(f"svc{n}", "ns1", service_address(n)) for n in range(SERVICES)]
    factory = SocketFactory(None, SocketSettings())
    conf = ResolvConf(servers=(SocketAddress(LOOPBACK, upstream),))

    async def main() -> None:
        server = DnsServer(
            sockets=bind(factory, SocketAddress(LOOPBACK, port), ipv6=False),
            live=LiveMesh(mesh_of(services)),
            client=CLIENT.info,
            forwarder=Forwarder(factory, conf),
            settings=DnsSettings(),
            metrics=Metrics(),
            rng=random.Random(),
        )
        await server.run(Drain(0))

    trio.run(main)


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """A child process doing `work` until the block ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def dnsmasq(path: str, port: int, upstream: int) -> Iterator[int]:
    records = [f"--host-record={service_name(n)},{service_address(n)}" for n in range(SERVICES)]
    command = [
        path,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
    ]
    command += ["--bind-interfaces", f"--listen-address={LOOPBACK}", f"--port={port}", "--cache-size=0"]
    command += [f"--server={LOOPBACK}#{upstream}", "--dns-forward-max=1000", "--pid-file=", *records]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def mesh_queries() -> Iterator[bytes]:
    names = [service_name(n) for n in range(0, SERVICES, SERVICES // 100)]
    return itertools.cycle([dns.message.make_query(name, "A", id=7).to_wire() for name in names])


def cold_queries() -> Iterator[bytes]:
    """Mesh names none of which is asked twice within what a server keeps."""
    order = [dns.message.make_query(service_name(n), "A", id=7).to_wire() for n in range(SERVICES)]
    return itertools.cycle(order)


def other_queries() -> Iterator[bytes]:
    template = dns.message.make_query("n00000000.example.org", "A", id=7).to_wire()
    for n in itertools.count():
        yield template.replace(b"n00000000", b"n%08d" % n)


def wait_until_answered(sock: socket.socket) -> None:
    sock.settimeout(0.1)
    for _ in range(100):
        try:
            sock.send(next(mesh_queries()))
            sock.recv(4096)
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("the server does not answer")


def measure_server(name: str, port: int, pid: int, seconds: float) -> yardstick.Figures:
    """What a server does with each kind of question."""
    figures: yardstick.Figures = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((str(LOOPBACK), port))
        wait_until_answered(sock)
        for kind, queries in (
            ("mesh", mesh_queries()),
            ("mesh, cold", cold_queries()),
            ("forwarded", other_queries()),
        ):
            rate, cpu = throughput(sock, pid, queries, seconds)
            p50, p99 = latency(sock, queries, seconds / 2)
            figures |= {
                f"{name}, {kind}: answers per_second": rate,
                f"{name}, {kind}: CPU us/answer": cpu / rate * 1e6,
                f"{name}, {kind}: p50 us": p50 * 1e6,
                f"{name}, {kind}: p99 us": p99 * 1e6,
            }
    return figures


def throughput(
    sock: socket.socket, pid: int, queries: Iterator[bytes], seconds: float
) -> tuple[float, float]:
    """Answers a second with `OUTSTANDING` queries in flight, and the server's CPU seconds a second."""
    sock.settimeout(1)
    cpu, began, answered = yardstick.cpu_seconds(pid), time.perf_counter(), 0
    for _ in range(OUTSTANDING):
        sock.send(next(queries))
    while time.perf_counter() - began < seconds:
        sock.recv(4096)
        answered += 1
        sock.send(next(queries))
    elapsed = time.perf_counter() - began
    used = yardstick.cpu_seconds(pid) - cpu
    for _ in range(OUTSTANDING):
        sock.recv(4096)
    return answered / elapsed, used / elapsed


def latency(sock: socket.socket, queries: Iterator[bytes], seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of one query at a time."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        sock.send(next(queries))
        sock.recv(4096)
        times.append(time.perf_counter() - began)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


@dataclass
class Stretch:
    """Round trips while so many questions a second were asked; how many were answered."""

    times: list[float] = field(default_factory=list)
    answered: int = 0

    def figures(self, name: str) -> yardstick.Figures:
        cuts = statistics.quantiles(self.times, n=100)
        return {f"round trip, {name}: p50 us": cuts[49] * 1e6, f"round trip, {name}: p99 us": cuts[98] * 1e6}


def echo(host: Host) -> None:
    with host.listener(ECHO_PORT) as listener:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := sock.recv(MESSAGE_BYTES):
                    sock.sendall(data)


def ask_steadily(host: Host, rate: float, report: int, *, itself: bool) -> None:
    """Ask at an even pace from a pod; every answer is a byte on the descriptor `report`.

    `itself`: answered in this very process, which costs what asking costs and nothing of the proxy.
    """
    queries = mesh_queries()
    answering = host.make_socket(kind=socket.SOCK_DGRAM)
    with host.make_socket(kind=socket.SOCK_DGRAM) as sock, answering:
        answering.bind((str(LOOPBACK), 0))
        answering.setblocking(False)
        sock.connect(answering.getsockname() if itself else (CAPTURED_RESOLVER, 53))
        sock.setblocking(False)
        began, asked = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - began) * rate)
            for _ in range(due - asked):
                sock.send(next(queries))
                if itself:
                    query, peer = answering.recvfrom(4096)
                    answering.sendto(query, peer)
            asked = due
            with suppress(BlockingIOError):
                while sock.recv(4096):
                    os.write(report, b".")
            time.sleep(0.001)


def exchange(host: Host, target: SocketAddress, seconds: float) -> list[float]:
    """The times of round trips on one connection."""
    times: list[float] = []
    message = bytes(MESSAGE_BYTES)
    with host.make_socket() as sock:
        sock.connect((str(target.ip), target.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            sock.sendall(message)
            received = 0
            while received < MESSAGE_BYTES:
                received += len(sock.recv(MESSAGE_BYTES))
            times.append(time.perf_counter() - began)
    return times


async def live_traffic(seconds: float) -> yardstick.Figures:
    """Round trips through the proxy on a node where nobody asks, and where somebody asks a lot."""
    async with open_lab(LabSettings(nodes=("node-1",), watch_wire=False)) as lab:
        client, server, asker = [await lab.add_pod(name, node="node-1") for name in ("a", "b", "asker")]
        names = [
            resources.service(service_name(n), namespace="ns1", addresses=[service_address(n)])
            for n in range(SERVICES)
        ]
        await lab.push(*names)
        await lab.start()
        quiet, control, busy = Stretch(), Stretch(), Stretch()
        target = SocketAddress(server.ip, ECHO_PORT)
        with forked(lambda: echo(server.host)):
            await trio.sleep(0.2)
            for _ in range(STRETCHES):
                quiet.times += await trio.to_thread.run_sync(exchange, client.host, target, seconds)
                for stretch in (control, busy):
                    await stretch_beside_questions(
                        stretch, asker.host, client.host, target, seconds, itself=stretch is control
                    )
        return {
            **quiet.figures("nobody asks"),
            **control.figures("who asks is answered by himself"),
            **busy.figures("the proxy answers"),
            "the proxy answers per_second": busy.answered / (STRETCHES * seconds),
        }


def hostile_queries() -> list[bytes]:
    """Names of 110 labels below a search domain, more of them than a server keeps answers."""
    labels = ".".join("a" * 105)
    names = [f"{labels}.b{n}.{CLIENT.namespace}.svc.cluster.local" for n in range(4096)]
    return [dns.message.make_query(name, "A", id=7).to_wire() for name in names]


def flood(host: Host, target: tuple[str, int]) -> None:
    """Ask `HOSTILE_QUERIES` a second from a pod, whatever becomes of them."""
    queries = itertools.cycle(hostile_queries())
    with host.make_socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        sock.setblocking(False)
        began, asked = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - began) * HOSTILE_QUERIES)
            for _ in range(due - asked):
                with suppress(OSError):  # refused, or the queue is full
                    sock.send(next(queries))
            asked = due
            with suppress(OSError):
                while sock.recv(4096):
                    pass
            time.sleep(0.001)


async def hostile_traffic(seconds: float) -> yardstick.Figures:
    """Round trips through the proxy while one pod floods: a port nobody listens on, then the name server."""
    async with open_lab(LabSettings(nodes=("node-1",), watch_wire=False)) as lab:
        client, server, asker = [await lab.add_pod(name, node="node-1") for name in ("a", "b", "asker")]
        await lab.start()
        unused, asked = Stretch(), Stretch()
        target = SocketAddress(server.ip, ECHO_PORT)
        places = ((unused, (str(LOOPBACK), 9)), (asked, (CAPTURED_RESOLVER, 53)))
        with forked(lambda: echo(server.host)):
            await trio.sleep(0.2)
            for _ in range(STRETCHES):
                for stretch, place in places:
                    with forked(partial(flood, asker.host, place)):
                        await trio.sleep(0.3)
                        stretch.times += await trio.to_thread.run_sync(exchange, client.host, target, seconds)
        figures = {**unused.figures("flood of an unused port"), **asked.figures("flood of questions")}
        figures["flood of questions to one of an unused port: p99 ratio"] = (
            figures["round trip, flood of questions: p99 us"]
            / figures["round trip, flood of an unused port: p99 us"]
        )
        return figures


async def stretch_beside_questions(
    stretch: Stretch, asker: Host, client: Host, target: SocketAddress, seconds: float, *, itself: bool
) -> None:
    """Add the round trips of a while in which `asker` asks."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    with forked(lambda: ask_steadily(asker, LIVE_QUERIES, write, itself=itself)):
        await trio.sleep(0.3)
        with suppress(BlockingIOError):
            os.read(read, 1 << 20)
        stretch.times += await trio.to_thread.run_sync(exchange, client, target, seconds)
        with suppress(BlockingIOError):
            stretch.answered += len(os.read(read, 1 << 20))
    os.close(read)
    os.close(write)


def measure(chosen: argparse.Namespace) -> yardstick.Figures:
    if chosen.hostile:
        return trio.run(hostile_traffic, chosen.seconds)
    upstream, ours, stock = free_port(), free_port(), free_port()
    with forked(lambda: serve_upstream(upstream)):
        with forked(lambda: serve_ours(ours, upstream)) as pid:
            figures = measure_server("ours", ours, pid, chosen.seconds)
        if chosen.dnsmasq is not None:
            with dnsmasq(chosen.dnsmasq, stock, upstream) as pid:
                figures |= measure_server("dnsmasq", stock, pid, chosen.seconds)
    if missing := missing_capabilities():
        sys.stderr.write(f"round trip: not measured, {', '.join(missing)} missing\n")
        return figures
    return figures | trio.run(live_traffic, chosen.seconds)


if __name__ == "__main__":
    options = yardstick.options(__doc__)
    options.add_argument("--dnsmasq", default=shutil.which("dnsmasq"))
    options.add_argument("--hostile", action="store_true", help="only: round trips while one pod floods")
    options.add_argument("--seconds", type=float, default=2.0)
    yardstick.run(options, measure, rounds=1)
