"""Throughput, round trips, set-up and size of two hops: app -> client tunnel -> server tunnel -> app.

Both hops share this process and one core, the applications are child processes. Run:

    python -m tests.benchmarks.two_hops [--task] [--seconds 2] [--only upload]
"""

import argparse
import gc
import json
import os
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio
import trustme

from tests.benchmarks import yardstick
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.observe.words import error_text
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings

HEADERS = [
    (
        b"baggage",
        b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
        b"service.name=client,service.version=v1",
    ),
    (b"forwarded", b'for="10.0.0.1:40000"'),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
]
TARGET = SocketAddress.parse("10.0.0.2:8080")


@dataclass(slots=True)
class Counted:
    to_destination: int = 0
    to_source: int = 0


def serve_apps(listener: socket.socket) -> None:
    """The destination: the first byte says what a connection is for: (e)cho, (s)ink, (p)our, (i)dle."""

    def one(conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(1 << 20)
        with conn:
            what = conn.recv(1)
            if what == b"p":
                while True:
                    try:
                        conn.sendall(buffer)
                    except OSError:
                        return
            while count := conn.recv_into(buffer):
                if what == b"e":
                    conn.sendall(memoryview(buffer)[:count])

    while True:
        conn, _ = listener.accept()
        threading.Thread(target=one, args=(conn,), daemon=True).start()


def round_trips(address: tuple[str, int], seconds: float) -> yardstick.Figures:
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"e")
        took = []
        message = bytes(100)
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            sock.sendall(message)
            left = 100
            while left:
                left -= len(sock.recv(left))
            took.append(time.perf_counter() - began)
    took.sort()
    p50, p99 = (took[int(len(took) * part)] * 1e6 for part in (0.5, 0.99))
    return {"p50 us": p50, "p99 us": p99, "n": len(took)}


def upload(address: tuple[str, int], seconds: float) -> yardstick.Figures:
    with socket.create_connection(address) as sock:
        sock.sendall(b"s")
        chunk, total = bytes(1 << 20), 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            sock.sendall(chunk)
            total += len(chunk)
        return {"gb_per_second": total / (time.perf_counter() - began) / 1e9, "n": total / 1e9}


def download(address: tuple[str, int], seconds: float) -> yardstick.Figures:
    with socket.create_connection(address) as sock:
        sock.sendall(b"p")
        buffer, total = bytearray(1 << 20), 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            total += sock.recv_into(buffer)
        return {"gb_per_second": total / (time.perf_counter() - began) / 1e9, "n": total / 1e9}


def connect(address: tuple[str, int], seconds: float) -> yardstick.Figures:
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        with socket.create_connection(address) as sock:
            sock.sendall(b"ex")
            sock.recv(1)
            took.append(time.perf_counter() - began)
    return {"per_second": len(took) / seconds, "p50 us": statistics.median(took) * 1e6, "n": len(took)}


LOADS = (
    ("direct round trip", round_trips, "CPU us each", 1e6),
    ("round trip", round_trips, "CPU us each", 1e6),
    ("upload", upload, "CPU s/GB", 1.0),
    ("download", download, "CPU s/GB", 1.0),
    ("connections", connect, "CPU us each", 1e6),
)
IDLE = 1000


async def loaded(work: Callable[[], yardstick.Figures]) -> yardstick.Figures:
    """What a child process found out."""
    reading, writing = os.pipe()

    def tell() -> None:
        os.write(writing, json.dumps(work()).encode())

    pid = child(tell)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found: yardstick.Figures = json.loads(await trio.to_thread.run_sync(pipe.read))
    await trio.to_thread.run_sync(os.waitpid, pid, 0)
    return found


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


async def idle(address: tuple[str, int]) -> yardstick.Figures:
    """Memory of both hops, a connection."""
    gc.collect()
    before = resident_kib()
    reading, writing = os.pipe()
    standing, stood = os.pipe()

    def hold() -> None:
        os.close(writing)
        socks = []
        for _ in range(IDLE):
            sock = socket.create_connection(address)
            sock.sendall(b"ex")
            sock.recv(1)
            socks.append(sock)
        os.write(stood, b".")
        os.read(reading, 1)

    pid = child(hold)
    await trio.to_thread.run_sync(os.read, standing, 1)
    gc.collect()
    figures = {"idle: KiB a connection, both hops": (resident_kib() - before) / IDLE}
    for fd in (reading, writing, standing, stood):
        os.close(fd)
    await trio.to_thread.run_sync(os.waitpid, pid, 0)
    return figures


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("node.test", key_type=trustme.KeyType.ECDSA)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.num_tickets = 0
    leaf.configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return client, server


async def handshake(sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


async def accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            sock, _ = listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)


async def dial(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.connect(address)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock)
    return sock


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4


async def main(seconds: float, *, in_front: bool, only: str) -> yardstick.Figures:
    figures: yardstick.Figures = {}
    apps = socket.create_server(("127.0.0.1", 0), backlog=1024)
    app_pid = child(lambda: serve_apps(apps))
    app_address = apps.getsockname()
    outbound, inbound = listen(), listen()
    client_context, server_context = contexts()
    engine = Engine(in_front=in_front)
    settings = TunnelSettings(max_streams=2000)

    async def serve(request: TunnelRequest) -> None:
        sock = await dial(app_address)
        stream = request.accept([])
        if text := error_text(await relay(engine, stream, SocketEnd(sock), Counted())):
            sys.stderr.write(f"inbound: {text}\n")

    async def captured(sock: socket.socket, tunnel: ClientTunnel) -> None:
        stream = await tunnel.open(TARGET, HEADERS)
        if text := error_text(await relay(engine, SocketEnd(sock), stream, Counted())):
            sys.stderr.write(f"outbound: {text}\n")

    async def capture(tunnel: ClientTunnel) -> None:
        while True:
            nursery.start_soon(captured, await accept(outbound), tunnel)

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        raw = await dial(inbound.getsockname())
        far = server_context.wrap_socket(
            await accept(inbound), server_side=True, do_handshake_on_connect=False
        )
        near = client_context.wrap_socket(raw, server_hostname="node.test", do_handshake_on_connect=False)
        async with trio.open_nursery() as hands:
            hands.start_soon(handshake, far)
            hands.start_soon(handshake, near)
        server = ServerTunnel(engine, far, settings)
        await nursery.start(server.run, serve)
        client = ClientTunnel(engine, near, settings)
        await nursery.start(client.run)
        nursery.start_soon(capture, client)
        address = outbound.getsockname()
        for name, work, cpu, scale in LOADS:
            if only not in name:
                continue
            gc.collect()
            before = time.process_time()
            where = app_address if name.startswith("direct") else address
            found = await loaded(partial(work, where, seconds))
            count = found.pop("n")
            figures |= {f"{name}: {figure}": value for figure, value in found.items()}
            figures[f"{name}: {cpu}"] = (time.process_time() - before) / count * scale
        if only in "idle":
            figures |= await idle(address)
        os.kill(app_pid, 9)
        await trio.to_thread.run_sync(os.waitpid, app_pid, 0)
        nursery.cancel_scope.cancel()
    return figures


def measure(chosen: argparse.Namespace) -> yardstick.Figures:
    return trio.run(lambda: main(chosen.seconds, in_front=not chosen.task, only=chosen.only))


if __name__ == "__main__":
    options = yardstick.options(__doc__)
    options.add_argument("--task", action="store_true", help="drive the engine as a Trio task")
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--only", default="", help="loads with this in their name")
    yardstick.run(options, measure, rounds=1)
