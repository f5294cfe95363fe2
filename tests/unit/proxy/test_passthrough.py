"""Plain text entering a pod."""

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, tcp_pair, until
from tests.fakes.world import SERVER, World, deny_all, patient_clock, world
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.listener import peer_address
from ztunnel_trio.proxy.passthrough import Passthrough
from ztunnel_trio.proxy.serving import serve_one

HERE = SERVER.addresses[0]


def knock(it: World, serving: Passthrough, target: SocketAddress) -> App:
    """A client's connection to `target`, redirected to what serves plain text."""

    async def handler(sock: socket.socket, peer: SocketAddress) -> None:
        with it.node.metrics.sockets_open("destination"):
            await serving.serve_to(sock, peer, target)

    near, far = tcp_pair()
    app = App(near)
    it.apps.append(app)
    it.nursery.start_soon(serve_one, handler, far, peer_address(far))
    return app


async def ended(it: World, count: int = 1) -> None:
    await until(lambda: len(it.lines.complete) >= count)


@trio_test
async def test_plain_text_reaches_the_application() -> None:
    async with world() as it:
        there = await it.echo(HERE)
        app = knock(it, it.passthrough(SERVER), there)
        await app.send(b"hello world")
        assert await app.receive_exactly(11) == b"hello world"
        assert it.metric("istio_tcp_sockets_open") == 1
        app.end()
        assert await app.receive() == b""
        await ended(it)
        (line,) = it.lines.complete
        assert (line["dst.addr"], line["bytes_sent"], line["bytes_recv"]) == (str(there), "11", "11")
        assert "error" not in line
        assert "src.identity" not in line


@trio_test
async def test_a_policy_refuses_without_a_byte() -> None:
    async with world() as it:
        it.put(deny_all())
        app = knock(it, it.passthrough(SERVER), await it.echo(HERE))
        assert await app.receive() == b""
        assert it.lines.errors() == [
            "connection closed due to policy rejection: explicitly denied by: ns/deny-all"
        ]


@trio_test
async def test_a_policy_that_changes_ends_it() -> None:
    async with world() as it:
        serving = it.passthrough(SERVER)
        it.nursery.start_soon(serving.registry.watch, it.node.live, SERVER.info, serving.judge.allows)
        app = knock(it, serving, await it.echo(HERE))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        it.put(deny_all())
        await ended(it)
        assert it.lines.errors() == ["connection closed due to policy change"]


@trio_test
async def test_our_own_ports_are_no_destination() -> None:
    async with world() as it:
        app = knock(it, it.passthrough(SERVER), SocketAddress(ip_address("10.9.9.9"), 15008))
        assert await app.receive() == b""
        assert it.lines.errors() == ["attempted recursive call to ourselves"]
        assert it.metric("istio_tcp_connections_opened_total") == 0


@trio_test
async def test_an_application_that_is_not_there() -> None:
    async with world() as it:
        knock(it, it.passthrough(SERVER), SocketAddress(HERE, 1))
        await ended(it)
        assert it.lines.errors() == ["connection failed: Connection refused (os error 111)"]


@trio_test(clock=patient_clock())
async def test_an_application_that_never_answers_and_a_workload_nobody_knows() -> None:
    async with world() as it:
        it.silent.add(HERE)
        app = knock(it, it.passthrough(SERVER), SocketAddress(HERE, 80))
        assert await app.receive() == b""
        app = knock(it, it.passthrough(replace(SERVER, name="nobody")), SocketAddress(HERE, 80))
        assert await app.receive() == b""
        assert it.lines.errors() == [
            "connection failed: deadline has elapsed",
            "failed to fetch information about local workload: server.ns (nobody)",
        ]
        assert trio.current_time() == pytest.approx(15, abs=0.5)


@trio_test
async def test_without_a_redirection_the_destination_is_where_it_came_in() -> None:
    async with world() as it:
        near, far = tcp_pair()
        it.apps.append(App(near))
        there = peer_address(near)
        await serve_one(it.passthrough(SERVER).serve, far, peer_address(far))
        (line,) = it.lines.complete
        assert line["dst.addr"] == str(there)


def test_a_connection_cancelled_anywhere_leaves_one_line_and_nothing_else() -> None:
    worlds: list[World] = []

    async def scenario() -> None:
        async with world() as it:
            worlds.append(it)
            app = knock(it, it.passthrough(SERVER), await it.echo(HERE))
            await app.send(b"x")
            assert await app.receive_exactly(1) == b"x"
            app.end()
            assert await app.receive() == b""

    def check() -> None:
        if worlds:
            assert len(worlds.pop().lines.errors()) <= 1

    assert cancelled_everywhere_now(scenario, check=check, autojump=False) > 15
