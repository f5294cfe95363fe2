"""Datagrams: bursts make way, and what is over a pod's share is dropped unread and counted."""

import itertools
import random
import socket
from ipaddress import IPv4Address

import dns.message
import trio

from tests.fakes.dns_mesh import CLIENT, external, mesh_of
from tests.fakes.trio_test import trio_test
from tests.fakes.upstream_dns import FACTORY
from tests.unit.dns.test_server import Counts
from ztunnel_trio.dns.answers import NameAnswers
from ztunnel_trio.dns.forward import Budget, Forwarder
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.dns.settings import DnsSettings
from ztunnel_trio.dns.share import LoopAllowance, Share
from ztunnel_trio.dns.udp import UdpPort
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import SocketAddress

QUERY = dns.message.make_query("x.io", "A").to_wire()


def answers(counts: Counts) -> NameAnswers:
    nobody = ResolvConf(servers=(SocketAddress(IPv4Address("127.0.0.1"), 9),))
    return NameAnswers(
        live=LiveMesh(mesh_of([external("x.io", "ns1", "10.0.0.1")])),
        client=CLIENT.info,
        forwarder=Forwarder(FACTORY, nobody),
        settings=DnsSettings(),
        metrics=counts,
        rng=random.Random(1),
        budget=Budget(1),
    )


@trio_test
async def test_a_burst_is_read_in_turns_between_which_others_run() -> None:
    counts, turns = Counts(), list[int]()
    clock = iter(range(1_000_000))
    share = Share(LoopAllowance(1.0), now=lambda: next(clock) * 0.0004)  # two looks at the clock end a turn
    with (
        FACTORY.listen_udp(SocketAddress(IPv4Address("127.0.0.1"), 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect(server.getsockname())
        for _ in range(50):
            client.send(QUERY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(UdpPort(server, answers(counts), share, counts, nursery).serve)
            while counts.requests.total() < 50:
                turns.append(counts.requests.total())
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2


@trio_test
async def test_what_the_kernel_drops_is_counted() -> None:
    counts = Counts()
    with FACTORY.listen_udp(SocketAddress(IPv4Address("127.0.0.1"), 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(server.getsockname())
            for _ in range(100):
                client.send(QUERY)
            async with trio.open_nursery() as nursery:
                port = UdpPort(server, answers(counts), Share(LoopAllowance(1.0)), counts, nursery)
                nursery.start_soon(port.serve)
                with trio.fail_after(5):
                    while counts.requests.total() + counts.unread < 100:
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    assert counts.unread > 0
    assert counts.requests.total() + counts.unread == 100
