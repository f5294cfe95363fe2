"""What namespaced tests do over and over: talk, refuse, change the mesh for a while, read metrics."""

import re
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ztunnel_trio.lab.mesh import Lab, Node, Pod
from ztunnel_trio.lab.resources import stored
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.pb.authorization_pb2 import Authorization
from ztunnel_trio.pb.workload_pb2 import Workload

READ_BYTES = 262_144
HELLO = b"hello world"

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


async def double(stream: trio.SocketStream) -> None:
    """The server of ztunnel's own tests: gives everything back twice."""
    while data := await stream.receive_some(READ_BYTES):
        await stream.send_all(data + data)
    await stream.send_eof()


async def read_all(stream: trio.SocketStream) -> bytes:
    """Everything up to the end; the caller sets the deadline.

    Raises:
        BrokenResourceError: it was reset.
    """
    received = bytearray()
    while data := await stream.receive_some(READ_BYTES):
        received += data
    return bytes(received)


async def read_exactly(stream: trio.SocketStream, count: int) -> bytes:
    """So many bytes; fewer only at the end."""
    received = bytearray()
    while len(received) < count and (data := await stream.receive_some(count - len(received))):
        received += data
    return bytes(received)


async def exchange(pod: Pod, target: SocketAddress, data: bytes = HELLO) -> bytes:
    """Connect, send, say that this was all, and read to the end, within ten seconds.

    Raises:
        OSError, BrokenResourceError: refused or reset.
    """
    with trio.fail_after(10):
        async with await pod.connect(target) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            return await read_all(stream)


async def fate(pod: Pod, target: SocketAddress, data: bytes = HELLO) -> bytes | str:
    """What becomes of such a conversation: the bytes, `refused`, or `cut`: accepted, then no data at all."""
    try:
        return await exchange(pod, target, data) or "cut"
    except ConnectionRefusedError:
        return "refused"
    except (OSError, trio.BrokenResourceError):
        return "cut"


def reset(stream: trio.SocketStream) -> None:
    """Close with a TCP reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def ip_of(pod: Pod, version: int) -> IPAddress:
    return pod.ip if version == 4 else pod.ip6


@asynccontextmanager
async def changed(lab: Lab, pod: Pod, change: Callable[[Workload], None]) -> AsyncGenerator[None, None]:
    """Istiod says something else of a pod, for the body's time."""
    before, pod.change = pod.change, change
    try:
        await lab.push(pod.workload())
        yield
    finally:
        pod.change = before
        await lab.push(pod.workload())


@asynccontextmanager
async def attached(lab: Lab, policy: Authorization, *pods: Pod) -> AsyncGenerator[None, None]:
    """A policy for these pods, for the body's time."""
    key = stored(policy).name
    try:
        await lab.attach_policy(policy, *pods)
        yield
    finally:
        for pod in pods:
            pod.policies.remove(key)
        await lab.push(*(pod.workload() for pod in pods), removed=[key])


@asynccontextmanager
async def told(lab: Lab, *resources: Workload | Authorization) -> AsyncGenerator[None, None]:
    """Workloads and policies that exist for the body's time."""
    try:
        await lab.push(*resources)
        yield
    finally:
        await lab.push(removed=[stored(one).name for one in resources])


@dataclass(frozen=True)
class Sample:
    """One line of a metrics page."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(page: str) -> list[Sample]:
    """The samples of a page in Prometheus's text form."""
    matches = (_SAMPLE.fullmatch(line) for line in page.splitlines() if not line.startswith("#"))
    return [
        Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])) for match in matches if match
    ]


async def total(node: Node, name: str, **labels: str) -> float:
    """The sum of a family's samples with these labels."""
    return sum(
        one.value
        for one in samples(await node.proxy.metrics())
        if one.name == name and all(one.labels.get(label) == value for label, value in labels.items())
    )


TRAFFIC = {
    "opened": "istio_tcp_connections_opened_total",
    "closed": "istio_tcp_connections_closed_total",
    "received": "istio_tcp_received_bytes_total",
    "sent": "istio_tcp_sent_bytes_total",
}


async def traffic(node: Node, **labels: str) -> dict[str, float]:
    """A node's four traffic families, summed over the series with these labels."""
    return {short: await total(node, name, **labels) for short, name in TRAFFIC.items()}


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait for what the kernel or another process brings about.

    Raises:
        TooSlowError: it did not happen.
    """
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  nobody tells
            await trio.sleep(0.005)
