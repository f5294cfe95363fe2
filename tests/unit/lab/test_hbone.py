"""The lab's own HBONE ends, without namespaces: what is said arrives, and what came is told."""

import socket
from ipaddress import IPv4Address

import pytest
import trio

from tests.fakes.gateway import Loopback
from tests.fakes.trio_test import trio_test
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.hbone import HboneServer, Serve, answering, certificate_of, forwarding, open_tunnel
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.identity import SpiffeId

HERE = IPv4Address("127.0.0.1")
GATE, CALLER = (SpiffeId("cluster.local", "default", name) for name in ("gate", "caller"))


async def exchange(handler: Serve) -> tuple[bytes, HboneServer]:
    """One CONNECT to a server with that handler: what it answers, and the server."""
    authority, host = Authority(), Loopback()
    server = HboneServer(host, certificate_of(authority, GATE), handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, 0)
        certificate = certificate_of(authority, CALLER)
        async with open_tunnel(host, host.bound, certificate, [GATE]) as peer:
            answer = await peer.connect(HostPort("a.b", 80), [(b"x", b"y")])
            received = b""
            if answer.status == 200:
                async with peer.converse(answer) as stream:
                    await stream.send_all(b"hello")
                    await stream.send_eof()
                    while data := await stream.receive_some():
                        received += data
            else:
                received = str(answer.status).encode()
                answer.close()
        nursery.cancel_scope.cancel()
    return received, server


@trio_test
async def test_an_application_answers_in_the_tunnel_and_the_connect_is_kept() -> None:
    received, server = await exchange(answering(apps.echo))

    [connect] = server.connects
    assert received == b"hello"
    assert (connect.authority, connect.identity) == ("a.b:80", CALLER)
    assert connect.headers["x"] == ["y"]
    assert connect.client.ip == HERE


@pytest.mark.parametrize(("is_there", "answer"), [(True, b"hello"), (False, b"503")])
@trio_test
async def test_a_gateway_carries_on_to_its_target_or_says_503(is_there: bool, answer: bytes) -> None:
    listener = socket.create_server((str(HERE), 0))
    target = SocketAddress(HERE, listener.getsockname()[1])
    async with trio.open_nursery() as nursery:
        if is_there:
            there = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            nursery.start_soon(trio.serve_listeners, apps.echo, [there])
        else:
            listener.close()
        received, _ = await exchange(forwarding(Loopback(), target))
        nursery.cancel_scope.cancel()

    assert received == answer
